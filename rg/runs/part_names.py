"""What the parts of a run are called, and which of them show the object.

They are named by people in part_names.json, written by hand:

    {"3": "crown", "7": {"name": "sky", "background": true}, "0": {"background": false}}

Part 3 is shown as "crown" everywhere. Which parts are background is seen over the training images; "background" says it
better. Parts of the object that nobody has named are called after the true parts that they show, where the run was
evaluated on data that knows these (metrics.json).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rg.runs.folder import METRICS, PART_NAMES, has_weights, read_json

LONGEST = 40  # characters


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        index: Number of the part, 0 to K - 1.
        name: What people call it, or the true parts that it shows; "part 3" without either.
        background: Whether it shows surroundings or hardly counts.
        named: Whether it has a name of its own.
        slot: Whether it is the background slot of the model, which no class rests on.
    """

    index: int
    name: str
    background: bool
    named: bool = False
    slot: bool = False


def unnamed(background: Sequence[bool], slot: bool = False) -> tuple[Part, ...]:
    """The parts of a model that nobody has named; the last one is its background slot if it has one."""
    parts = [Part(k, f"part {k}", bool(value)) for k, value in enumerate(background)]
    if slot:
        parts[-1] = replace(parts[-1], name="background", named=True, slot=True)
    return tuple(parts)


def read_parts(run: Path, background: Sequence[bool], slot: bool = False) -> tuple[Part, ...]:
    """The parts of a run, with all names that they have.

    Args:
        run: Run folder, with part_names.json and metrics.json or without.
        background: Which parts are background as the model sees it [K].
        slot: Whether the last one is the background slot of the model.

    Raises:
        ValueError: part_names.json is not as above.
    """
    return _after_true_parts(run, named_by_people(run, background, slot))


def named_by_people(run: Path, background: Sequence[bool], slot: bool = False) -> tuple[Part, ...]:
    """The same with the names of part_names.json alone, which do not change with what was measured."""
    parts = list(unnamed(background, slot))
    path = run / PART_NAMES
    if not path.is_file():
        return tuple(parts)
    content = read_json(path)
    for key, value in content.items():
        if not (key.isdecimal() and int(key) < len(parts)):
            raise ValueError(f"{path}: expected numbers of parts, 0 to {len(parts) - 1}, got {key!r}")
        parts[int(key)] = _part(path, parts[int(key)], value)
    return tuple(parts)


def _after_true_parts(run: Path, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Names for the parts of the object without one, as measured of the present weights; numbered where two agree."""
    if not (run / METRICS).is_file():
        return tuple(parts)
    metrics = read_json(run / METRICS)
    if not has_weights(run, metrics.get("weights", "")):  # or a file of another program
        return tuple(parts)
    measured = metrics["parts"]
    names = [" and ".join(part.get("true_parts", [])) for part in measured]
    open_parts = [part for part in parts if names[part.index] and not (part.named or part.background)]
    counts = Counter([part.name for part in parts] + [names[part.index] for part in open_parts])
    named = list(parts)
    for part in open_parts:
        name = names[part.index] if counts[names[part.index]] == 1 else f"{names[part.index]} {part.index}"
        named[part.index] = replace(part, name=name, named=True)
    return tuple(named)


def _part(path: Path, part: Part, value: Any) -> Part:
    entry = {"name": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not set(entry) <= {"name", "background"}:
        raise ValueError(f"{path}: part {part.index}: expected a name, or name and background, got {value!r}")
    name, background = entry.get("name", part.name), entry.get("background", part.background)
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST:
        raise ValueError(f"{path}: part {part.index}: expected a name of 1 to {LONGEST} characters, got {name!r}")
    if not isinstance(background, bool):
        raise ValueError(f"{path}: part {part.index}: expected background true or false, got {background!r}")
    if part.slot and not background:
        raise ValueError(f"{path}: part {part.index} is the background slot of the model; it cannot be a part")
    return replace(part, name=name.strip(), background=background, named=part.slot or "name" in entry)
