"""How fast images reach a training loop: our loader next to torchvision's ImageFolder and webdataset.

python -m benchmarks.bench_loader [--record]           images/s, CPU time, memory and first batch of every provider
python -m benchmarks.bench_loader --seconds 5 --rounds 1      a quick look
python -m benchmarks.bench_loader --samples 100000     whether the memory of our loader grows

All providers read the same JPEGs from the page cache (``image_set``), augment them alike (short side 320, random crop
224, flip, brightness) and deliver batches of bytes. Every measurement runs in a process of its own, and providers take
turns in every round. A worker is a thread of our loader or a process of a DataLoader. ``dali_cpu``, ``dali_mixed`` and
``pillow`` are our loader with each of its decoders; with a number behind it, the JPEG engine of the GPU takes that
share of the images in place of all. ``cached`` is one batch, copied again and again: what handing over a batch costs at
least.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.comparison import Figures
from benchmarks.tools.image_set import CLASSES, SEED, describe, image_set
from benchmarks.tools.options import at_least, duration, image_parser
from pipelines.batches.geometry import Geometry

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    Batch = tuple[Tensor, Tensor]

RESULTS = ledger.RESULTS / "loader.csv"
GEOMETRY = Geometry(320, 224, training=True)
SLICES = 5  # of a measurement, each of which gives a rate
EVERY = 5000  # samples between two readings of the memory

Clock = Callable[[], float]


# The providers: endless streams of batches, uint8 [N, 3, C, C] with int64 [N]


def ours(images: Path, batch: int, workers: int, decoder: str, hardware_load: float = 1.0) -> Iterator[Batch]:
    """Our loader."""
    from pipelines.batches.decoding import Decoding
    from pipelines.batches.loader import Loader

    decoding = Decoding(decoder, workers, hardware_load=hardware_load)
    loader = Loader(images / "shards", "train", GEOMETRY, batch, decoding=decoding)
    for loaded in loader:
        yield loaded.images, loaded.labels


def imagefolder(images: Path, batch: int, workers: int) -> Iterator[Batch]:
    """Torchvision. Images are drawn with replacement, so that no epoch ends and workers never wait for another."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(images / "raw" / "train"), _transform())
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**40)
    yield from DataLoader(dataset, batch, sampler=sampler, num_workers=workers)


def webdataset(images: Path, batch: int, workers: int) -> Iterator[Batch]:
    """Webdataset's way of training: shards drawn with replacement, a shuffle buffer, batches made in the workers."""
    import torch
    import webdataset as wds
    from torch.utils.data import DataLoader, default_collate

    tars = [str(path) for path in sorted((images / "shards").glob("*.tar"))]
    dataset = (
        wds.WebDataset(tars, resampled=True, shardshuffle=False, seed=SEED)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_transform(), torch.tensor)
        .batched(batch, collation_fn=default_collate, partial=False)
    )
    yield from DataLoader(dataset, batch_size=None, num_workers=workers)


def cached(images: Path, batch: int, workers: int) -> Iterator[Batch]:  # noqa: ARG001
    """One batch, copied."""
    import torch

    shape = (batch, 3, GEOMETRY.crop, GEOMETRY.crop)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,))
    while True:
        yield pixels.clone(), labels.clone()


def _transform() -> Callable[[Image.Image], Tensor]:
    """The augmentation of ``pipelines.batches.loader`` as one would write it with torchvision."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.Resize(GEOMETRY.short_side),
            v2.RandomCrop(GEOMETRY.crop),
            v2.RandomHorizontalFlip(GEOMETRY.flip),
            v2.ColorJitter(brightness=GEOMETRY.brightness),
            v2.PILToTensor(),
        ]
    )


PROVIDERS: dict[str, Callable[[Path, int, int], Iterator[Batch]]] = {
    "dali_cpu": functools.partial(ours, decoder="cpu"),
    "dali_mixed": functools.partial(ours, decoder="mixed"),
    "dali_mixed_0.65": functools.partial(ours, decoder="mixed", hardware_load=0.65),
    "dali_mixed_0": functools.partial(ours, decoder="mixed", hardware_load=0.0),
    "pillow": functools.partial(ours, decoder="pillow"),
    "imagefolder": imagefolder,
    "webdataset": webdataset,
    "cached": cached,
}
DALI = ("pipelines.batches.loader", "pipelines.batches.dali")
# What a provider imports; that is done before anything is timed.
MODULES = {
    **dict.fromkeys([provider for provider in PROVIDERS if provider.startswith("dali")], DALI),
    "pillow": ("pipelines.batches.loader", "pipelines.batches.pillow"),
    "imagefolder": ("torchvision.datasets", "torchvision.transforms.v2"),
    "webdataset": ("webdataset", "torchvision.transforms.v2"),
    "cached": ("torch",),
}


def missing(provider: str) -> str:
    """Why a provider cannot run here; empty if it can."""
    try:
        for module in MODULES[provider]:
            importlib.import_module(module)
    except ImportError as error:
        return f"cannot import {error.name}"
    if provider.startswith("dali_mixed") and not importlib.import_module("torch").cuda.is_available():
        return "no GPU"
    return ""


# Measuring


def rate(stream: Iterator[Batch], seconds: float, clock: Clock = time.perf_counter) -> tuple[int, float]:
    """Images that a stream delivers in at least ``seconds``, and the seconds that this took."""
    count, start = 0, clock()
    while True:
        pixels, _ = next(stream)
        if pixels.is_cuda:
            importlib.import_module("torch").cuda.synchronize()
        count += len(pixels)
        elapsed = clock() - start
        if elapsed >= seconds:
            return count, elapsed


def measure(provider: str, images: Path, batch: int, workers: int, seconds: float) -> Figures:
    """Throughput, CPU time and first batch of one provider, in the process that calls."""
    for module in MODULES[provider]:
        importlib.import_module(module)
    start = time.perf_counter()
    stream = PROVIDERS[provider](images, batch, workers)
    next(stream)
    first = time.perf_counter() - start
    rate(stream, seconds / SLICES)  # warm-up: what was prefetched meanwhile
    before = process.processor_seconds(os.getpid())
    slices = [rate(stream, seconds / SLICES) for _ in range(SLICES)]
    processor = process.processor_seconds(os.getpid()) - before
    return figures(slices, processor, first)


def figures(slices: Sequence[tuple[int, float]], processor: float, first: float) -> Figures:
    """Metric -> values, of the images and seconds of every slice, the CPU seconds of all, and the first batch's."""
    return {
        "throughput": [count / elapsed for count, elapsed in slices],
        "CPU time": [1000 * processor / sum(count for count, _ in slices)],
        "first batch": [first],
    }


