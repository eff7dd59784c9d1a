"""The processes that share a work; ``rg.distributed.group.Group`` is one view of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Place(Protocol):
    """Which process of how many this is."""

    @property
    def rank(self) -> int:
        """From 0."""
        ...

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def local_rank(self) -> int:
        """The same on its host."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...


class Peers(Protocol):
    """What processes do together, all of them at the same point unless it says otherwise."""

    @property
    def ranks(self) -> Place:
        """Which process this is."""
        ...

    @property
    def sharing(self) -> int:
        """How many of them may run on the cores of this one, itself included."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """What every process gives, on every process."""
        ...

    def together(self, check: Callable[[], T]) -> T:
        """The result of a function on this process; all raise if it raises on any."""
        ...

    def counter(self) -> Callable[[int], int]:
        """A number that all share, 0 at first: adds to it, at any time, and tells what it is then."""
        ...

    def wait(self, meanwhile: Callable[[], object]) -> None:
        """Wait until all are here, and call a function from time to time until then."""
        ...


class _First(NamedTuple):
    rank: int = 0
    name: str = "rank 0"
    local_rank: int = 0
    world_size: int = 1


class Alone:
    """One process."""

    ranks = _First()
    sharing = 1

    def collect(self, value: Any) -> list[Any]:
        """That value."""
        return [value]

    def together(self, check: Callable[[], T]) -> T:
        """Its result."""
        return check()

    def counter(self) -> Callable[[int], int]:
        """The sum so far of what is added."""
        amounts: list[int] = []

        def add(amount: int) -> int:
            amounts[:] = [sum(amounts) + amount]
            return amounts[0]

        return add

    def wait(self, meanwhile: Callable[[], object]) -> None:
        """Nobody else is there."""
