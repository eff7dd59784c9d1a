"""What several ranks cost: weak scaling, the gather of the prior, and saving, as shares of a step.

python -m benchmarks.bench_ranks [--worlds 1,2,4] [--batch 16] [--size 128] [--steps 20] [--record]

Every rank trains EfficientNet-Lite0 on ``--batch`` drawn birds a step, and saves every fifth step. On one machine the
ranks share its processors (or GPUs), so more of them do not make it faster: what counts is how little slower.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import world_sizes
from benchmarks.tools import comparison, ledger, local_ranks
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least, counts

RESULTS = ledger.RESULTS / "ranks.csv"
WARM_UP = 5  # steps
SAVES = 5  # steps from one to the next
SPENT = "spent.json"


def rank(arguments: Sequence[str]) -> None:
    """One process of a run, which notes the seconds of every step, gather and save."""
    from rg import recipes
    from rg.config import RunConfig
    from rg.distributed.group import Group
    from rg.malloc import keep_freed_memory
    from rg.training.loop import Loop
    from rg.training.train import train

    keep_freed_memory()  # as the command line does
    data, out, batch, size = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3])
    spent: dict[str, list[float]] = {"step": [], "gather": [], "save": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - began)
            return result

        return call

    Loop._train_step = timed("step", Loop._train_step)  # type: ignore[method-assign]
    Loop._save = timed("save", Loop._save)  # type: ignore[method-assign]
    Group.gather = timed("gather", Group.gather)  # type: ignore[method-assign]
    recipe = recipes.get("birds_lite0")
    settings: dict[str, Any] = {
        "input": {"short_side": size + 8, "crop": size, "test_short_side": size, "test_crop": size},
        "train": {"global_batch": batch, "epochs": 1, "validate_epochs": 0, "checkpoint_steps": SAVES},
    }
    train(RunConfig.from_dict(_merged(recipe, settings)), data, out)
    if torch.distributed.get_rank() == 0:
        (out / SPENT).write_text(json.dumps(spent))


def _merged(recipe: Any, settings: dict[str, Any]) -> dict[str, Any]:
    merged = dataclasses.asdict(recipe)
    return merged | {name: merged[name] | values for name, values in settings.items()}


def measure(world: int, batch: int, size: int, steps: int) -> dict[str, list[float]]:
    """Seconds of rank 0, without those of the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world_sizes.draw(root / "birds", (WARM_UP + steps) * batch * world, size)
        words = ["benchmarks.bench_ranks", "--rank", root / "birds", root / "run", batch * world, size]
        local_ranks.finish(local_ranks.start(world, words, root), root)
        spent = json.loads((root / "run" / SPENT).read_text())
    return {name: values[WARM_UP:] if name != "save" else values[1:-1] for name, values in spent.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/ranks.csv``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--rank"]:
        rank(words[1:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", type=counts, default=[1, 2, 4], help="numbers of ranks")
    parser.add_argument("--batch", type=at_least(2), default=16, help="images of a rank")
    parser.add_argument("--size", type=at_least(32), default=128, help="pixels")
    parser.add_argument("--steps", type=at_least(10), default=20, help="steps that are measured")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for world in options.worlds:
        spent = measure(world, options.batch, options.size, options.steps)
        case = f"{world} ranks x {options.batch} images of {options.size} px"
        step = comparison.percentiles(spent["step"])
        print(f"{case}: {world * options.batch / step[1]:.1f} images/s")
        for name, values in spent.items():
            p20, p50, p80 = (1000 * value for value in comparison.percentiles(values))
            share = p50 / 1000 / step[1]
            print(f"  {name:<8}{p50:9.2f} ms (p20 {p20:.2f}, p80 {p80:.2f}), {share:.2%} of a step", flush=True)
            if options.record:
                row: dict[str, object] = {
                    "case": case,
                    "provider": name,
                    "mode": f"training, {device}",
                    "metric": "time",
                    "unit": "ms",
                }
                row |= {"p20": round(p20, 2), "p50": round(p50, 2), "p80": round(p80, 2), "n": len(values)}
                ledger.append(RESULTS, row, gpu=device == "cuda")
    return 0


if __name__ == "__main__":
    run_main(main)
