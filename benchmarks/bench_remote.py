"""How fast samples come from an object store, and how many requests that takes.

python -m benchmarks.bench_remote [--record]           images/s, requests and bytes for every image
python -m benchmarks.bench_remote --files 500 --rounds 1      a quick look

Three providers: ``no cache``, ``empty cache`` (the first epoch, which fills it) and ``full cache`` (a later epoch).
An S3 server on the loopback (moto's, in a process of its own) answers 30 ms late. One epoch is read from it in the
order of training, and all samples in the order of testing. Images are not decoded, so that only reading is timed. What
is asked before the first batch, manifest and sizes, does not count; what is read ahead at the end of the epoch does.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.image_set import describe, image_set
from benchmarks.tools.object_store import object_store
from benchmarks.tools.options import at_least, image_parser
from pipelines.batches import loader as loading
from pipelines.batches.geometry import Geometry, Window
from pipelines.batches.loader import Loader
from pipelines.shards.cache import Cache

RESULTS = ledger.RESULTS / "remote.csv"
UNITS = {"throughput": "images/s", "requests": "requests/image", "bytes": "kB/image"}
CACHE = 10 << 30  # bytes
TRAINING, TESTING = Geometry(320, 224, training=True), Geometry(320, 224)

Figures = dict[str, list[float]]  # metric -> values


class Blank:
    """A decoder that decodes nothing: see ``pipelines.batches.decoding.Decoder``."""

    device = torch.device("cpu")
    version = "blank"

    def __init__(self) -> None:
        self._sizes: list[int] = []

    def submit(self, jpegs: Sequence[bytes], windows: Sequence[Window]) -> None:  # noqa: ARG002
        self._sizes.append(len(jpegs))

    def result(self) -> Tensor:
        return torch.empty((self._sizes.pop(0), 1, 1, 3), dtype=torch.uint8)


ORDERS = {"training": TRAINING, "testing": TESTING}


def measure(shards: Path, order: str, cached: bool, batch: int, latency: float) -> dict[str, Figures]:
    """The figures of the providers with a cache, or of the one without, in the process that calls."""
    loading.make_decoder = lambda *_: Blank()
    with object_store(shards, latency) as store, tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), CACHE) if cached else None
        loader = Loader(store.url, "train", ORDERS[order], batch, cache=cache)
        providers = ("empty cache", "full cache") if cached else ("no cache",)
        return {provider: read(loader, batch, store.answers) for provider in providers}


def read(loader: Loader, batch: int, answers: Callable[[], tuple[int, int]]) -> Figures:
    """The figures of reading as many images as there are."""
    before = answers()
    start = time.perf_counter()
    images = sum(len(each.keys) for each in itertools.islice(loader, -(-loader.samples // batch)))
    elapsed = time.perf_counter() - start
    requests, size = (after - earlier for earlier, after in zip(before, answers(), strict=True))
    return {"throughput": [images / elapsed], "requests": [requests / images], "bytes": [size / images / 1000]}


def table(pooled: dict[tuple[str, str], Figures]) -> str:
    """Medians of all metrics, and of images/s p20 and p80, too."""
    lines = [f"{'order':<10}{'provider':<14}{'images/s':>9}{'p20':>9}{'p80':>9}{'requests/image':>16}{'kB/image':>10}"]
    for (order, provider), figures in pooled.items():
        p20, p50, p80 = comparison.percentiles(figures["throughput"])
        requests, size = (comparison.percentiles(figures[metric])[1] for metric in ("requests", "bytes"))
        lines.append(f"{order:<10}{provider:<14}{p50:>9.1f}{p20:>9.1f}{p80:>9.1f}{requests:>16.4f}{size:>10.1f}")
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = image_parser(__doc__, RESULTS)
    parser.add_argument("--batch", type=at_least(1), default=32, help="images of a batch")
    parser.add_argument("--latency", type=at_least(0), default=30, help="milliseconds before an answer")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often everything takes its turn")
    options = parser.parse_args(arguments)
    for module in ("obstore", "moto", "boto3"):
        if importlib.util.find_spec(module) is None:
            parser.error(f"needs {module}; pip install -e '.[remote,dev]'")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/remote.csv``."""
    options = _options(arguments)
    shards = image_set(options.images, options.files) / "shards"
    pooled: dict[tuple[str, str], Figures] = {}
    for _, order, cached in itertools.product(range(options.rounds), ORDERS, (False, True)):
        measured, _ = process.alone(measure, shards, order, cached, options.batch, options.latency / 1000)
        for provider, figures in measured.items():
            for metric, values in figures.items():
                pooled.setdefault((order, provider), {}).setdefault(metric, []).extend(values)
    print(table(pooled))
    if options.record:
        case = f"{describe(options.files)}, batch {options.batch}, {options.latency} ms"
        for (order, provider), figures in pooled.items():
            for metric, values in figures.items():
                comparison.record(RESULTS, case, provider, order, metric, UNITS[metric], values)
    return 0


if __name__ == "__main__":
    run_main(main)
