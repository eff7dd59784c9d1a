"""What the kernels are measured on: the sizes of the paper's three data sets, and the bytes that must move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Case:
    """Sizes of one call: N images, C channels, H x W positions, K parts; dtype and memory layout of the features."""

    N: int
    C: int
    H: int
    W: int
    K: int
    dtype: str
    layout: str

    @property
    def name(self) -> str:
        return f"N{self.N} C{self.C} {self.H}x{self.W} K{self.K} {self.dtype} {self.layout}"

    @property
    def features(self) -> int:
        """Elements of x."""
        return self.N * self.C * self.H * self.W

    def bytes(self, direction: str) -> int:
        """Bytes that any implementation must move: every argument read once, every result written once.

        Forward: x -> assign, regions. Backward: x, assign, regions and the gradients of both -> gradient of x. Results
        other than the gradient of x are float32; dictionaries are left out, they are small and stay in the cache.
        """
        x = self.features * DTYPES[self.dtype].itemsize
        assign, regions = 4 * self.N * self.K * self.H * self.W, 4 * self.N * self.K * self.C
        return x + assign + regions if direction == "forward" else 2 * (x + assign + regions)

    def flops(self, direction: str) -> int:
        """Floating-point operations of the formulas: a multiply and an add are two.

        Forward: the products with the centres, the sums over positions, and |x|^2. Backward: products with and sums
        over the directions of the regions and the centres, and the multiple of x.
        """
        return self.features * (4 * self.K + 2 if direction == "forward" else 8 * self.K + 2)

    def draw(self, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x, centers and sigma as in training: logits of -C / 4, the parts a few units apart: no position is sure."""
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(self.N, self.C, self.H, self.W, generator=generator) / 2).to(DTYPES[self.dtype])
        centers = torch.randn(self.K, self.C, generator=generator) * 1.6 / self.C**0.5
        sigma = 0.7 + 2 / self.C * torch.rand(self.K, generator=generator)
        return x.to(device).contiguous(memory_format=LAYOUTS[self.layout]), centers.to(device), sigma.to(device)


SIZES = [(128, 14, 8), (32, 16, 9), (128, 20, 8), (32, 28, 5)]
CASES = [
    Case(N, C, side, side, K, dtype, layout)
    for N, side, K in SIZES
    for C in (1024, 2048)
    for dtype in DTYPES
    for layout in LAYOUTS
]
