"""What the parts of a run are called, and which of them show the object.

They are named by people in part_names.json, written by hand:

    {"3": "crown", "7": {"name": "sky", "background": true}, "0": {"background": false}}

Part 3 is shown as "crown" everywhere. Which parts are background is seen over the training images; "background" says it
better. Parts of the object that nobody has named are called after the true parts that they show, where the run was
evaluated on data that knows these (metrics.json). What else the file may say is in ``part_entries``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rg.model.edits import Edits
from rg.runs.folder import METRICS, PART_NAMES, has_weights, read_json
from rg.runs.part_entries import edits, entries

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
        off: Whether it is switched off, so that it counts for nothing.
        merged_into: Number of the part that it is merged into, which has all that it had; None if it stands alone.
    """

    index: int
    name: str
    background: bool
    named: bool = False
    slot: bool = False
    off: bool = False
    merged_into: int | None = None


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
    for k, entry in entries(path, content, len(parts)).items():
        parts[k] = _part(path, parts[k], entry)
    return edited(parts, edits(path, content, len(parts), len(parts) - 1 if slot else None))


def edited(parts: Sequence[Part], changes: Edits) -> tuple[Part, ...]:
    """The same parts, switched off and merged as said."""
    return tuple(
        replace(part, off=part.index in changes.off, merged_into=changes.merged.get(part.index)) for part in parts
    )


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


def _part(path: Path, part: Part, entry: Mapping[str, Any]) -> Part:
    name, background = entry.get("name", part.name), entry.get("background", part.background)
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST:
        raise ValueError(f"{path}: part {part.index}: expected a name of 1 to {LONGEST} characters, got {name!r}")
    if not isinstance(background, bool):
        raise ValueError(f"{path}: part {part.index}: expected background true or false, got {background!r}")
    if part.slot and not background:
        raise ValueError(f"{path}: part {part.index} is the background slot of the model; it cannot be a part")
    return replace(part, name=name.strip(), background=background, named=part.slot or "name" in entry)
