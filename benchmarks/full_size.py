"""iNaturalist 2017 at its full cardinality, through every verb: time, largest process and disk of each.

python -m benchmarks.full_size --folder DIR [--share 0.1] [--processes 2] [--record]

Draws 675,170 tiny pictures of 5,089 species (``benchmarks.tools.long_tail``), once, and runs prepare, verify, train,
evaluate, tables, report, explain and export on them. A verb that has left its result in the folder is not run again, so
an interrupted benchmark goes on. What is trained is some steps: the model that is evaluated has random weights. No
pictures are drawn of what is explained: ``bench_explain`` measures those.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tools import ledger, local_ranks, process
from benchmarks.tools.command import run_main
from benchmarks.tools.long_tail import SIDE, build
from benchmarks.tools.options import at_least, folder
from rg.model.build import build_model
from rg.runs.folder import CONFIG, HISTORY, RECORD, load_config, save_config, save_weights

RESULTS = ledger.RESULTS / "full_size.csv"
SECONDS = 120.0  # that training is watched for
SIZES, CROP = ("short_side", "crop", "test_short_side", "test_crop"), 32


@dataclass(frozen=True)
class Verb:
    """A verb to run.

    Attributes:
        name: For the table.
        words: Behind ``python -m rg``.
        result: What it leaves.
        shared: Whether several processes share it.
        seconds: After which it is stopped; None for never.
    """

    name: str
    words: Sequence[object]
    result: Path
    shared: bool = False
    seconds: float | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all verbs, print a line for each and, with ``--record``, append rows to ``results/full_size.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=folder, required=True, help="where everything is kept")
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--processes", type=at_least(1), default=1, help="that share a verb, if it can be shared")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    if process.missing():
        parser.error(process.missing())
    root: Path = options.folder
    start = time.perf_counter()
    images = build(root / "raw", options.share)
    print(f"{images} images in {root / 'raw'} ({time.perf_counter() - start:.0f} s)")
    run = root / "run"
    for verb in verbs(root, options.share):
        if verb.name == "evaluate" and not (run / CONFIG).is_file():
            random_run(run, root / "trained")
        if verb.result.exists():
            print(f"{verb.name}: there already")
            continue
        ranks = options.processes if verb.shared else 1
        seconds, largest, count = watch(verb, ranks, root / "logs")
        disk = size(verb.result)
        print(f"{verb.name:<10} {ranks} {seconds:8.1f} s {largest / 2**20:8.0f} MiB of {count} {disk / 2**20:8.0f} MiB")
        for metric, unit, value in (
            ("time", "s", seconds),
            ("largest process", "MiB", largest / 2**20),
            ("disk", "MiB", disk / 2**20),
        ):
            mode = f"{ranks} process" + ("es" if ranks > 1 else "")
            row = {"case": f"{images} images", "provider": verb.name, "mode": mode, "metric": metric, "unit": unit}
            values = {name: round(value, 1) for name in ("p20", "p50", "p80")}
            if options.record:
                ledger.append(RESULTS, {**row, **values, "n": 1})
    return 0


def random_run(run: Path, trained: Path) -> None:
    """The run whose training was begun, with random weights in place of those that it would have got."""
    settings, classes = load_config(trained)
    torch.manual_seed(0)
    run.mkdir(exist_ok=True)
    for name in (RECORD, HISTORY):
        shutil.copyfile(trained / name, run / name)
    save_weights(run, build_model(settings.model, len(classes.names)))
    save_config(run, settings, classes)


def verbs(root: Path, share: float) -> list[Verb]:
    """All verbs in their order."""
    run, data, photos = root / "run", root / "shards", root / "raw" / "train_val_images"
    partial = [] if share == 1 else ["--allow-partial"]
    prepare = [
        "prepare",
        "inat2017",
        "--raw",
        root / "raw",
        "--out",
        data,
        "--jobs",
        2,
        "--val-fraction",
        0.02,
        *partial,
    ]
    changed: dict[str, object] = {"model.backbone.name": "tf_efficientnet_lite0", "train.precision": "fp32"}
    changed |= {"model.grouping.smoothing_padding": "same"}
    changed |= {f"input.{name}": size for name, size in zip(SIZES, (SIDE, CROP, SIDE, CROP), strict=True)}
    settings = [f"--{name}={value}" for name, value in changed.items()]
    train = ["train", "inat2017_resnet101", "--data", data, "--out", root / "trained", *settings]
    some = sorted(photos.glob("Super0[01]"))  # 104,000 at full size
    explain = ["explain", run, *some, "--out", root / "explained", "--batch-size", 64, "--pictures", "none"]
    return [
        Verb("prepare", prepare, data / "manifest.json"),
        Verb("verify", ["verify", data], root / "logs" / "verify.done", shared=True),
        Verb("train", train, root / "trained", seconds=SECONDS),
        Verb("evaluate", ["evaluate", run, "--data", data], run / "metrics.json", shared=True),
        Verb("tables", ["tables", run], root / "logs" / "tables.done"),
        Verb("report", ["report", run], run / "report.html"),
        Verb("explain", explain, root / "explained" / "explanations.csv", shared=True),
        Verb("export", ["export", run], run / "model.onnx"),
    ]


def watch(verb: Verb, ranks: int, logs: Path) -> tuple[float, int, int]:
    """Run a verb in several processes.

    Returns:
        Seconds, bytes of the largest process that no file backs, and the largest number of processes.

    Raises:
        RuntimeError: it failed.
    """
    own = logs / verb.name
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    start = time.perf_counter()
    processes = local_ranks.start(ranks, ["rg", *verb.words], own)
    largest = count = 0
    while any(program.poll() is None for program in processes):
        for program in processes:
            sizes = process.each(program.pid)
            largest, count = max([largest, *sizes]), max(count, ranks * len(sizes))
        if verb.seconds and time.perf_counter() - start > verb.seconds:
            for program in processes:
                program.send_signal(signal.SIGKILL)
        time.sleep(process.POLL)
    elapsed = time.perf_counter() - start
    if any(program.returncode != -signal.SIGKILL for program in processes):
        local_ranks.finish(processes, own)
    if verb.result.parent == logs:
        verb.result.touch()
    return elapsed, largest, count


def size(path: Path) -> int:
    """Bytes of a file, or of what lies beside a manifest or a table of explanations."""
    if path.name in ("manifest.json", "explanations.csv"):
        path = path.parent
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


if __name__ == "__main__":
    run_main(main)
