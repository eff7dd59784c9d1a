"""CelebA: 202,599 faces with 40 attributes and five landmarks, aligned or as they were found on the web.

The files as published, in their folders or all in one:

    Img/img_align_celeba/000001.jpg         aligned, 178x218 pixels; or Img/img_align_celeba.zip
    Img/img_celeba/000001.jpg               not aligned, of any size; 7z extracts them from img_celeba.7z.001, ...
    Anno/list_attr_celeba.txt               <image> <1 or -1 for each attribute>
    Anno/list_landmarks_align_celeba.txt    <image> <x> <y> <x> <y> ..., in the aligned image
    Anno/list_landmarks_celeba.txt          the same in the image that is not aligned
    Anno/list_bbox_celeba.txt               <image> <x> <y> <width> <height>, in the image that is not aligned
    Eval/list_eval_partition.txt            <image> <0 for training, 1 for validation, 2 for testing>
    MAFL/training.txt, MAFL/testing.txt     <image>; published on their own, as a data set that is a part of CelebA

The files in ``Anno`` start with the number of images and a line of column names. Any number of spaces separates two
columns. The lists of MAFL may lie in ``Anno`` or ``Eval`` as well.

The copy on Kaggle is read, too: ``list_attr_celeba.csv`` and so on, with commas, a line of column names and no number
of images, and the aligned images in ``img_align_celeba/img_align_celeba``.

Pixels are counted from 0, though the publishers do not say so. A landmark is published as a whole pixel; its place is
the centre of that pixel, half a pixel further in the coordinates of ``pipelines.shards.samples``. A landmark outside of
the image keeps its position and counts as not visible, every other one as visible. A box is published by its first
pixel and its size, so that its edges stay as they are; it is cut to the image.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipelines import images
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk, splits, unpack
from pipelines.formats import open_image
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

ARCHIVES = {"img_align_celeba.zip": "img_align_celeba"}
ATTRIBUTES = 40
LANDMARKS = ("left eye", "right eye", "nose", "left mouth", "right mouth")
PARTITION = {"train": 162_770, "val": 19_867, "test": 19_962}  # its number in the file is the place in this order
LARGE_FACES = {"train": 45_609, "fit": 5_379, "test": 283}
MIN_FACE_PERCENT = 30
PIXELS = range(-100_000, 100_000)  # numbers that can be a position or a size
NAME = re.compile(r"\d{6}\.jpg")
READERS = 16  # threads: an image that is not cached keeps one waiting for the disk
BLOCK = 10_000  # images between two lines of the log

Rows = dict[str, list[int]]  # file name of an image -> the numbers in its line

logger = logging.getLogger(__name__)


class _Faces:
    """The images of one split with their attributes and landmarks: what both settings share."""

    SIZE: ClassVar[tuple[int, int] | None] = None
    landmark_names = LANDMARKS

    def __init__(
        self,
        raw: Path,
        folder: Path,
        names: Sequence[str],
        landmarks: Path,
        chosen_by: Iterable[Path],
        allow_partial: bool,
        boxes: np.ndarray | None = None,
        prefix: str = "celeba",
    ) -> None:
        """Reads what is known of the images.

        Args:
            raw: The folder of the data set.
            folder: That of the images.
            names: File name of every image of the split.
            landmarks: The file of the landmarks.
            chosen_by: The files that decide which images are in the split.
            allow_partial: Whether a file may hold fewer images than it announces.
            boxes: float32 [images, 4], x0, y0, x1, y1, or None.
            prefix: What the keys start with.
        """
        attributes = _find(raw, "Anno/list_attr_celeba.txt")
        header, rows = _read_table(attributes, ATTRIBUTES, allow_partial, allowed=(-1, 1))
        self.raw = raw
        self.class_names = tuple(name.replace("_", " ") for name in header)
        self._folder = folder.relative_to(raw).as_posix()
        self._names = names
        self._prefix = prefix
        self._annotations = (attributes, landmarks, *chosen_by)
        self._labels = (_select(attributes, rows, names) == 1).astype(np.uint8)
        _, rows = _read_table(landmarks, 2 * len(LANDMARKS), allow_partial)
        points = _select(landmarks, rows, names).reshape(len(names), len(LANDMARKS), 2)
        self._landmarks = (points + 0.5).astype(np.float32)
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Raises:
            ValueError: the file cannot be decoded, is an aligned image of another size, or the box lies outside of the
                image; the message names the file.
            OSError: the file cannot be read.
        """
        source = self.source(index)
        try:
            jpeg, width, height = images.to_jpeg((self.raw / source).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if self.SIZE not in (None, (width, height)):
            raise ValueError(f"{source}: expected {self.SIZE[0]}x{self.SIZE[1]} pixels, got {width}x{height}")
        boxes = None
        if self._boxes is not None:
            boxes = self._boxes[[index]].clip(0, (width, height, width, height))
            if not (boxes[:, :2] < boxes[:, 2:]).all():
                raise ValueError(f"{source}: box {self._boxes[index].tolist()} is not in the {width}x{height} image")
        landmarks = self._landmarks[index]
        return Sample(
            key=f"{self._prefix}-{self._names[index].removesuffix('.jpg')}",
            jpeg=jpeg,
            label=tuple(self._labels[index].tolist()),
            width=width,
            height=height,
            source=source,
            landmarks=landmarks,
            visibility=((landmarks >= 0) & (landmarks <= (width, height))).all(axis=1),
            boxes=boxes,
        )

    def source(self, index: int) -> str:
        """Path of an image below the raw folder."""
        return f"{self._folder}/{self._names[index]}"

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        return Schema(classes=self.class_names, landmarks=self.landmark_names, multi_label=True)

    def digest(self) -> str:
        """SHA-256 of the annotation files and of the names and sizes of the images, the same on every machine."""
        return digest(self.raw, self._annotations, map(self.source, range(len(self))))


class AlignedCelebA(_Faces):
    """One split of the aligned faces, for the recognition of attributes: the official partition.

    A sample has no box.

    Args:
        raw: The folder of the data set. An archive of the images is extracted there, once.
        split: One of ``SPLITS``: train (162,770 images), val (19,867) or test (19,962).
        allow_partial: Whether the data set may be a part of the published one. Images without a file are left out.

    Attributes:
        class_names: Name of every attribute in the order of the labels: 5 o Clock Shadow, Arched Eyebrows, ...
        landmark_names: Name of every landmark, left and right as in the image.

    Raises:
        ValueError: an argument is wrong, a file is missing or malformed, the archive is damaged, or the data set is not
            complete.
        OSError: a file cannot be read, or the archive cannot be extracted.
    """

    SPLITS = tuple(PARTITION)
    SIZE = (178, 218)

    def __init__(self, raw: str | os.PathLike, split: str, allow_partial: bool = False) -> None:
        raw = Path(raw)
        _check_arguments(raw, split, self.SPLITS)
        places = ("Img/img_align_celeba", "img_align_celeba")
        if not any((raw / place).exists() for place in places):
            for parent in (raw / "Img", raw):
                if parent.is_dir():
                    unpack(parent, ARCHIVES)
        folder = find(raw, *places)
        inner = folder / folder.name  # on Kaggle
        folder = inner if inner.is_dir() else folder
        partition = _find(raw, "Eval/list_eval_partition.txt")
        members = _members(partition, split, allow_partial)
        names = list(itertools.compress(members, on_disk(folder, members, allow_partial)))
        if not names:
            raise ValueError(f"{folder}: no images for the split {split!r}")
        landmarks = _find(raw, "Anno/list_landmarks_align_celeba.txt")
        super().__init__(raw, folder, names, landmarks, [partition], allow_partial)


class UnalignedCelebA(_Faces):
    """One split of the faces that are not aligned, for the localisation of landmarks: the setting of SCOPS.

    Only faces count whose box covers at least 30 % of the image: width times height, both as published, even where the
    box reaches beyond the image. Of these

    - ``train`` has the training partition of CelebA without the test images of MAFL (45,609 of 161,962 images),
    - ``fit``, for fitting the regression to landmarks, the training images of MAFL (5,379 of 19,000),
    - ``test`` the test images of MAFL (283 of 1,000),
    - ``val``, to choose settings by, a share of the images of ``train`` that are not in ``fit``; ``train`` then lacks
      it. The published setting has none; the authors' code looks at faces of CelebA's validation partition instead.

    MAFL was drawn from all of CelebA. So most of ``fit`` is in ``train`` as well, where its landmarks are not used, and
    its keys are others there. 808 test images of MAFL are training images of CelebA, and 162,770 - 808 is the length of
    the training list that goes with this setting. The numbers of faces are checked against the published ones.

    The sizes of images are read from their headers, several at a time. An image without a readable header is left out.

    Args:
        raw: The folder of the data set.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to ``val``.
        val_fraction: Share of the images of ``train`` outside of ``fit`` that goes to ``val``, in [0, 1).
        allow_partial: Whether the data set may be a part of the published one. Images without a file are left out.

    Attributes:
        class_names: Name of every attribute in the order of the labels: 5 o Clock Shadow, Arched Eyebrows, ...
        landmark_names: Name of every landmark, left and right as in the image.

    Raises:
        ValueError: an argument is wrong, a file is missing or malformed, or the data set is not complete.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        raw: str | os.PathLike,
        split: str,
        seed: int = 0,
        val_fraction: float = 0.0,
        allow_partial: bool = False,
    ) -> None:
        raw = Path(raw)
        _check_arguments(raw, split, self.splits(val_fraction))
        folder = _unaligned_folder(raw)
        boxes = _find(raw, "Anno/list_bbox_celeba.txt")
        _, rows = _read_table(boxes, 4, allow_partial)
        fit, test = (_find_mafl(raw, name) for name in ("training.txt", "testing.txt"))
        official = "train" if split == "val" else split
        if official == "train":
            partition = _find(raw, "Eval/list_eval_partition.txt")
            members = sorted(set(_members(partition, "train", allow_partial)) - set(_read_rows(test, 0)))
            chosen_by = [boxes, partition, test]
        else:
            listed = fit if split == "fit" else test
            members = sorted(_read_rows(listed, 0))
            chosen_by = [boxes, listed]
        members = list(itertools.compress(members, on_disk(folder, members, allow_partial)))
        names = _large_faces(folder, members, _select(boxes, rows, members))
        what = f"{folder}: {official} images with a face on {MIN_FACE_PERCENT} % of them"
        check_count(what, len(names), LARGE_FACES[official], allow_partial)
        if official == "train" and val_fraction:
            fitted = _read_rows(fit, 0)
            val = held_out([name for name in names if name not in fitted], "val", str(seed), val_fraction)
            names = val if split == "val" else sorted(set(names) - set(val))
            chosen_by.append(fit)
        if not names:
            raise ValueError(f"{folder}: no images for the split {split!r}")
        corners = _select(boxes, rows, names)
        corners[:, 2:] += corners[:, :2]
        super().__init__(
            raw,
            folder,
            names,
            _find(raw, "Anno/list_landmarks_celeba.txt"),
            chosen_by,
            allow_partial,
            boxes=corners.astype(np.float32),
            prefix="celeba-fit" if split == "fit" else "celeba",
        )

    @staticmethod
    def splits(val_fraction: float = 0.0) -> tuple[str, ...]:
        """The splits for a share of validation images: without ``val`` if the share is 0.

        Raises:
            ValueError: the share is not in [0, 1).
        """
        *training, test = splits(val_fraction)
        return (*training, "fit", test)


def _check_arguments(raw: Path, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise ValueError(f"split: expected {', '.join(known)}, got {split!r}")
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder")


def _find(raw: Path, place: str) -> Path:
    """A file in its published folder or directly in the raw folder, as text or as CSV."""
    table = Path(place).with_suffix(".csv")
    return find(raw, place, Path(place).name, table.as_posix(), table.name)


def _find_mafl(raw: Path, name: str) -> Path:
    return find(raw, *(f"{folder}{name}" for folder in ("MAFL/", "Anno/", "Eval/", "")))


def _unaligned_folder(raw: Path) -> Path:
    """The folder of the images that are not aligned; Python cannot extract their archive."""
    parents = ("Img", "Img/img_celeba.7z", ".", "img_celeba.7z")  # the archive is published in a folder of its name
    places = [(Path(parent) / "img_celeba").as_posix() for parent in parents]
    archives = [path for parent in parents for path in sorted((raw / parent).glob("img_celeba.7z*")) if path.is_file()]
    if archives and not any((raw / place).exists() for place in places):
        raise ValueError(f"{archives[0]}: extract it where it lies, with `7z x {archives[0].name}`")
    return find(raw, *places)


def _members(partition: Path, split: str, allow_partial: bool) -> list[str]:
    """The images of a split of the official partition."""
    rows = _read_rows(partition, 1, allowed=range(len(PARTITION)), first=2 if _is_csv(partition) else 1)
    members = sorted(name for name, (part,) in rows.items() if part == list(PARTITION).index(split))
    check_count(f"{partition}: {split} images", len(members), PARTITION[split], allow_partial)
    return members


def _large_faces(folder: Path, names: Sequence[str], boxes: np.ndarray) -> list[str]:
    """The images whose face covers enough of them; boxes [images, 4] are x, y, width and height."""
    areas = {name: w * h for name, (_, _, w, h) in zip(names, boxes.tolist(), strict=True) if w > 0 and h > 0}
    paths = [folder / name for name in areas]
    large: list[str] = []
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            logger.info("%s: reading the sizes of %d images, %d are done", folder, len(paths), start)
            for path, (width, height) in zip(block, pool.map(_size, block), strict=True):
                if width * height and 100 * areas[path.name] >= MIN_FACE_PERCENT * width * height:
                    large.append(path.name)
    return large


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image from its header, 0 and 0 if that cannot be read."""
    try:
        with path.open("rb") as file, open_image(file) as image:
            return image.size
    except Exception as error:  # damaged files make Pillow raise nearly anything
        logger.warning("%s: left out, its size cannot be read (%s)", path, type(error).__name__)
        return 0, 0


def _select(path: Path, rows: Rows, names: Sequence[str]) -> np.ndarray:
    """int64 [images, columns]: what a file says of some images."""
    for name in names:
        if name not in rows:
            raise ValueError(f"{path}: {name} is missing")
    return np.array([rows[name] for name in names], dtype=np.int64)


def _read_table(
    path: Path, columns: int, allow_partial: bool, allowed: Container[int] = PIXELS
) -> tuple[list[str], Rows]:
    """The column names and the rows of a file that starts with the number of images (text) and the column names."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        count = str(sum(PARTITION.values())) if _is_csv(path) else file.readline().strip()
        header = _words(path, file.readline())
    if not count.isdecimal():
        raise ValueError(f"{path}: line 1: expected the number of images, got {count[:60]!r}")
    if header[:1] == ["image_id"]:  # of the text files, only that of the boxes names its first column
        header = header[1:]
    if len(header) != columns:
        line = 1 if _is_csv(path) else 2
        raise ValueError(f"{path}: line {line}: expected the names of {columns} columns, got {len(header)}")
    rows = _read_rows(path, columns, allowed, first=2 if _is_csv(path) else 3)
    check_count(f"{path}: images", len(rows), int(count), allow_partial)
    return header, rows


def _read_rows(path: Path, columns: int, allowed: Container[int] = PIXELS, first: int = 1) -> Rows:
    """The lines of a file, from a first one on: the name of an image and integers, of which only some are allowed."""
    rows: Rows = {}
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number < first or not line.strip():
                continue
            name, *words = _words(path, line)
            try:
                values = [int(word) for word in words]
            except ValueError:
                values = []
            well_formed = NAME.fullmatch(name) and len(words) == len(values) == columns
            if not well_formed or not all(value in allowed for value in values):
                expected = f"an image and {columns} integers in {allowed}" if columns else "an image"
                raise ValueError(f"{path}: line {number}: expected {expected}, got {line.strip()[:60]!r}")
            if rows.setdefault(name, values) != values:
                raise ValueError(f"{path}: line {number}: {name} is listed twice, with different numbers")
    return rows


def _is_csv(path: Path) -> bool:
    return path.suffix == ".csv"


def _words(path: Path, line: str) -> list[str]:
    """The columns of a line."""
    return [word.strip() for word in line.split(",")] if _is_csv(path) else line.split()
