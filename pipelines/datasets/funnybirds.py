"""FunnyBirds (Hesse et al., ICCV 2023): 50 species of rendered birds with a mask for each of five parts.

The data set as it is published, in the archive ``FunnyBirds.zip`` or unpacked in the folder ``FunnyBirds``:

    classes.json            [{"class_idx": 0, "parts": {"beak": 3, "eye": 0, ...}}, ...]; how each part looks
    parts.json              {"beak": [...], ...}: the parts, and all their looks
    dataset_<split>.json    one entry for each image: its "class_idx", "<part>_<attribute>" of what was rendered, or
                            "placeholder" for a part that was left out, and "bg_objects": the things in the background
    <split>/<class>/<image>.png             image of six digits, its place in dataset_<split>.json
    <split>_part_map/<class>/<image>.png    masks, in the colours of ``COLOURS``
    test_interventions/                     see ``pipelines.datasets.interventions``

A species is a look for each part; it has no name. Training images lack parts at random, test images have all. So
several species can be right of a training image.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines import images
from pipelines.alike import answers
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk, splits, unpack
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

ARCHIVES = {"FunnyBirds.zip": "FunnyBirds"}
CLASSES, PARTS = "classes.json", "parts.json"
COUNTS = {"classes": 50, "parts": 5, "train": 50_000, "test": 500}
COLOURS = {  # of the masks
    (255, 255, 0): "beak",
    (255, 255, 253): "eye",
    (255, 255, 254): "eye",
    (255, 0, 1): "foot",
    (255, 0, 2): "foot",
    (0, 0, 255): "tail",
    (0, 255, 1): "wing",
    (0, 255, 2): "wing",
}
THING = (204, 204, 204)  # of the first thing in the background; the blue of the next ones is one more each
PLACEHOLDER = "placeholder"


class FunnyBirds:
    """One split of FunnyBirds.

    ``train`` and ``test`` are the official parts; ``val`` is a share of every class of ``train``, which ``train`` then
    lacks. Of each class at least one image stays for training, and one goes to validation if there are two.

    Args:
        raw: The folder that holds ``FunnyBirds`` or its archive, which is unpacked there; or ``FunnyBirds`` itself.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to validation.
        val_fraction: Share of the training images that goes to validation, in [0, 1).
        allow_partial: Whether to accept other numbers of classes, parts and images than the published ones, and to
            leave out images whose file is missing.

    Attributes:
        class_names: ``species 00`` and so on.
        part_names: Of every part: beak, eye, foot, tail, wing.

    Raises:
        ValueError: an argument is wrong; a file is missing or malformed; or the data set is not complete.
        OSError: a file cannot be read, or the archive cannot be unpacked.
    """

    def __init__(
        self,
        raw: str | os.PathLike,
        split: str,
        seed: int = 0,
        val_fraction: float = 0.0,
        allow_partial: bool = False,
    ) -> None:
        if split not in splits(val_fraction):
            raise ValueError(f"split: expected {', '.join(splits(val_fraction))}, got {split!r}")
        self._folder = unpacked(Path(raw))
        self.part_names, self._classes = read_classes(self._folder)
        self.class_names = tuple(f"species {number:02d}" for number in range(len(self._classes)))
        self._official = "test" if split == "test" else "train"
        entries = read_images(self._folder, self._official, len(self._classes))
        found = {"classes": len(self._classes), "parts": len(self.part_names), self._official: len(entries)}
        for what, count in found.items():
            check_count(f"{self._folder}: {what}", count, COUNTS[what], allow_partial)
        of_class: dict[int, list[int]] = defaultdict(list)
        for number, entry in enumerate(entries):
            of_class[entry["class_idx"]].append(number)
        chosen = [
            number
            for label, numbers in sorted(of_class.items())
            for number in (numbers if split == "test" else held_out(numbers, split, f"{seed}/{label}", val_fraction))
        ]
        files = [file_of(self._official, entries[number]["class_idx"], number) for number in chosen]
        there = on_disk(self._folder, files, allow_partial)
        self._numbers = [number for number, is_there in zip(chosen, there, strict=True) if is_there]
        if not self._numbers:
            raise ValueError(f"{raw}: no images for the split {split!r}")
        self._entries = [entries[number] for number in self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Its box is the smallest around all of its parts. Without a folder of masks it has neither masks nor a box.

        Raises:
            ValueError: a file cannot be decoded; the message names it.
            OSError: a file cannot be read.
        """
        label, source = self._entries[index]["class_idx"], self.source(index)
        try:
            jpeg, width, height = images.to_jpeg((self._folder / source).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        box = part_map = None
        if (self._folder / f"{self._official}_part_map").is_dir():
            colours = read_colours(self._folder, self._official, label, self._numbers[index])
            part_map = np.zeros(colours.shape[:2], np.uint8)
            for p, name in enumerate(self.part_names, 1):
                part_map[part_mask(colours, name)] = p
            y, x = (np.flatnonzero(part_map.any(axis=axis)) for axis in (1, 0))
            box = np.array([[x[0], y[0], x[-1] + 1, y[-1] + 1]] if len(x) else np.empty((0, 4)), np.float32)
        absent = _absent(self._entries[index], self.part_names)
        return Sample(
            key=f"funnybirds-{self._official}-{self._numbers[index]:06d}",
            jpeg=jpeg,
            label=label,
            width=width,
            height=height,
            source=source,
            boxes=box,
            part_map=part_map,
            absent=absent,
            answers=answers(self._classes, label, absent),
        )

    def source(self, index: int) -> str:
        """Path of an image below ``FunnyBirds``."""
        return file_of(self._official, self._entries[index]["class_idx"], self._numbers[index])

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        return Schema(classes=self.class_names, parts=self.part_names)

    def digest(self) -> str:
        """SHA-256 of the lists of classes, parts and images, and of the names and sizes of the images."""
        lists = [self._folder / name for name in (CLASSES, PARTS, f"dataset_{self._official}.json")]
        return digest(self._folder, lists, map(self.source, range(len(self))))


def unpacked(raw: Path) -> Path:
    """``FunnyBirds``, unpacked if need be.

    Raises:
        ValueError: it is not there, or the archive is damaged.
    """
    if not (raw / CLASSES).exists():
        unpack(raw, ARCHIVES)
    return find(raw, CLASSES, f"FunnyBirds/{CLASSES}").parent


def read_classes(folder: Path) -> tuple[tuple[str, ...], list[dict[str, int]]]:
    """The names of the parts, and for every class how each part looks.

    Raises:
        ValueError: a file is missing or malformed, or two classes look the same.
    """
    parts = tuple(_read(folder / PARTS, dict))
    if not parts or not set(parts) <= set(COLOURS.values()):
        raise ValueError(f"{folder / PARTS}: expected parts of {', '.join(sorted({*COLOURS.values()}))}, got {parts}")
    classes: list[dict[str, int]] = []
    for number, entry in enumerate(_read(folder / CLASSES, list)):
        looks = entry.get("parts") if isinstance(entry, dict) else None
        if not isinstance(looks, dict) or set(looks) != set(parts) or entry.get("class_idx") != number:
            raise ValueError(f"{folder / CLASSES}: expected class {number} with a look for each part, got {entry}")
        if looks in classes:
            raise ValueError(f"{folder / CLASSES}: class {number} looks like class {classes.index(looks)}")
        classes.append({name: looks[name] for name in parts})
    return parts, classes


def read_images(folder: Path, split: str, classes: int) -> list[dict[str, Any]]:
    """What was rendered in every image of an official split.

    Raises:
        ValueError: the file is missing or malformed, or names a class that there is not.
    """
    path = folder / f"dataset_{split}.json"
    entries = _read(path, list)
    for number, entry in enumerate(entries):
        label = entry.get("class_idx") if isinstance(entry, dict) else None
        if type(label) is not int or not 0 <= label < classes:
            raise ValueError(f"{path}: image {number}: expected class_idx 0 to {classes - 1}, got {label!r}")
    return entries


def file_of(folder: str, label: int, number: int) -> str:
    """Path of an image below ``FunnyBirds``."""
    return f"{folder}/{label}/{number:06d}.png"


def read_colours(folder: Path, split: str, label: int, number: int) -> np.ndarray:
    """The masks of an image, uint8 [H, W, 3].

    Raises:
        ValueError: the file is missing or no image.
    """
    path = folder / file_of(f"{split}_part_map", label, number)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: expected the masks of an image ({error})") from None


def part_mask(colours: np.ndarray, name: str) -> np.ndarray:
    """Where a part is seen: bool [H, W]."""
    own = [(colours == colour).all(2) for colour, part in COLOURS.items() if part == name]
    return np.any(own, axis=0)


def _absent(entry: dict[str, Any], parts: tuple[str, ...]) -> tuple[str, ...]:
    looks = {name: [value for key, value in entry.items() if key.startswith(f"{name}_")] for name in parts}
    return tuple(name for name, values in looks.items() if PLACEHOLDER in values)


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got a {type(content).__name__}")
    return content
