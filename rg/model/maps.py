"""What is read off assignment maps: where parts are, and which part is at a point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def part_centers(assign: Tensor) -> Tensor:
    """Soft geometric centre of every assignment map.

    Args:
        assign: [N, K, H, W], non-negative.

    Returns:
        [N, K, 2]: x and y as fractions of the width and height of the map, 0 to 1.
    """
    height, width = assign.shape[2:]
    mass = assign.sum((2, 3)).clamp(min=torch.finfo(assign.dtype).tiny)
    x = (torch.arange(width, device=assign.device, dtype=assign.dtype) + 0.5) / width
    y = (torch.arange(height, device=assign.device, dtype=assign.dtype) + 0.5) / height
    return torch.stack([(assign.sum(2) @ x) / mass, (assign.sum(3) @ y) / mass], dim=2)


def parts_at(assign: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """The strongest part at some points, as after bilinear up-sampling of the maps.

    Args:
        assign: [N, K, H, W].
        points: [N, P, 2], x and y in pixels of the image.
        size: Height and width of the image.

    Returns:
        int64 [N, P].
    """
    height, width = size
    grid = (2 * points / torch.tensor([width, height], dtype=points.dtype) - 1)[:, None].to(assign)
    values = F.grid_sample(assign, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[:, :, 0].argmax(1)


def part_map(assign: Tensor, size: tuple[int, int]) -> Tensor:
    """The strongest part of every pixel, after bilinear up-sampling of the maps.

    Args:
        assign: [N, K, H, W].
        size: Height and width of the image.

    Returns:
        int64 [N, *size], from 0.
    """
    return F.interpolate(assign, size, mode="bilinear", align_corners=False).argmax(1)
