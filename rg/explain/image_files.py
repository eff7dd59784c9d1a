"""Image files in files and folders, and a name for the output of each."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines import image_files

NAME_LENGTH = 48  # characters of up to 4 bytes, of the 255 bytes that a file system takes


def find_images(paths: Sequence[Path], out: Path) -> list[Path]:
    """The files, and the images in folders.

    Args:
        paths: Files and folders.
        out: Nothing that lies here is taken from folders: there may be pictures of a run before.

    Raises:
        ValueError: a path does not exist or is a file in ``out``, where it might be overwritten; or there is no image.
    """
    files: list[Path] = []
    own = out.resolve()
    for path in paths:
        if path.is_dir():
            found = image_files.find_images(path, without=out)
            image_files.log_files(path, [found])
            files += [image for image in found.images if own not in image.resolve().parents]
        elif path.is_file():
            if own in path.resolve().parents:
                raise ValueError(f"{path}: lies in --out {out}, where pictures are written; choose another folder")
            files.append(path)
        elif set("*?") & set(str(path)):
            raise ValueError(f"{path}: no file matches this pattern")
        else:
            raise ValueError(f"{path}: no such file or folder")
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(files))


def name_each(files: Sequence[Path], done: Mapping[str, str] | None = None) -> dict[str, str]:
    """One name per file: its stem, with its folder's name in front (and a number) where stems repeat.

    Names hold nothing that a file system or a URL takes for something else, and differ by more than their case.

    Args:
        files: To be named.
        done: Path and name of files that have one.

    Returns:
        Path and name of both.
    """
    names = dict(done or {})
    taken = {name.casefold() for name in names.values()}
    for file in files:
        if str(file) in names:
            continue
        name = _plain(file.stem)
        longer = _plain(f"{file.parent.name}-{file.stem}")
        number = 1
        while name.casefold() in taken:
            name = longer if number == 1 else f"{longer}-{number}"
            number += 1
        taken.add(name.casefold())
        names[str(file)] = name
    return names


def distinct_names(files: Iterable[Path]) -> dict[Path, str]:
    """What to call files on a page: the end of their paths, as long as it takes to tell each from all others."""
    every = list(dict.fromkeys(files))
    names: dict[Path, str] = {}
    length = 1
    while every:
        ends = {file: _printable("/".join(file.parts[-length:])) for file in every}
        counts = Counter(ends.values())
        names |= {file: end for file, end in ends.items() if counts[end] == 1 or length >= len(file.parts)}
        every = [file for file in every if file not in names]
        length += 1
    return names


def _printable(name: str) -> str:
    """A name of a file with a mark for every byte that is no text."""
    return os.fsencode(name).decode(errors="replace")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)[:NAME_LENGTH].strip(".") or "_"
