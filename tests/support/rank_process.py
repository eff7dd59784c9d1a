"""Ranks of a run as forked processes on hosts of ``cluster``, with faults that happen on the spot."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import forked
from tests.support.cluster import Hosts

if TYPE_CHECKING:
    from rg.training.loop import Loop

PORT = 29400


def launch(hosts: Hosts, rank: int, world_size: int) -> dict[str, str]:
    """The variables that a launcher sets, where every host has one rank."""
    values = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": hosts.addresses[hosts.names[0]],
        "MASTER_PORT": PORT,
    }
    return {name: str(value) for name, value in values.items()}


class RankProcess(forked.Program):
    """A rank that runs ``python -m rg`` on a host.

    Args:
        hosts: The cluster.
        rank: Of as many as there are hosts, on the host of that number.
        world_size: Number of ranks.
        words: Arguments of ``python -m rg``.
        log: Where its output goes.
        fault: What happens to it, one of ``FAULTS``, and at which step.
        environment: Variables beside those of the launch.
    """

    def __init__(
        self,
        hosts: Hosts,
        rank: int,
        world_size: int,
        words: Sequence[object],
        log: Path,
        fault: tuple[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        variables = launch(hosts, rank, world_size) | hosts.environment | dict(environment or {})
        namespaces = hosts.namespaces(hosts.names[rank])
        super().__init__(words, log, before=_prepare, arguments=(namespaces, variables, fault))


def _prepare(namespaces: Sequence[Path], variables: Mapping[str, str], fault: tuple[str, int] | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for namespace in namespaces:
        descriptor = os.open(namespace, os.O_RDONLY)
        if libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        os.close(descriptor)
    os.environ.update(variables)
    if fault:
        FAULTS[fault[0]](fault[1])


def _in_step(step: int, happen: Callable[[Loop], object]) -> None:
    """In the middle of an optimiser step: the batch is there, the other ranks wait for this one."""
    from rg.training.loop import Loop

    inputs = Loop._inputs

    def faulty(self: Loop, batch: object, micro: int) -> object:
        if self.step == step:
            happen(self)
        return inputs(self, batch, micro)  # type: ignore[arg-type]

    Loop._inputs = faulty  # type: ignore[method-assign, assignment]


def _send(number: int) -> Callable[[int], None]:
    return lambda step: _in_step(step, lambda _: os.kill(os.getpid(), number))


def _die_in_save(step: int) -> None:
    """Half of a file is on the disk."""
    from rg.training import checkpoints

    write = checkpoints._write

    def faulty(folder: Path, files: Mapping[str, object]) -> object:
        if folder.name.endswith(f"{step:08d}"):
            folder.mkdir(exist_ok=True)
            (folder / next(iter(files))).write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, files)  # type: ignore[arg-type]

    checkpoints._write = faulty  # type: ignore[assignment]


def _lose_number(step: int) -> None:
    """One loss is not a number."""
    from rg.training import objective

    loss, armed = objective.classification_loss, [False]
    _in_step(step, lambda _: armed.__setitem__(0, True))

    def faulty(*args: object) -> object:
        scale, armed[0] = float("nan") if armed[0] else 1.0, False
        return scale * loss(*args)  # type: ignore[arg-type]

    objective.classification_loss = faulty  # type: ignore[assignment]


def _fill_disk(step: int) -> None:
    """Nothing more can be written into the folder that RG_TEST_FILL names, until step + 4.

    The checkpoint that was begun before has its files by then.
    """
    filler = Path(os.environ["RG_TEST_FILL"], "filler")

    def fill(loop: Loop) -> None:
        while loop.checkpoints.busy:
            time.sleep(0.001)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    _in_step(step, fill)
    _in_step(step + 4, lambda _: filler.unlink())


def _delete_shard(step: int) -> None:
    """The training shards of the folder that RG_TEST_DATA names are gone."""

    def delete(_: Loop) -> None:
        for shard in Path(os.environ["RG_TEST_DATA"]).glob("train-*.tar"):
            shard.unlink()

    _in_step(step, delete)


def _wait(step: int) -> None:
    """Until there is the file that RG_TEST_GO names."""

    def wait(_: Loop) -> None:
        while not Path(os.environ["RG_TEST_GO"]).exists():
            time.sleep(0.01)

    _in_step(step, wait)


FAULTS: dict[str, Callable[[int], None]] = {
    "SIGTERM": _send(signal.SIGTERM),
    "SIGKILL": _send(signal.SIGKILL),
    "SIGSTOP": _send(signal.SIGSTOP),
    "SIGKILL in a save": _die_in_save,
    "loss not a number": _lose_number,
    "disk full": _fill_disk,
    "shard deleted": _delete_shard,
    "wait": _wait,
}
