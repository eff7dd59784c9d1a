"""How fast images become shards: ours next to those of webdataset's ShardWriter.

python -m benchmarks.bench_packing [--record]          images/s, CPU time and memory of both

Every measurement runs in a process of its own, and providers take turns in every round. ``shards.write`` decodes every
image and shuffles them; ``ShardWriter`` stores the same fields as it is given them.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.comparison import Figures, Key
from benchmarks.tools.image_set import SHARDS, describe, image_set, pack
from benchmarks.tools.options import at_least, image_parser

RESULTS = ledger.RESULTS / "packing.csv"


def pack_plainly(raw: Path, out: Path) -> None:
    """The training images as webdataset's ShardWriter takes them: the same fields, neither decoded nor shuffled."""
    import webdataset as wds

    out.mkdir()
    paths = sorted((raw / "train").glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in paths})
    per_shard = -(-len(paths) // SHARDS)
    with wds.ShardWriter(str(out / "train-%05d.tar"), maxcount=per_shard, verbose=0) as writer:
        for path in paths:
            annotation = {"source": path.relative_to(raw).as_posix()}
            label = classes.index(path.parent.name)
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label, "json": annotation})


# Number of processes and provider -> writes the training images of a folder into another.
WRITERS: dict[Key, Callable[[Path, Path], None]] = {
    (1, "shards.write"): functools.partial(pack, jobs=1),
    (2, "shards.write"): functools.partial(pack, jobs=2),
    (1, "ShardWriter"): pack_plainly,
}


def measure(jobs: int, provider: str, images: Path) -> Figures:
    """Throughput and CPU time of writing the images of a set as shards, in the process that calls."""
    if provider == "ShardWriter":
        importlib.import_module("webdataset")  # before anything is timed
    out = Path(tempfile.mkdtemp(prefix=".packing-", dir=images))
    try:
        count = len(list((images / "raw" / "train").glob("*/*.jpg")))
        before, start = sum(os.times()[:4]), time.perf_counter()
        WRITERS[jobs, provider](images / "raw", out / "shards")
        elapsed = time.perf_counter() - start
        processor = sum(os.times()[:4]) - before  # of worker processes too, which have ended
    finally:
        shutil.rmtree(out)
    return {"throughput": [count / elapsed], "CPU time": [1000 * processor / count]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and, with ``--record``, appends to ``results/packing.csv``."""
    parser = image_parser(__doc__, RESULTS)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often every provider takes its turn")
    options = parser.parse_args(arguments)
    if process.missing():
        parser.error(process.missing())
    images = image_set(options.images, options.files)
    pooled = comparison.take_turns(measure, {key: (*key, images) for key in WRITERS}, options.rounds)
    print(comparison.table(pooled, "jobs", "ShardWriter"))
    if options.record:
        comparison.record_all(RESULTS, describe(options.files), "jobs", pooled)
    return 0


if __name__ == "__main__":
    run_main(main)
