"""Anyone's images in class folders.

Either without splits or with them:

    raw/<class>/**/*.jpg        raw/train/<class>/**/*.jpg    raw/val/<class>/**/*.jpg    raw/test/<class>/**/*.jpg

Without a val folder, validation images are drawn from the others (from those of the train folder if there is one).
Split folders may be called train or training, val, valid or validation, test or testing, in upper or lower case.
A train folder without a val or test folder is a class if images lie directly in it. Hidden files and folders are left
out, and links to folders below a class folder are not followed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines import images
from pipelines.datasets.published import held_out
from pipelines.files import sha256
from pipelines.images import SUFFIXES
from pipelines.shards.samples import Sample

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT = "expected raw/<class>/*.jpg, or raw/train/<class>/*.jpg with or without raw/val/<class>/*.jpg"

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
        if split != "test" and "val" not in folders:
            files = {name: held_out(paths, split, f"{seed}/{name}", val_fraction) for name, paths in files.items()}
        elif split != "train":
            files = _class_files(folders[split])
            unknown = sorted(set(files) - set(self.class_names))
            if unknown:
                raise ValueError(f"{folders[split]}: classes without training images: {', '.join(unknown)}")
        if folders and split == "train":
            for folder in _subfolders(self.raw):
                if folder not in folders.values() and any(_images_below(folder)):
                    logger.warning("%s: left out, it is in no split folder", folder)
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

    def digest(self) -> str:
        """SHA-256 of the contents and paths (below the raw folder) of all images, the same on every machine.

        It reads every file once, a tenth of the work of packing them. Sizes would miss photos that were edited, and
        times of change would make a copy of the folder another data set. A file that cannot be read counts as such.
        """
        logger.info("%s: reading %d files of %s for their checksum", self.raw, len(self), self.split)
        digest = hashlib.sha256()
        for source, _ in sorted(self._samples):
            try:
                content = sha256(self.raw / source)
            except OSError:
                content = "unreadable"
            digest.update(f"{content} {source}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()


def splits(raw: str | os.PathLike) -> tuple[str, ...]:
    """The splits of a folder: train, val, and test if it has a folder for that.

    Raises:
        ValueError: the folder is missing or holds two folders for one split, such as ``val`` and ``valid``.
        OSError: a folder cannot be read.
    """
    return ("train", "val", "test") if "test" in _split_folders(Path(raw)) else ("train", "val")


def _split_folders(raw: Path) -> dict[str, Path]:
    """Split -> folder; empty if the class folders lie in the raw folder itself."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; {LAYOUT}")
    folders: dict[str, Path] = {}
    for folder in _subfolders(raw):
        for split, names in SPLIT_FOLDERS.items():
            if folder.name.lower() in names:
                if split in folders:
                    raise ValueError(f"{raw}: has both {folders[split].name} and {folder.name}; remove or rename one")
                folders[split] = folder
    return folders if "train" in folders and (len(folders) > 1 or _holds_classes(folders["train"])) else {}


def _holds_classes(folder: Path) -> bool:
    """Whether there are images in the folders of a folder, and none directly in it."""
    return not any(map(_is_image, folder.iterdir())) and any(any(_images_below(path)) for path in _subfolders(folder))


def _subfolders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(parent: Path) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name."""
    loose = sorted(path.name for path in parent.iterdir() if _is_image(path))
    if loose:
        raise ValueError(f"{parent}: holds images that are in no class folder, such as {loose[0]}; {LAYOUT}")
    classes = {}
    for folder in _subfolders(parent):
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
