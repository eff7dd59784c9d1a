"""Images a second of trained models: logits only, whole explanations, and the exported model.

python -m benchmarks.bench_inference [--recipe birds_lite0] [--size 144] [--batches 1 8 32 128] [--rounds 5] [--record]

Logits of region grouping and of the whole network of its backbone with its own classifier, as PyTorch comes (``nchw``),
in ``channels_last``, and with freed memory ``kept`` besides (``rg.malloc``), as all commands do; explanations from
images of that size in memory, with contributions and attribution (``rg.load(...).explain``); ONNX on the CPU. Weights
are random, which does not change the time. Providers take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least, duration
from rg import recipes
from rg.config import RunConfig
from rg.malloc import keep_freed_memory

RESULTS = ledger.RESULTS / "inference.csv"
CLASSES = 48
FORMATS = {
    "nchw": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "kept": torch.channels_last,
}
PROVIDERS = {
    "region grouping": ("region_grouping", tuple(FORMATS)),
    "whole network": ("plain", tuple(FORMATS)),
    "explanations": ("region_grouping", ("kept",)),
    "onnx": ("region_grouping", ("onnxruntime",)),
}


def measure(
    recipe: str, size: int, provider: str, form: str, batch: int, precision: str, device: str, seconds: float
) -> list[float]:
    """Images a second of every batch after the first two, for some seconds, in this process."""
    config = _config(recipe, size, PROVIDERS[provider][0])
    if form == "kept":
        keep_freed_memory()
    call = _calls(config, size, provider, form, batch, precision, device)
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(batch / (time.perf_counter() - start))
    return rates[2:]


def _config(recipe: str, size: int, kind: Any) -> RunConfig:
    config = recipes.get(recipe)
    backbone = dataclasses.replace(config.model.backbone, weights="none")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kind=kind, backbone=backbone),
        input=dataclasses.replace(config.input, short_side=size, crop=size, test_short_side=size, test_crop=size),
    )


def _calls(
    config: RunConfig, size: int, provider: str, form: str, batch: int, precision: str, device: str
) -> Callable[[], object]:
    """What is done with one batch."""
    from rg.explain.explainer import Explainer
    from rg.export import export
    from rg.model.build import build_model
    from rg.model.region_grouping import RegionGroupingModel
    from rg.runs.folder import Classes

    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, pretrained=False).eval()
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    classes = Classes(tuple(f"class {n}" for n in range(CLASSES)), multi_label=False)
    if provider == "explanations":
        assert isinstance(model, RegionGroupingModel)
        explainer = Explainer(model, config, classes, torch.device(device))
        photos = list(images.permute(0, 2, 3, 1).contiguous().numpy())
        return functools.partial(explainer.explain, photos, batch_size=batch)
    if provider == "onnx":
        sizes = export.find_sizes(model, size)
        program = export.read_onnx(export.to_onnx(export.trace(model, sizes), {"parts": []}))
        return functools.partial(program, images.float())
    model = model.to(device, memory_format=FORMATS[form])  # type: ignore[call-overload]
    images = images.to(device).contiguous(memory_format=FORMATS[form])

    @torch.inference_mode()
    def logits() -> object:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return model(images).logits

    return logits


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/inference.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", choices=sorted(recipes.RECIPES), default="birds_lite0", help="which network")
    parser.add_argument("--size", type=at_least(32), default=144, help="pixels")
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=[1, 8, 32, 128], help="images")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), help="what is compared")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of logits")
    parser.add_argument("--seconds", type=duration, default=2.0, help="of a turn")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="how often all take their turn")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    if process.missing():
        parser.error(process.missing())
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    for batch in options.batches:
        case = f"{options.recipe}, {batch} images of {options.size} px"
        turns = [(provider, form) for provider in options.providers for form in PROVIDERS[provider][1]]
        throughputs: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        for _, (provider, form) in itertools.product(range(options.rounds), turns):
            device = "cpu" if provider == "onnx" else gpu
            words = (options.recipe, options.size, provider, form, batch, options.precision, device, options.seconds)
            throughputs[provider, form] += process.alone(measure, *words)[0]
        for (provider, form), rates in throughputs.items():
            device = "cpu" if provider == "onnx" else gpu
            p20, p50, p80 = comparison.percentiles(rates)
            print(f"{case}: {provider:<16}{form:<16}{p50:8.1f} images/s (p20 {p20:.1f}, p80 {p80:.1f})", flush=True)
            if options.record:
                precision = options.precision if provider in ("region grouping", "whole network") else "fp32"
                row: dict[str, object] = {"case": case, "provider": provider, "mode": f"{device}, {precision}, {form}"}
                row |= {"metric": "throughput", "unit": "images/s", "n": len(rates)}
                row |= {"p20": round(p20, 1), "p50": round(p50, 1), "p80": round(p80, 1)}
                ledger.append(RESULTS, row, gpu=device == "cuda")
    return 0


if __name__ == "__main__":
    run_main(main)
