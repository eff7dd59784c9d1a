"""The options of all benchmarks that read the image set, and types of options."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.tools.image_set import CLASSES

IMAGES = Path(tempfile.gettempdir(), "region-grouping-bench")


def image_parser(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """A parser with ``--images``, ``--files`` and ``--record``, described by the first line of a docstring."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--images", type=folder, default=IMAGES, help="folder that keeps the images")
    parser.add_argument("--files", type=at_least(CLASSES), default=2000, help="number of images")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{results.name}")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers from ``least`` on."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {value}")
        return value

    return integer


def counts(text: str) -> list[int]:
    """Whole numbers from 1 on, with commas between them."""
    return [at_least(1)(word) for word in text.split(",")]


def duration(text: str) -> float:
    """Seconds, more than 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected more than 0, got {value}")
    return value


def folder(text: str) -> Path:
    """A folder, or where one can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got {path}")
    return path
