"""Anyone's images in class folders, laid out as ``pipelines.datasets.layout`` says, with masks or without.

Masks lie beside the images as ``pipelines.datasets.masks`` says.

Without a val folder, validation images are drawn from the others (from those of the train folder if there is one).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines import images
from pipelines.datasets.layout import Layout, split_folders
from pipelines.datasets.masks import Masks
from pipelines.datasets.metadata import METADATA, read_places
from pipelines.datasets.published import held_out
from pipelines.exif import exif_place
from pipelines.files import sha256
from pipelines.places import Place
from pipelines.shards.samples import Sample

UNREADABLE = "unreadable"  # instead of a checksum
Locations = Literal["none", "csv", "exif"]
LOCATIONS = get_args(Locations)

logger = logging.getLogger(__name__)


class Folder:
    """One split of a folder of images.

    Classes are the folders (of the training split) that hold images, sorted by name. Without a val folder, a share
    of every class is drawn for validation; of each class at least one image stays for training, and one goes to
    validation if there are two.

    Args:
        raw: The folder.
        split: One of ``splits(raw)``.
        seed: Decides which images go to validation.
        val_fraction: Share of validation images in (0, 1), where there is no val folder.
        locations: From where it is told where and when photos were taken: from a table beside them (csv, see
            ``pipelines.datasets.metadata``), from what the camera wrote into them (exif), or from nowhere (none).

    Attributes:
        class_names: Name of every class, in the order of the labels.
        part_names: Name of every part of the masks; empty without masks.
        layout: What was found in the folder.

    Raises:
        ValueError: the folder is not laid out so, holds less than two classes, or lacks masks of some photos only; or
            the table of locations is missing or cannot be understood.
        OSError: a folder cannot be read.
    """

    def __init__(
        self,
        raw: str | os.PathLike,
        split: str,
        seed: int = 0,
        val_fraction: float = 0.2,
        locations: Locations = "none",
    ) -> None:
        self.raw = Path(raw)
        self.split = split
        if split not in splits(raw):
            raise ValueError(f"split: {raw} has {', '.join(splits(raw))}, got {split!r}")
        self._masks = Masks.find(self.raw)
        self.part_names = self._masks.parts if self._masks else ()
        self.layout = layout = Layout.read(self._masks.photos if self._masks else self.raw)
        without_val = "val" not in layout.folders
        if without_val and not 0 < val_fraction < 1:
            raise ValueError(
                f"val_fraction: expected a share between 0 and 1, got {val_fraction}; a model is measured on "
                "validation images: to choose them yourself, put them into raw/val beside raw/train"
            )
        if split == "train":
            layout.warn()
            if self._masks:
                self._masks.warn()
        self.class_names = tuple(layout.files["train"])
        drawn = without_val and split != "test"
        files = layout.files["train" if drawn else split]
        if drawn:
            files = {name: held_out(paths, split, f"{seed}/{name}", val_fraction) for name, paths in files.items()}
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._samples = [
            (path.relative_to(self.raw).as_posix(), labels[name]) for name, paths in files.items() for path in paths
        ]
        if not self._samples:
            remedy = "every class has one image: add some, or put others into raw/val" if drawn else "remove the folder"
            raise ValueError(f"{layout.folders.get(split, raw)}: no images for the split {split!r}; {remedy}")
        if self._masks:
            self._masks.check(source for source, _ in self._samples)
        self._locations = locations
        self._places: dict[str, Place] = {}
        if locations == "csv":
            told = read_places(self.raw)
            self._places = {source: told[source] for source, _ in self._samples if source in told}
            logger.info("%s: %s tells places of %d of %d images", self.raw, METADATA, len(self._places), len(self))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Raises:
            ValueError: the file or its mask cannot be decoded, or they differ in size; the message names it.
            OSError: one of them cannot be read.
        """
        source, label = self._samples[index]
        try:
            data = (self.raw / source).read_bytes()
            jpeg, width, height = images.to_jpeg(data)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        part_map = self._masks.read(source, width, height) if self._masks else None
        place = exif_place(data) if self._locations == "exif" else self._places.get(source)
        return Sample(f"{self.split}-{index:07d}", jpeg, label, width, height, source, part_map=part_map, place=place)

    def source(self, index: int) -> str:
        """Path of an image below the raw folder."""
        return self._samples[index][0]

    def unusable_classes(self) -> dict[str, str]:
        """Classes none of whose images can be read and decoded, each with what is wrong with its first image."""
        logger.info("%s: looking for a usable image of each of %d classes", self.raw, len(self.class_names))
        reasons: dict[int, str] = {}
        usable: set[int] = set()
        for index, (_, label) in enumerate(self._samples):
            if label in usable:
                continue
            try:
                self[index]
            except (ValueError, OSError) as error:
                reasons.setdefault(label, str(error))
            else:
                usable.add(label)
        images.forget()
        return {self.class_names[label]: reason for label, reason in reasons.items() if label not in usable}

    def without(self, classes: Collection[str]) -> Folder:
        """The same without some of its classes; the others are counted anew.

        Raises:
            ValueError: less than two classes are left, or no image.
        """
        rest = Folder.__new__(Folder)
        vars(rest).update({name: value for name, value in vars(self).items() if name != "checksums"})
        rest.class_names = tuple(name for name in self.class_names if name not in classes)
        labels = {name: label for label, name in enumerate(rest.class_names)}
        rest._samples = [
            (source, labels[self.class_names[label]])
            for source, label in self._samples
            if self.class_names[label] in labels
        ]
        if len(labels) < 2:
            raise ValueError(f"{self.raw}: expected usable images of at least 2 classes, found {len(labels)}")
        if not rest._samples:
            raise ValueError(f"{self.raw}: the split {self.split!r} has images of classes alone that are left out")
        return rest

    def digest(self) -> str:
        """SHA-256 of the contents and paths (below the raw folder) of all images and masks, the same on every machine.

        It reads every file once, a tenth of the work of packing them. Sizes would miss photos that were edited, and
        times of change would make a copy of the folder another data set. A file that cannot be read counts as such.
        """
        digest = hashlib.sha256()
        for source, _ in sorted(self._samples):
            content = self.checksums[source]
            digest.update(f"{content} {source}\0".encode(errors="surrogatepass"))
            if self._masks:
                digest.update(f"{_checksum(self.raw / self._masks.source(source))}\0".encode())
            if source in self._places:
                digest.update(f"{self._places[source]}\0".encode())
        return digest.hexdigest()

    @cached_property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of every image, by its path below the raw folder."""
        logger.info("%s: reading %d files of %s for their checksum", self.raw, len(self), self.split)
        return {source: _checksum(self.raw / source) for source, _ in self._samples}

    def __getstate__(self) -> dict[str, Any]:
        unused = ("checksums", "layout")  # by the workers that read images
        return {name: value for name, value in vars(self).items() if name not in unused}


def log_copies(folders: Mapping[str, Folder]) -> None:
    """Logs how many images of validation and testing are copies of training images, and how many lie in two classes.

    Args:
        folders: Split -> its images.
    """
    training = folders["train"]
    first: dict[str, tuple[str, int]] = {}
    contradictions = []
    for source, label in training._samples:
        if training.checksums[source] == UNREADABLE:
            continue
        _, label_before = first.setdefault(training.checksums[source], (source, label))
        if label_before != label:
            contradictions.append(source)
    if contradictions:
        original = first[training.checksums[contradictions[0]]][0]
        logger.warning(
            "%s: training images that lie in another class, too: %d, such as %s and %s",
            *(training.raw, len(contradictions), contradictions[0], original),
        )
    for split, folder in folders.items():
        copies = [source for source, _ in folder._samples if folder.checksums[source] in first]
        if copies and split != "train":
            logger.warning(
                "%s: %s images that are copies of training images: %d of %d, such as %s of %s; the model has seen "
                "them, so they do not test it: remove the copies",
                *(folder.raw, split, len(copies), len(folder), copies[0], first[folder.checksums[copies[0]]][0]),
            )


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return UNREADABLE


def splits(raw: str | os.PathLike) -> tuple[str, ...]:
    """The splits of a folder: train, val, and test if it has a folder for that.

    Raises:
        ValueError: see ``Layout.read``.
        OSError: a folder cannot be read.
    """
    masks = Masks.find(Path(raw))
    folders = split_folders(masks.photos if masks else Path(raw))
    return ("train", "val", "test") if "test" in folders else ("train", "val")
