"""How maps [N, C, H, W] lie in memory."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def empty_map(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """[N, channels, H, W] in the layout of another map: channels_last if its channels lie closer than its columns."""
    _, c, _, w = map_strides(like)
    layout = torch.channels_last if c < w else torch.contiguous_format
    return torch.empty(
        (like.shape[0], channels, *like.shape[2:]), dtype=dtype, device=like.device, memory_format=layout
    )


def map_strides(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """Strides of a map, with that of a single column replaced by that of its rows; zeros for no map."""
    if tensor is None:
        return 0, 0, 0, 0
    n, c, h, w = tensor.stride()
    return n, c, h, h if tensor.shape[3] == 1 else w


def strides_by_name(name: str, strides: tuple[int, ...], axes: str) -> dict[str, int]:
    """Strides as the arguments NAME_AXIS of a kernel, one letter for every axis."""
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}


Kind = tuple[torch.dtype, tuple[int, ...], bool]


def kind(tensor: Tensor) -> Kind:
    """What Triton compiles for: dtype, strides, and whether the address is a multiple of 16 bytes."""
    return tensor.dtype, tensor.stride(), tensor.data_ptr() % 16 == 0


def kind_of_map(tensor: Tensor) -> Kind:
    """``kind`` with the strides of ``map_strides``."""
    return tensor.dtype, map_strides(tensor), tensor.data_ptr() % 16 == 0


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy at an address that is a multiple of 16 bytes."""
    return aligned(tensor.contiguous())


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, at an address that is a multiple of 16 bytes: descriptors and plans want it so."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def is_flat(height: int, width: int, *maps: Kind | None) -> bool:
    """Whether in all these maps the rows follow each other, so that positions have one stride."""
    return height == 1 or width == 1 or all(lies[1][2] == width * lies[1][3] for lies in maps if lies)


def capability(x: Tensor) -> tuple[int, int]:
    """Compute capability of the device of a tensor; (0, 0) elsewhere, in Triton's interpreter."""
    return _capability(x.device) if x.is_cuda else (0, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
