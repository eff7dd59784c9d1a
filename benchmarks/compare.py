"""What a change does to a benchmark: two commits take turns on the same device.

python -m benchmarks.compare [--rounds 5] BASE [bench_train --steps 5 --rounds 1]
python -m benchmarks.compare main bench_explain /data/runs/demo --files 100

Whatever follows BASE is a benchmark with its options, ``bench_train --rounds 1`` if nothing does. It runs in a checkout
of BASE and in one of the working tree (uncommitted changes of tracked files included), in turns; paths must be
absolute. Every number that it records is compared: medians over the rounds, their ratio, and the noise, the farthest
that a round of either side is from its median. A number has changed if all rounds of one side are above all of the
other, which 5 rounds of the same thing are in one case of 126. What only one side records is named. Nothing is added to
``results/``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import NAME
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks", "results")


@dataclass
class Change:
    """A number that a benchmark records, of every round.

    Attributes:
        name: Case, provider, mode and metric.
        unit: Of the values.
        base: Before.
        now: After.
    """

    name: str
    unit: str
    base: list[float] = field(default_factory=list)
    now: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median after, of the median before; nan if that is 0."""
        before, after = np.median(self.base), np.median(self.now)
        return float(after / before) if before else float("nan")

    @property
    def noise(self) -> float:
        """Farthest that a round of either side is from the median of its side, as a fraction of that."""
        sides = [np.asarray(side) for side in (self.base, self.now)]
        return max(float(np.abs(side / np.median(side) - 1).max()) if np.median(side) else 0.0 for side in sides)

    @property
    def changed(self) -> bool:
        """Whether all rounds of one side are above all of the other."""
        return max(self.base) < min(self.now) or max(self.now) < min(self.base)

    def __str__(self) -> str:
        if not (self.base and self.now):
            return f"{self.name}: {'before' if self.base else 'after'} only"
        verdict = "changed" if self.changed else "within the noise"
        return (
            f"{self.name}: {np.median(self.base):.4g} -> {np.median(self.now):.4g} {self.unit}, {self.ratio:.3f}x "
            f"(noise {self.noise:.1%}): {verdict}"
        )


def compare(root: Path, base: str, words: Sequence[str], rounds: int) -> list[Change]:
    """Runs a benchmark of both sides in turns: before, after, after, before, and so on.

    Args:
        root: The checkout.
        base: Commit, branch or tag.
        words: Name and options of the benchmark.
        rounds: Of each side.

    Raises:
        ValueError: there is no such commit or benchmark, both sides record nothing in common, or it fails; then the
            message ends with its last line.
    """
    commits = {"base": _git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}") or ""}
    if not commits["base"]:
        raise ValueError(f"BASE: expected a commit, branch or tag, got {base!r}")
    commits["now"] = _git(root, "stash", "create") or _git(root, "rev-parse", "HEAD")
    changes: dict[tuple[str, ...], Change] = {}
    with contextlib.ExitStack() as stack:
        trees = {side: stack.enter_context(_checkout(root, commit)) for side, commit in commits.items()}
        for turn in range(rounds):
            for side in ("base", "now") if turn % 2 == 0 else ("now", "base"):
                for row in _recorded(trees[side], words):
                    key = tuple(row[column] for column in NAME)
                    change = changes.setdefault(key, Change(", ".join(key), row["unit"]))
                    getattr(change, side).append(float(row["p50"]))
                print(f"round {turn + 1} of {rounds}: {side}", file=sys.stderr, flush=True)
    if not any(change.base and change.now for change in changes.values()):
        raise ValueError(
            f"{words[0]}: expected numbers that both sides record, got none: {'; '.join(map(str, changes.values()))}"
        )
    return list(changes.values())


@contextlib.contextmanager
def _checkout(root: Path, commit: str) -> Iterator[Path]:
    """A worktree that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        tree = Path(folder, "tree")
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _recorded(tree: Path, words: Sequence[str]) -> list[dict[str, str]]:
    """The rows that a run of a benchmark appends to the results of its checkout."""
    before = _rows(tree)
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--record"]
    surroundings = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=surroundings, capture_output=True, text=True)
    invocation = " ".join(command[2:])
    if done.returncode:
        raise ValueError(f"{invocation}: code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    appended = [row for path, rows in _rows(tree).items() for row in rows[len(before.get(path, [])) :]]
    if not appended:
        raise ValueError(f"{invocation}: expected rows in {RESULTS}, got none")
    return appended


def _rows(tree: Path) -> dict[Path, list[dict[str, str]]]:
    return {path: list(csv.DictReader(path.read_text().splitlines())) for path in (tree / RESULTS).glob("*.csv")}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode and arguments[0] != "rev-parse":
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line for every number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", metavar="BASE", help="commit, branch or tag to compare with")
    parser.add_argument("--rounds", type=at_least(4), default=5, help="how often each side takes its turn")
    parser.add_argument("benchmark", nargs=argparse.REMAINDER, help="benchmark and options; default: bench_train")
    options = parser.parse_args(arguments)
    try:
        changes = compare(ROOT, options.base, options.benchmark or ["bench_train", "--rounds", "1"], options.rounds)
    except ValueError as error:
        parser.error(str(error))
    for change in changes:
        print(change)
    return 0


if __name__ == "__main__":
    run_main(main)
