"""What became of damaged images and shards: a table of what prepare, verify, testing, training and repair did.

python -m benchmarks.damage [--images 1000] [--decoder cpu]      -v also shows what was logged

For every kind of damage 1 % of a small data set is damaged, in raw files before packing or in finished shards, and all
samples are accounted for: whatever does not add up is printed below its row, and the exit code is 1.

packed, quarantined      what ``prepare`` made of the raw files
again                    what it does when asked for the same shards once more: finds them complete, or refuses
verify names             damaged samples and files, in how many lines
test, training epoch     what the loader delivers and leaves out: in one pass, and in whole batches for two ranks
repair                   what ``verify --repair`` keeps and puts into quarantine
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tools.command import run_main
from benchmarks.tools.damages import (
    RAW_DAMAGE,
    SHARD_DAMAGE,
    SHORT_TAR,
    WRONG_SUM,
    damage_raw,
    damage_shards,
    keys_in,
)
from pipelines import plan
from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.datasets.folder import Folder
from pipelines.shards import writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.verify import repair, verify

CLASSES = 8
SHARDS = 20
SIZE = (96, 72)
BATCH, RANKS = 50, 2
TEST = Geometry(64, 48)
TRAIN = replace(TEST, training=True)
DAMAGED, ALLOWED = 0.01, 0.02  # shares of the samples
TOO_MANY, TOO_FEW_ALLOWED = 0.05, 0.01
LEFT_OUT = re.compile(r"left out [^:]+: ([^:]+): ")
FINE = ("PNG called .jpg", "suffix .JPG")  # raw files that can be used all the same

GROUPS = {
    "": ("samples", "damaged"),
    "prepare": ("packed", "quarantined", "again"),
    "verify names": ("samples", "files", "in lines"),
    "test": ("delivered", "left out"),
    "training epoch": ("delivered", "left out", "distinct"),
    "repair": ("kept", "quarantined"),
    "log": ("lines",),
}
WIDTHS = [[max(len(name), 7) for name in names] for names in GROUPS.values()]
KIND_WIDTH = 16


@dataclass
class Row:
    """What became of one kind of damage.

    Attributes:
        cells: Of the table, without the kind.
        wrong: What does not add up.
        log: What was logged.
    """

    cells: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Appends cells."""
        self.cells += map(str, cells)

    def expect(self, what: str, actual: object, expected: object) -> None:
        """Notes what is not as expected."""
        if actual == expected:
            return
        if isinstance(actual, set) and isinstance(expected, set):  # three that only one of them has are enough
            actual, expected = (sorted(only)[:3] for only in (actual - expected, expected - actual))
        self.wrong.append(f"{what}: expected {expected}, got {actual}")


class Log(logging.Handler):
    """Collects what the pipelines log in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("pipelines").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the text of a record."""
        self.lines.append(record.getMessage())

    def left_out(self, first: int) -> set[str]:
        """Keys of the samples that the loader has named from a line on."""
        return {match[1] for text in self.lines[first:] if (match := LEFT_OUT.match(text))}


# The data set


def draw(raw: Path, images: int) -> None:
    """Small JPEGs in class folders: ``images`` for training, and one of each class for validation."""
    for index in range(images + CLASSES):
        path = raw / ("train" if index < images else "val") / f"class_{index % CLASSES}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)


