"""Processes that do one verb together, as torchrun would start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support import forked
from tests.support.ports import free_port


def _prepare(variables: dict[str, str], before: Callable[[], None] | None) -> None:
    """The environment of this process, which has loaded PyTorch already, and what a test wants in it."""
    os.environ.update(variables)
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    if before:
        before()


class Launch:
    """``python -m rg`` in several processes of this host.

    Args:
        words: Arguments; a list of them for each process where they differ.
        logs: Folder of what each process says.
        processes: How many there are.
        before: Rank -> what is called in its process before anything else.
    """

    def __init__(
        self,
        words: Sequence[Any],
        logs: Path,
        processes: int = 3,
        before: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        self.programs, port = [], free_port()
        own = words if isinstance(words[0], list) else [words] * processes
        for rank in range(processes):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            given = {name: str(value) for name, value in variables.items()}, (before or {}).get(rank)
            self.programs.append(forked.Program(own[rank], logs / f"{rank}.log", None, _prepare, given))

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes; those of signals are negative."""
        return [program.wait(seconds) for program in self.programs]

    def kill(self) -> None:
        """End all of them at once."""
        for program in self.programs:
            program.kill()

    @property
    def said(self) -> str:
        """What all of them have said so far."""
        return "".join(program.output for program in self.programs)
