"""One run that is killed again and again, beside one that is not: kill -9 at random times, then --auto-resume.

python -m benchmarks.kills [--cycles 20] [--ranks 2] [--epochs 60] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import world_sizes
from benchmarks.tools import local_ranks
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least
from pipelines.files import sha256

SIZE, BATCH = 64, 16
LONGEST = 18.0  # seconds from the start of the processes to their end


def command(data: Path, out: Path, epochs: int) -> list[object]:
    """A small run that saves every other step."""
    settings = {
        "input.short_side": SIZE + 8,
        "input.crop": SIZE,
        "input.test_short_side": SIZE,
        "input.test_crop": SIZE,
        "model.grouping.smoothing_padding": "same",
        "train.global_batch": BATCH,
        "train.epochs": epochs,
        "train.log_steps": 1,
        "train.checkpoint_steps": 2,
        "train.peer_timeout": 60,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["rg", "train", "birds_lite0", "--data", data, "--out", out, "--auto-resume", *words]


def newest(out: Path) -> int:
    """Step of the newest checkpoint, 0 without one."""
    return max((int(path.name[len("step-") :]) for path in (out / "checkpoints").glob("step-*")), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for every kill, and whether the weights are the same in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cycles", type=at_least(1), default=20, help="kills")
    parser.add_argument("--ranks", type=at_least(1), default=2, help="processes")
    parser.add_argument("--epochs", type=at_least(1), default=60, help="of five steps")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    args = parser.parse_args(arguments)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world_sizes.draw(root / "birds", 5 * BATCH, SIZE)
        whole, killed = root / "whole", root / "killed"
        local_ranks.finish(local_ranks.start(args.ranks, command(root / "birds", whole, args.epochs), root), root)
        for cycle in range(1, args.cycles + 1):
            processes = local_ranks.start(args.ranks, command(root / "birds", killed, args.epochs), root)
            wait = draw.uniform(0, LONGEST)
            time.sleep(wait)
            alive = [process.poll() is None for process in processes]
            for process in processes:
                process.kill()
                process.wait()
            if not all(alive):
                raise RuntimeError(f"the run ended by itself: {(root / '0.log').read_text()[-2000:]}")
            print(
                f"kill {cycle:>2} after {wait:4.1f} s, the newest checkpoint is that of step {newest(killed)}",
                flush=True,
            )
        local_ranks.finish(local_ranks.start(args.ranks, command(root / "birds", killed, args.epochs), root), root)
        sums = [sha256(run / "model.safetensors") for run in (whole, killed)]
        print(f"{newest(killed)} steps; weights {'equal' if sums[0] == sums[1] else 'DIFFER'}: {sums[0]} {sums[1]}")
    return 0 if sums[0] == sums[1] else 1


if __name__ == "__main__":
    run_main(main)
