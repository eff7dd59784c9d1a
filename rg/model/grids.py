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
NEWTON_STEPS = 5
ROUNDING = 1e-5  # of places, which lie on the side of a quadrilateral
TARGETS = 256  # places whose way back is looked for at once


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
        [N, C, side, side], in the dtype of the nodes; NaN for an image whose grid has nodes that are not finite.
    """
    places = _between(nodes, _middles(side * oversampling, side * oversampling, nodes))
    sampled = _values(images.to(places.dtype), places)
    return F.avg_pool2d(sampled, oversampling) if oversampling > 1 else sampled


def mesh(nodes: Tensor, lines: int) -> Tensor:
    """Where evenly spaced places of the sampled image come from, edges included: [N, lines, lines, 2]."""
    side = _nodes(lines, 0, nodes)
    return _between(nodes, torch.stack([side.expand(lines, -1), side[:, None].expand(-1, lines)], 2)[None])


@without_autocast
def carry_back(maps: Tensor, places: Tensor) -> Tensor:
    """Maps of a sampled image as maps of the image that it was sampled from.

    Every place of the image takes the bilinear value of the map where the grid has put it, so values stay within their
    range, and what sums to 1 still does.

    Args:
        maps: Of the sampled image [N, K, h, w].
        places: Where the grid has put the cells of the result, see ``inverse`` [N, H, W, 2].

    Returns:
        [N, K, H, W]; NaN for maps whose places are not all finite.
    """
    return _values(maps, places.to(maps.dtype))


def _values(maps: Tensor, places: Tensor) -> Tensor:
    """Bilinear values of maps [N, C, h, w] at places [N, H, W, 2], clamped to the edges; NaN where those are lost.

    At places that are no numbers PyTorch gives any value, and its backward pass on a CPU ends the process.
    """
    lost = ~torch.isfinite(places).flatten(1).all(1)[:, None, None, None]
    values = F.grid_sample(maps, places.masked_fill(lost, 0), padding_mode="border", align_corners=False)
    return values.masked_fill(lost, torch.nan)


@without_autocast
def inverse(nodes: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a grid has put the middles of the cells of an image.

    A middle lies in the quadrilateral of four nodes from whose sides it is farthest inwards, and within it Newton's
    method tells where. What the grid shows nowhere goes to the nearest node.

    Args:
        nodes: Of the grid.
        size: Cells of the image, height and width.

    Returns:
        Places in the sampled image [N, *size, 2].
    """
    N, rows, columns = nodes.shape[:3]
    corners = [nodes[:, :-1, :-1], nodes[:, :-1, 1:], nodes[:, 1:, 1:], nodes[:, 1:, :-1]]  # clockwise
    a, b, c, d = (corner.flatten(1, 2) for corner in corners)
    sides = [_side(*pair) for pair in ((a, b), (b, c), (c, d), (d, a))]
    empty = (_cross(b - a, c - a) + _cross(c - a, d - a)) <= 0  # folded or without any area
    every = nodes.flatten(1, 2)
    found = []
    for targets in _middles(*size, nodes).flatten(1, 2).split(TARGETS, 1):
        homogeneous = F.pad(targets, (0, 1), value=1.0)
        inwards = torch.stack([homogeneous @ side.mT for side in sides]).amin(0)  # [N, targets, quadrilaterals]
        distance, cell = inwards.masked_fill(empty[:, None], -torch.inf).max(2)
        own = [corner.gather(1, cell[..., None].expand(-1, -1, 2)) for corner in (a, b, c, d)]
        share = _within(own, targets)
        place = torch.stack([cell % (columns - 1), cell // (columns - 1)], 2) + share
        nearest = (every.square().sum(2)[:, None] - 2 * targets @ every.mT).argmin(2)
        node = torch.stack([nearest % columns, nearest // columns], 2).to(place.dtype)
        place = torch.where((distance > -ROUNDING)[..., None], place, node)
        found.append(2 * place / place.new_tensor([columns - 1, rows - 1]) - 1)
    return torch.cat(found, 1).view(N, *size, 2)


def _side(start: Tensor, end: Tensor) -> Tensor:
    """What times x, y and 1 is the distance inwards from a side; infinite for one without length. [N, M, 3]."""
    along = end - start
    length = along.norm(dim=2, keepdim=True)
    normal = torch.stack([-along[..., 1], along[..., 0]], 2) / length.clamp(min=torch.finfo(along.dtype).tiny)
    line = torch.cat([normal, -(normal * start).sum(2, keepdim=True)], 2)
    nothing = line.new_tensor([0.0, 0.0, torch.finfo(along.dtype).max])
    return torch.where(length > 0, line, nothing)


def _cross(one: Tensor, other: Tensor) -> Tensor:
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def _within(corners: list[Tensor], targets: Tensor) -> Tensor:
    """Shares of the way across and down a quadrilateral at which its bilinear map reaches targets: [N, P, 2]."""
    a, b, c, d = corners
    across, down, twist = b - a, d - a, a - b + c - d
    share = torch.full_like(a, 0.5)
    for _ in range(NEWTON_STEPS):
        x, y = share.split(1, 2)
        error = a + x * across + y * down + x * y * twist - targets
        by_x, by_y = across + y * twist, down + x * twist
        determinant = _cross(by_x, by_y)
        step = torch.stack([_cross(error, by_y), _cross(by_x, error)], 2) / determinant[..., None]
        share = (share - torch.where(torch.isfinite(step), step, 0)).clamp(0, 1)
    return share


@without_autocast
def separable_inverse(nodes: Tensor, size: tuple[int, int]) -> Tensor:
    """``inverse`` of a grid of columns and rows, such as ``marginal_grid`` makes: exact, axis by axis."""
    y, x = (_middles(*size, nodes)[0, :, 0, 1], _middles(*size, nodes)[0, 0, :, 0])
    across, down = _inverse_of_axis(nodes[:, 0, :, 0], x), _inverse_of_axis(nodes[:, :, 0, 1], y)
    return torch.stack([across[:, None].expand(-1, size[0], -1), down[:, :, None].expand(-1, -1, size[1])], 3)


def _inverse_of_axis(nodes: Tensor, targets: Tensor) -> Tensor:
    """Where ascending nodes [N, M], with straight lines between, reach targets [P]: [N, P]."""
    cells = nodes.shape[1] - 1
    cell = (nodes[:, None, 1:-1] <= targets[None, :, None]).sum(2)
    lower, upper = nodes.gather(1, cell), nodes.gather(1, cell + 1)
    return 2 * (cell + ((targets - lower) / (upper - lower)).clamp(0, 1)) / cells - 1


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
