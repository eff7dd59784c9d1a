"""Warps of images, for SCOPS: a similarity and a thin-plate spline (Bookstein, 1989) of 5 x 5 points.

A warp is a function from places of the warped image to places of its source, both x and y in -1 to 1 as
``torch.nn.functional.grid_sample`` takes them. It is one set of coefficients, by which all is warped: pixels and maps
are sampled at the places that it names, and a point of the warped image goes to its place in the source.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rg.model.noise import Stream, uniform

LARGEST_ROTATION = math.pi / 3
LARGEST_SHIFT = 0.1  # of half a side
SCALES = (0.7, 2.0)  # places of the source per place of the warped image: above 1 it shows more of the source
POINTS = 5  # of a side
SIGMA = 0.01  # of half a side, by which the points move


def random_warps(seeds: Tensor, height: int, width: int) -> Tensor:
    """A rotation, a shift, a scale and a bend for every image, as SCOPS (CVPR 2019) draws them.

    Args:
        seeds: Of the images, int64 [N].
        height: Of the images, in pixels; a rotation turns pixels, not the unit square.
        width: Of the images, in pixels.

    Returns:
        Coefficients float32 [N, 28, 2]: of the 25 points of the spline, of 1, of x and of y.
    """
    numbers = uniform(seeds, 4 + 2 * POINTS**2, Stream.WARP)
    turn, down, across, size = numbers[:, :4].unbind(1)
    angle = LARGEST_ROTATION * (2 * turn - 1)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * size
    shift = LARGEST_SHIFT * (2 * torch.stack([across, down], 1) - 1)
    cosine, sine, aspect = torch.cos(angle), torch.sin(angle), height / width
    linear = torch.stack([cosine, -sine * aspect, sine / aspect, cosine], 1).view(-1, 2, 2) * scale[:, None, None]
    moves = SIGMA * torch.special.ndtri(numbers[:, 4:]).view(-1, POINTS**2, 2)
    bend = spline(_points().to(moves) + moves)
    coefficients = bend @ linear.mT
    coefficients[:, POINTS**2] += shift
    return coefficients


def spline(values: Tensor) -> Tensor:
    """The thin-plate spline with given values at the 5 x 5 points, which are spread evenly over -1 to 1, row by row.

    Args:
        values: [N, 25, 2].

    Returns:
        Coefficients [N, 28, 2].
    """
    return _solution().to(values) @ values


def places(points: Tensor, warps: Tensor) -> Tensor:
    """Where points of the warped image are in its source.

    Args:
        points: x and y [N, M, 2], or [1, M, 2] for the same points in all images.
        warps: [N, 28, 2], see ``random_warps``.

    Returns:
        [N, M, 2].
    """
    return _basis(points) @ warps.to(points.dtype)


def warp(maps: Tensor, warps: Tensor, padding: str = "border") -> Tensor:
    """Warp images or maps.

    Args:
        maps: Float [N, C, H, W].
        warps: [N, 28, 2], see ``random_warps``.
        padding: What lies beyond the source, see ``torch.nn.functional.grid_sample``.

    Returns:
        [N, C, H, W].
    """
    return F.grid_sample(maps, _grid(warps, maps), padding_mode=padding, align_corners=False)


def shown(warps: Tensor, maps: Tensor) -> Tensor:
    """Which positions of warped maps [N, C, H, W] show the source and not what lies beyond it: bool [N, H, W]."""
    return (_grid(warps, maps).abs() <= 1).all(-1)


def _grid(warps: Tensor, maps: Tensor) -> Tensor:
    """Places in the source of all positions of warped maps: [N, H, W, 2]."""
    height, width = maps.shape[2:]
    identity = torch.eye(2, 3, dtype=maps.dtype, device=maps.device).unsqueeze(0)
    points = F.affine_grid(identity, [1, 1, height, width], align_corners=False)
    return places(points.view(1, -1, 2), warps).view(-1, height, width, 2)


def _basis(points: Tensor) -> Tensor:
    """Of points [N, M, 2]: r^2 log r for the distance r from each point of the spline, then 1, x, y: [N, M, 28]."""
    squares = (points.unsqueeze(2) - _points().to(points)).square().sum(3)
    bends = 0.5 * squares * squares.clamp(min=torch.finfo(points.dtype).tiny).log()
    return torch.cat([bends, torch.ones_like(points[..., :1]), points], 2)


@lru_cache(maxsize=1)
def _points() -> Tensor:
    """Of the spline, float64 [25, 2]."""
    line = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(-1, 2)


@lru_cache(maxsize=1)
def _solution() -> Tensor:
    """Values at the points -> coefficients, float64 [28, 25]."""
    basis = _basis(_points().unsqueeze(0))[0]
    free_of_affine = torch.cat([basis[:, POINTS**2 :].T, torch.zeros(3, 3, dtype=torch.float64)], 1)
    return torch.linalg.inv(torch.cat([basis, free_of_affine]))[:, : POINTS**2].clone()