def pack(raw: Path, out: Path, seed: int = 0) -> Manifest:
    """Packs the training images as ``prepare folder`` does."""
    source = Folder(raw, "train")
    schema, per_shard = Schema(source.class_names), -(-len(source) // SHARDS)
    sources = {"train": source}
    return writer.write(out, "damage", sources, schema=schema, options={}, samples_per_shard=per_shard, seed=seed)


# What the pipelines do


def test(folder: Path, decoding: Decoding, allowed: float) -> tuple[list[str], int]:
    """Keys that one pass delivers, and how many samples it leaves out."""
    loader = Loader(folder, "train", TEST, BATCH, decoding=decoding, max_damaged=allowed)
    return [key for batch in loader for key in batch.keys], loader.damaged


def train(folder: Path, decoding: Decoding, allowed: float) -> list[str]:
    """Keys that all ranks get in one epoch."""
    keys = []
    for rank in range(RANKS):
        options = {"decoding": decoding, "max_damaged": allowed}
        loader = Loader(folder, "train", TRAIN, BATCH * RANKS, rank=rank, world_size=RANKS, **options)  # type: ignore[arg-type]
        keys += [key for batch in itertools.islice(loader, steps(loader.samples)) for key in batch.keys]
    return keys


def steps(samples: int) -> int:
    """Batches of an epoch on every rank."""
    return plan.steps_per_epoch(samples, BATCH * RANKS)


def raw_row(kind: str, raw: Path, decoding: Decoding, scratch: Path) -> Row:
    """Damages raw files and follows them from prepare on."""
    log, row = Log(), Row()
    copy, folder = shutil.copytree(raw, scratch / "raw"), scratch / "shards"
    hit = damage_raw(kind, copy, DAMAGED)
    split = pack(copy, folder).split("train")
    quarantined = {sample.source for sample in split.quarantined}
    files = len(list(copy.glob("train/*/*")))
    row.add(files, len(hit), split.samples, len(quarantined))
    row.expect("prepare: packed + quarantined", split.samples + len(quarantined), files)
    row.expect("prepare: quarantined", quarantined, set() if kind in FINE else hit)
    follow(row, log, copy, folder, keys_in(folder), None, decoding)
    return row


def shard_row(kind: str, raw: Path, good: Path, other: Path, decoding: Decoding, scratch: Path) -> Row:
    """Damages shards and follows their samples."""
    log, row = Log(), Row()
    folder, keys = shutil.copytree(good, scratch / "shards"), keys_in(good)
    hit = damage_shards(kind, folder, DAMAGED, other)
    row.add(len(keys), len(hit) or "1 index", len(keys), 0)
    follow(row, log, raw, folder, keys, hit, decoding, may_decode=kind == WRONG_SUM)
    return row


def follow(
    row: Row,
    log: Log,
    raw: Path,
    folder: Path,
    keys: set[str],
    hit: set[str] | None,
    decoding: Decoding,
    may_decode: bool = False,
) -> None:
    """Adds to a row what preparing again, verify, testing, training and repair make of a folder of shards.

    Args:
        row: The row.
        log: What is logged meanwhile.
        raw: The files that were packed.
        folder: The shards.
        keys: Of all samples that were packed.
        hit: Keys of those that are damaged; None if nobody has touched the shards.
        decoding: Of the loader.
        may_decode: Whether damaged samples may be delivered.
    """
    try:
        pack(raw, folder)
        row.add("complete")
    except ValueError:
        row.add("refused")

    problems = [problem.split(": ") for problem in verify(folder)]
    row.add(len({problem[1] for problem in problems} & keys), len({problem[0] for problem in problems}), len(problems))
    row.expect("verify: finds anything", bool(problems), hit is not None)

    first = len(log.lines)
    delivered, left_out = test(folder, decoding, ALLOWED)
    missing = keys - set(delivered)
    bad = (hit or set()) & missing if may_decode else hit or set()
    row.add(len(delivered), left_out)
    row.expect("test: delivered + left out", len(delivered) + left_out, len(keys))
    row.expect("test: left out", missing, bad)
    row.expect("test: named in the log", log.left_out(first), bad)

    first = len(log.lines)
    epoch = train(folder, decoding, ALLOWED)
    named = log.left_out(first)
    row.add(len(epoch), len(named), len(set(epoch)))
    row.expect("training: delivered", len(epoch), steps(len(keys)) * BATCH * RANKS)
    row.expect("training: distinct + left out", len(set(epoch)) + len(named), len(keys))
    row.expect("training: left out", keys - set(epoch), bad)
    row.expect("training: named in the log", named, bad)

    before = Manifest.load(folder).split("train")
    _, remaining = repair(folder)
    after = Manifest.load(folder).split("train")
    quarantined = len(after.quarantined) - len(before.quarantined)
    row.add(after.samples, quarantined, len(log.lines))
    row.expect("repair: kept + quarantined", after.samples + quarantined, len(keys))
    row.expect("repair: problems that remain", len(remaining), 0)
    row.log = log.lines


def stop_row(kind: str, good: Path, other: Path, decoding: Decoding, scratch: Path) -> Row:
    """How a test and a training epoch end with more damage than is allowed."""
    log, row = Log(), Row()
    folder = shutil.copytree(good, scratch / "shards")
    damage_shards(kind, folder, TOO_MANY, other)
    for name, function in (("test", test), ("training", train)):
        try:
            function(folder, decoding, TOO_FEW_ALLOWED)
            row.wrong.append(f"{name}: expected an end, it went on")
        except ValueError as error:
            message = str(error)
            row.add(f"{name} ended: {message.removeprefix(f'{folder}: ')}")
            row.expect(f"{name}: names the setting", "(input.max_damaged)" in message, True)
            row.expect(f"{name}: lines of the error", len(message.splitlines()), 1)
    row.log = log.lines
    return row


# Running and printing


def alone(function: Callable[..., Row], *arguments: object, scratch: Path) -> Row:
    """Calls a function with a new folder, in a process of its own: it may crash, and C++ libraries may print there."""
    scratch.mkdir()
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), silence) as pool:
            return pool.submit(function, *arguments, scratch=scratch).result()
    except Exception as error:  # that a run ends is what this program looks for
        return Row(wrong=[f"ended: {type(error).__name__}: {' '.join(str(error).split())}"])
    finally:
        shutil.rmtree(scratch)


