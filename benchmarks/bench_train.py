"""What a training step costs: region grouping beside the whole network of its backbone with its own classifier.

python -m benchmarks.bench_train [--recipe birds_lite0] [--batch 32] [--size 128] [--steps 10] [--rounds 5] [--record]
python -m benchmarks.bench_train --input cpu          # images of the loader instead of one batch over and over

The step is that of ``rg train``, from its begin to that of the next one. Models and variants take turns, each in a
process of its own. ``nchw`` is a step as PyTorch comes, ``channels_last`` has the layout of weights and activations
that convolutions like, ``kept`` also keeps freed memory (``rg.malloc``), which is what ``rg train`` does. The others
have something besides: ``ddp`` has ``train.engine``, ``captured`` has ``train.capture`` on top of that, and ``lean``
and ``image`` also ``kernels.prefer``; ``compiled`` and ``cuda_graphs`` have ``train.compile``, ``ddp_compiled`` has it
with DDP, and ``checkpointed`` has ``train.activation_checkpointing``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import world_sizes
from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.comparison import Figures
from benchmarks.tools.image_set import describe, image_set
from benchmarks.tools.options import IMAGES, at_least, folder
from kernels.dispatch import Way
from pipelines.batches.loader import Batch, Loader
from rg import recipes
from rg.config import RunConfig
from rg.training.batch_reader import BatchReader, Read
from rg.training.step_flags import StepFlags

RESULTS = ledger.RESULTS / "train.csv"
WARM_UP = 4  # steps, of which the last one is captured where steps are
KINDS = {"region grouping": "region_grouping", "whole network": "plain"}
CACHED = "cached"
UNITS = {"time": "ms", "data wait": "%", "memory": "MB", "reserved memory": "MB"}


class Variant(NamedTuple):
    """How a step is taken: the layout, whether freed memory is kept, settings of ``train`` beside that, and kernels."""

    memory_format: torch.memory_format
    kept: bool = False
    changed: Mapping[str, Any] = {}
    way: Way = "tile"


CAPTURED = {"engine": "ddp", "capture": True}
VARIANTS = {
    "nchw": Variant(torch.contiguous_format),
    "channels_last": Variant(torch.channels_last),
    "kept": Variant(torch.channels_last, kept=True),
    "ddp": Variant(torch.channels_last, kept=True, changed={"engine": "ddp"}),
    "captured": Variant(torch.channels_last, kept=True, changed=CAPTURED),
    "lean": Variant(torch.channels_last, kept=True, changed=CAPTURED, way="lean"),
    "image": Variant(torch.channels_last, kept=True, changed=CAPTURED, way="image"),
    "compiled": Variant(torch.channels_last, kept=True, changed={"compile": "inductor"}),
    "ddp_compiled": Variant(torch.channels_last, kept=True, changed={"engine": "ddp", "compile": "inductor"}),
    "cuda_graphs": Variant(torch.channels_last, kept=True, changed={"compile": "cuda_graphs"}),
    "checkpointed": Variant(torch.channels_last, kept=True, changed={"activation_checkpointing": True}),
}
USUAL = ("nchw", "channels_last", "kept")


def settings(recipe: str, kind: Any, batch: int, size: int, precision: Any, decoder: Any) -> RunConfig:
    """One epoch of a recipe at another size, with weights from nowhere: what they are does not change the time.

    They stay nearly what they are: steps from random weights on one batch over and over can diverge.
    """
    config = recipes.get(recipe)
    model = dataclasses.replace(
        config.model, kind=kind, backbone=dataclasses.replace(config.model.backbone, weights="none")
    )
    pixels = dataclasses.replace(
        config.input, short_side=size + 8, crop=size, test_short_side=size, test_crop=size, decoder=decoder
    )
    return dataclasses.replace(
        config,
        model=model,
        input=pixels,
        optimizer=dataclasses.replace(config.optimizer, lr=1e-9),
        train=dataclasses.replace(
            config.train, epochs=1, global_batch=batch, validate_epochs=0, precision=precision, keep_checkpoints=1
        ),
    )


def steps(config: RunConfig, data: Path, variant: str, cached: bool) -> dict[str, list[float]]:
    """Seconds of every training step after the first few, and of waiting for its images; bytes of a GPU at most.

    A GPU is waited for before the first and after the last one: in between the host may get ahead, as in training.
    """
    from rg.training.loop import Loop

    take_step = Loop._train_step
    begins: list[float] = []
    waits: list[float] = []

    def begin(wait: bool) -> None:
        if wait and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # not the device: streams of the decoder go on
        begins.append(time.perf_counter())

    def timed(loop: Loop) -> StepFlags:
        if not isinstance(loop.batches, Reader):
            loop.batches = Reader(loop.loader, cached, VARIANTS[variant].memory_format)
        loop.batches.waited = 0.0
        begin(wait=loop.step == WARM_UP)
        result = take_step(loop)
        waits.append(loop.batches.waited)
        if loop.step + 1 == loop.total:
            begin(wait=True)
        return result

    Loop._train_step = timed  # type: ignore[method-assign, assignment]
    train_as(variant, config, data)
    measured = {"step": [end - start for start, end in itertools.pairwise(begins)][WARM_UP:], "wait": waits[WARM_UP:]}
    if torch.cuda.is_available():
        measured["memory"] = [torch.cuda.max_memory_allocated()]
        measured["reserved memory"] = [torch.cuda.max_memory_reserved()]
    return measured


def train_as(variant: str, config: RunConfig, data: Path) -> None:
    """Trains in this process, whose steps are those of a variant from now on."""
    import kernels
    from rg import malloc
    from rg.training import engine
    from rg.training.train import train

    chosen = VARIANTS[variant]
    engine.MEMORY_FORMAT = chosen.memory_format
    kernels.prefer(chosen.way)
    if chosen.kept:
        malloc.keep_freed_memory()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **chosen.changed))
    with tempfile.TemporaryDirectory() as folder:
        train(config, data, Path(folder) / "run")


class Reader(BatchReader):
    """The batches of a loader, or its first one over and over.

    Images come in channels_last; convolutions take that layout if either images or weights have it.

    Attributes:
        waited: Seconds for which batches that were taken have been waited for.
    """

    def __init__(self, loader: Loader, cached: bool, memory_format: torch.memory_format) -> None:
        super().__init__(loader)
        self.waited, self._layout = 0.0, memory_format
        self._first: Read | None = None
        self._first = self._read() if cached else None

    def take(self) -> tuple[Batch, float]:
        """See ``BatchReader``."""
        batch, waited = super().take()
        self.waited += waited
        return batch, waited

    def _read(self) -> Read:
        if self._first:
            return self._first
        read = super()._read()
        images = read.batch.images.contiguous(memory_format=self._layout)
        if read.batch.images.is_pinned():
            images = images.pin_memory()
        return read._replace(batch=dataclasses.replace(read.batch, images=images))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/train.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", choices=sorted(recipes.RECIPES), default="birds_lite0", help="what is trained")
    parser.add_argument("--batch", type=at_least(2), default=32, help="images")
    parser.add_argument("--size", type=at_least(32), default=128, help="pixels")
    parser.add_argument("--steps", type=at_least(1), default=10, help="steps of a turn that are measured")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="how often all take their turn")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which models")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(USUAL), help="how the step is taken")
    decoders = (CACHED, "cpu", "mixed", "pillow")
    parser.add_argument("--input", choices=decoders, default=CACHED, help="one batch over and over, or a decoder")
    parser.add_argument("--images", type=folder, default=IMAGES, help="folder that keeps what is decoded")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    if process.missing():
        parser.error(process.missing())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cached = options.input == CACHED
    decoder = "auto" if cached else options.input
    files = options.batch * (WARM_UP + options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "birds" if cached else image_set(options.images, files) / "shards"
        if cached:
            world_sizes.draw(data, files, options.size)
        turns = {
            (kind, variant): functools.partial(
                steps,
                settings(options.recipe, KINDS[kind], options.batch, options.size, options.precision, decoder),
                data,
                variant,
                cached,
            )
            for kind in options.kinds
            for variant in options.variants
        }
        case = f"{options.recipe}, {options.batch} images of {options.size} px"
        source = "" if cached else f", {options.input}, {describe(files)}"
        figures: dict[tuple[str, str], Figures] = {turn: {metric: [] for metric in UNITS} for turn in turns}
        for number, (kind, variant) in itertools.product(range(1, options.rounds + 1), turns):
            measured, peak = process.alone(turns[kind, variant])
            values = figures[kind, variant]
            _add(values, measured, peak)
            if options.record and number == options.rounds:  # at once: a later turn may fail
                _record(case, kind, f"{device}, {options.precision}, {variant}{source}", values, cached)
    for (kind, variant), values in figures.items():
        p20, p50, p80 = comparison.percentiles(values["time"])
        others = {("whole network", variant), (kind, options.variants[0])} & set(figures) - {(kind, variant)}
        times = [
            f"{p50 / comparison.percentiles(figures[other]['time'])[1]:.3f}x that of {' '.join(other)}"
            for other in others
        ]
        print(
            f"{case}: {kind:<16}{variant:<14}{p50:8.1f} ms (p20 {p20:.1f}, p80 {p80:.1f}), "
            + f"{1000 * options.batch / p50:.1f} images/s, {comparison.percentiles(values['memory'])[1]:.0f} MB"
            + "".join(f", {time}" for time in sorted(times))
        )
    return 0


def _add(values: Figures, measured: Mapping[str, Sequence[float]], peak: int) -> None:
    """Puts what ``steps`` has measured, and the peak memory of its process, to the values of earlier rounds."""
    values["time"] += [1000 * seconds for seconds in measured["step"]]
    pairs = zip(measured["wait"], measured["step"], strict=True)
    values["data wait"] += [100 * waited / whole for waited, whole in pairs]
    values["memory"] += [size / 1e6 for size in measured.get("memory", [peak])]
    values["reserved memory"] += [size / 1e6 for size in measured.get("reserved memory", [])]


def _record(case: str, kind: str, mode: str, values: Figures, cached: bool) -> None:
    for metric, unit in UNITS.items():
        if not values[metric] or (metric == "data wait" and cached):
            continue
        row: dict[str, object] = {"case": case, "provider": kind, "mode": mode, "metric": metric, "unit": unit}
        p20, p50, p80 = (round(value, 1) for value in comparison.percentiles(values[metric]))
        row |= {"p20": p20, "p50": p50, "p80": p80, "n": len(values[metric])}
        ledger.append(RESULTS, row, gpu=torch.cuda.is_available())


if __name__ == "__main__":
    run_main(main)
