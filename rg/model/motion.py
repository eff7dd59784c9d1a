"""Affine motions of images, for the equivariance term: a part is to move with the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rg.model.noise import Stream, uniform

LARGEST_ROTATION = math.pi / 2
LARGEST_SHIFT = 0.2  # of half a side
SCALES = (0.8, 1.4)


def random_motions(seeds: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A rotation, a shift and a scale for every image (PDiscoNet, ICCV 2023).

    Args:
        seeds: Of the images, int64 [N].
        height: Of the images, in pixels; a rotation turns pixels, not the unit square.
        width: Of the images, in pixels.

    Returns:
        forward, inverse: float32 [N, 2, 3] each, from places of the result to places of the source, both in -1 to 1 as
        ``torch.nn.functional.affine_grid`` takes them.
    """
    turn, down, across, size = uniform(seeds, 4, Stream.MOTION).unbind(1)
    angle = LARGEST_ROTATION * (2 * turn - 1)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * size
    shift = LARGEST_SHIFT * (2 * torch.stack([across, down], 1) - 1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    aspect = height / width
    linear = torch.stack([cosine, -sine * aspect, sine / aspect, cosine], 1).view(-1, 2, 2) / scale[:, None, None]
    undone = torch.stack([cosine, sine * aspect, -sine / aspect, cosine], 1).view(-1, 2, 2) * scale[:, None, None]
    forward = torch.cat([linear, shift.unsqueeze(2)], 2)
    inverse = torch.cat([undone, -undone @ shift.unsqueeze(2)], 2)
    return forward, inverse


def move(images: Tensor, motion: Tensor) -> Tensor:
    """Move images; what comes from beyond their border is mirrored.

    Args:
        images: [N, 3, H, W], uint8 or float.
        motion: [N, 2, 3], see ``random_motions``.

    Returns:
        float32 [N, 3, H, W].
    """
    grid = F.affine_grid(motion, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
