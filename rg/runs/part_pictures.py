"""What every part of an evaluated run looks like: part_pictures.webp, a row of squares, one for each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipelines.files import atomic_write
from rg.runs.folder import METRICS, PART_PICTURES, is_as_measured, read_json

SIDE = 64  # pixels of a square


def write_part_pictures(run: Path, squares: Sequence[Image.Image]) -> None:
    """Write the file; squares are RGB and have ``SIDE`` pixels."""
    row = Image.new("RGB", (SIDE * len(squares), SIDE))
    for number, square in enumerate(squares):
        row.paste(square, (SIDE * number, 0))
    with atomic_write(run / PART_PICTURES) as file:
        row.save(file, "WEBP", quality=80)


def read_part_pictures(run: Path, count: int) -> bytes | None:
    """The file, if it is there and shows the parts as they are now.

    Args:
        run: Run folder.
        count: Number of parts.

    Raises:
        ValueError: the file is no picture, or cut short.
    """
    path = run / PART_PICTURES
    if not path.is_file() or not (run / METRICS).is_file():
        return None
    if not is_as_measured(run, read_json(run / METRICS)):
        return None
    try:
        with Image.open(path) as row:
            row.load()
            return path.read_bytes() if row.size == (SIDE * count, SIDE) else None
    except OSError as error:
        raise ValueError(f"{path}: no picture, or cut short ({error}); run `python -m rg evaluate` again") from None
