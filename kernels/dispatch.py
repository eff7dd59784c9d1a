"""Which kernels a call takes: a rule of its sizes, its features and the device.

Three sets of kernels compute the same. ``kernels.tile_kernels`` take any features, a tile at a time, in a leaner form
with fewer instructions. ``kernels.image_kernels`` take an image at a time and read the features once, or twice where
they have too many channels. Only the first has been timed on a GPU, so the others are there for those who ask for
them: ``prefer("lean")`` and ``prefer("image")``.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Way = Literal["tile", "lean", "image"]
ONE_PASS = 8192  # channels times parts that a program keeps in registers beside the features
WAYS: tuple[Way, ...] = ("tile", "lean", "image")

_preferred: Way = "tile"


def prefer(kernels: Way) -> None:
    """Choose the kernels of later calls in this process. Backward takes those of its forward.

    Args:
        kernels: ``tile``: those that everyone gets. ``lean``: leaner tiles. ``image``: one program for every image of
            ``region_grouping`` wherever that fits, and ``tile`` elsewhere.

    Raises:
        ValueError: none of them.
    """
    global _preferred
    if kernels not in WAYS:
        raise ValueError(f"kernels: expected 'tile', 'lean' or 'image', got {kernels!r}")
    _preferred = kernels


def preferred() -> Way:
    """What was asked for last; ``tile`` at first."""
    return _preferred


@functools.lru_cache(maxsize=256)  # asked for at every call
def fits_image(
    channels: int, parts: int, dtype: torch.dtype, channels_last: bool, capability: tuple[int, int], forward: bool
) -> bool:
    """Whether one program can take a whole image.

    Args:
        channels: C; a descriptor wants rows of 16 bytes, so a multiple of 8.
        parts: K.
        dtype: dtype of the features.
        channels_last: Whether they lie so, without gaps.
        capability: Compute capability of the device; (0, 0) is Triton's interpreter. Descriptors and 227 KB of shared
            memory are there on Hopper (9) and data-centre Blackwell (10).
        forward: Forward, or backward, which takes two passes over the features where one does not fit.
    """
    block_c, block_k = 2 ** (channels - 1).bit_length(), max(8, 2 ** (parts - 1).bit_length())
    one_pass = block_c * block_k <= ONE_PASS
    return (
        dtype == torch.bfloat16
        and channels_last
        and capability[0] in (0, 9, 10)
        and torch.version.hip is None
        and channels % 8 == 0
        and channels >= 64
        and block_c * block_k <= 16384
        and block_c >= block_k * (4 if forward or one_pass else 64)  # with fewer channels for a part, registers spill
    )


def takes_image(x: Tensor, centers: Tensor, capability: tuple[int, int], forward: bool = True) -> bool:
    """``fits_image`` for the features x [N, C, H, W] and centers [K, C] of a call."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return fits_image(x.shape[1], centers.shape[0], x.dtype, last, capability, forward)


def is_eager(*tensors: Tensor) -> bool:
    """Whether kernels may be launched at once, because nobody looks at the operators of a call.

    A compiler looks, a tracer, a dispatch mode, a transform of functions, a batch of gradients and a subclass of
    tensors. They get a registered operator, which costs the host more.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and all(torch._C._has_storage(tensor) for tensor in tensors)  # what batches gradients has none
    )
