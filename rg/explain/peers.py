"""The processes that share a work; ``rg.distributed.group.Group`` is one view of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Place(Protocol):
    """Which process of how many this is."""

    @property
    def rank(self) -> int:
        """From 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...


class Peers(Protocol):
    """What processes do together, all of them at the same point."""

    @property
    def ranks(self) -> Place:
        """Which process this is."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """What every process gives, on every process."""
        ...

    def together(self, check: Callable[[], T]) -> T:
        """The result of a function on this process; all raise if it raises on any."""
        ...


@dataclass(frozen=True)
class _First:
    rank: int = 0
    world_size: int = 1


class Alone:
    """One process."""

    ranks = _First()

    def collect(self, value: Any) -> list[Any]:
        """That value."""
        return [value]

    def together(self, check: Callable[[], T]) -> T:
        """Its result."""
        return check()
