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


def is_flat(*tensors: Tensor | None) -> bool:
    """Whether in all these maps the rows follow each other, so that positions have one stride."""
    return all(
        tensor.shape[2] == 1 or tensor.shape[3] == 1 or tensor.stride(2) == tensor.shape[3] * tensor.stride(3)
        for tensor in tensors
        if tensor is not None
    )


def capability(x: Tensor) -> tuple[int, int]:
    """Compute capability of the device of a tensor; (0, 0) elsewhere, in Triton's interpreter."""
    return _capability(x.device) if x.is_cuda else (0, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
