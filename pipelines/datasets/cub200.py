"""CUB-200-2011: 200 species of birds, one bird in an image, its box and 15 landmarks.

The data set as it is published, in the archive ``CUB_200_2011.tgz`` or unpacked in the folder ``CUB_200_2011``, laid
out as ``pipelines.datasets.caltech`` says. Image ids are numbers, class folders are named like
``001.Black_footed_Albatross``.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.datasets.caltech import IMAGES, CaltechSplit, columns
from pipelines.datasets.published import find, splits, unpack

ARCHIVES = {"CUB_200_2011.tgz": "CUB_200_2011"}
COUNTS = {"images": 11_788, "classes": 200, "parts": 15, "training images": 5_994, "test images": 5_794}
COLUMNS = columns(image=int)


class Cub200(CaltechSplit):
    """One split of CUB-200-2011.

    ``train`` and ``test`` are the official parts; ``val`` is a share of every class of ``train``, which ``train`` then
    lacks. Of each class at least one image stays for training, and one goes to validation if there are two.

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

    KEY = "cub-{:05d}"

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
        super().__init__(_folder(Path(raw)), COLUMNS, COUNTS, split, seed, val_fraction, allow_partial)


def _folder(raw: Path) -> Path:
    """``CUB_200_2011``, unpacked if need be."""
    if not (raw / IMAGES).exists():
        unpack(raw, ARCHIVES)
    return find(raw, IMAGES, f"CUB_200_2011/{IMAGES}").parent
