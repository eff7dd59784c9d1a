"""NABirds: 555 visual categories of North American birds, one bird in an image, its box and 11 landmarks.

The data set as it is published, in the archive ``nabirds.tar.gz`` or unpacked in the folder ``nabirds``, laid out as
``pipelines.datasets.caltech`` says, with three files more:

    hierarchy.txt        <class> <its parent>
    sizes.txt            <image> <width> <height>      not read
    photographers.txt    <image> <name>                not read

An image id is a UUID. ``classes.txt`` lists a tree of 1,011 classes: all birds, groups such as "Hummingbirds", species,
and what tells sex, age or colours of a species apart ("Peregrine Falcon (Immature)"). Images are labelled with 555 of
them, the visual categories; these are the classes here. Their super-categories are the groups right below all birds.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.datasets.caltech import CLASSES, IMAGES, CaltechSplit, columns, table
from pipelines.datasets.published import find, splits, unpack
from pipelines.shards.samples import KEY_PATTERN

ARCHIVES = {"nabirds.tar.gz": "nabirds"}
HIERARCHY = "hierarchy.txt"
COUNTS = {
    "images": 48_562,
    "classes": 1_011,
    "visual categories": 555,
    "parts": 11,
    "training images": 23_929,
    "test images": 24_633,
}


def _image_id(word: str) -> str:
    if not KEY_PATTERN.fullmatch(word):
        raise ValueError
    return word


COLUMNS = columns(image=_image_id) | {HIERARCHY: {"class": int, "parent": int}}


class NABirds(CaltechSplit):
    """One split of NABirds.

    ``train`` and ``test`` are the official parts; ``val`` is a share of every class of ``train``, which ``train`` then
    lacks. Of each class at least one image stays for training, and one goes to validation if there are two.

    Labels are the visual categories in the order of their published numbers.

    Args:
        raw: The folder that holds ``nabirds`` or its archive, which is unpacked there; or ``nabirds`` itself.
        split: One of ``splits(val_fraction)``.
        seed: Decides which images go to validation.
        val_fraction: Share of the official training images that goes to validation, in [0, 1).
        allow_partial: Whether the data set may be a part of the published one. Images without a file are left out;
            the classes stay those of ``image_class_labels.txt``, so that the labels stay official.

    Attributes:
        class_names: Name of every visual category.
        super_categories: The group of every visual category.
        landmark_names: Name of every landmark: bill, crown, ...

    Raises:
        ValueError: an argument is wrong; a file is missing, malformed or contradicts another; or the data set is not
            complete.
        OSError: a file cannot be read, or the archive cannot be unpacked.
    """

    KEY = "nabirds-{}"

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
        folder = _folder(Path(raw))
        super().__init__(folder, COLUMNS, COUNTS, split, seed, val_fraction, allow_partial, _groups(folder))


def _groups(folder: Path) -> dict[int, str]:
    """Number of every class -> name of the class above it, or itself, that lies right below the root of the tree."""
    path = folder / HIERARCHY
    names, parents = (table(folder, name, COLUMNS[name]) for name in (CLASSES, HIERARCHY))
    for number in (*parents, *parents.values()):
        if number not in names:
            raise ValueError(f"{path}: class {number} is not in {CLASSES}")
    roots = sorted(set(names) - set(parents))
    if len(roots) != 1:
        raise ValueError(f"{path}: expected one class without a parent, got {len(roots)}")
    groups = {}
    for number in names:
        lineage = [number]
        while lineage[-1] in parents:
            lineage.append(parents[lineage[-1]])
            if len(lineage) > len(names):
                raise ValueError(f"{path}: class {number} is above itself")
        groups[number] = names[lineage[max(len(lineage) - 2, 0)]]
    return groups


def _folder(raw: Path) -> Path:
    """``nabirds``, unpacked if need be."""
    if not (raw / IMAGES).exists():
        unpack(raw, ARCHIVES)
    return find(raw, IMAGES, f"nabirds/{IMAGES}").parent
