"""Ranks as processes of this machine, joined by Gloo: forked from a process that has imported what they need."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rg.distributed.group import Group
from rg.distributed.ranks import Ranks
from tests.support import forked

PATIENCE = timedelta(seconds=60)  # for a collective

_group: Group  # of this process, if it is a rank


def join(rank: int, size: int, store: Path) -> Group:
    """Make this process a rank; ranks that name the same file belong together."""
    global _group
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    file = dist.FileStore(str(store), size)
    dist.init_process_group("gloo", store=file, rank=rank, world_size=size, timeout=PATIENCE)
    _group = Group(Ranks(rank, size, rank, size, ("127.0.0.1", 0)), store=file)
    return _group


class World:
    """``size`` ranks that stay until the end of the context.

    Args:
        size: Number of ranks.
        store: A new file, through which they meet.
    """

    def __init__(self, size: int, store: Path) -> None:
        self._ranks = [
            ProcessPoolExecutor(1, forked.CONTEXT, initializer=join, initargs=(rank, size, store))
            for rank in range(size)
        ]

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks:
            rank.shutdown()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``work(group, *arguments)`` on every rank at once; work is a function of a module.

        Returns:
            What it returns on each rank; an exception of one is raised here.
        """
        return [future.result() for future in [rank.submit(_call, work, arguments) for rank in self._ranks]]


def _call(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return work(_group, *arguments)
