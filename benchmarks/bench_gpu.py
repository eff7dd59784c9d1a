"""Everything that a GPU is measured for, in parts: correctness first, then kernels, loader, training, inference.

python -m benchmarks.bench_gpu [PART ...] [--dry-run] [--smoke] [--again] [--out runs/bench-gpu]

Each part appends its rows to ``results/``, writes its output to OUT/PART.log, and ends after 8 minutes at most. What
was finished by the same code on the same GPU is not done again, so a run that was interrupted is started with the same
words. A part whose packages are missing is left out and says so; nothing else is measured before correctness has
passed. ``--smoke`` runs every part on a CPU at a small size, with nothing recorded: it shows that the parts work, not
how fast anything is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
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


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Attributes:
        summary: What, in a few words.
        seconds: How long it is thought to take.
        needs: Modules.
        commands: Arguments of Python, one after the other.
        smoke: The same at a size for a CPU.
    """

    summary: str
    seconds: int
    needs: tuple[str, ...]
    commands: tuple[str, ...]
    smoke: tuple[str, ...]


_NETWORK = "--recipe inat2017_resnet101 --size 224 --rounds 1"
_TRAIN = f"-m benchmarks.bench_train {_NETWORK} --steps 20 --record"
_PARTS = f"-m benchmarks.step_parts {_NETWORK} --variants channels_last"
_LIGHT = ("triton", "tensorboard")
_LAUNCHED = "--variants ddp captured --precision bf16"
_BATCHES = f"-m benchmarks.bench_train --size 224 --rounds 1 --steps 10 {_LAUNCHED} --record"
_TRAIN_SMALL = "-m benchmarks.bench_train --batch 4 --size 64 --steps 1 --rounds 1"
_FAST = "--batch 128 --precision bf16"
_INFER = f"-m benchmarks.bench_inference {_NETWORK} --seconds 1 --record"
_WITHOUT_ONNX = "--providers 'region grouping' 'whole network' explanations"
_SMOKE_LOADER = "--images {out}/images --files 200 --batch 8 --seconds 0.2 --rounds 1 --workers 1"
# Seconds are of an H200 as far as a part has been measured there, generous for hosts whose processes start slowly.
PARTS: Mapping[str, Part] = {
    "correctness": Part(
        "the tests of kernels, decoder and training, and how far the kernels are from float64",
        240,
        ("triton", "pytest"),
        ("-m pytest -q -m gpu {parallel} tests", "-m benchmarks.kernel_accuracy"),
        ("-m pytest -q -m gpu tests/model/test_fused_model.py",),
    ),
    "kernels": Part(
        "grouping and occurrence beside eager, torch.compile and a copy of the same bytes",
        280,
        ("triton",),
        ("-m benchmarks.bench_kernels --layout channels_last --record",),
        ("-m benchmarks.bench_kernels --dry-run",),
    ),
    "loader": Part(
        "batches of DALI (cpu, and mixed at three loads of the JPEG engine) beside ImageFolder and webdataset",
        140,
        ("nvidia.dali",),
        ("-m benchmarks.bench_loader --files 2000 --workers {cores} --batch 128 --seconds 4 --rounds 1 --record",),
        (f"-m benchmarks.bench_loader {_SMOKE_LOADER}",),
    ),
    "training": Part(
        "a step of ResNet-101 with region grouping beside torchvision's, in bf16 and fp32; its parts and its profile",
        330,
        ("deepspeed",),
        (
            f"{_TRAIN} --variants nchw channels_last ddp {_FAST}",
            f"{_TRAIN} --variants channels_last --batch 64",
            f"{_PARTS} --steps 20 {_FAST} --record",
            f"{_PARTS} --steps 4 {_FAST} --operators 22",
        ),
        (
            f"{_TRAIN_SMALL} --variants kept",
            "-m benchmarks.step_parts --batch 4 --size 64 --steps 1 --rounds 1 --variants kept",
        ),
    ),
    "captured": Part(
        "the same step without DeepSpeed, launched and captured whole in a CUDA graph, in bf16 and fp32",
        200,
        _LIGHT,
        (f"{_TRAIN} {_LAUNCHED} --batch 128", f"{_TRAIN} --variants ddp captured --batch 64"),
        (f"{_TRAIN_SMALL} --variants ddp",),
    ),
    "resnet101": Part(
        "that in bf16 with 32, 64 and 256 images",
        270,
        _LIGHT,
        tuple(f"{_BATCHES} --recipe inat2017_resnet101 --batch {batch}" for batch in (32, 64, 256)),
        (f"{_TRAIN_SMALL} --kinds 'region grouping' --variants ddp",),
    ),
    "resnet50": Part(
        "that of ResNet-50 with 32, 64, 128 and 256 images",
        300,
        _LIGHT,
        tuple(f"{_BATCHES} --recipe photos_resnet50 --batch {batch}" for batch in (32, 64, 128, 256)),
        (f"{_TRAIN_SMALL} --kinds 'region grouping' --variants ddp",),
    ),
    "graphs": Part(
        "the same step under torch.compile's own CUDA graphs, and with activation checkpointing",
        150,
        ("deepspeed", "triton"),
        (f"{_TRAIN} --variants cuda_graphs checkpointed {_FAST}",),
        (f"{_TRAIN_SMALL} --kinds 'whole network' --variants checkpointed",),
    ),
    "compiled": Part(
        "the same step compiled",
        220,
        ("deepspeed", "triton"),
        (f"{_TRAIN} --variants compiled {_FAST}",),
        (f"{_TRAIN_SMALL} --kinds 'whole network' --variants compiled",),
    ),
    "input": Part(
        "the share of a step that waits for images of DALI, decoded on the GPU and on the CPU",
        120,
        ("deepspeed", "nvidia.dali"),
        tuple(
            f"{_TRAIN} --variants channels_last {_FAST} --kinds 'region grouping' --input {decoder}"
            for decoder in ("mixed", "cpu")
        ),
        (f"{_TRAIN_SMALL} --kinds 'region grouping' --variants kept --input cpu",),
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


def run(name: str, out: Path, smoke: bool) -> str:
    """Runs a part.

    Returns:
        ``ok``, or why not.
    """
    part = PARTS[name]
    if lacking := missing(part):
        return f"left out: {', '.join(lacking)} not installed"
    began = time.monotonic()
    surroundings = dict(os.environ) | ({"TRITON_INTERPRET": "1"} if smoke and name == "correctness" else {})
    with (out / f"{name}.log").open("w") as log:
        for command in part.smoke if smoke else part.commands:
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
            if code:
                return f"ended with code {code}: {out / name}.log"
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
    return ", ".join((ledger.commit(), code, device))


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
    names = [name for name in PARTS if name in options.parts or not options.parts]
    if options.dry_run:
        print(plan(names, options.smoke))
        return 0
    if not (options.smoke or torch.cuda.is_available()):
        parser.error("expected a GPU, got none; --smoke shows on a CPU that the parts work")
    options.out.mkdir(parents=True, exist_ok=True)
    state, failed = options.out / DONE, False
    finished = read_json(state) if state.is_file() else {}
    mark = _mark(options.smoke)
    ordered = names if "correctness" in names else ["correctness", *names]
    for name in ordered:
        if finished.get(name) == mark and not (options.again and name in names):
            print(f"{name}: finished before", flush=True)
            continue
        began = time.monotonic()
        result = run(name, options.out.absolute(), options.smoke)
        print(f"{name}: {result}, {time.monotonic() - began:.0f} s", flush=True)
        if result == "ok":
            finished[name] = mark
            with atomic_write(state) as file:
                file.write(json.dumps(finished, indent=1).encode())
        elif name == "correctness":
            print("nothing is measured of kernels that are wrong, or that nobody has tested", flush=True)
            return 1
        else:
            failed |= not result.startswith("left out")
    return int(failed)


if __name__ == "__main__":
    run_main(main)
