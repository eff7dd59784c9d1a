"""Training with several ranks beside training with one: what differs after some steps on the same global batches.

python -m benchmarks.world_sizes [--worlds 1,2,3,4] [--steps 5] [--size 64] [--dtype float64]

Each run trains a ResNet-18 from random weights on drawn birds. Losses are compared relative to the loss, gradients and
weights by their largest difference, relative to the largest gradient or weight of the model. Float64 holds for
everything but DeepSpeed's sum of the gradients. In float32, the rounding of one batch split two ways decides now and
then which side of zero a ReLU is on, and gradients that jump there hide what is to be seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tools import local_ranks
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least, counts
from pipelines.cores import usable_cores
from rg import recipes
from rg.config import BackboneConfig, OptimizerConfig, RunConfig, SamplerConfig
from rg.training.objective import OF_STREAMS, OPTIONAL

MODES: dict[str, dict[str, Any]] = {
    "synchronised": {"batch_norm": "sync"},
    "frozen": {"batch_norm": "frozen"},
    "synchronised, 2 micro batches": {"batch_norm": "sync", "accumulation": 2},
    "synchronised, 2 micro batches, clipped": {"batch_norm": "sync", "accumulation": 2, "clip_norm": 0.5},
    "synchronised, activation checkpointing": {"batch_norm": "sync", "activation_checkpointing": True},
    "synchronised, every term": {"batch_norm": "sync", "terms": True},
    "frozen, every term": {"batch_norm": "frozen", "terms": True},
    "synchronised, SSN": {"batch_norm": "sync", "sampler": "saliency"},
    "synchronised, TASN": {"batch_norm": "sync", "sampler": "trilinear"},
    "synchronised, DDP, every term": {"batch_norm": "sync", "engine": "ddp", "terms": True},
    "frozen, DDP, 2 micro batches": {"batch_norm": "frozen", "engine": "ddp", "accumulation": 2},
    "synchronised, ZeRO 1": {"batch_norm": "sync", "how": {"zero_optimization": {"stage": 1}}},
    "synchronised, ZeRO 2": {"batch_norm": "sync", "how": {"zero_optimization": {"stage": 2}}},
}
TERMS: dict[str, Any] = {f"{name}_weight": 0.3 for name in OPTIONAL} | {"equivariance_share": 0.75, "prior_queue": 24}
STREAMS: dict[str, Any] = {f"{name}_weight": 0.5 for name in OF_STREAMS}
GLOBAL_BATCH = 16
UNTESTED = {"zero_allow_untested_optimizer": True}  # DeepSpeed does not know SGD to be safe with ZeRO

Measured = dict[str, Any]


def settings(mode: str, size: int) -> RunConfig:
    """Of one epoch on images of ``size`` pixels."""
    recipe = recipes.get("birds_lite0")
    grouping = dataclasses.replace(recipe.model.grouping, num_parts=4, smoothing_padding="same")
    loss, head = recipe.loss, recipe.model.head
    if MODES[mode].get("terms"):
        grouping = dataclasses.replace(grouping, background=True, gumbel=True, centered=True)
        loss, head = dataclasses.replace(loss, **TERMS), dataclasses.replace(head, part_dropout=0.3)
    sampler = SamplerConfig(MODES[mode].get("sampler", "none"), size=32, weights="none", glimpse=32, shrink_epochs=1)
    if sampler.kind == "trilinear":
        loss = dataclasses.replace(loss, **STREAMS)
    train = dataclasses.replace(
        recipe.train,
        epochs=1,
        global_batch=GLOBAL_BATCH,
        accumulation=MODES[mode].get("accumulation", 1),
        engine=MODES[mode].get("engine", "deepspeed"),
        batch_norm=MODES[mode]["batch_norm"],
        activation_checkpointing=MODES[mode].get("activation_checkpointing", False),
        validate_epochs=0,
        log_steps=1,
        peer_timeout=60.0,
    )
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(
            recipe.model, grouping=grouping, head=head, backbone=BackboneConfig("resnet18", "none"), sampler=sampler
        ),
        loss=loss,
        input=dataclasses.replace(recipe.input, short_side=size + 8, crop=size, test_short_side=size, test_crop=size),
        optimizer=OptimizerConfig(lr=1e-3, clip_norm=MODES[mode].get("clip_norm", 0.0)),
        train=train,
    )


def rank(arguments: Sequence[str]) -> None:
    """What one process does: trains all modes one after the other, and notes the gradients of every step."""
    import deepspeed

    from rg.training import engine, train

    data, out, modes, size, dtype = Path(arguments[0]), Path(arguments[1]), *map(json.loads, arguments[2:])
    torch.set_default_dtype(getattr(torch, dtype))
    # DeepSpeed refuses gradients in float64, though it adds them up like any other.
    deepspeed.accelerator.get_accelerator().supported_dtypes = lambda: [torch.float32, torch.float64]
    take_step = engine.Engine.step
    gradients: list[dict[str, Tensor]] = []

    def noting(self: engine.Engine, number: int, last: bool, skip: bool = False) -> None:
        named = {name: value.grad for name, value in self.model.named_parameters()}
        if last and None not in named.values():  # ZeRO leaves no whole gradients
            gradients.append({name: value.clone() for name, value in named.items() if value is not None})
        take_step(self, number, last, skip)

    engine.Engine.step = noting  # type: ignore[method-assign]
    for number, mode in enumerate(modes):
        engine_settings = None
        if "how" in MODES[mode]:
            engine_settings = out / f"{number}.json"
            engine_settings.write_text(json.dumps(MODES[mode]["how"] | UNTESTED))
        train.train(settings(mode, size), data, out / str(number), deepspeed=engine_settings)
        if torch.distributed.get_rank() == 0:
            torch.save(gradients, out / str(number) / "gradients.pt")
        gradients.clear()


def measure(data: Path, world: int, modes: Sequence[str], size: int, dtype: str = "float64") -> dict[str, Measured]:
    """Losses and gradients of every step, and final weights, of each mode in a run of ``world`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(data), folder, *(json.dumps(value) for value in (list(modes), size, dtype))]
        processes = local_ranks.start(world, ["benchmarks.world_sizes", "--rank", *words], Path(folder))
        local_ranks.finish(processes, Path(folder))
        return {mode: _read(Path(folder) / str(number)) for number, mode in enumerate(modes)}


def _read(run: Path) -> Measured:
    from safetensors.torch import load_file

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": [line["loss"] for line in lines],
        "prior loss": [line["prior_loss"] for line in lines],
        "gradients": torch.load(run / "gradients.pt", weights_only=True),
        "weights": load_file(run / "model.safetensors"),
        "momentum": load_file(sorted(run.glob("checkpoints/*/momentum.safetensors"))[-1]),
    }


def difference(first: Measured, second: Measured) -> dict[str, float | None]:
    """Largest relative difference of each quantity; None for what ZeRO does not tell."""
    differences: dict[str, float | None] = {}
    for name in ("loss", "prior loss"):
        pairs = zip(*(torch.tensor(run[name], dtype=torch.float64) for run in (first, second)), strict=True)
        differences[name] = max(_relative(a, b) for a, b in pairs)
    both = zip(first["gradients"], second["gradients"], strict=False)
    differences["gradients"] = max((_relative(_flat(a), _flat(b)) for a, b in both), default=None)
    differences |= {name: _relative(_flat(first[name]), _flat(second[name])) for name in ("weights", "momentum")}
    return differences


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def draw(folder: Path, images: int, size: int) -> None:
    """Shards with that many birds to train on, of four species."""
    words = {
        "out": folder,
        "birds.species": 4,
        "birds.size": size,
        "train": -(-images // 4),
        "val": 1,
        "test": 1,
        "jobs": usable_cores(),
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "rg", "prepare", "birds", *options], check=True, capture_output=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table of the differences from one rank."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--rank"]:
        rank(words[1:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", type=counts, default=[2, 3, 4], help="numbers of ranks, beside 1")
    parser.add_argument("--steps", type=at_least(1), default=5, help="optimiser steps")
    parser.add_argument("--size", type=at_least(32), default=64, help="pixels")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="of everything computed")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "birds"
        draw(data, args.steps * GLOBAL_BATCH, args.size)
        alone = measure(data, 1, list(MODES), args.size, args.dtype)
        print("| batch norm | ranks | loss | prior loss | gradients | weights | momentum |\n|" + "---|" * 7)
        for world in args.worlds:
            together = measure(data, world, list(MODES), args.size, args.dtype)
            for mode in MODES:
                cells = ["" if x is None else f"{x:.1e}" for x in difference(alone[mode], together[mode]).values()]
                print(f"| {mode} | {world} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
