"""What people write of parts in part_names.json: an entry for each part that they say something of.

    {"3": "crown", "4": {"off": true}, "5": {"merge": 2}, "7": {"name": "sky", "background": true}}

"name" and "background" say what a part is called and whether it shows surroundings (``part_names``). "off" and "merge"
change what the model answers and shows (``rg.model.edits``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rg.model.edits import Edits

KEYS = ("name", "background", "off", "merge")


def entries(path: Path, content: Mapping[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """The entries by the numbers of their parts.

    Args:
        path: Of the file, for messages.
        content: Of the file.
        count: Number of parts K.

    Raises:
        ValueError: there is no such part, or something else is said of it.
    """
    found = {}
    for key, value in content.items():
        if not (key.isdecimal() and int(key) < count):
            raise ValueError(f"{path}: expected numbers of parts, 0 to {count - 1}, got {key!r}")
        entry = {"name": value} if isinstance(value, str) else value
        if not isinstance(entry, dict) or not set(entry) <= set(KEYS):
            raise ValueError(f"{path}: part {int(key)}: expected a name, or any of {', '.join(KEYS)}, got {value!r}")
        found[int(key)] = entry
    return found


def edits(path: Path, content: Mapping[str, Any], count: int, slot: int | None = None) -> Edits:
    """Which parts are off, and which are merged.

    Args:
        path: Of the file, for messages.
        content: Of the file.
        count: Number of parts K.
        slot: Number of the background slot, if there is one.

    Raises:
        ValueError: the file says something else than above; or what cannot be: no part is left, a part is merged into
            itself or into one that is merged, or the background slot is off or merged.
    """
    said = entries(path, content, count)
    merged: dict[int, int] = {}
    off = set()
    for k, entry in sorted(said.items()):
        if not isinstance(entry.get("off", False), bool):
            raise ValueError(f"{path}: part {k}: expected off true or false, got {entry['off']!r}")
        if entry.get("off"):
            off.add(k)
        if "merge" in entry:
            merged[k] = _target(path, k, entry["merge"], count)
    for k, into in merged.items():
        if into in merged:
            raise ValueError(f"{path}: part {k}: expected a part that stays, got {into}, merged into {merged[into]}")
        if k in off:
            raise ValueError(f"{path}: part {k} is merged; switch off part {into}, which it is merged into")
    if slot is not None and slot in {*off, *merged, *merged.values()}:
        raise ValueError(f"{path}: part {slot} is the background slot, which no class rests on; leave it as it is")
    off |= {k for k, into in merged.items() if into in off}
    if len(off) == count - (slot is not None):
        raise ValueError(f"{path}: expected a part that is on, got all of them off")
    return Edits(tuple(sorted(off)), merged)


def _target(path: Path, k: int, into: Any, count: int) -> int:
    if isinstance(into, bool) or not isinstance(into, int) or not 0 <= into < count or into == k:
        raise ValueError(f"{path}: part {k}: expected merge with the number of another part, got {into!r}")
    return into
