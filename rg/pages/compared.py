"""What ``compare`` writes of every image as it goes, in one line, so that a run that was stopped goes on from there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pipelines.files import atomic_write, json_line, read_json_lines

LINES = "compare.jsonl"
Line = dict[str, Any]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_lines(
    folder: Path, settings: Mapping[str, Any], files: Sequence[Path]
) -> Iterator[tuple[IO[bytes], set[str]]]:
    """Open the lines of a folder, whose first one holds the settings; lines of other settings are dropped.

    Args:
        folder: Is there, and no other process writes into it.
        settings: What decides the lines, as JSON values.
        files: Images to compare.

    Yields:
        The file to write further lines to, and the names of the files that have theirs.
    """
    path = folder / LINES
    wanted = {str(file) for file in files}
    kept: list[Line] = []
    if path.is_file():
        lines = read_json_lines(path, drop_half_line=True)
        if next(lines, None) == {"settings": settings}:
            kept = [line for line in lines if line["file"] in wanted and (folder / line["picture"]).is_file()]
        else:
            logger.info("%s: begun anew, it was made of other images, runs or weights", path)
    with atomic_write(path) as file:
        file.writelines(map(json_line, [{"settings": settings}, *kept]))
    with path.open("ab") as file:
        yield file, {line["file"] for line in kept}


def read_lines(folder: Path) -> Iterator[Line]:
    """The lines of a folder, one after the other, without the settings."""
    lines = read_json_lines(folder / LINES, drop_half_line=True)
    next(lines)
    yield from lines
