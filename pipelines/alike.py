"""Which classes an image can show that lacks some parts: all that look alike in the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def answers(looks: Sequence[Mapping[str, Any]], label: int, absent: Collection[str]) -> tuple[int, ...] | None:
    """The classes that are right where the image of one of them lacks some parts; None if it is the only one.

    Args:
        looks: Of each class the parts in which classes differ, and how they look.
        label: The class.
        absent: The parts that the image lacks.
    """
    left = {part: look for part, look in looks[label].items() if part not in absent}
    alike = tuple(number for number, parts in enumerate(looks) if parts.items() >= left.items())
    return alike if len(alike) > 1 else None
