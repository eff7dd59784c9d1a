"""iNaturalist 2017: photos of 5,089 species in 13 super-categories, with boxes for some of them.

The archives as published, or what they hold:

    train_val_images.tar.gz     train_val_images/<super-category>/<species>/<hash>.jpg
    train_val2017.zip           train2017.json, val2017.json
    train_2017_bboxes.zip       train_2017_bboxes.json (optional)
    val_2017_bboxes.zip         val_2017_bboxes.json (optional)
    inat2017_locations.zip      train2017_locations.json, val2017_locations.json (optional)

The JSON files keep to the format of COCO. Boxes exist for nine super-categories, and there not for every image. A
training image may have several, an image of the official validation set has boxes only if it shows a single instance.

Locations are a list with an entry for each image: its ``id``, ``lat`` and ``lon`` in degrees and ``date``, YYYY-MM-DD.
What is null is not known. The uncertainty of the location and the photographer, who are in it as well, are not taken.

Boxes are pixels of an image of the size that the annotations state, if they state one. A file of another size is
refused. Shards store images upright, as their EXIF orientation says, and nothing says whether boxes refer to the image
before or after that. Therefore

- an image whose sides are the stated ones, but swapped, is taken if it has no boxes and refused if it has;
- an image that was turned or mirrored to be upright is refused if it has boxes, unless the stated size is its upright
  one and could not be the other.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import images
from pipelines.datasets.coco import column, read_json
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk, splits, unpack
from pipelines.formats import open_image
from pipelines.places import Place
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

ARCHIVES = {
    "train_val_images.tar.gz": "train_val_images",
    "train_val2017.zip": "train2017.json",  # and val2017.json
    "train_2017_bboxes.zip": "train_2017_bboxes.json",
    "val_2017_bboxes.zip": "val_2017_bboxes.json",
    "inat2017_locations.zip": "train2017_locations.json",  # and val2017_locations.json
}
LOCATIONS = "{official}2017_locations.json"
TRAIN_IMAGES, TEST_IMAGES, SPECIES, SUPER_CATEGORIES = 579_184, 95_986, 5_089, 13

logger = logging.getLogger(__name__)


class INat2017:
    """One split of iNaturalist 2017.

    ``test`` is the official *validation* set, on which the paper reports: the labels of the official test set were
    never published. It is called test here because nothing may be selected on it. For that there is ``val``, a share
    of the training images of every species, which ``train`` then lacks.

    Labels are the species in the order of their published ids.

    Args:
        raw: The folder of the data set.
        split: ``train``, ``test``, or ``val`` if its share is not 0.
        seed: Decides which training images go to ``val``.
        val_fraction: Share of the training images of every species that goes to ``val``, in [0, 1).
        allow_partial: Whether to accept other numbers of images, species and super-categories than the published ones,
            and to leave out images whose file is missing.

    Attributes:
        class_names: Name of every species as published, "Genus species".
        super_categories: Super-category of every species.

    Raises:
        ValueError: an argument is wrong, an annotation file is missing or malformed, an archive is damaged, or the
            data set is not complete.
        OSError: a file cannot be read, or the folder cannot be written to.
    """

    def __init__(
        self,
        raw: str | os.PathLike,
        split: str,
        seed: int = 0,
        val_fraction: float = 0.0,
        allow_partial: bool = False,
    ) -> None:
        self.raw = Path(raw)
        self.split = split
        if split not in splits(val_fraction):
            raise ValueError(f"split: expected {', '.join(splits(val_fraction))}, got {split!r}")
        official, count = ("val", TEST_IMAGES) if split == "test" else ("train", TRAIN_IMAGES)
        locations = LOCATIONS.format(official=official)
        own = {"train_val2017.zip": f"{official}2017.json", "inat2017_locations.zip": locations}
        unpack(self.raw, ARCHIVES | own)
        path = find(self.raw, f"{official}2017.json")
        self._annotations = [path]
        listed = _read_images(path)
        self.class_names, self.super_categories = listed.class_names, listed.super_categories
        check_count(f"{path}: images", len(listed.files), count, allow_partial)
        check_count(f"{path}: species", len(self.class_names), SPECIES, allow_partial)
        check_count(f"{path}: super-categories", len(set(self.super_categories)), SUPER_CATEGORIES, allow_partial)

        chosen = list(range(len(listed.files)))
        if split != "test":
            ends = np.bincount(listed.labels, minlength=len(self.class_names)).cumsum()
            members = np.split(np.argsort(listed.labels, kind="stable"), ends[:-1])
            chosen = sorted(
                image
                for category, of_species in zip(listed.category_ids, members, strict=True)
                for image in held_out(of_species.tolist(), split, f"{seed}/{category}", val_fraction)
            )
        there = on_disk(self.raw, [listed.files[image] for image in chosen], allow_partial)
        chosen = list(itertools.compress(chosen, there))
        if not chosen:
            raise ValueError(f"{self.raw}: no images for the split {split!r}")
        self._files = tuple(listed.files[image] for image in chosen)
        self._ids, self._labels, self._sizes = listed.ids[chosen], listed.labels[chosen], listed.sizes[chosen]

        path = self.raw / locations
        self._places = np.full((len(chosen), 3), np.nan)
        if path.exists():
            self._annotations.append(path)
            self._places = _read_places(path, listed.ids, allow_partial)[chosen]
        self._owners, self._boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
        path = self.raw / f"{official}_2017_bboxes.json"
        if not path.exists():
            logger.warning("%s is missing; without boxes the pointing game cannot be measured", path)
            return
        self._annotations.append(path)
        owners, boxes = _read_boxes(path)
        foreign = sorted(set(owners) - set(listed.files))
        if foreign and not allow_partial:
            raise ValueError(f"{path}: {len(foreign)} images are not in {official}2017.json, the first is {foreign[0]}")
        self._take_boxes(path, owners, boxes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Raises:
            ValueError: the file cannot be decoded or does not fit the annotations; the message names it.
            OSError: the file cannot be read.
        """
        index = range(len(self))[index]
        source, label = self._files[index], int(self._labels[index])
        try:
            data = (self.raw / source).read_bytes()
            jpeg, width, height = images.to_jpeg(data)
            boxes = self._fitting_boxes(index, data, width, height)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        return Sample(
            key=f"inat-{self._ids[index]:07d}",
            jpeg=jpeg,
            label=label,
            width=width,
            height=height,
            source=source,
            super_category=self.super_categories[label],
            boxes=boxes,
            place=self._place(index),
        )

    def source(self, index: int) -> str:
        """Path of an image below the raw folder."""
        return self._files[index]

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        locations = any((self.raw / LOCATIONS.format(official=official)).exists() for official in ("train", "val"))
        return Schema(classes=self.class_names, super_categories=self.super_categories, locations=locations)

    def digest(self) -> str:
        """SHA-256 of the annotation files, and of the names and sizes of the images."""
        return digest(self.raw, self._annotations, self._files)

    def _place(self, index: int) -> Place | None:
        latitude, longitude, day = (None if np.isnan(value) else float(value) for value in self._places[index])
        if latitude is None and day is None:
            return None
        return Place(latitude, longitude, None if day is None else int(day))

    def _take_boxes(self, path: Path, files: Sequence[str], boxes: np.ndarray) -> None:
        """Keeps the boxes of this split in the order of its images, clipped as far as the sizes of these are stated."""
        places = {file: index for index, file in enumerate(self._files)}
        owners = np.array([places.get(file, -1) for file in files], np.int64)
        ours = owners >= 0
        owners, boxes = owners[ours], boxes[ours]
        boxes, good = _clipped(boxes, np.where(self._sizes, self._sizes, np.inf)[owners])
        if not good.all():
            logger.info("%s: left out %d boxes of %s without area in their image", path, np.sum(~good), self.split)
        order = np.argsort(owners[good], kind="stable")
        self._owners, self._boxes = owners[good][order], boxes[good][order]

    def _fitting_boxes(self, index: int, data: bytes, width: int, height: int) -> np.ndarray | None:
        """Boxes float32 [B, 4] of an image, None if it has none; ValueError if the file does not fit what is stated."""
        stated = tuple(self._sizes[index].tolist())
        if any(stated) and sorted(stated) != sorted((width, height)):
            raise ValueError(f"has {width}x{height} pixels, the annotations state {stated[0]}x{stated[1]}")
        boxes = self._boxes[slice(*np.searchsorted(self._owners, (index, index + 1)))]
        if not len(boxes):
            return None
        if any(stated) and stated != (width, height):
            raise ValueError(f"has {width}x{height} pixels upright, its boxes refer to {stated[0]}x{stated[1]}")
        stored, turned = _orientation(data)
        if turned and stated in ((0, 0), stored):
            raise ValueError("was turned upright, and its boxes may refer to the image before that")
        boxes, good = _clipped(boxes, np.array([[width, height]]))
        return boxes[good] if good.any() else None


