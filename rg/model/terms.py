"""Terms of the loss that shape the parts, beside the classification loss and the occurrence prior.

All take the soft assignment of Eq. 1. Where a model has a background slot, it is the last of the K + 1 maps. Terms are
means over images, so ranks average them by their shares; ``presence_loss`` needs the peaks of the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def peaks(assign: Tensor, margin: int = 0) -> Tensor:
    """How surely every part is somewhere in every image: the largest mean of 3 x 3 positions of its map.

    Args:
        assign: [N, K, H, W].
        margin: Windows left out at every border (PDiscoNet, ICCV 2023: 2; PDiscoFormer, ECCV 2024: 0).

    Returns:
        [N, K] in [0, 1].

    Raises:
        ValueError: the map is too small for a window inside the margin.
    """
    side = 3 + 2 * margin
    if min(assign.shape[2:]) < side:
        raise ValueError(f"assign: expected a map of at least {side} x {side} positions, got {list(assign.shape[2:])}")
    smooth = F.avg_pool2d(assign, 3, stride=1)
    height, width = smooth.shape[2:]
    return smooth[:, :, margin : height - margin, margin : width - margin].amax((2, 3))


def presence_loss(batch_peaks: Tensor) -> Tensor:
    """1 minus the mean over parts of the largest peak in the batch: every part is to be seen in some image.

    Args:
        batch_peaks: ``peaks`` of all images of a step [N, K], without background. The mean of two halves is another
            loss.

    Returns:
        Scalar in [0, 1].
    """
    return 1 - batch_peaks.amax(0).mean()


def background_presence_loss(background: Tensor) -> Tensor:
    """Every image is to have background, and rather far from its centre (PDiscoFormer, ECCV 2024).

    Binary cross entropy to 1 of the largest product of the map, averaged over 3 x 3 positions, and the squared distance
    from the centre, which is 1 in the corners.

    Args:
        background: Map of the background [N, H, W], at least 3 x 3 positions.

    Returns:
        Scalar mean over images.
    """
    smooth = F.avg_pool2d(background.unsqueeze(1), 3, stride=1).squeeze(1)
    rows, columns = (torch.linspace(-1, 1, side, dtype=smooth.dtype, device=smooth.device) for side in smooth.shape[1:])
    distance = (rows[:, None] ** 2 + columns[None, :] ** 2) / 2
    score = (smooth * distance).amax((1, 2))
    return -score.clamp(min=EPSILON).log().mean()


def border_loss(background: Tensor) -> Tensor:
    """Mean assignment to parts along the border of the map: what is found there is to be background wherever it is.

    An object reaches the border here and there, its surroundings nearly everywhere (the boundary prior of saliency, Wei
    et al., ECCV 2012). The term is linear, so a position that resists costs no more than 1.

    Args:
        background: Map of the background [N, H, W], at least 2 x 2 positions.

    Returns:
        Scalar mean over images and positions of the border, in [0, 1].
    """
    height, width = background.shape[1:]
    ends = background[:, :: height - 1].flatten(1), background[:, 1:-1, :: width - 1].flatten(1)
    return 1 - torch.cat(ends, 1).mean()


def concentration_loss(maps: Tensor) -> Tensor:
    """Mean of the maps times the squared distance from their own centroids, in lengths of the map (SCOPS, CVPR 2019).

    Args:
        maps: Of the parts, without background [N, K, H, W].

    Returns:
        Scalar mean over images, parts and positions.
    """
    height, width = maps.shape[2:]
    rows = torch.linspace(0, 1, height, dtype=maps.dtype, device=maps.device).view(1, 1, height, 1)
    columns = torch.linspace(0, 1, width, dtype=maps.dtype, device=maps.device).view(1, 1, 1, width)
    mass = maps.sum((2, 3), keepdim=True).clamp(min=EPSILON)
    center_row = (maps * rows).sum((2, 3), keepdim=True) / mass
    center_column = (maps * columns).sum((2, 3), keepdim=True) / mass
    return (maps * ((rows - center_row) ** 2 + (columns - center_column) ** 2)).mean()


def total_variation_loss(assign: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbours over the maps, a position: few and short outlines.

    Args:
        assign: All maps, background included [N, K, H, W].

    Returns:
        Scalar mean over images and positions.
    """
    down = (assign[:, :, 1:] - assign[:, :, :-1]).abs().sum()
    across = (assign[:, :, :, 1:] - assign[:, :, :, :-1]).abs().sum()
    N, _, height, width = assign.shape
    return (down + across) / (N * height * width)


def equivariance_loss(maps: Tensor, moved: Tensor, inverse: Tensor) -> Tensor:
    """1 minus the mean cosine similarity of maps and of those of the moved image, moved back.

    Positions that the moved image does not show count in neither.

    Args:
        maps: Of the parts, without background [N, K, H, W].
        moved: Of the same images after an affine map [N, K, H, W].
        inverse: What brings the moved maps back: [N, 2, 3], as ``torch.nn.functional.affine_grid`` takes it.

    Returns:
        Scalar mean over images and parts.
    """
    grid = F.affine_grid(inverse.to(maps.dtype), list(maps.shape), align_corners=False)
    back = F.grid_sample(moved, grid, padding_mode="border", align_corners=False)
    seen = (grid.abs() <= 1).all(-1).to(maps.dtype).unsqueeze(1)
    return 1 - F.cosine_similarity((maps * seen).flatten(2), (back * seen).flatten(2), dim=2, eps=EPSILON).mean()


def orthogonality_loss(features: Tensor) -> Tensor:
    """Mean square of the cosine similarities between the part features of an image, less the identity.

    Args:
        features: [N, K, C], background included.

    Returns:
        Scalar mean over images and pairs.
    """
    unit = F.normalize(features, dim=2, eps=EPSILON)
    similarity = torch.einsum("nkc,njc->nkj", unit, unit)
    return (similarity - torch.eye(features.shape[1], dtype=features.dtype, device=features.device)).square().mean()


def entropy_loss(assign: Tensor) -> Tensor:
    """Mean entropy of the assignment of a position in nats: every position is to belong to one part.

    Args:
        assign: All maps, background included [N, K, H, W], summing to 1 over K.

    Returns:
        Scalar mean over images and positions.
    """
    return -(assign * assign.clamp(min=EPSILON).log()).sum(1).mean()
