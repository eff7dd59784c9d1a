"""A function measured in a process of its own, and what a process and its descendants take of CPU time and memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

POLL = 0.25  # seconds between two looks at the memory
PROC = Path("/proc")

Result = TypeVar("Result")


def missing() -> str:
    """Why nothing can be measured here; empty if it can."""
    return "" if PROC.exists() else f"CPU time and memory are read from {PROC}, which this system has not"


def alone(function: Callable[..., Result], *arguments: object) -> tuple[Result, int]:
    """Calls a function in a new process.

    Returns:
        What the function returned, and the peak memory in bytes of the process and its descendants.

    Raises:
        ValueError: the function raised one.
        RuntimeError: the process died; its error has been printed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    sender.close()
    peak = 0
    while not receiver.poll(POLL):
        peak = max(peak, memory(process.pid or 0))
    try:
        result, refused = receiver.recv()
    except EOFError:
        process.join()
        name = getattr(function, "__name__", function)
        raise RuntimeError(f"{name}{arguments}: the process ended with code {process.exitcode}") from None
    process.join()
    if refused is not None:
        raise ValueError(refused)
    return result, peak


def _send(sender: Connection, function: Callable[..., object], *arguments: object) -> None:
    multiprocessing.set_start_method(None, force=True)  # else a DataLoader here would spawn its workers, too
    try:
        sender.send((function(*arguments), None))
    except ValueError as error:
        sender.send((None, str(error)))


def processor_seconds(pid: int) -> float:
    """CPU seconds of a process and its living descendants.

    ``getrusage`` counts children only once they have ended, which the workers of a DataLoader do after everything.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(sum(map(int, stat[11:13])) for stat in _tree(pid).values()) / ticks


def memory(pid: int) -> int:
    """Bytes of a process and its living descendants that no file backs; what several of them share counts once.

    Libraries and shards are left out: their pages are in the page cache, shared with whoever else reads them.
    """
    return sum(each(pid))


def each(pid: int) -> list[int]:
    """The same of a process and of each of its living descendants."""
    sizes = []
    for member in _tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(PROC, str(member), "smaps_rollup").read_text().splitlines()
            own = (int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
            sizes.append(1024 * sum(own))
    return sizes


def _tree(root: int) -> dict[int, list[str]]:
    """Pid -> fields of its ``stat`` from the state on, of a process and its descendants."""
    stats: dict[int, list[str]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stats[int(entry)] = Path(PROC, entry, "stat").read_text().rpartition(") ")[2].split()
    members = {root} & set(stats)
    while children := {pid for pid, stat in stats.items() if int(stat[1]) in members} - members:
        members |= children
    return {pid: stats[pid] for pid in members}