@dataclass(frozen=True)
class _Listed:
    """What an annotation file says about N images, in the order of their ids.

    Attributes:
        category_ids: Published id of every species, ascending.
        class_names: Name of every species.
        super_categories: Super-category of every species.
        ids: int64 [N].
        files: Path of every image below the raw folder.
        labels: int32 [N], positions in ``class_names``.
        sizes: int32 [N, 2], width and height; both are 0 where they are not stated.
    """

    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    super_categories: tuple[str, ...]
    ids: np.ndarray
    files: list[str]
    labels: np.ndarray
    sizes: np.ndarray


def _read_images(path: Path) -> _Listed:
    logger.info("%s: reading", path)
    content = read_json(path)
    categories = sorted(
        zip(
            column(path, content, "categories", "id", int),
            column(path, content, "categories", "name", str),
            column(path, content, "categories", "supercategory", str),
            strict=True,
        )
    )
    if len(categories) < 2:
        raise ValueError(f"{path}: expected at least 2 categories, got {len(categories)}")
    category_ids, class_names, super_categories = zip(*categories, strict=True)
    ids = column(path, content, "images", "id", int)
    files = column(path, content, "images", "file_name", str)
    widths = column(path, content, "images", "width", int, missing=0)
    heights = column(path, content, "images", "height", int, missing=0)
    labelled = column(path, content, "annotations", "image_id", int)
    category_of = dict(zip(labelled, column(path, content, "annotations", "category_id", int), strict=True))

    for name, values in (("category ids", category_ids), ("image ids", ids), ("file names", files)):
        if len(set(values)) < len(values):
            raise ValueError(f"{path}: expected distinct {name}, got {Counter(values).most_common(1)[0][0]!r} twice")
    for file in files:
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"{path}: file_name: expected a path below the folder, got {file!r}")
    annotations = Counter(labelled)
    for image in ids:
        if annotations[image] != 1:
            raise ValueError(f"{path}: expected one annotation of the image {image}, got {annotations[image]}")
    label_of = {category: label for label, category in enumerate(category_ids)}
    unknown = set(category_of.values()) - set(category_ids)
    if unknown:
        raise ValueError(f"{path}: categories lacks the category {min(unknown)} of an annotation")

    order = np.argsort(ids)
    sizes = np.array([widths, heights], np.int32).T
    sizes[(sizes == 0).any(axis=1)] = 0
    return _Listed(
        category_ids=category_ids,
        class_names=class_names,
        super_categories=super_categories,
        ids=np.array(ids, np.int64)[order],
        files=[files[image] for image in order],
        labels=np.array([label_of[category_of[image]] for image in ids], np.int32)[order],
        sizes=sizes[order],
    )


