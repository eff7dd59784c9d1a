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
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from pipelines.files import atomic_write
from rg.runs.folder import read_json

ROOT = Path(__file__).parent.parent
LIMIT = 480  # seconds of a part
DONE = "done.json"
PASSED = ("ok", "finished before")


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Attributes:
        summary: What, in a few words.
        seconds: How long it is thought to take.
        needs: Modules.
        commands: Arguments of Python, one after the other.
        smoke: The same at a size for a CPU.
        tests: Parts that must have passed before.
    """

    summary: str
    seconds: int
    needs: tuple[str, ...]
    commands: tuple[str, ...]
    smoke: tuple[str, ...]
    tests: tuple[str, ...] = ()


_SIZE = "--size 224 --rounds 1"
_R101 = f"--recipe inat2017_resnet101 {_SIZE}"
_R50 = f"--recipe photos_resnet50 {_SIZE}"
_TRAIN = "-m benchmarks.bench_train --record"
_PARTS = f"-m benchmarks.step_parts {_R101} --variants channels_last --batch 128 --precision bf16"
_LAUNCHED = "--variants ddp captured --precision bf16 --steps 10"
_COMPILED = "--variants ddp_compiled --precision bf16 --steps 10"
_FP32 = "--variants ddp captured --steps 6"
_INPUT = f"{_TRAIN} {_R101} --variants ddp captured --kinds 'region grouping' --precision bf16 --batch 128 --steps 20"
_INFER = f"-m benchmarks.bench_inference {_R101} --seconds 1 --record"
_WITHOUT_ONNX = "--providers 'region grouping' 'whole network' explanations"
_LIGHT = ("triton", "tensorboard", "webdataset", "jsonargparse", "scipy", "timm")
_SMOKE_TRAIN = "-m benchmarks.bench_train --batch 4 --size 64 --steps 1 --rounds 1"
_SMOKE_DDP = f"{_SMOKE_TRAIN} --kinds 'region grouping' --variants ddp"
_SMOKE_COMPILED = f"{_SMOKE_TRAIN} --kinds 'whole network' --variants compiled"
_SMOKE_LOADER = "--images {out}/images --files 200 --batch 8 --seconds 0.2 --rounds 1 --workers 1"


def _batches(options: str, *batches: int) -> tuple[str, ...]:
    return tuple(f"{_TRAIN} {options} --batch {batch}" for batch in batches)


# Seconds are of an H200 as far as a part has been measured there, generous for hosts whose processes start slowly.
PARTS: Mapping[str, Part] = {
    "correctness": Part(
        "the tests of the kernels, and how far they are from float64",
        150,
        ("triton", "pytest"),
        ("-m pytest -q -m gpu {parallel} tests/kernels tests/model", "-m benchmarks.kernel_accuracy"),
        ("-m pytest -q -m gpu tests/model/test_fused_model.py",),
    ),
    "kernels": Part(
        "grouping and occurrence beside eager, torch.compile and a copy of the same bytes, in bf16 and then in fp32",
        280,
        ("triton",),
        tuple(
            f"-m benchmarks.bench_kernels --layout channels_last --dtype {dtype} --record" for dtype in ("bf16", "fp32")
        ),
        ("-m benchmarks.bench_kernels --dry-run",),
        ("correctness",),
    ),
    "steps": Part(
        "the tests of steps that are launched",
        150,
        (*_LIGHT, "pytest"),
        (
            "-m pytest -q -m gpu tests/distributed",  # which looks at the clock, so one by one
            "-m pytest -q -m gpu {parallel} tests/training -k 'not captured'",
        ),
        ("-m pytest -q tests/training/test_batch_reader.py",),
        ("correctness",),
    ),
    "replays": Part(
        "those of steps that are captured",
        60,
        (*_LIGHT, "pytest"),
        ("-m pytest -q -m gpu tests/training -k captured",),
        ("-m pytest -q tests/training/test_captured_run.py",),
        ("steps",),
    ),
    "captured": Part(
        "a step of ResNet-101 with region grouping beside torchvision's, launched and captured whole in a CUDA graph",
        250,
        _LIGHT,
        (
            *_batches(f"{_R101} {_LAUNCHED}", 128),
            *_batches(f"{_R101} --kinds 'region grouping' --variants lean image --precision bf16 --steps 10", 128),
            *_batches(f"{_R101} {_FP32}", 64),
        ),
        (f"{_SMOKE_TRAIN} --variants ddp",),
        ("replays",),
    ),
    "training": Part(
        "that with DeepSpeed and in NCHW, the parts of a step and its profile",
        340,
        ("deepspeed",),
        (
            *_batches(f"{_R101} --variants nchw channels_last kept ddp --precision bf16 --steps 20", 128),
            f"{_PARTS} --steps 20 --record",
            f"{_PARTS} --steps 4 --operators 22",
        ),
        (
            f"{_SMOKE_TRAIN} --variants kept",
            "-m benchmarks.step_parts --batch 4 --size 64 --steps 1 --rounds 1 --variants kept",
        ),
        ("steps",),
    ),
    "resnet101": Part(
        "captured and launched steps with 32, 64 and 256 images",
        270,
        _LIGHT,
        _batches(f"{_R101} {_LAUNCHED}", 32, 64, 256),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "resnet50": Part(
        "those of ResNet-50 with 32, 64, 128 and 256 images",
        300,
        _LIGHT,
        _batches(f"{_R50} {_LAUNCHED}", 32, 64, 128, 256),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "graphs": Part(
        "the same step under torch.compile's own CUDA graphs, and with activation checkpointing",
        150,
        ("deepspeed", "triton"),
        _batches(f"{_R101} --variants cuda_graphs checkpointed --precision bf16 --steps 20", 128),
        (f"{_SMOKE_TRAIN} --kinds 'whole network' --variants checkpointed",),
        ("steps",),
    ),
    "compiled": Part(
        "the same step compiled, and that of ResNet-50",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 128), *_batches(f"{_R50} {_COMPILED}", 128)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "images": Part(
        "the tests of the decoder",
        150,
        ("nvidia.dali", "pytest"),
        ("-m pytest -q -m gpu tests/batches",),  # one of them looks at the clock
        ("-m pytest -q tests/batches/test_growing.py",),
    ),
    "loader": Part(
        "batches of DALI (cpu, and mixed at three loads of the JPEG engine) beside ImageFolder and webdataset",
        140,
        ("nvidia.dali",),
        ("-m benchmarks.bench_loader --files 2000 --workers {cores} --batch 128 --seconds 4 --rounds 1 --record",),
        (f"-m benchmarks.bench_loader {_SMOKE_LOADER}",),
        ("images",),
    ),
    "input": Part(
        "the share of a step that waits for images of DALI, decoded on the GPU and on the CPU",
        160,
        (*_LIGHT, "nvidia.dali"),
        tuple(f"{_INPUT} --input {decoder}" for decoder in ("mixed", "cpu")),
        (f"{_SMOKE_DDP} --input cpu --images {{out}}/images",),
        ("replays", "images"),
    ),
    "inference": Part(
        "logits and explanations of ResNet-101: 1 and 64 images, and 256 in bf16",
        220,
        (),
        (
            f"{_INFER} {_WITHOUT_ONNX} --batches 1 64",
            f"{_INFER} --providers 'region grouping' --batches 256 --precision bf16",
        ),
        (f"-m benchmarks.bench_inference --batches 2 --size 64 --seconds 0.1 --rounds 1 {_WITHOUT_ONNX}",),
        ("correctness",),
    ),
    "fp32": Part(
        "captured and launched steps in fp32 with 32 and 128 images",
        320,
        _LIGHT,
        (*_batches(f"{_R101} {_FP32}", 32, 128), *_batches(f"{_R50} {_FP32}", 32, 128)),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "fp32_large": Part(
        "those with 256 images, and of ResNet-50 with 64",
        260,
        _LIGHT,
        (*_batches(f"{_R50} {_FP32}", 64, 256), *_batches(f"{_R101} {_FP32}", 256)),
        (_SMOKE_DDP,),
        ("replays",),
    ),
    "compiled_small": Part(
        "compiled steps with 32 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 32), *_batches(f"{_R50} {_COMPILED}", 32)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "compiled_medium": Part(
        "compiled steps with 64 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 64), *_batches(f"{_R50} {_COMPILED}", 64)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
    "compiled_large": Part(
        "compiled steps with 256 images",
        400,
        _LIGHT,
        (*_batches(f"{_R101} {_COMPILED}", 256), *_batches(f"{_R50} {_COMPILED}", 256)),
        (_SMOKE_COMPILED,),
        ("steps",),
    ),
}


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
        self._marks: dict[str, str] = read_json(path) if path.is_file() else {}

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
