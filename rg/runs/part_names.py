"""What people call the parts of a run, and which of them show the object: part_names.json, written by hand.

    {"3": "crown", "7": {"name": "sky", "background": true}, "0": {"background": false}}

Part 3 is shown as "crown" everywhere. Which parts are background is seen over the training images; "background" says it
better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rg.runs.folder import PART_NAMES, read_json

LONGEST = 40  # characters


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        index: Number of the part, 0 to K - 1.
        name: What people call it, "part 3" if they do not.
        background: Whether it shows surroundings or hardly counts.
        named: Whether people gave it that name.
    """

    index: int
    name: str
    background: bool
    named: bool = False


def unnamed(background: Sequence[bool]) -> tuple[Part, ...]:
    """The parts of a model that nobody has named."""
    return tuple(Part(k, f"part {k}", bool(value)) for k, value in enumerate(background))


def read_parts(run: Path, background: Sequence[bool]) -> tuple[Part, ...]:
    """The parts of a run.

    Args:
        run: Run folder, with part_names.json or without.
        background: Which parts are background as the model sees it [K].

    Raises:
        ValueError: the file is not as above.
    """
    parts = list(unnamed(background))
    path = run / PART_NAMES
    if not path.is_file():
        return tuple(parts)
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object of parts, got {type(content).__name__}")
    for key, value in content.items():
        if not (key.isdecimal() and int(key) < len(parts)):
            raise ValueError(f"{path}: expected numbers of parts, 0 to {len(parts) - 1}, got {key!r}")
        parts[int(key)] = _part(path, parts[int(key)], value)
    return tuple(parts)


def _part(path: Path, part: Part, value: Any) -> Part:
    entry = {"name": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not set(entry) <= {"name", "background"}:
        raise ValueError(f"{path}: part {part.index}: expected a name, or name and background, got {value!r}")
    name, background = entry.get("name", part.name), entry.get("background", part.background)
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST:
        raise ValueError(f"{path}: part {part.index}: expected a name of 1 to {LONGEST} characters, got {name!r}")
    if not isinstance(background, bool):
        raise ValueError(f"{path}: part {part.index}: expected background true or false, got {background!r}")
    return Part(part.index, name.strip(), background, named="name" in entry)