def _read_boxes(path: Path) -> tuple[list[str], np.ndarray]:
    """The file name of its image, and float64 [B, 4] x0, y0, x1, y1, of every box.

    Ids count within one JSON file only; names of files tell which image of the other is meant.
    """
    content = read_json(path)
    ids, files = column(path, content, "images", "id", int), column(path, content, "images", "file_name", str)
    owners = column(path, content, "annotations", "image_id", int)
    boxes = column(path, content, "annotations", "bbox", list)
    for box in boxes:
        if len(box) != 4 or not all(type(value) in (int, float) for value in box):
            raise ValueError(f"{path}: bbox: expected 4 numbers, got {box!r:.60}")
    file_of = dict(zip(ids, files, strict=True))
    unknown = set(owners) - set(ids)
    if unknown:
        raise ValueError(f"{path}: images lacks the image {min(unknown)} of a box")
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return [file_of[image] for image in owners], corners


def _read_places(path: Path, ids: np.ndarray, allow_partial: bool) -> np.ndarray:
    """Latitude, longitude and day of the year of images by their ids, float64 [N, 3]; nan for what is not known."""
    logger.info("%s: reading", path)
    entries = read_json(path, list)
    if not all(isinstance(entry, dict) and type(entry.get("id")) is int for entry in entries):
        raise ValueError(f"{path}: expected a list of objects with an id (int)")
    rows = {image: row for row, image in enumerate(ids.tolist())}
    places = np.full((len(ids), 3), np.nan)
    wrong: list[str] = []
    for entry in entries:
        if (row := rows.get(entry["id"])) is None:
            continue
        try:
            place = Place.read(entry.get("lat"), entry.get("lon"), entry.get("date"))
        except (ValueError, AttributeError) as error:
            wrong.append(f"the image {entry['id']}: {error}")
            continue
        if place:
            places[row] = place.numbers
    if wrong and not allow_partial:
        raise ValueError(f"{path}: {wrong[0]}; --allow-partial leaves {len(wrong)} such images without a place")
    if wrong:
        logger.warning("%s: left %d images without a place; %s", path, len(wrong), wrong[0])
    logger.info("%s: places of %d of %d images", path, np.sum(~np.isnan(places).all(axis=1)), len(ids))
    return places


def _clipped(boxes: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [B, 4] clipped to width and height [B or 1, 2], float32, and whether they still have an area, bool [B]."""
    clipped = np.clip(boxes, 0, np.concatenate([limits, limits], axis=1)).astype(np.float32)
    return clipped, (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])


def _orientation(data: bytes) -> tuple[tuple[int, int], bool]:
    """Width and height of an image as stored, and whether it is turned or mirrored to be upright."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(io.BytesIO(data)) as image:
            try:
                return image.size, image.getexif().get(images.EXIF_ORIENTATION) in images.UPRIGHT
            except Exception:  # a damaged EXIF block turns nothing
                return image.size, False
