"""Sampling grids: where in an image each place of a sampled image comes from, and the way back.

Places are x and y from -1 to 1, from edge to edge, so that the middle of pixel i of s lies at (2 i + 1) / s - 1, as
``torch.nn.functional.grid_sample`` takes them with ``align_corners=False``. A grid is what a map of places says at
nodes [N, h, w, 2] that span the sampled image from edge to edge; between nodes it is bilinear.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rg.model.precision import without_autocast

ROUNDS = 5  # of sharing out what a density has above its largest value
SMALLEST_DENSITY = 1e-3  # of the mean, so that nothing vanishes and the way back exists
LATTICE = 33  # places of a side among which the way back begins
NEWTON_STEPS = 5
SLOPE_STEP = 1e-3  # over which slopes are taken, far less than a cell between nodes


@without_autocast
def saliency_grid(saliency: Tensor, spread: float) -> Tensor:
    """Nodes that gather where saliency is (Recasens et al., ECCV 2018, Eqs. 3 and 4).

    A node goes to the mean of all places, weighted by their saliency times a Gaussian of their distance. Beyond the
    edges saliency goes on as it is there.

    Args:
        saliency: Positive, [N, h, w] with h, w >= 2.
        spread: Full width at half maximum of the Gaussian, in nodes.

    Returns:
        Nodes [N, h, w, 2]; uniform saliency gives the identity.
    """
    height, width = saliency.shape[1:]
    below, beside = height - 1, width - 1
    padded = F.pad(saliency[:, None], (beside, beside, below, below), mode="replicate")
    x = _nodes(width, beside, saliency).view(1, 1, 1, -1)
    y = _nodes(height, below, saliency).view(1, 1, -1, 1)
    weighted = torch.cat([padded, padded * x, padded * y], 1).flatten(0, 1)[:, None]
    std = spread / (2 * math.sqrt(2 * math.log(2)))
    across, down = _gaussian(beside, std, saliency), _gaussian(below, std, saliency)
    gathered = F.conv2d(F.conv2d(weighted, across.view(1, 1, 1, -1)), down.view(1, 1, -1, 1))
    mass, places = gathered.view(saliency.shape[0], 3, height, width).split([1, 2], 1)
    return (places / mass).permute(0, 2, 3, 1).clamp(-1, 1)


def _nodes(count: int, beyond: int, like: Tensor) -> Tensor:
    """Places of ``count`` nodes from edge to edge, and of as many as ``beyond`` on either side."""
    return 2 * torch.arange(-beyond, count + beyond, dtype=like.dtype, device=like.device) / (count - 1) - 1


def _gaussian(radius: int, std: float, like: Tensor) -> Tensor:
    distance = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    return torch.exp(-distance.square() / (2 * std**2))


@without_autocast
def marginal_grid(attention: Tensor, largest_zoom: float, nodes: int) -> Tensor:
    """Nodes that lie as densely as attention is strong, in columns and rows alone (Zheng et al., CVPR 2019).

    The density of columns is the maximum over rows, and the other way round. What exceeds ``largest_zoom`` times the
    mean is shared out again evenly. The cumulative density is then inverted at uniform steps.

    Args:
        attention: Non-negative, [N, h, w].
        largest_zoom: Largest magnification along a side, above 1.
        nodes: Of a side.

    Returns:
        Nodes [N, nodes, nodes, 2]; uniform attention gives the identity.
    """
    across = _inverse_cumulative(attention.amax(1), largest_zoom, nodes)
    down = _inverse_cumulative(attention.amax(2), largest_zoom, nodes)
    return torch.stack(
        [across[:, None, :].expand(-1, nodes, -1), down[:, :, None].expand(-1, -1, nodes)],
        3,
    )


def _inverse_cumulative(marginal: Tensor, largest_zoom: float, count: int) -> Tensor:
    """Places [N, count] that divide a density over equal cells [N, cells] into equal shares."""
    cells = marginal.shape[1]
    density = marginal / marginal.mean(1, keepdim=True).clamp(min=torch.finfo(marginal.dtype).tiny)
    for _ in range(ROUNDS):
        density = density.clamp(SMALLEST_DENSITY, largest_zoom)
        density = density + (1 - density.mean(1, keepdim=True))
    density = density.clamp(SMALLEST_DENSITY, largest_zoom)
    cumulative = F.pad(density.cumsum(1), (1, 0))
    cumulative = cumulative / cumulative[:, -1:]
    shares = torch.linspace(0, 1, count, dtype=marginal.dtype, device=marginal.device)
    cell = (cumulative[:, None, 1:-1] <= shares[None, :, None]).sum(2)
    lower, upper = cumulative.gather(1, cell), cumulative.gather(1, cell + 1)
    return 2 * (cell + (shares - lower) / (upper - lower)) / cells - 1


@without_autocast
def sample(images: Tensor, nodes: Tensor, side: int, oversampling: int = 1) -> Tensor:
    """The image that a grid makes of another.

    Args:
        images: [N, C, H, W], uint8 or float.
        nodes: Of the grid.
        side: Of the result in pixels.
        oversampling: A pixel of the result is the mean of so many bilinear samples each way. With 1, what is made
            smaller is aliased.

    Returns:
        [N, C, side, side], in the dtype of the nodes.
    """
    places = _between(nodes, _middles(side * oversampling, side * oversampling, nodes))
    sampled = F.grid_sample(images.to(places.dtype), places, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, oversampling) if oversampling > 1 else sampled


def mesh(nodes: Tensor, lines: int) -> Tensor:
    """Where evenly spaced places of the sampled image come from, edges included: [N, lines, lines, 2]."""
    side = _nodes(lines, 0, nodes)
    return _between(nodes, torch.stack([side.expand(lines, -1), side[:, None].expand(-1, lines)], 2)[None])


@without_autocast
def carry_back(maps: Tensor, nodes: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of a sampled image as maps of the image that it was sampled from.

    Every place of the image takes the bilinear value of the map where the grid has put it, so values stay within their
    range, and what sums to 1 still does.

    Args:
        maps: Of the sampled image [N, K, h, w].
        nodes: Of the grid.
        size: Height and width of the result.

    Returns:
        [N, K, *size].
    """
    places = inverse(nodes.to(maps.dtype), size)
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


