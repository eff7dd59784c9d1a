"""How fast images reach a training loop: our loader next to torchvision's ImageFolder and webdataset.

python -m benchmarks.bench_loader [--record]           images/s, CPU time, memory and first batch of every provider
python -m benchmarks.bench_loader --packing            images/s of writing shards, next to a plain ShardWriter
python -m benchmarks.bench_loader --geometry           what decoding only the crop window costs in grey levels
python -m benchmarks.bench_loader --seconds 5 --rounds 1      a quick look

All providers read the same JPEGs, of about 500 x 375 pixels and 40 to 110 KB, from the page cache, augment them alike
(short side 320, random crop 224, flip, jitter) and deliver batches of bytes. Every measurement runs in a process of its
own, and providers take turns in every round. A worker is a thread of DALI or a process of a DataLoader. ``cached`` is
one batch, copied again and again: what handing over a batch costs at least.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import ledger
from pipelines import shards
from pipelines.folder import Folder
from pipelines.geometry import Geometry, central_start
from pipelines.manifest import Schema

if TYPE_CHECKING:
    from torch import Tensor

    Batch = tuple[Tensor, Tensor]

RESULTS = ledger.RESULTS / "loader.csv"
GEOMETRY = Geometry(320, 224, training=True)
SEED = 1
CLASSES = 8
SIZES = ((500, 375), (375, 500), (500, 333), (500, 400))
QUALITY = 90
SHARDS = 32  # of the images; webdataset's workers share them out
SLICES = 5  # of a measurement, each of which gives a rate
POLL = 0.25  # seconds between two looks at the memory
PROC = Path("/proc")
COMPARED = 200  # images for --geometry
BORDER = 2  # output pixels at the edge of a window that a filter of twice the pixel distance reaches over
UNITS = {"throughput": "images/s", "CPU time": "s/1000 images", "peak memory": "MB", "first batch": "s"}

Clock = Callable[[], float]
Figures = dict[str, list[float]]
Result = TypeVar("Result")


# The images


def draw(index: int) -> bytes:
    """One JPEG: noise of all scales, as natural images have it, and discs with hard edges."""
    rng = np.random.default_rng((SEED, index))
    width, height = SIZES[index % len(SIZES)]
    contrast = rng.uniform(1.2, 5.0)
    pixels = np.full((height, width, 3), 128, np.float32)
    for octave in range(9):
        shape = (height // 2**octave + 2, width // 2**octave + 2, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        layer = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels += 0.04 * contrast * 2 ** (0.45 * octave) * (layer - 128)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, (width, height))
        a, b = rng.integers(5, 60, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=tuple(rng.integers(0, 256, 3).tolist()))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def image_set(folder: Path, files: int) -> Path:
    """The folder of ``files`` images below ``folder``, made if it is not there: ``raw`` (class folders), ``shards``."""
    final = folder / f"{files}-images-seed-{SEED}"
    if final.is_dir():
        return final
    print(f"drawing {files} images into {final}, once")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=folder))
    try:
        for index in range(files + CLASSES):
            split = "train" if index < files else "val"
            path = temporary / "raw" / split / f"class_{index % CLASSES}" / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw(index))
        pack(temporary / "raw", temporary / "shards", 1)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return final


def pack(raw: Path, out: Path, jobs: int) -> None:
    """The training images as our shards."""
    source = Folder(raw, "train")
    schema = Schema(source.class_names)
    per_shard = -(-len(source) // SHARDS)
    shards.write(out, "benchmark", {"train": source}, schema=schema, options={}, samples_per_shard=per_shard, jobs=jobs)


def pack_plainly(raw: Path, out: Path) -> None:
    """The training images as webdataset's ShardWriter takes them: the same fields, neither decoded nor shuffled."""
    import webdataset as wds

    out.mkdir()
    paths = sorted((raw / "train").glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in paths})
    with wds.ShardWriter(str(out / "train-%05d.tar"), maxcount=-(-len(paths) // SHARDS), verbose=0) as writer:
        for path in paths:
            annotation = {"source": path.relative_to(raw).as_posix()}
            label = classes.index(path.parent.name)
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label, "json": annotation})


# The providers: endless streams of batches, uint8 [N, 3, C, C] with int64 [N]


