"""Files that are written whole or not at all, their sums, and lines of JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".tmp"  # behind the name of a file that is not complete yet


def sha256(path: Path) -> str:
    """Digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_content(path: Path, name: str, expected: str) -> None:
    """Refuse what is left of a file that did not come along: nothing, a pointer of Git LFS, a web page.

    Args:
        path: The file.
        name: What to call it in the message.
        expected: What it should hold.

    Raises:
        ValueError: it holds such a thing.
    """
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise ValueError(f"{name}: expected {expected}, but the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{name}: expected {expected}, got a pointer of Git LFS; run `git lfs pull` where it lies")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{name}: expected {expected}, got a web page; download the file again")


def check_file(path: Path, argument: str) -> None:
    """Refuse a file that could not be written, before hours are spent on what goes into it; nothing is left behind.

    Args:
        path: Of the file; its folder need not be there yet.
        argument: What to blame, such as ``--out``.

    Raises:
        ValueError: a folder has that name, a file lies in the way of a folder, a name is too long for the disk, or
            nothing can be written there.
    """
    check_folder(path.parent, argument, path.name + TEMPORARY)
    if path.is_dir():
        raise ValueError(f"{argument}: expected the name of a file, but {path} is a folder")


def check_folder(path: Path, argument: str, name: str = "") -> None:
    """``check_file`` for a folder that need not be there yet, or for a file of that name in it."""
    folders = [path, *path.absolute().parents]
    try:
        nearest = next(folder for folder in folders if os.path.lexists(folder))
        if not nearest.is_dir():
            raise ValueError(f"{argument}: expected a folder, but {nearest} is a file")
        longest = os.pathconf(nearest, "PC_NAME_MAX")
        for part in (*path.parts, name):
            if len(os.fsencode(part)) > longest:
                raise ValueError(f"{argument}: expected names of at most {longest} bytes, got {part}")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{argument}: {path} cannot be written to ({error.strerror}); choose another place") from None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes its name only once it is complete and on disk; after an error nothing is left."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files of which none is to be there without the others.

    Raises:
        OSError: one cannot be written; then none is there.
    """
    temporaries = {path: path.with_name(path.name + TEMPORARY) for path in contents}
    named: list[Path] = []
    try:
        for path, temporary in temporaries.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path}: is a folder, expected a file to write")
            with temporary.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
            named.append(path)
    except BaseException:
        for path in (*temporaries.values(), *named):
            path.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, all or nothing."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def json_line(content: Mapping[str, Any]) -> bytes:
    """An object as a line of a file for ``read_json_lines``."""
    return json.dumps(content).encode() + b"\n"


def read_json_lines(path: Path, drop_half_line: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one in every line, one after the other.

    Args:
        path: The file.
        drop_half_line: Leave out half a line at the end, which a killed process leaves behind; else it is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                content = json.loads(line)
            except ValueError as error:
                if drop_half_line and not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}: expected one JSON value per line, got line {number} ({error})") from None
            yield content
