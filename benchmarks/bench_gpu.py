"""Everything that a GPU is measured for, in parts: kernels, steps of training, loader, inference, each after its tests.

python -m benchmarks.bench_gpu [PART ...] [--dry-run] [--smoke] [--again] [--out runs/bench-gpu]

Each part appends its rows to ``results/``, of which OUT/results is a copy, writes its output to OUT/PART.log, and ends
after 8 minutes at most. Commands that the same code has finished on the same GPU are not run again, so a run that was
interrupted is started with the same words. A part whose packages are missing is left out and says so; nothing is
measured before its tests have passed. ``--smoke`` runs every part on a CPU at a small size, with nothing recorded: it
shows that the parts work, not how fast anything is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.gpu_parts import PARTS, Part
from pipelines.files import atomic_write

ROOT = Path(__file__).parent.parent
LIMIT = 480  # seconds of a part
DONE = "done.json"
PASSED = ("ok", "finished before")


def missing(part: Part) -> list[str]:
    """The modules that a part needs and that are not installed."""
    return [name for name in part.needs if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


class Done:
    """The commands that have been finished, in a file.

    Args:
        path: Of the file.
        mark: With what they must have been finished: code and device.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self._path, self._mark = path, mark
        self._marks: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}

    def __contains__(self, command: str) -> bool:
        return self._marks.get(command) == self._mark

    def add(self, command: str) -> None:
        """One that has been finished."""
        self._marks[command] = self._mark
        with atomic_write(self._path) as file:
            file.write(json.dumps(self._marks, indent=1).encode())


def run(name: str, out: Path, smoke: bool, done: Done, again: bool = False) -> str:
    """Runs a part.

    Args:
        name: Of the part.
        out: Folder of logs.
        smoke: At a size for a CPU.
        done: What has been finished, and is not run again unless ``again``.

    Returns:
        ``ok``, ``finished before``, or why not.
    """
    part = PARTS[name]
    if lacking := missing(part):
        return f"left out: {', '.join(lacking)} not installed"
    commands = part.smoke if smoke else part.commands
    due = [command for command in commands if again or command not in done]
    if not due:
        return "finished before"
    began = time.monotonic()
    surroundings = dict(os.environ) | ({"TRITON_INTERPRET": "1"} if smoke and name == "correctness" else {})
    with (out / f"{name}.log").open("a" if len(due) < len(commands) else "w") as log:
        for command in due:
            left = LIMIT - (time.monotonic() - began)
            process = subprocess.Popen(
                words(command, out), cwd=ROOT, env=surroundings, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = process.wait(max(left, 1))
            except subprocess.TimeoutExpired:
                return f"took longer than {LIMIT} s: {out / name}.log"
            finally:
                _end(process)
                if not smoke:  # so that OUT alone has all that came of it
                    shutil.copytree(ledger.RESULTS, out / "results", dirs_exist_ok=True)
            if code:
                return f"ended with code {code}: {out / name}.log"
            done.add(command)
    return "ok"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and what it has started: benchmarks measure in processes of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _mark(smoke: bool) -> str:
    """What a part was finished with: the code, whatever its rows, and the device."""
    code = hashlib.sha256(ledger.changes().encode()).hexdigest()[:12] if ledger.changes() else "clean"
    device = "smoke" if smoke else torch.cuda.get_device_name()
    return ", ".join((ledger.code_commit(), code, device))


def words(command: str, out: Path) -> list[str]:
    """The command line of a command: with the folder that it may keep files in, and what this machine has."""
    parallel = f"-n {min(8, os.cpu_count() or 1)}" if _installed("xdist") else ""
    return [
        sys.executable,
        *shlex.split(command.format(out=shlex.quote(str(out)), cores=os.cpu_count() or 1, parallel=parallel)),
    ]


def plan(names: Sequence[str], smoke: bool) -> str:
    """What would run, for how long, and what it lacks."""
    lines = []
    for name in names:
        part = PARTS[name]
        lacking = f" (left out: {', '.join(missing(part))} not installed)" if missing(part) else ""
        lines.append(f"{name}: {part.summary}, {'seconds' if smoke else f'about {part.seconds} s'}{lacking}")
        commands = part.smoke if smoke else part.commands
        lines += [f"  python {shlex.join(words(command, Path('OUT'))[1:])}" for command in commands]
    if not smoke:
        minutes = sum(PARTS[name].seconds for name in names) / 60
        lines.append(f"about {minutes:.0f} minutes, {LIMIT / 60:.0f} a part at most")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a part fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and for how long")
    parser.add_argument("--smoke", action="store_true", help="on a CPU, at a small size, nothing recorded")
    parser.add_argument("--again", action="store_true", help="also what was finished before")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-gpu", help="folder of logs")
    options = parser.parse_args(arguments)
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"PART: expected some of {', '.join(PARTS)}, got {name!r}")
    asked = options.parts or list(PARTS)
    names = [name for name in PARTS if name in asked or any(_needs(other, name) for other in asked)]
    if options.dry_run:
        print(plan(names, options.smoke))
        return 0
    if not (options.smoke or torch.cuda.is_available()):
        parser.error("expected a GPU, got none; --smoke shows on a CPU that the parts work")
    options.out.mkdir(parents=True, exist_ok=True)
    done = Done(options.out / DONE, _mark(options.smoke))
    results: dict[str, str] = {}
    for name in names:
        began = time.monotonic()
        if failing := [tests for tests in PARTS[name].tests if results[tests] not in PASSED]:
            results[name] = f"not measured: {', '.join(failing)} not passed"
        else:
            again = options.again and name in asked
            results[name] = run(name, options.out.absolute(), options.smoke, done, again)
        print(f"{name}: {results[name]}, {time.monotonic() - began:.0f} s", flush=True)
    return int(any(result not in PASSED and not _is_left_out(name, results) for name, result in results.items()))


def _needs(name: str, other: str) -> bool:
    """Whether a part wants another one to have passed."""
    return any(tests == other or _needs(tests, other) for tests in PARTS[name].tests)


def _is_left_out(name: str, results: Mapping[str, str]) -> bool:
    """Whether packages of a part, or of its tests, are missing."""
    if results[name] in PASSED:
        return False
    return results[name].startswith("left out") or any(_is_left_out(tests, results) for tests in PARTS[name].tests)


if __name__ == "__main__":
    run_main(main)
