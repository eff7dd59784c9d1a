"""How a grouping kernel is cut, for the sizes of a call and the device that runs it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from kernels.dispatch import ONE_PASS


@dataclass(frozen=True)
class Blocks:
    """How a kernel is cut: positions per tile and channels per step, warps per program, pipeline stages."""

    positions: int
    channels: int
    parts: int
    warps: int
    stages: int


@functools.lru_cache(maxsize=256)  # asked for at every launch
def choose_blocks(
    images: int,
    positions: int,
    channels: int,
    parts: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    flat: bool,
    lean: bool,
) -> Blocks:
    """Tiles as large as leaves a program for every multiprocessor: fewer tiles, fewer partial sums.

    Args:
        images: N.
        positions: H * W.
        channels: C.
        parts: K, at most 64.
        dtype: dtype of the features.
        capability: Compute capability of the device; (0, 0) is Triton's interpreter.
        flat: Whether the positions of the features have one stride.
        lean: Whether the halves of bfloat16 operands lie side by side, so that 8 parts fill a matrix instruction.
    """
    block_k = max(16, triton.next_power_of_2(parts))
    # Without the matrix instructions of Hopper and data-centre Blackwell, operands take registers: smaller tiles.
    wide = capability[0] in (0, 9, 10)
    if block_k == 16:
        # Two offsets for every position, its row's and its column's, take the registers of half a tile.
        block_p = (128 if flat else 64) if wide else 64 if dtype == torch.bfloat16 else 32
    elif wide:
        block_p = 32 if block_k == 32 and dtype != torch.bfloat16 else 64
    else:
        block_p = 16
    block_p = max(16, min(block_p, triton.next_power_of_2(positions)))
    multiprocessors = 1 if capability == (0, 0) else 132 if wide else 108
    while block_p > 16 and images * triton.cdiv(positions, block_p) < multiprocessors:
        block_p //= 2
    step = {torch.float64: 16, torch.bfloat16: 64}.get(dtype, 32)
    step = max(16, min(step, triton.next_power_of_2(channels)))
    warps = 8 if block_p >= 32 and block_p * block_k >= (2048 if wide and flat else 1024) else 4
    # A100 has 163 KB of shared memory for a program, Hopper and data-centre Blackwell 227 KB, all others 99 KB.
    small = not wide and capability != (8, 0)
    if lean and dtype == torch.bfloat16:
        warps = 8 if block_k == 64 else warps  # with 4 the halves of 64 parts do not fit into registers
        block_k = 8 if parts <= 8 else block_k
    return Blocks(block_p, step, block_k, warps, stages=2 if small else 3)


@dataclass(frozen=True)
class ImageBlocks:
    """How a kernel is cut that takes an image at a time: positions per step, and all channels.

    ``second`` are the channels of a program in the second pass of backward: all of them where one pass does.
    """

    positions: int
    channels: int
    second: int
    parts: int
    warps: int
    stages: int
    spans: int
    span: int

    @property
    def steps(self) -> int:
        """Steps of a program."""
        return self.span // self.positions

    @property
    def passes(self) -> int:
        """How often backward reads the features."""
        return 1 if self.second == self.channels else 2


def slices_of(channels: int) -> int:
    """Slices of so many channels: one for every warp, of 16 channels at least."""
    return min(8, channels // 16)


@functools.lru_cache(maxsize=256)
def choose_image_blocks(images: int, positions: int, channels: int, parts: int, forward: bool) -> ImageBlocks:
    """As many spans of an image as leave a program for every multiprocessor, and as many positions as fit.

    A step with all its channels lies in shared memory three times, in the next steps too, and in registers as slices.

    Args:
        images: N.
        positions: H * W.
        channels: C.
        parts: K.
        forward: Forward, or backward, which needs twice the registers for sums and gradients of as many channels.
    """
    block_c, block_k = triton.next_power_of_2(channels), max(8, triton.next_power_of_2(parts))
    second = block_c if forward else min(block_c, ONE_PASS // block_k)
    block_p = 32 if forward and block_c * block_k <= ONE_PASS else 16
    spans = min(max(1, 132 // images), triton.cdiv(positions, block_p))
    span = triton.cdiv(triton.cdiv(positions, spans), block_p) * block_p
    spans = triton.cdiv(positions, span)
    return ImageBlocks(block_p, block_c, second, block_k, 8, 3, spans, span)
