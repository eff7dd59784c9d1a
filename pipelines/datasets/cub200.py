"""CUB-200-2011: 200 species of birds, one bird in an image, its box and 15 landmarks.

The data set as it is published, in the archive ``CUB_200_2011.tgz`` or unpacked in the folder ``CUB_200_2011``:

    images/<class>/<name>.jpg    class folders such as 001.Black_footed_Albatross
    images.txt                   <image> <class>/<name>.jpg
    classes.txt                  <class> <name>
    image_class_labels.txt       <image> <class>
    train_test_split.txt         <image> <1 for training, 0 for test>
    bounding_boxes.txt           <image> <x> <y> <width> <height>
    parts/parts.txt              <part> <name>
    parts/part_locs.txt          <image> <part> <x> <y> <1 if visible, else 0>

Pixels are counted from 0. A landmark is published as the position of a pixel; it is placed in the centre of that
pixel, half a pixel further in the coordinates of ``pipelines.shards.samples``. The numbers of a box are taken as its
edges.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import images
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk, splits, unpack
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

ARCHIVES = {"CUB_200_2011.tgz": "CUB_200_2011"}
IMAGES, CLASSES, LABELS, TRAINING = "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"
BOXES, PARTS, LOCATIONS = "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt"
COUNTS = {"images": 11_788, "classes": 200, "parts": 15, "training images": 5_994, "test images": 5_794}


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError
    return number


def _flag(word: str) -> int:
    return ("0", "1").index(word)


COLUMNS: dict[str, dict[str, Callable[[str], Any]]] = {
    IMAGES: {"image": int, "file": str},
    CLASSES: {"class": int, "name": str},
    LABELS: {"image": int, "class": int},
    TRAINING: {"image": int, "training": _flag},
    BOXES: {"image": int, "x": _finite, "y": _finite, "width": _finite, "height": _finite},
    PARTS: {"part": int, "name": str},
    LOCATIONS: {"image": int, "part": int, "x": _finite, "y": _finite, "visible": _flag},
}

logger = logging.getLogger(__name__)


class Cub200:
    """One split of CUB-200-2011.

    ``train`` and ``test`` are the official parts; ``val`` is a share of every class of ``train``, which ``train`` then
    lacks. Of each class at least one image stays for training, and one goes to validation if there are two.

    A landmark outside of the image keeps its position and counts as not visible. A box is cut to the image.

    Args:
        raw: The folder that holds ``CUB_200_2011`` or its archive, which is unpacked there; or ``CUB_200_2011`` itself.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to validation.
        val_fraction: Share of the official training images that goes to validation, in [0, 1).
        allow_partial: Whether the data set may be a part of the published one. Images without a file are left out;
            the classes stay those of ``classes.txt``, so that the labels stay official.

    Attributes:
        class_names: Name of every class in the order of the labels, without its number: Black footed Albatross. The
            200 published names are unique without it.
        landmark_names: Name of every landmark: back, beak, ...

    Raises:
        ValueError: an argument is wrong; a file is missing, malformed or contradicts another; or the data set is not
            complete.
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
        self._folder = folder = _folder(Path(raw))
        files, classes, parts = (_table(folder, name) for name in (IMAGES, CLASSES, PARTS))
        self.class_names = tuple(map(_readable, classes.values()))
        self.landmark_names = tuple(map(_readable, parts.values()))

        training = _by_image(folder, TRAINING, files)[:, 0, 0] == 1
        counts = (len(files), len(classes), len(parts), int(training.sum()), int((~training).sum()))
        for (what, expected), count in zip(COUNTS.items(), counts, strict=True):
            check_count(f"{folder}: {what}", count, expected, allow_partial)
        labels = _by_image(folder, LABELS, files)[:, 0, 0]
        _require(folder, LABELS, files, np.isin(labels, list(classes)), f"a class of {CLASSES}")
        boxes = _by_image(folder, BOXES, files)[:, 0]
        locations = _by_image(folder, LOCATIONS, files, lines=len(parts))
        each_part = (locations[:, :, 0] == list(parts)).all(axis=1)
        _require(folder, LOCATIONS, files, each_part, f"every part of {PARTS} once")

        paths = [f"images/{path}" for path in files.values()]
        rows = np.flatnonzero(training == (split != "test"))
        rows = rows[on_disk(folder, [paths[row] for row in rows], allow_partial)]
        if split != "test":
            kept: list[int] = []
            for number, name in zip(classes, self.class_names, strict=True):
                kept += held_out(rows[labels[rows] == number].tolist(), split, f"{seed}/{name}", val_fraction)
            rows = np.array(kept, dtype=int)
        if not len(rows):
            raise ValueError(f"{folder}: no images for the split {split!r}")

        self._sources = [paths[row] for row in rows]
        self._numbers = np.array(list(files))[rows]
        self._labels = np.searchsorted(list(classes), labels[rows])
        self._boxes = np.concatenate([boxes[rows, :2], boxes[rows, :2] + boxes[rows, 2:]], axis=1).astype(np.float32)
        self._landmarks = (locations[rows, :, 1:3] + 0.5).astype(np.float32)
        self._visibility = locations[rows, :, 3] == 1

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Raises:
            ValueError: the file cannot be decoded, or the box lies outside of the image; the message names the file.
            OSError: the file cannot be read.
        """
        source = self._sources[index]
        try:
            jpeg, width, height = images.to_jpeg((self._folder / source).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        box = self._boxes[index].clip(0, (width, height, width, height))
        if not (box[:2] < box[2:]).all():
            raise ValueError(f"{source}: box {self._boxes[index].tolist()} is not in the {width}x{height} image")
        landmarks = self._landmarks[index]
        inside = ((landmarks >= 0) & (landmarks <= (width, height))).all(axis=1)
        return Sample(
            key=f"cub-{self._numbers[index]:05d}",
            jpeg=jpeg,
            label=int(self._labels[index]),
            width=width,
            height=height,
            source=source,
            landmarks=landmarks,
            visibility=self._visibility[index] & inside,
            boxes=box[None],
        )

    def source(self, index: int) -> str:
        """Path of an image below ``CUB_200_2011``, whichever folder was named."""
        return self._sources[index]

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        return Schema(classes=self.class_names, landmarks=self.landmark_names)

    def digest(self) -> str:
        """SHA-256 of the annotation and of the paths and sizes of the images, the same on every machine."""
        return digest(self._folder, [self._folder / name for name in COLUMNS], self._sources)


def _folder(raw: Path) -> Path:
    """``CUB_200_2011``, unpacked if need be."""
    if not (raw / IMAGES).exists():
        unpack(raw, ARCHIVES)
    return find(raw, IMAGES, f"CUB_200_2011/{IMAGES}").parent


def _table(folder: Path, name: str) -> dict[int, str]:
    """What a file calls its numbers, in their order."""
    table: dict[int, str] = {}
    for number, text in _rows(folder, name):
        if number in table:
            raise ValueError(f"{folder / name}: {number} is listed twice")
        table[number] = text
    return dict(sorted(table.items()))


def _by_image(folder: Path, name: str, files: Mapping[int, str], lines: int = 1) -> np.ndarray:
    """float64 [images, lines, columns but the first]: what a file says of every image, its lines sorted."""
    by_image: dict[int, list[list]] = {image: [] for image in files}
    for image, *values in _rows(folder, name):
        if image not in by_image:
            raise ValueError(f"{folder / name}: image {image} is not in {IMAGES}")
        by_image[image].append(values)
    counts = np.array([len(values) for values in by_image.values()], dtype=int)
    _require(folder, name, files, counts == lines, f"{lines} lines" if lines > 1 else "one line")
    shape = len(files), lines, len(COLUMNS[name]) - 1
    return np.array([sorted(values) for values in by_image.values()], dtype=float).reshape(shape)


def _require(folder: Path, name: str, files: Mapping[int, str], fulfilled: np.ndarray, expected: str) -> None:
    """Refuses a file for the first image for which something is not fulfilled, bool [images]."""
    if not fulfilled.all():
        raise ValueError(f"{folder / name}: image {list(files)[fulfilled.argmin()]}: expected {expected}")


def _rows(folder: Path, name: str) -> Iterator[list[Any]]:
    """The columns of a file, line by line; spaces belong to the last one."""
    columns = COLUMNS[name]
    with find(folder, name).open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            words = line.strip().split(maxsplit=len(columns) - 1)
            try:
                values = [kind(word) for kind, word in zip(columns.values(), words, strict=True)]
            except ValueError:
                raise ValueError(
                    f"{folder / name}: line {number}: expected {' '.join(columns)}, got {line.strip()[:80]!r}"
                ) from None
            yield values


def _readable(name: str) -> str:
    """001.Black_footed_Albatross -> Black footed Albatross"""
    return re.sub(r"^\d+\.", "", name).replace("_", " ")
