"""The forty heads of CelebA in batched products, beside a loop over forty heads of one attribute each.

python -m benchmarks.bench_heads [--batch 32] [--labels 40] [--rounds 5] [--record]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.tools import comparison, ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least
from rg import recipes
from rg.config import HeadConfig
from rg.model.layers import MultiLabelAttention, MultiLabelClassifier

RESULTS = ledger.RESULTS / "heads.csv"
CHANNELS = 1024  # of ResNet-101 at stride 16

Step = Callable[[Tensor, Tensor], Tensor]


def batched(config: HeadConfig, labels: int) -> tuple[nn.Module, Step]:
    """All attributes at once, as the model computes them; the modules, and regions and features -> logits."""
    attention = MultiLabelAttention(config, CHANNELS, labels)
    classifier = MultiLabelClassifier(config, config.region_channels, labels)
    return nn.ModuleList([attention, classifier]), lambda regions, features: classifier(features, attention(regions))


def looped(config: HeadConfig, labels: int) -> tuple[nn.Module, Step]:
    """One attention and one classifier for each attribute, one after the other."""
    heads = [batched(config, 1) for _ in range(labels)]

    def step(regions: Tensor, features: Tensor) -> Tensor:
        return torch.cat([head(regions, features) for _, head in heads], dim=1)

    return nn.ModuleList(modules for modules, _ in heads), step


PROVIDERS = {"batched": batched, "loop": looped}


def seconds(step: Step, regions: Tensor, features: Tensor) -> float:
    """Time of one forward and backward pass."""
    start = time.perf_counter()
    step(regions.requires_grad_(), features.requires_grad_()).sum().backward()
    if regions.is_cuda:
        torch.cuda.synchronize(regions.device)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/heads.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=at_least(2), default=32, help="images")
    parser.add_argument("--labels", type=at_least(1), default=40, help="attributes")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="how often both take their turn")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = recipes.get("celeba_attributes_resnet101").model
    config, parts = model.head, model.grouping.num_parts
    regions = torch.randn(options.batch, parts, CHANNELS, device=device)
    features = torch.randn(options.batch, parts, config.region_channels, device=device)
    steps = {}
    for name, build in PROVIDERS.items():
        modules, steps[name] = build(config, options.labels)
        modules.to(device)
        seconds(steps[name], regions, features)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(1000 * seconds(step, regions, features))
    case = f"N{options.batch} K{parts} L{options.labels}"
    reference = comparison.percentiles(times["loop"])[1]
    for name, values in times.items():
        p20, p50, p80 = comparison.percentiles(values)
        print(f"{case} {name:<8}{p50:9.1f} ms (p20 {p20:.1f}, p80 {p80:.1f})  {reference / p50:.2f}x of the loop")
        if options.record:
            mode = f"forward and backward, {device.type}"
            row = {"case": case, "provider": name, "mode": mode, "metric": "time", "unit": "ms", "n": len(values)}
            row |= {"p20": round(p20, 1), "p50": round(p50, 1), "p80": round(p80, 1)}
            ledger.append(RESULTS, row, gpu=device.type == "cuda")
    return 0


if __name__ == "__main__":
    run_main(main)