def read_memory(images: Path, batch: int, workers: int, samples: int, every: int) -> list[tuple[int, float]]:
    """Samples that our loader has delivered and MB of the process that calls, as often as asked for and at the end.

    Every reading is printed.
    """
    stream = PROVIDERS["dali_cpu"](images, batch, workers)
    readings: list[tuple[int, float]] = []
    count = 0
    while count < samples:
        count += len(next(stream)[0])
        if count >= min(every * (len(readings) + 1), samples):
            readings.append((count, process.memory(os.getpid()) / 1e6))
            print(f"{count:>9} samples{readings[-1][1]:>9.1f} MB", flush=True)
    return readings


def growth(readings: Sequence[tuple[int, float]]) -> float:
    """MB between the reading at a tenth of the samples and the last one."""
    samples, last = readings[-1]
    return last - next(held for count, held in readings if count >= samples / 10)


# The command line


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = image_parser(__doc__, RESULTS)
    parser.add_argument("--providers", choices=PROVIDERS, nargs="+", help="all that can run here, unless given")
    cores = os.cpu_count() or 1
    doubling = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    parser.add_argument(
        "--workers", type=at_least(1), nargs="+", default=[*doubling, cores], help="threads or processes"
    )
    parser.add_argument("--batch", type=at_least(1), default=32, help="images of a batch")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=duration, default=20.0, help="length of a measurement, without its start")
    length.add_argument(
        "--samples",
        type=at_least(10 * EVERY),
        help=f"let dali_cpu with the most workers deliver so many instead, and read its memory every {EVERY}",
    )
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often every provider takes its turn")
    options = parser.parse_args(arguments)
    if options.batch > options.files:
        parser.error(f"--batch: expected at most --files {options.files}, got {options.batch}")
    if options.samples and options.providers:
        parser.error("--samples, --providers: expected one of them, got both")
    if process.missing():
        parser.error(process.missing())
    if options.samples and missing("dali_cpu"):
        parser.error(f"--samples: dali_cpu cannot run here ({missing('dali_cpu')})")
    for provider in options.providers or ():
        if missing(provider):
            parser.error(f"--providers: {provider} cannot run here ({missing(provider)})")
    return options


def _available() -> list[str]:
    """The providers that can run here; why the others cannot is printed."""
    reasons = {provider: missing(provider) for provider in PROVIDERS}
    for provider, reason in reasons.items():
        if reason:
            print(f"left out: {provider} ({reason})")
    return [provider for provider, reason in reasons.items() if not reason]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/loader.csv``."""
    options = _options(arguments)
    images = image_set(options.images, options.files)
    case = f"{describe(options.files)}, batch {options.batch}"
    if options.samples:
        workers = max(options.workers)
        readings, _ = process.alone(read_memory, images, options.batch, workers, options.samples, EVERY)
        print(f"growth from a tenth of the samples on: {growth(readings):.1f} MB")
        if options.record:
            mode = f"{workers} workers, {options.samples} samples"
            comparison.record(RESULTS, case, "dali_cpu", mode, "memory growth", "MB", [growth(readings)])
        return 0
    cases = {
        (workers, provider): (provider, images, options.batch, workers, options.seconds)
        for workers, provider in itertools.product(options.workers, options.providers or _available())
    }
    pooled = comparison.take_turns(measure, cases, options.rounds)
    print(comparison.table(pooled, "workers", "imagefolder"))
    if options.record:
        comparison.record_all(RESULTS, case, "workers", pooled)
    return 0


if __name__ == "__main__":
    run_main(main)
