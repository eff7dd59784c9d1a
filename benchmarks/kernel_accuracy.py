"""How far every provider is from float64 at C = 1024 and the scale of trained features.

python -m benchmarks.kernel_accuracy                        on a GPU
TRITON_INTERPRET=1 python -m benchmarks.kernel_accuracy     in Triton's interpreter
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tools.command import run_main
from benchmarks.tools.kernel_cases import Case
from kernels import dispatch, grouping, image_grouping, operators, reference

Operator = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def autocast(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The formulas as anyone would write them, under bfloat16 autocast: both matrix products lose their digits."""
    with torch.autocast(x.device.type, torch.bfloat16):
        features = x.flatten(2)
        distances = features.square().sum(1, keepdim=True) - 2 * (centers @ features)
        distances = distances + centers.square().sum(1).unsqueeze(1)
        assign = torch.softmax(-distances / (2 * sigma.square().unsqueeze(1)), 1)
        mean = assign @ features.transpose(1, 2) / assign.sum(2, keepdim=True).clamp(min=reference.MASS_FLOOR)
        regions = F.normalize((mean - centers) / sigma.unsqueeze(1), dim=2)
    return assign.unflatten(2, x.shape[2:]), regions


def lean(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``kernels.region_grouping`` as after ``prefer("lean")``."""
    before = dispatch.preferred()
    dispatch.prefer("lean")
    try:
        return operators.region_grouping(x, centers, sigma)
    finally:
        dispatch.prefer(before)


def errors(operator: Operator, case: Case, device: str) -> dict[str, float]:
    """Largest error by name: of assign absolutely (it lies in 0 to 1), of the others relative to the largest value."""
    inputs = case.draw(device)
    exact = _results(reference.region_grouping, tuple(tensor.double() for tensor in inputs))
    actual = _results(operator, inputs)
    return {
        name: ((actual[name].double() - truth).abs().max() / (1 if name == "assign" else truth.abs().max())).item()
        for name, truth in exact.items()
    }


def _results(operator: Operator, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    x, centers, sigma = (tensor.detach().requires_grad_() for tensor in inputs)
    assign, regions = operator(x, centers, sigma)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in (assign, regions)]
    grads = torch.autograd.grad([assign, regions], [x, centers, sigma], upstream)
    names = ("assign", "regions", "gradient of x", "gradient of centers", "gradient of sigma")
    return dict(zip(names, (assign.detach(), regions.detach(), *grads), strict=True))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.parse_args()
    if not (torch.cuda.is_available() or grouping.INTERPRETED):
        parser.error("no GPU; TRITON_INTERPRET=1 in the environment interprets the kernels")
    device = "cpu" if grouping.INTERPRETED else "cuda"
    bf16 = Case(1, 1024, 14, 14, 8, "bf16", "channels_last")
    fp32 = replace(bf16, dtype="fp32")
    wide = replace(bf16, C=2048)
    print(f"largest error against float64, {bf16.N} image, C {bf16.C}, 14 x 14, K {bf16.K}, on {device}")
    rows: list[tuple[str, Operator, Case]] = [
        ("reference, fp32 features", reference.region_grouping, fp32),
        ("fused, fp32 features", grouping.region_grouping, fp32),
        ("the same, leaner tiles", lean, fp32),
        ("reference, bf16 features", reference.region_grouping, bf16),
        ("fused, bf16 features", grouping.region_grouping, bf16),
        ("the same, leaner tiles", lean, bf16),
        ("the same, an image at a time", image_grouping.region_grouping, bf16),
        ("eager under bf16 autocast", autocast, bf16),
        (f"fused, bf16, C {wide.C}", grouping.region_grouping, wide),
        ("the same, an image at a time", image_grouping.region_grouping, wide),
    ]
    capability = torch.cuda.get_device_capability() if device == "cuda" else (0, 0)
    if not dispatch.fits_image(bf16.C, bf16.K, torch.bfloat16, True, capability, False):
        rows = [row for row in rows if row[1] is not image_grouping.region_grouping]
    for index, (name, operator, case) in enumerate(rows):
        largest = errors(operator, case, device)
        if index == 0:
            print(f"{'':<30}" + "".join(f"{column:>22}" for column in largest))
        print(f"{name:<30}" + "".join(f"{error:>22.1e}" for error in largest.values()), flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
