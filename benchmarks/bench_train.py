"""What a training step costs: region grouping beside the whole network of its backbone with its own classifier.

python -m benchmarks.bench_train [--recipe birds_lite0] [--batch 32] [--size 128] [--steps 10] [--rounds 5] [--record]

The step is that of ``rg train``, on one batch over and over, so that no time is spent on reading data. Models and
memory formats take turns, each in a process of its own; a step in the memory format ``contiguous`` (NCHW) is what
``rg train`` would take if it did not change the layout of its weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import comparison, ledger, process, world_sizes
from benchmarks.options import at_least
from pipelines.loader import Batch
from rg import recipes
from rg.config import RunConfig

RESULTS = ledger.RESULTS / "train.csv"
WARM_UP = 3  # steps
KINDS = {"region grouping": "region_grouping", "whole network": "plain"}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def settings(recipe: str, kind: Any, batch: int, size: int, precision: Any) -> RunConfig:
    """One epoch of a recipe at another size, with weights from nowhere: what they are does not change the time."""
    config = recipes.get(recipe)
    model = dataclasses.replace(
        config.model, kind=kind, backbone=dataclasses.replace(config.model.backbone, weights="none")
    )
    return dataclasses.replace(
        config,
        model=model,
        input=dataclasses.replace(config.input, short_side=size + 8, crop=size, test_short_side=size, test_crop=size),
        train=dataclasses.replace(
            config.train, epochs=1, global_batch=batch, validate_epochs=0, precision=precision, keep_checkpoints=1
        ),
    )


def steps(config: RunConfig, data: Path, memory_format: str) -> dict[str, list[float]]:
    """Seconds of every training step after the first few, in this process."""
    from rg import engine
    from rg.train import _Run, train

    take_step = _Run._train_step
    batches: list[Batch] = []
    spent: list[float] = []

    def timed(run: _Run, stream: Iterator[Batch]) -> tuple[int, bool]:
        if not batches:
            batches.append(next(stream))
        began = time.perf_counter()
        result = take_step(run, itertools.repeat(batches[0]))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
        return result

    _Run._train_step = timed  # type: ignore[method-assign, assignment]
    engine.MEMORY_FORMAT = FORMATS[memory_format]
    with tempfile.TemporaryDirectory() as folder:
        train(config, data, Path(folder) / "run")
    return {"step": spent[WARM_UP:]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/train.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", choices=sorted(recipes.RECIPES), default="birds_lite0", help="what is trained")
    parser.add_argument("--batch", type=at_least(2), default=32, help="images")
    parser.add_argument("--size", type=at_least(32), default=128, help="pixels")
    parser.add_argument("--steps", type=at_least(1), default=10, help="steps of a turn that are measured")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="how often all take their turn")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="memory formats")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    if process.missing():
        parser.error(process.missing())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "birds"
        world_sizes.draw(data, options.batch * (WARM_UP + options.steps), options.size)
        turns = {
            (name, form): functools.partial(
                steps, settings(options.recipe, kind, options.batch, options.size, options.precision), data, form
            )
            for name, kind in KINDS.items()
            for form in options.formats
        }
        found: dict[tuple[str, str], dict[str, list[float]]] = {turn: {"time": [], "memory": []} for turn in turns}
        for turn in itertools.chain.from_iterable([turns] * options.rounds):
            measured, peak = process.alone(turns[turn])
            found[turn]["time"] += [1000 * value for value in measured["step"]]
            found[turn]["memory"].append(peak / 1e6)
    case = f"{options.recipe}, {options.batch} images of {options.size} px"
    for (name, form), values in found.items():
        other = comparison.percentiles(found["whole network", form]["time"])[1]
        p20, p50, p80 = comparison.percentiles(values["time"])
        print(
            f"{case}: {name:<16}{form:<14}{p50:8.1f} ms (p20 {p20:.1f}, p80 {p80:.1f}), "
            f"{1000 * options.batch / p50:.1f} images/s, {p50 / other:.3f}x the time of the whole network"
        )
        if options.record:
            mode = f"{device}, {options.precision}, {form}"
            for metric, unit in (("time", "ms"), ("memory", "MB")):
                row: dict[str, object] = {"case": case, "provider": name, "mode": mode, "metric": metric, "unit": unit}
                p20, p50, p80 = (round(value, 1) for value in comparison.percentiles(values[metric]))
                more = {"p20": p20, "p50": p50, "p80": p80, "n": len(values[metric])}
                ledger.append(RESULTS, row | more, gpu=device == "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