def dali(images: Path, batch: int, workers: int, decoder: str) -> Iterator[Batch]:
    """Our loader."""
    from pipelines.loader import Loader

    loader = Loader(images / "shards", "train", GEOMETRY, batch, decoder=decoder, threads=workers)
    for found in loader:
        yield found.images, found.labels


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
    """The augmentation of ``pipelines.loader`` as one would write it with torchvision."""
    from torchvision.transforms import v2

    jitter = GEOMETRY.jitter
    return v2.Compose(
        [
            v2.Resize(GEOMETRY.short_side),
            v2.RandomCrop(GEOMETRY.crop),
            v2.RandomHorizontalFlip(GEOMETRY.flip),
            v2.ColorJitter(jitter, jitter, jitter),
            v2.PILToTensor(),
        ]
    )


PROVIDERS: dict[str, Callable[[Path, int, int], Iterator[Batch]]] = {
    "dali_cpu": functools.partial(dali, decoder="cpu"),
    "dali_mixed": functools.partial(dali, decoder="mixed"),
    "imagefolder": imagefolder,
    "webdataset": webdataset,
    "cached": cached,
}
# What a provider imports; that is done before anything is timed.
MODULES = {
    "dali_cpu": ("pipelines.loader",),
    "dali_mixed": ("pipelines.loader",),
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
    if provider == "dali_mixed" and not importlib.import_module("torch").cuda.is_available():
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
    before = processor_seconds(os.getpid())
    slices = [rate(stream, seconds / SLICES) for _ in range(SLICES)]
    processor = processor_seconds(os.getpid()) - before
    return figures(slices, processor, first)


def figures(slices: Sequence[tuple[int, float]], processor: float, first: float) -> Figures:
    """Metric -> values, of the images and seconds of every slice, the CPU seconds of all, and the first batch's."""
    return {
        "throughput": [count / elapsed for count, elapsed in slices],
        "CPU time": [1000 * processor / sum(count for count, _ in slices)],
        "first batch": [first],
    }


def measure_packing(write: Callable[[Path, Path], None], images: Path) -> Figures:
    """Throughput and CPU time of writing the images of a set as shards, in the process that calls."""
    if write is pack_plainly:
        importlib.import_module("webdataset")
    out = Path(tempfile.mkdtemp(prefix=".packing-", dir=images))
    try:
        count = len(list((images / "raw" / "train").glob("*/*.jpg")))
        before, start = sum(os.times()[:4]), time.perf_counter()
        write(images / "raw", out / "shards")
        elapsed = time.perf_counter() - start
        processor = sum(os.times()[:4]) - before  # of worker processes too, which have ended
    finally:
        shutil.rmtree(out)
    return {"throughput": [count / elapsed], "CPU time": [1000 * processor / count]}


def alone(function: Callable[..., Figures], *arguments: object) -> Figures:
    """Calls a function in a new process and adds the peak memory of that process and its descendants.

    Raises:
        RuntimeError: the process died; its error has been printed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    sender.close()
    peak = 0
    while not receiver.poll(POLL):
        peak = max(peak, memory(process.pid or 0))
    try:
        found: Figures = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__}{arguments}: the process ended with code {process.exitcode}") from None
    process.join()
    return {**found, "peak memory": [peak / 1e6]}


def _send(sender: Connection, function: Callable[..., Result], *arguments: Any) -> None:
    multiprocessing.set_start_method(None, force=True)  # else a DataLoader here would spawn its workers, too
    sender.send(function(*arguments))


def processor_seconds(pid: int) -> float:
    """CPU seconds of a process and its living descendants.

    ``getrusage`` counts children only once they have ended, which the workers of a DataLoader do after everything.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(sum(map(int, stat[11:13])) for stat in _tree(pid).values()) / ticks


def memory(pid: int) -> int:
    """Bytes of a process and its living descendants that no file backs; what several of them share counts once.

    Libraries and shards are left out: their pages are in the page cache, shared with whoever else reads them.
    """
    total = 0
    for member in _tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(PROC, str(member), "smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def _tree(root: int) -> dict[int, list[str]]:
    """Pid -> fields of its ``stat`` from the state on, of a process and its descendants."""
    stats: dict[int, list[str]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stats[int(entry)] = Path(PROC, entry, "stat").read_text().rpartition(") ")[2].split()
    members = {root} & set(stats)
    while found := {pid for pid, stat in stats.items() if int(stat[1]) in members} - members:
        members |= found
    return {pid: stats[pid] for pid in members}


def loading(
    images: Path, providers: Sequence[str], workers: Sequence[int], batch: int, seconds: float, rounds: int
) -> dict[tuple[int, str], Figures]:
    """Figures of every number of workers and provider."""
    pooled: dict[tuple[int, str], Figures] = defaultdict(lambda: defaultdict(list))
    for _, count, provider in itertools.product(range(rounds), workers, providers):
        for metric, values in alone(measure, provider, images, batch, count, seconds).items():
            pooled[count, provider][metric] += values
    return pooled


def packing(images: Path, rounds: int) -> dict[tuple[int, str], Figures]:
    """Figures of every number of jobs and way of writing shards."""
    ways: dict[tuple[int, str], Callable[[Path, Path], None]] = {
        (1, "shards.write"): functools.partial(pack, jobs=1),
        (2, "shards.write"): functools.partial(pack, jobs=2),
    }
    if not missing("webdataset"):
        ways[1, "ShardWriter"] = pack_plainly
    pooled: dict[tuple[int, str], Figures] = defaultdict(lambda: defaultdict(list))
    for _, (key, write) in itertools.product(range(rounds), ways.items()):
        for metric, values in alone(measure_packing, write, images).items():
            pooled[key][metric] += values
    return pooled


def geometry(images: Path) -> dict[str, tuple[str, list[float]]]:
    """How our central windows differ from two references: name -> unit and a value for every image.

    ``window`` is the whole image resized by Pillow to the very grid of our window and cut there: what decoding only
    the window costs. ``torchvision`` is resize, then crop: the window is also rounded to whole pixels before and not
    after resizing, so its corners lie up to ``offset`` output pixels elsewhere.
    """
    from torchvision.transforms import v2

    from pipelines.loader import Loader

    crop = GEOMETRY.crop
    cut = v2.Compose([v2.Resize(GEOMETRY.short_side), v2.CenterCrop(crop)])
    inner = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    found: dict[str, tuple[str, list[float]]] = {}

    def note(name: str, unit: str, value: float) -> None:
        found.setdefault(name, (unit, []))[1].append(float(value))

    loader = Loader(images / "shards", "train", Geometry(GEOMETRY.short_side, crop), COMPARED, threads=1)
    batch = next(iter(loader))
    originals = shards.read(images / "shards", "train", batch.keys)
    for pixels, sample in zip(batch.images, originals, strict=True):
        ours = pixels.permute(1, 2, 0).numpy().astype(int)
        original = Image.open(io.BytesIO(sample.jpeg))
        short = min(original.size)
        side = GEOMETRY.side(short)
        x, y = (central_start(extent, side) for extent in original.size)
        box = (x, y, x + side, y + side)
        window = original.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
        for name, reference in (("window", window), ("torchvision", cut(original))):
            difference = abs(ours - np.asarray(reference))
            note(f"{name}, mean", "grey levels", difference[inner].mean())
            note(f"{name}, max", "grey levels", difference[inner].max())
            if name == "window":
                note(f"{name}, max at the border", "grey levels", difference.max())
        note("offset of the corners", "pixels", _offset(original.size, box))
    return found


def _offset(size: tuple[int, int], box: tuple[int, int, int, int]) -> float:
    """Largest distance, along an axis and in output pixels, of a window's corner to that of torchvision's crop."""
    scale = GEOMETRY.short_side / min(size)
    resized = [int(extent * scale) for extent in size]
    starts = [round((extent - GEOMETRY.crop) / 2) for extent in resized]
    ratios = [new / old for new, old in zip(resized, size, strict=True)]
    first = [abs(box[axis] * ratios[axis] - starts[axis]) for axis in (0, 1)]
    last = [abs(box[axis + 2] * ratios[axis] - starts[axis] - GEOMETRY.crop) for axis in (0, 1)]
    return max(first + last)


# Printing and recording


def table(pooled: Mapping[tuple[int, str], Figures], workers: str, baseline: str) -> str:
    """Medians of all metrics, and images/s relative to those of a baseline with as many workers."""
    lines = [
        f"{workers:>7} {'provider':<13}{'images/s':>9}{'p20':>9}{'p80':>9}{'of ' + baseline:>16}"
        f"{'CPU s/1000':>12}{'peak MB':>9}{'first s':>9}"
    ]
    for (count, provider), found in pooled.items():
        p20, p50, p80 = percentiles(found["throughput"])
        reference = pooled.get((count, baseline))
        share = f"{p50 / percentiles(reference['throughput'])[1]:.2f}x" if reference else "-"
        first = f"{percentiles(found['first batch'])[1]:.2f}" if "first batch" in found else "-"
        processor, peak = (percentiles(found[metric])[1] for metric in ("CPU time", "peak memory"))
        lines.append(
            f"{count:>7} {provider:<13}{p50:>9.1f}{p20:>9.1f}{p80:>9.1f}{share:>16}"
            f"{processor:>12.2f}{peak:>9.0f}{first:>9}"
        )
    return "\n".join(lines)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    p20, p50, p80 = np.percentile(values, (20, 50, 80))
    return float(p20), float(p50), float(p80)


def record(case: str, provider: str, mode: str, metric: str, unit: str, values: Sequence[float]) -> None:
    """Appends a row to the ledger."""
    row = {"case": case, "provider": provider, "mode": mode, "metric": metric, "unit": unit, "n": len(values)}
    found = dict(zip(("p20", "p50", "p80"), (f"{value:.4g}" for value in percentiles(values)), strict=True))
    ledger.append(RESULTS, row | found, gpu=provider == "dali_mixed")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packing", action="store_true", help="measure the writing of shards instead")
    parser.add_argument("--geometry", action="store_true", help="compare the pixels with resize-then-crop instead")
    parser.add_argument("--record", action="store_true", help="append the results to results/loader.csv")
    default = Path(tempfile.gettempdir(), "region-grouping-bench")
    parser.add_argument("--images", type=Path, default=default, help="folder that keeps the images")
    parser.add_argument("--files", type=int, default=2000, help="number of images")
    parser.add_argument("--providers", choices=PROVIDERS, nargs="+", help="all that can run here, unless given")
    cores = os.cpu_count() or 1
    doubling = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    parser.add_argument("--workers", type=int, nargs="+", default=[*doubling, cores], help="threads or processes")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a measurement, without its start")
    parser.add_argument("--rounds", type=int, default=3, help="how often every provider takes its turn")
    options = parser.parse_args(arguments)
    if options.packing and options.geometry:
        parser.error("--packing, --geometry: expected one of them, got both")
    for name, least in (("files", CLASSES), ("batch", 1), ("rounds", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    if options.batch > options.files:
        parser.error(f"--batch: expected at most --files {options.files}, got {options.batch}")
    if not 0 < options.seconds < float("inf"):
        parser.error(f"--seconds: expected more than 0, got {options.seconds}")
    if min(options.workers) < 1:
        parser.error(f"--workers: expected 1 or more, got {min(options.workers)}")
    if options.images.exists() and not options.images.is_dir():
        parser.error(f"--images: expected a folder, got {options.images}")
    if options.geometry and missing("dali_cpu"):
        parser.error(f"--geometry: {missing('dali_cpu')}")
    if not options.geometry and not PROC.exists():
        parser.error(f"CPU time and memory are read from {PROC}, which this system has not")
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
    """Runs what the options ask for."""
    options = _options(arguments)
    logging.basicConfig(level=logging.WARNING)
    images = image_set(options.images, options.files)
    case = f"{options.files} JPEGs of 500x375"
    if options.geometry:
        for name, (unit, values) in geometry(images).items():
            p50, most = percentiles(values)[1], max(values)
            print(f"{name:<32}{np.mean(values):>8.3f} {unit} on average, p50 {p50:.3f}, largest {most:.3f}")
            if options.record:
                record(case, "dali_cpu", "central window", name, unit, values)
        return 0
    if options.packing:
        pooled, workers, baseline = packing(images, options.rounds), "jobs", "ShardWriter"
    else:
        pooled = loading(
            images, options.providers or _available(), options.workers, options.batch, options.seconds, options.rounds
        )
        workers, baseline = "workers", "imagefolder"
        case += f", batch {options.batch}"
    print(table(pooled, workers, baseline))
    if options.record:
        for (count, provider), found in pooled.items():
            for metric, values in found.items():
                record(case, provider, f"{count} {workers}", metric, UNITS[metric], values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
