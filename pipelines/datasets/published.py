"""Published data sets as they are downloaded: archives or what they hold, with known numbers of images."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pipelines.files import sha256

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def unpack(raw: Path, archives: Mapping[str, str]) -> None:
    """Extracts archives that lie in the raw folder, unless what they bring is there already.

    An archive is extracted beside its place and moved there when it is complete, so that an interrupted extraction
    leaves nothing that looks whole. Members that would land outside are refused.

    Args:
        raw: The folder of the data set.
        archives: File name of an archive (.zip, .tar, .tar.gz, .tgz) -> a path below ``raw`` that it brings.

    Raises:
        ValueError: there is no such folder, or an archive is damaged.
        OSError: the folder cannot be written to.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder")
    for name, brings in archives.items():
        archive = raw / name
        if (raw / brings).exists() or not archive.is_file():
            continue
        logger.info("%s: extracting, once", archive)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=raw))
        try:
            _extract(archive, partial)
            for path in sorted(partial.iterdir()):
                if not (raw / path.name).exists():
                    os.replace(path, raw / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def find(raw: Path, *places: str) -> Path:
    """The first of several places below the raw folder at which a file or folder of a data set lies.

    Raises:
        ValueError: it lies at none of them.
    """
    for place in places:
        if (raw / place).exists():
            return raw / place
    raise ValueError(f"{raw}: {' or '.join(places)} is missing")


def check_count(what: str, count: int, expected: int, allow_partial: bool) -> None:
    """Compares a number with the published one.

    Raises:
        ValueError: they differ, and a part of the data set is not allowed.
    """
    if count == expected:
        return
    if not allow_partial:
        raise ValueError(f"{what}: expected {expected}, found {count}; --allow-partial prepares what is there")
    logger.warning("%s: found %d, the published number is %d", what, count, expected)


def on_disk(folder: Path, files: Sequence[str], allow_partial: bool) -> list[bool]:
    """Which files are there. Every folder is listed once: on network disks that is far faster than many look-ups.

    Args:
        folder: That paths start from.
        files: Paths of images.
        allow_partial: Warn of missing images instead of refusing them.

    Raises:
        ValueError: images are missing, and a part of the data set is not allowed.
    """
    names: dict[str, set[str]] = {}
    there = []
    for file in files:
        parent, name = os.path.split(file)
        if parent not in names:
            names[parent] = _listed(folder / parent)
        there.append(name in names[parent])
    missing = [file for file, is_there in zip(files, there, strict=True) if not is_there]
    if missing:
        message = f"{folder}: {len(missing)} of {len(files)} images are missing, the first is {min(missing)}"
        if not allow_partial:
            raise ValueError(f"{message}; --allow-partial prepares what is there")
        logger.warning("%s", message)
    return there


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def splits(val_fraction: float) -> tuple[str, ...]:
    """The splits for a share of validation images: train and test, with val between them unless the share is 0.

    Raises:
        ValueError: the share is not in [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction: expected a share of at least 0 and below 1, got {val_fraction}")
    return ("train", "val", "test") if val_fraction else ("train", "test")


def held_out(items: Sequence[Item], split: str, seed: str, fraction: float) -> list[Item]:
    """The share of the training items of one class that goes to validation, or (``split`` train) the rest.

    At least one item stays for training, and one goes to validation if there are two and the share is not 0.
    """
    drawn = random.Random(seed).sample(items, len(items))
    count = min(max(1, round(len(items) * fraction)), len(items) - 1) if fraction else 0
    return sorted(drawn[:count] if split == "val" else drawn[count:])  # type: ignore[type-var]


def digest(raw: Path, annotations: Iterable[Path], files: Iterable[str]) -> str:
    """SHA-256 of the annotation files and of the names and sizes of the images: what tells raw files from others.

    Args:
        raw: The folder of the data set.
        annotations: Files whose content counts.
        files: Paths of the images below ``raw``.
    """
    checksum = hashlib.sha256()
    for path in annotations:
        checksum.update(f"{path.relative_to(raw).as_posix()} {sha256(path)}\n".encode())
    for file in sorted(files):
        try:
            size = os.stat(raw / file).st_size
        except OSError:
            size = -1
        checksum.update(f"{file} {size}\n".encode(errors="surrogatepass"))
    return checksum.hexdigest()


def _extract(archive: Path, folder: Path) -> None:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
                while file.fileobj.read(1 << 20):  # to the end, where gzip has its checksum
                    pass
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system, not of the archive
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{archive}: cannot be extracted ({reason})") from None