@without_autocast
def inverse(nodes: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a grid has put the middles of the cells of an image.

    The nearest of 33 x 33 places of the sampled image, and Newton's method from there, with shorter steps where those
    come nearer. What the grid shows nowhere goes to about the nearest place that it shows.

    Args:
        nodes: Of the grid; it must not fold.
        size: Cells of the image, height and width.

    Returns:
        Places in the sampled image [N, *size, 2].
    """
    targets = _middles(*size, nodes).flatten(1, 2)
    side = _nodes(LATTICE, 0, nodes)
    lattice = torch.stack([side.expand(LATTICE, -1), side[:, None].expand(-1, LATTICE)], 2)[None]
    reached = _between(nodes, lattice).flatten(1, 2)
    nearest = (reached.square().sum(2)[:, None] - 2 * targets @ reached.transpose(1, 2)).argmin(2)
    places = lattice.flatten(1, 2)[0][nearest]
    for _ in range(NEWTON_STEPS):
        tried = (places[:, None] - _newton_step(nodes, places, targets)[:, None] * _lengths(nodes)).clamp(-1, 1)
        errors = (_between(nodes, tried) - targets[:, None]).square().sum(3)
        best = errors.argmin(1)
        places = tried.gather(1, best[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    return places.view(nodes.shape[0], *size, 2)


def _newton_step(nodes: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """From where targets would be to places, were the grid affine: [N, P, 2]; 0 where it stands still."""
    offsets = places.new_tensor([[0, 0], [SLOPE_STEP, 0], [-SLOPE_STEP, 0], [0, SLOPE_STEP], [0, -SLOPE_STEP]])
    around = (places[:, None] + offsets[None, :, None]).clamp(-1, 1)
    values = _between(nodes, around)
    error = values[:, 0] - targets
    by_x = (values[:, 1] - values[:, 2]) / (around[:, 1] - around[:, 2])[..., :1]
    by_y = (values[:, 3] - values[:, 4]) / (around[:, 3] - around[:, 4])[..., 1:]
    determinant = by_x[..., 0] * by_y[..., 1] - by_x[..., 1] * by_y[..., 0]
    x = by_y[..., 1] * error[..., 0] - by_y[..., 0] * error[..., 1]
    y = by_x[..., 0] * error[..., 1] - by_x[..., 1] * error[..., 0]
    step = torch.stack([x, y], 2) / determinant[..., None]
    return torch.where(torch.isfinite(step), step, 0)


def _lengths(like: Tensor) -> Tensor:
    """Of a step, whole or shortened where that comes nearer, and none: [1, 4, 1, 1]."""
    return like.new_tensor([0.0, 1.0, 0.5, 0.2]).view(1, -1, 1, 1)


def _between(nodes: Tensor, places: Tensor) -> Tensor:
    """What a grid says at places [N or 1, ..., 2] of the sampled image, clamped to its edges: [N, a, b, 2]."""
    everywhere = places.expand(nodes.shape[0], -1, -1, -1)
    values = F.grid_sample(nodes.permute(0, 3, 1, 2), everywhere, padding_mode="border", align_corners=True)
    return values.permute(0, 2, 3, 1)


def _middles(height: int, width: int, like: Tensor) -> Tensor:
    """Middles of the cells of an image [1, height, width, 2]."""
    x = (2 * torch.arange(width, dtype=like.dtype, device=like.device) + 1) / width - 1
    y = (2 * torch.arange(height, dtype=like.dtype, device=like.device) + 1) / height - 1
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)[None]
