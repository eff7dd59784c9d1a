"""Ranks of one run as processes of this machine, started without a launcher."""

from __future__ import annotations

import os
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


def finish(processes: Sequence[subprocess.Popen], logs: Path) -> None:
    """Wait for all.

    Raises:
        RuntimeError: one failed; with the end of its output.
    """
    codes = [process.wait() for process in processes]
    for rank, code in enumerate(codes):
        if code:
            raise RuntimeError(f"rank {rank} ended with {code}: {(logs / f'{rank}.log').read_text()[-3000:]}")
