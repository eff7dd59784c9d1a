"""Image files in folders: which there are, and what was passed over.

A file is an image if its suffix says so (``SUFFIXES``) or its content does. Hidden files are passed over, and so is
what systems put beside photos: thumbnails, settings of folders, waste bins. A link to a folder is followed unless that
folder was read already or holds the link.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.formats import HEAD, image_format

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}  # what else is an image is seen by its content
LITTER = {  # names in lower case
    "@eadir",  # thumbnails of Synology
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "@recently-snapshot",
    "__macosx",
    ".ds_store",
    ".appledouble",
    ".trashes",
    ".spotlight-v100",
    ".fseventsd",
    ".thumbnails",
    ".@__thumb",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "picasa.ini",
}
NAMED = 10  # files that a line of the log names

logger = logging.getLogger(__name__)


@dataclass
class ImageFiles:
    """What was found in a folder and all below it.

    Attributes:
        images: The images, sorted.
        by_content: Those of them whose suffix is none of ``SUFFIXES``.
        links: Links to folders that were followed.
        litter: Files and folders that systems put there.
        hidden: Other hidden files and folders.
        circles: Links to folders that were read already, or that hold the link.
        others: Files that are no images, and links to nothing.
    """

    images: list[Path] = field(default_factory=list)
    by_content: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    litter: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    circles: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find_images(folder: Path, without: Path | None = None) -> ImageFiles:
    """All images in a folder, at any depth.

    Args:
        folder: Where to begin.
        without: A folder that is not read.

    Raises:
        OSError: a folder cannot be read.
    """
    files = ImageFiles()
    visited = {_identity(without)} if without and without.is_dir() else set()
    links = [folder]  # are followed last, so that a folder counts where it lies
    while links:
        link = links.pop(0)
        if _identity(link) in visited or (link is not folder and _leads_up(link)):
            files.circles.append(link)
            continue
        if link is not folder:
            files.links.append(link)
        _walk(link, files, visited, links)
    files.images.sort()
    files.by_content.sort()
    return files


def look_in(folder: Path) -> ImageFiles:
    """What lies directly in a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    files = ImageFiles()
    _sort(folder, files)
    return files


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or was put there by a system."""
    return name.startswith(".") or _is_litter(name)


def log_files(folder: Path, found: Sequence[ImageFiles]) -> None:
    """Logs what was found in a folder that is not plain images."""
    for name, level, kind in (
        ("by_content", logging.INFO, "images by their content, of other suffixes"),
        ("links", logging.INFO, "links to folders, followed"),
        ("litter", logging.INFO, "passed over, put there by a system"),
        ("hidden", logging.INFO, "passed over, hidden"),
        ("circles", logging.WARNING, "passed over, links to folders that were read already or hold the link"),
        ("others", logging.INFO, "passed over, no images"),
    ):
        paths = sorted(path for files in found for path in getattr(files, name))
        if paths:
            logger.log(level, "%s: %s (%d): %s", folder, kind, len(paths), few(folder, paths))


def few(folder: Path, paths: Iterable[Path]) -> str:
    """The first of some paths below a folder, and how many more there are."""
    names = [os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace") for path in paths]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _walk(folder: Path, files: ImageFiles, visited: set[tuple[int, int]], links: list[Path]) -> None:
    """Reads a folder and those that lie below it; links to folders are added to ``links``."""
    visited.add(_identity(folder))
    for path in _sort(folder, files):
        if path.is_symlink():
            links.append(path)
        elif _identity(path) not in visited:
            _walk(path, files, visited, links)


def _sort(folder: Path, files: ImageFiles) -> list[Path]:
    """Sorts what lies in a folder by its kind, and returns the folders."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    folders = []
    for entry in entries:
        path = Path(entry)
        if _is_litter(entry.name):
            files.litter.append(path)
        elif is_passed_over(entry.name):
            files.hidden.append(path)
        elif path.is_dir():  # unlike that of an entry, false for a link that leads to itself
            folders.append(path)
        elif _is_image(entry):
            files.images.append(path)
            if path.suffix.lower() not in SUFFIXES:
                files.by_content.append(path)
        else:
            files.others.append(path)
    return folders


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _leads_up(link: Path) -> bool:
    place = link.parent.resolve()
    return link.resolve() in (place, *place.parents)


def _is_litter(name: str) -> bool:
    return name.lower() in LITTER or name.startswith("._")


def _is_image(entry: os.DirEntry[str]) -> bool:
    """A link to nothing that is called like an image counts, so that it is named as one that is missing."""
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        return os.path.isfile(entry) or (entry.is_symlink() and not os.path.exists(entry))
    return os.path.isfile(entry) and bool(image_format(_head(Path(entry))))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