def silence() -> None:
    """Drops what this process writes to its standard error, from C++ too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def header() -> str:
    """The two lines above the table."""
    spans = [sum(widths) + 2 * (len(widths) - 1) for widths in WIDTHS]
    groups = [f" {name} ".center(span, "-") if name else " " * span for name, span in zip(GROUPS, spans, strict=True)]
    return "  ".join([" " * KIND_WIDTH, *groups]) + "\n" + line("", itertools.chain(*GROUPS.values()))


def line(kind: str, cells: Iterable[str]) -> str:
    """One line of the table."""
    return "  ".join([kind.ljust(KIND_WIDTH), *map(str.rjust, cells, itertools.chain(*WIDTHS))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Damages, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000, help="a multiple of 100, at least 1000")
    parser.add_argument("--decoder", choices=("cpu", "pillow"), default="cpu", help="DALI on the CPU, or Pillow")
    parser.add_argument("-v", "--verbose", action="store_true", help="also show what was logged")
    options = parser.parse_args(arguments)
    if options.images < 1000 or options.images % 100:
        parser.error(f"--images: expected a multiple of 100, at least 1000, got {options.images}")
    decoding = Decoding(options.decoder)
    wrong = 0

    def show(text: str, row: Row) -> None:
        nonlocal wrong
        wrong += len(row.wrong)
        print("\n".join([text, *(f"    WRONG: {problem}" for problem in row.wrong)]))
        if options.verbose:
            print("\n".join(f"    {message}" for message in row.log))

    with tempfile.TemporaryDirectory() as name:
        raw, good, other, scratch = (Path(name, part) for part in ("raw", "good", "other", "scratch"))
        draw(raw, options.images)
        pack(raw, good)
        pack(raw, other, seed=1)
        print(f"{header()}\n\nraw files, {DAMAGED:.0%} damaged before packing")
        for kind in RAW_DAMAGE:
            row = alone(raw_row, kind, raw, decoding, scratch=scratch)
            show(line(kind, row.cells), row)
        print(f"\nshards, {DAMAGED:.0%} of the samples damaged after packing")
        for kind in SHARD_DAMAGE:
            row = alone(shard_row, kind, raw, good, other, decoding, scratch=scratch)
            show(line(kind, row.cells), row)
        print(f"\nshards, {TOO_MANY:.0%} of the samples damaged where {TOO_FEW_ALLOWED:.0%} is allowed")
        for kind in ("all zero bytes", "missing label", SHORT_TAR):
            row = alone(stop_row, kind, good, other, decoding, scratch=scratch)
            show("\n".join(f"{kind:<{KIND_WIDTH}}  {cell}" for cell in row.cells), row)
    print(f"\n{wrong} problems" if wrong else "\nevery row adds up")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_main(main)
