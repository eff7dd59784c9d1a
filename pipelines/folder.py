"""Anyone's images in class folders.

Either without splits, from which a validation split is taken, or with them:

    raw/<class>/**/*.jpg        raw/train/<class>/**/*.jpg    raw/val/<class>/**/*.jpg    raw/test/<class>/**/*.jpg

``valid`` is read as ``val``. Hidden files and folders are left out, and links to folders below a class folder are not
followed.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

from pipelines import images
from pipelines.samples import Sample

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
LAYOUT = "expected raw/<class>/*.jpg, or raw/train/<class>/*.jpg and raw/val/<class>/*.jpg"

logger = logging.getLogger(__name__)


class Folder:
    """One split of a folder of images.

    Classes are the folders (of the training split) that hold images, sorted by name. Without split folders, a share of
    every class is drawn for validation; of each class at least one image stays for training, and one goes to
    validation if there are two.

    Args:
        raw: The folder.
        split: One of ``splits(raw)``.
        seed: Decides which images go to validation.
        val_fraction: Share of validation images in (0, 1), where the folder has no splits of its own.

    Attributes:
        class_names: Name of every class, in the order of the labels.

    Raises:
        ValueError: the folder is not laid out as described above, or holds less than two classes.
        OSError: a folder cannot be read.
    """

    def __init__(self, raw: str | os.PathLike, split: str, seed: int = 0, val_fraction: float = 0.2) -> None:
        self.raw = Path(raw)
        self.split = split
        folders = _split_folders(self.raw)
        if split not in splits(raw):
            raise ValueError(f"split: {raw} has {', '.join(splits(raw))}, got {split!r}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction: expected a share between 0 and 1, got {val_fraction}")
        files = _class_files(folders.get("train", self.raw))
        self.class_names = tuple(files)
        if len(files) < 2:
            raise ValueError(f"{raw}: expected images of at least 2 classes, found {len(files)}; {LAYOUT}")
        if not folders:
            files = {name: _share(paths, split, f"{seed}/{name}", val_fraction) for name, paths in files.items()}
        elif split != "train":
            files = _class_files(folders[split])
            unknown = sorted(set(files) - set(self.class_names))
            if unknown:
                raise ValueError(f"{folders[split]}: classes without training images: {', '.join(unknown)}")
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._samples = [
            (path.relative_to(self.raw).as_posix(), labels[name]) for name, paths in files.items() for path in paths
        ]
        if not self._samples:
            raise ValueError(f"{folders.get(split, raw)}: no images for the split {split!r}")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Reads one image.

        Raises:
            ValueError: the file cannot be decoded; the message names it.
            OSError: the file cannot be read.
        """
        source, label = self._samples[index]
        try:
            jpeg, width, height = images.to_jpeg((self.raw / source).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        return Sample(f"{self.split}-{index:07d}", jpeg, label, width, height, source)

    def source(self, index: int) -> str:
        """Path of an image below the raw folder."""
        return self._samples[index][0]


def splits(raw: str | os.PathLike) -> tuple[str, ...]:
    """The splits of a folder: its own, or train and val.

    Raises:
        ValueError: the folder is missing or holds both ``val`` and ``valid``.
    """
    return tuple(_split_folders(Path(raw))) or ("train", "val")


def _split_folders(raw: Path) -> dict[str, Path]:
    """Split -> folder; empty if the class folders lie in the raw folder itself."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; {LAYOUT}")
    if (raw / "val").is_dir() and (raw / "valid").is_dir():
        raise ValueError(f"{raw}: has both val and valid; remove or rename one")
    found = {split: raw / name for split, names in SPLIT_FOLDERS.items() for name in names if (raw / name).is_dir()}
    return found if "train" in found and len(found) > 1 else {}


def _class_files(parent: Path) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name."""
    loose = sorted(path.name for path in parent.iterdir() if _is_image(path))
    if loose:
        raise ValueError(f"{parent}: holds images that are in no class folder, such as {loose[0]}; {LAYOUT}")
    classes = {}
    for folder in sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = sorted(_images_below(folder))
        if paths:
            classes[folder.name] = paths
        else:
            logger.warning("%s: left out, it holds no images", folder)
    return classes


def _images_below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in (Path(parent, name) for name in names) if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _share(paths: list[Path], split: str, seed: str, val_fraction: float) -> list[Path]:
    """The part of a class that belongs to a split."""
    drawn = random.Random(seed).sample(paths, len(paths))
    count = min(max(1, round(len(paths) * val_fraction)), len(paths) - 1)
    return sorted(drawn[:count] if split == "val" else drawn[count:])
