"""Ranks of one run as processes of this machine, started without a launcher."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.cores import usable_cores


def start(world_size: int, words: Sequence[object], logs: Path) -> list[subprocess.Popen]:
    """Start ``python -m WORDS`` once for every rank.

    Args:
        world_size: Number of ranks.
        words: Module and its arguments.
        logs: Folder for what they print: 0.log, 1.log, ...
    """
    port = _free_port()
    launch = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = str(max(1, usable_cores() // world_size))
    common = os.environ | {"OMP_NUM_THREADS": threads} | {name: str(value) for name, value in launch.items()}
    processes = []
    for rank in range(world_size):
        with (logs / f"{rank}.log").open("ab") as log:
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", *map(str, words)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return processes


def _free_port() -> int:
    """One on which nobody listens, below those that the kernel gives to who asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def finish(processes: Sequence[subprocess.Popen], logs: Path) -> None:
    """Wait for all.

    Raises:
        RuntimeError: one failed; with the end of its output.
    """
    codes = [process.wait() for process in processes]
    for rank, code in enumerate(codes):
        if code:
            raise RuntimeError(f"rank {rank} ended with {code}: {(logs / f'{rank}.log').read_text()[-3000:]}")
