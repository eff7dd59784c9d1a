"""PartImageNet: photos of ImageNet with a mask for every part of the object, of 40 kinds in 11 super-categories.

The release PartImageNet_OOD, extracted:

    train.json           COCO: images, 40 categories (the parts), annotations with polygons or run lengths
    train/<synset>/<synset>_<number>.JPEG
    train_test_split_pimagenet_ood.txt      <image id> <1 for test, 0 for training> <label> <synset> <file name>

``train.json`` may lie in ``annotations``, the images in ``images/train``, with folders of synsets or without.

Of the release only the training part is read. Its three parts keep classes apart (109, 19 and 30 of 158), so that none
can test a classifier of another. Work on part discovery, of PDiscoNet and PDiscoFormer, therefore divides the 16,540
images of the 109 classes. The last file says how; it comes with the code of PDiscoFormer.

The part of a pixel is decided as PDiscoFormer does: annotations without area and crowds do not count; a polygon of two
points stands for the box of its annotation; where masks overlap, the part with most of them counts, of several the one
with the lowest id. Masks are of the pixels as stored, whatever the EXIF orientation.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipelines import images
from pipelines.datasets.coco import column, read_json
from pipelines.datasets.published import check_count, digest, find, held_out, on_disk, splits, unpack
from pipelines.formats import open_image
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample

ARCHIVES = {"train.zip": "train"}
SPLIT = "train_test_split_pimagenet_ood.txt"
SPLIT_SOURCE = "github.com/ananthu-aniraj/pdiscoformer/tree/main/data_sets"
COUNTS = {"images": 16_540, "classes": 109, "parts": 40, "super-categories": 11}
FILE = re.compile(r"(n\d{8})_\d+\.JPEG")
MAX_PARTS = 255

logger = logging.getLogger(__name__)


class PartImageNet:
    """One split of the training part of PartImageNet_OOD.

    ``train`` and ``test`` are those of ``train_test_split_pimagenet_ood.txt``; ``val`` is a share of every class of
    ``train``, which ``train`` then lacks. Labels are the synsets in the order of their numbers.

    Args:
        raw: The folder of the data set.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to validation.
        val_fraction: Share of the training images that goes to validation, in [0, 1).
        allow_partial: Whether to accept other numbers of images, classes and parts than the published ones, and to
            leave out images whose file is missing.
        describe: Synset -> its names, separated by commas; the first is taken.

    Attributes:
        class_names: Name of every class; with its synset if several have that name.
        super_categories: Super-category of every class, that of most of its parts.
        part_names: Name of every part: Quadruped Head, ...

    Raises:
        ValueError: an argument is wrong, a file is missing or malformed, pycocotools is, or the data set is not
            complete.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        raw: str | os.PathLike,
        split: str,
        seed: int = 0,
        val_fraction: float = 0.0,
        allow_partial: bool = False,
        describe: Callable[[str], str] = str,
    ) -> None:
        if split not in splits(val_fraction):
            raise ValueError(f"split: expected {', '.join(splits(val_fraction))}, got {split!r}")
        _coco_masks()
        self.raw = raw = Path(raw)
        unpack(raw, ARCHIVES)
        path = find(raw, "train.json", "annotations/train.json", "annotations/train/train.json")
        folder = find(raw, "train", "images/train")
        self._annotations = [path, _split_file(raw)]
        listed = _read(path, allow_partial)
        self.part_names, self.super_categories = listed.part_names, listed.super_categories
        self.class_names = _class_names(listed.synsets, describe)

        is_test = _read_split(self._annotations[1], listed.names)
        chosen = [place for place, name in enumerate(listed.names) if is_test[name] == (split == "test")]
        if split != "test":
            of_label: list[list[int]] = [[] for _ in listed.synsets]
            for place in chosen:
                of_label[listed.labels[place]].append(place)
            chosen = [
                place
                for synset, places in zip(listed.synsets, of_label, strict=True)
                for place in held_out(places, split, f"{seed}/{synset}", val_fraction)
            ]
        below = folder.relative_to(raw).as_posix()
        if any((folder / synset).is_dir() for synset in listed.synsets):
            files = [f"{below}/{listed.synsets[listed.labels[place]]}/{listed.names[place]}" for place in chosen]
        else:
            files = [f"{below}/{listed.names[place]}" for place in chosen]
        there = on_disk(raw, files, allow_partial)
        chosen, self._files = list(itertools.compress(chosen, there)), list(itertools.compress(files, there))
        if not chosen:
            raise ValueError(f"{raw}: no images for the split {split!r}")
        self._labels = [listed.labels[place] for place in chosen]
        self._sizes = [listed.sizes[place] for place in chosen]
        self._masks = [listed.masks[place] for place in chosen]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Its box is the smallest around all of its parts.

        Raises:
            ValueError: the file cannot be decoded, is not of the size that the annotations state, or shows no part; the
                message names it.
            OSError: the file cannot be read.
        """
        source, label = self._files[index], self._labels[index]
        data = (self.raw / source).read_bytes()
        try:
            jpeg, width, height = images.to_jpeg(data)
            part_map = _upright(data, self._part_map(index))
            if part_map.shape != (height, width):
                raise ValueError(f"has {width}x{height} pixels, its masks {part_map.shape[1]}x{part_map.shape[0]}")
            if not part_map.any():
                raise ValueError("no part is annotated")
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        y, x = (np.flatnonzero(part_map.any(axis=axis)) for axis in (1, 0))
        return Sample(
            key=f"partimagenet-{Path(source).stem}",
            jpeg=jpeg,
            label=label,
            width=width,
            height=height,
            source=source,
            super_category=self.super_categories[label],
            boxes=np.array([[x[0], y[0], x[-1] + 1, y[-1] + 1]], np.float32),
            part_map=part_map,
        )

    def source(self, index: int) -> str:
        """Path of an image below the raw folder."""
        return self._files[index]

    @property
    def schema(self) -> Schema:
        """What the numbers in the samples mean."""
        return Schema(classes=self.class_names, super_categories=self.super_categories, parts=self.part_names)

    def digest(self) -> str:
        """SHA-256 of the annotation files, and of the names and sizes of the images."""
        return digest(self.raw, self._annotations, self._files)

    def _part_map(self, index: int) -> np.ndarray:
        """uint8 [height, width] of the image as stored; ValueError if a mask cannot be drawn."""
        width, height = self._sizes[index]
        depth: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((height, width), np.uint8))
        for part, segmentation in self._masks[index]:
            depth[part] += _decode(segmentation, width, height)
        part_map, deepest = np.zeros((2, height, width), np.uint8)
        for part, masks in sorted(depth.items()):
            above = masks > deepest
            part_map[above], deepest[above] = part, masks[above]
        return part_map


@dataclass(frozen=True)
class _Listed:
    """What an annotation file says about N images.

    Attributes:
        part_names: Name of every part; part p is ``part_names[p - 1]``.
        synsets: Synset of every class, ascending.
        super_categories: Super-category of every class.
        names: N file names without folders.
        labels: N positions in ``synsets``.
        sizes: N times width and height.
        masks: N times the part and the polygons or run lengths of every annotation.
    """

    part_names: tuple[str, ...]
    synsets: tuple[str, ...]
    super_categories: tuple[str, ...]
    names: list[str]
    labels: list[int]
    sizes: list[tuple[int, int]]
    masks: list[list[tuple[int, Any]]]


def _read(path: Path, allow_partial: bool) -> _Listed:
    logger.info("%s: reading", path)
    content = read_json(path)
    parts = sorted(
        zip(
            column(path, content, "categories", "id", int),
            column(path, content, "categories", "name", str),
            column(path, content, "categories", "supercategory", str),
            strict=True,
        )
    )
    part_of = {category: part for part, (category, _, _) in enumerate(parts, 1)}
    if not 1 <= len(part_of) == len(parts) <= MAX_PARTS:
        raise ValueError(f"{path}: expected 1 to {MAX_PARTS} categories of distinct ids, got {len(parts)}")
    ids = column(path, content, "images", "id", int)
    names = [PurePosixPath(file).name for file in column(path, content, "images", "file_name", str)]
    for what, values in (("image ids", ids), ("file names", names)):
        if len(set(values)) < len(values):
            repeated = Counter(values).most_common(1)[0][0]
            raise ValueError(f"{path}: expected distinct {what}, got {repeated!r} twice")
    synset_of = [_synset(path, name) for name in names]
    synsets = tuple(sorted(set(synset_of)))
    label_of = {synset: label for label, synset in enumerate(synsets)}
    labels = [label_of[synset] for synset in synset_of]
    counted = (len(names), len(synsets), len(parts), len({above for _, _, above in parts}))
    for (what, expected), count in zip(COUNTS.items(), counted, strict=True):
        check_count(f"{path}: {what}", count, expected, allow_partial)

    masks = _masks(path, content, ids, part_of)
    above: list[Counter[str]] = [Counter() for _ in synsets]
    for label, of_image in zip(labels, masks, strict=True):
        above[label].update(parts[part - 1][2] for part, _ in of_image)
    for synset, counts in zip(synsets, above, strict=True):
        if not counts:
            raise ValueError(f"{path}: expected parts in the images of every class, got none of {synset}")
    return _Listed(
        part_names=tuple(name for _, name, _ in parts),
        synsets=synsets,
        super_categories=tuple(counts.most_common(1)[0][0] for counts in above),
        names=names,
        labels=labels,
        sizes=list(
            zip(
                column(path, content, "images", "width", int),
                column(path, content, "images", "height", int),
                strict=True,
            )
        ),
        masks=masks,
    )


def _coco_masks() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise ValueError("PartImageNet needs pycocotools; pip install 'region-grouping[coco]'") from None
    return mask


def _decode(segmentation: Any, width: int, height: int) -> np.ndarray:
    """uint8 [height, width], 1 inside polygons or where run lengths say so."""
    coco = _coco_masks()
    try:
        if isinstance(segmentation, list):
            runs = coco.merge(coco.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            runs = coco.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        mask = coco.decode(runs)
    except Exception as error:  # of whatever kind; pycocotools checks little
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"a mask cannot be drawn ({reason})") from None
    if mask.shape != (height, width):
        raise ValueError(f"a mask has {mask.shape[1]}x{mask.shape[0]} pixels, expected {width}x{height}")
    return mask


def _masks(
    path: Path, content: dict[str, Any], images: Sequence[int], part_of: dict[int, int]
) -> list[list[tuple[int, Any]]]:
    """The part and the polygons or run lengths of all annotations that count, of every image."""
    owners = column(path, content, "annotations", "image_id", int)
    categories = column(path, content, "annotations", "category_id", int)
    crowds = column(path, content, "annotations", "iscrowd", int, missing=0)
    masks: dict[int, list[tuple[int, Any]]] = {image: [] for image in images}
    for number, entry in enumerate(content["annotations"]):
        place = f"{path}: annotations[{number}]"
        if owners[number] not in masks:
            raise ValueError(f"{place}: image {owners[number]} is not listed")
        if categories[number] not in part_of:
            raise ValueError(f"{place}: category {categories[number]} is not listed")
        if crowds[number] or entry.get("area") == 0:
            continue
        segmentation = entry.get("segmentation")
        if isinstance(segmentation, list) and segmentation:
            segmentation = [_polygon(place, points, entry.get("bbox")) for points in segmentation]
        elif not isinstance(segmentation, dict) or "counts" not in segmentation:
            raise ValueError(f"{place}: expected polygons or run lengths, got {segmentation!r:.60}")
        masks[owners[number]].append((part_of[categories[number]], segmentation))
    return list(masks.values())


def _polygon(place: str, points: Any, box: Any) -> Sequence[float]:
    """x, y, x, y, ...; the corners of the box (x, y, width, height) if these are two points."""
    if not _are_numbers(points) or len(points) < 4 or len(points) % 2:
        raise ValueError(f"{place}: expected a polygon x, y, x, y, ..., got {points!r:.60}")
    if len(points) > 4:
        return points
    if not _are_numbers(box) or len(box) != 4:
        raise ValueError(f"{place}: expected bbox x, y, width, height, got {box!r:.60}")
    x, y, width, height = box
    return [x, y, x, y + height, x + width, y + height, x + width, y]


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _upright(data: bytes, part_map: np.ndarray) -> np.ndarray:
    """Turns a part map as ``images.to_jpeg`` turns its image."""
    with open_image(io.BytesIO(data)) as image:
        try:
            turn = image.getexif().get(images.EXIF_ORIENTATION)
        except Exception:  # a damaged EXIF block turns nothing
            turn = None
    if turn not in images.UPRIGHT:
        return part_map
    return np.asarray(Image.fromarray(part_map).transpose(images.UPRIGHT[turn]))


def _synset(path: Path, name: str) -> str:
    match = FILE.fullmatch(name)
    if not match:
        raise ValueError(f"{path}: file_name: expected <synset>_<number>.JPEG, got {name!r}")
    return match[1]


def _class_names(synsets: Sequence[str], describe: Callable[[str], str]) -> tuple[str, ...]:
    first = [describe(synset).partition(",")[0] for synset in synsets]
    counts = Counter(first)
    return tuple(
        name if counts[name] == 1 else f"{name} ({synset})" for name, synset in zip(first, synsets, strict=True)
    )


def _split_file(raw: Path) -> Path:
    path = raw / SPLIT
    if not path.exists():
        raise ValueError(f"{path} is missing; it says which images are for testing, get it from {SPLIT_SOURCE}")
    return path


def _read_split(path: Path, names: Sequence[str]) -> dict[str, bool]:
    """File name of every image -> whether it is for testing."""
    is_test: dict[str, bool] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if len(words) != 5 or words[1] not in ("0", "1"):
                raise ValueError(
                    f"{path}: line {number}: expected image_id is_test label synset file, got {line.strip()[:80]!r}"
                )
            is_test[words[4]] = words[1] == "1"
    for name in names:
        if name not in is_test:
            raise ValueError(f"{path}: image {name} is not listed")
    return is_test
