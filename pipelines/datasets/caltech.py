"""The raw layout of CUB-200-2011, which NABirds shares: a line for every image, class and landmark in text files.

    images/<folder>/<name>.jpg
    images.txt                   <image> <folder>/<name>.jpg
    classes.txt                  <class> <name>
    image_class_labels.txt       <image> <class>
    train_test_split.txt         <image> <1 for training, 0 for test>
    bounding_boxes.txt           <image> <x> <y> <width> <height>
    parts/parts.txt              <part> <name>
    parts/part_locs.txt          <image> <part> <x> <y> <1 if visible, else 0>

Pixels are counted from 0. A landmark is published as the position of a pixel; it is placed in the centre of that
pixel, half a pixel further in the coordinates of ``pipelines.shards.samples``. The numbers of a box are taken as its
edges. A landmark outside of the image keeps its position and counts as not visible. A box is cut to the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipelines import images
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

IMAGES, CLASSES, LABELS, TRAINING = "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"
BOXES, PARTS, LOCATIONS = "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt"

Columns = Mapping[str, Callable[[str], Any]]  # name of every column -> what reads a word of it; ValueError if it cannot


def finite(word: str) -> float:
    """A number that is not infinite."""
    if not math.isfinite(number := float(word)):
        raise ValueError
    return number


def flag(word: str) -> int:
    """0 or 1."""
    return ("0", "1").index(word)


def columns(image: Callable[[str], Any]) -> dict[str, Columns]:
    """File -> its columns.

    Args:
        image: What reads the id of an image.
    """
    return {
        IMAGES: {"image": image, "file": str},
        CLASSES: {"class": int, "name": str},
        LABELS: {"image": image, "class": int},
        TRAINING: {"image": image, "training": flag},
        BOXES: {"image": image, "x": finite, "y": finite, "width": finite, "height": finite},
        PARTS: {"part": int, "name": str},
        LOCATIONS: {"image": image, "part": int, "x": finite, "y": finite, "visible": flag},
    }


class CaltechSplit:
    """One split of a data set in this layout.

    Args:
        folder: That of ``images.txt``.
        columns: File -> its columns.
        counts: Published numbers: of images, classes, visual categories (classes that images have), parts, training
            images and test images, those that are known.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to validation.
        val_fraction: Share of the official training images that goes to validation, in [0, 1).
        allow_partial: Whether the data set may be a part of the published one.
        groups: Number of every class -> its super-category. With it only the classes that images have are used.

    Attributes:
        class_names: Name of every class in the order of the labels.
        super_categories: Super-category of every class; empty if there are none.
        landmark_names: Name of every landmark.

    Raises:
        ValueError: an argument is wrong; a file is missing, malformed or contradicts another; or the data set is not
            complete.
        OSError: a file cannot be read.
    """

    KEY: ClassVar[str]  # with a place for the id of an image

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, Columns],
        counts: Mapping[str, int],
        split: str,
        seed: int,
        val_fraction: float,
        allow_partial: bool,
        groups: Mapping[int, str] | None = None,
    ) -> None:
        self._folder, self._annotations = folder, [folder / name for name in columns]
        files, classes, parts = (table(folder, name, columns[name]) for name in (IMAGES, CLASSES, PARTS))
        training = _by_image(folder, TRAINING, columns[TRAINING], files)[:, 0, 0] == 1
        labels = _by_image(folder, LABELS, columns[LABELS], files)[:, 0, 0]
        _require(folder, LABELS, files, np.isin(labels, list(classes)), f"a class of {CLASSES}")
        used = list(classes) if groups is None else np.unique(labels).astype(int).tolist()
        counted = {
            "images": len(files),
            "classes": len(classes),
            "visual categories": len(used),
            "parts": len(parts),
            "training images": int(training.sum()),
            "test images": int((~training).sum()),
        }
        for what, expected in counts.items():
            check_count(f"{folder}: {what}", counted[what], expected, allow_partial)
        boxes = _by_image(folder, BOXES, columns[BOXES], files)[:, 0]
        locations = _by_image(folder, LOCATIONS, columns[LOCATIONS], files, lines=len(parts))
        each_part = (locations[:, :, 0] == list(parts)).all(axis=1)
        _require(folder, LOCATIONS, files, each_part, f"every part of {PARTS} once")

        self.class_names = tuple(_readable(classes[number]) for number in used)
        self.super_categories = tuple(groups[number] for number in used) if groups else ()
        self.landmark_names = tuple(map(_readable, parts.values()))
        paths = [f"images/{path}" for path in files.values()]
        rows = np.flatnonzero(training == (split != "test"))
        rows = rows[on_disk(folder, [paths[row] for row in rows], allow_partial)]
        if split != "test":
            kept: list[int] = []
            for number, name in zip(used, self.class_names, strict=True):
                kept += held_out(rows[labels[rows] == number].tolist(), split, f"{seed}/{name}", val_fraction)
            rows = np.array(kept, dtype=int)
        if not len(rows):
            raise ValueError(f"{folder}: no images for the split {split!r}")

        self._sources = [paths[row] for row in rows]
        ids = list(files)
        self._ids = [ids[row] for row in rows]
        self._labels = np.searchsorted(used, labels[rows])
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
        label, landmarks = int(self._labels[index]), self._landmarks[index]
        inside = ((landmarks >= 0) & (landmarks <= (width, height))).all(axis=1)
        return Sample(
            key=self.KEY.format(self._ids[index]),
            jpeg=jpeg,
            label=label,
            width=width,
            height=height,
            source=source,
            super_category=self.super_categories[label] if self.super_categories else None,
            landmarks=landmarks,
            visibility=self._visibility[index] & inside,
            boxes=box[None],
        )

    def source(self, index: int) -> str:
        """Path of an image below the folder of ``images.txt``, whichever folder was named."""
        return self._sources[index]

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        return Schema(classes=self.class_names, super_categories=self.super_categories, landmarks=self.landmark_names)

    def digest(self) -> str:
        """SHA-256 of the annotation and of the paths and sizes of the images, the same on every machine."""
        return digest(self._folder, self._annotations, self._sources)


def table(folder: Path, name: str, columns: Columns) -> dict[Any, Any]:
    """What a file of two columns says of every number or id, in their order.

    Raises:
        ValueError: the file is missing, a line is malformed, or an id is listed twice.
        OSError: it cannot be read.
    """
    said: dict[Any, Any] = {}
    for number, text in rows(folder, name, columns):
        if number in said:
            raise ValueError(f"{folder / name}: {number} is listed twice")
        said[number] = text
    return dict(sorted(said.items()))


def _by_image(folder: Path, name: str, columns: Columns, files: Mapping[Any, str], lines: int = 1) -> np.ndarray:
    """float64 [images, lines, columns but the first]: what a file says of every image, its lines sorted."""
    by_image: dict[Any, list[list]] = {image: [] for image in files}
    for image, *values in rows(folder, name, columns):
        if image not in by_image:
            raise ValueError(f"{folder / name}: image {image} is not in {IMAGES}")
        by_image[image].append(values)
    counts = np.array([len(values) for values in by_image.values()], dtype=int)
    _require(folder, name, files, counts == lines, f"{lines} lines" if lines > 1 else "one line")
    shape = len(files), lines, len(columns) - 1
    return np.array([sorted(values) for values in by_image.values()], dtype=float).reshape(shape)


def _require(folder: Path, name: str, files: Mapping[Any, str], fulfilled: np.ndarray, expected: str) -> None:
    """Refuses a file for the first image for which something is not fulfilled, bool [images]."""
    if not fulfilled.all():
        raise ValueError(f"{folder / name}: image {list(files)[fulfilled.argmin()]}: expected {expected}")


def rows(folder: Path, name: str, columns: Columns) -> Iterator[list[Any]]:
    """The columns of a file, line by line; spaces belong to the last one.

    Raises:
        ValueError: the file is missing, or a line is malformed.
        OSError: it cannot be read.
    """
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
