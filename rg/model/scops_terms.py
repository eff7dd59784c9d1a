"""The terms of SCOPS (Hung et al., CVPR 2019): parts without labels.

Maps are the softmax of a model over K parts and the background, which is the last. Places are x and y in -1 to 1. All
terms are means over images, so ranks average them by their shares; the orthonormality is the same for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rg.model.warping import places, shown, warp

EPSILON = 1e-3


def centers(maps: Tensor) -> Tensor:
    """Mean places of maps [N, K, H, W], to which 0.001 is added so that absent parts have one: [N, K, 2]."""
    x, y = _axes(maps)
    shares = _shares(maps)
    return torch.stack([shares.sum(2) @ x, shares.sum(3) @ y], 2)


def concentration_loss(parts: Tensor) -> Tensor:
    """Sum over the parts of the mean squared distance of a part from its centre: parts are compact.

    With the map of a part, to which 0.001 is added, as a distribution over places.

    Args:
        parts: Maps of the parts, without background [N, K, H, W].

    Returns:
        Scalar mean over images.
    """
    x, y = _axes(parts)
    column, row = centers(parts).unbind(2)
    across = (x - column.unsqueeze(2)).square().unsqueeze(2)
    down = (y - row.unsqueeze(2)).square().unsqueeze(3)
    return (_shares(parts) * (across + down)).sum((1, 2, 3)).mean()


def equivariance_loss(maps: Tensor, warped_logits: Tensor, warps: Tensor) -> Tensor:
    """Kullback-Leibler divergence, t log(t / q), of what the warped image gives (q) from the warped maps (t).

    The warped maps are what is to be learned, so no gradient passes through them. Positions at which the warped image
    does not show the source do not count.

    Args:
        maps: Of the images, background included [N, K + 1, H, W].
        warped_logits: Of the warped images, before the softmax [N, K + 1, H, W].
        warps: [N, 28, 2], see ``rg.model.warping``.

    Returns:
        Scalar mean over images, positions and maps.
    """
    target = warp(maps.detach(), warps)
    seen = shown(warps, maps).unsqueeze(1).to(maps.dtype)
    divergences = F.kl_div(warped_logits.log_softmax(1), target, reduction="none") * seen
    return (divergences.sum((1, 2, 3)) / (maps.shape[1] * seen.sum((1, 2, 3)).clamp(min=1))).mean()


def landmark_equivariance_loss(parts: Tensor, warped_parts: Tensor, warps: Tensor) -> Tensor:
    """Mean squared difference of the centres of the parts, and of those in the warped image, at their places here.

    Args:
        parts: Maps of the parts, without background [N, K, H, W].
        warped_parts: Those of the warped images [N, K, H, W].
        warps: [N, 28, 2], see ``rg.model.warping``.

    Returns:
        Scalar mean over images, parts and both directions.
    """
    return F.mse_loss(places(centers(warped_parts), warps), centers(parts))


def semantic_consistency_loss(parts: Tensor, basis: Tensor, features: Tensor, saliency: Tensor) -> Tensor:
    """Mean squared difference of salient features, and of the parts times the feature of each: sum_k q_k ReLU(w_k).

    Features and saliency are brought to the size of the maps.

    Args:
        parts: Maps of the parts, without background [N, K, H, W].
        basis: Learned features w of the parts [K, C].
        features: Of a network that does not learn [N, C, h, w].
        saliency: [N, I, J], from 0 to 1.

    Returns:
        Scalar mean over images, positions and channels.
    """
    size = (parts.shape[2], parts.shape[3])
    resized = F.interpolate(features.to(parts.dtype), size, mode="bilinear", align_corners=False)
    salient = resized * F.adaptive_avg_pool2d(saliency.to(parts.dtype).unsqueeze(1), size)
    return F.mse_loss(torch.einsum("nkhw,kc->nchw", parts, basis.relu()), salient)


def orthonormality_loss(basis: Tensor) -> Tensor:
    """Sum of the squares of the cosine similarities of features [K, C] less the identity, a scalar."""
    unit = F.normalize(basis, dim=1)
    return (unit @ unit.T - torch.eye(len(basis), dtype=basis.dtype, device=basis.device)).square().sum()


def _shares(maps: Tensor) -> Tensor:
    raised = maps + EPSILON
    return raised / raised.sum((2, 3), keepdim=True)


def _axes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """x of the columns [W] and y of the rows [H]: the middles of the positions."""
    height, width = maps.shape[2:]
    rows, columns = (torch.arange(side, dtype=maps.dtype, device=maps.device) for side in (height, width))
    return (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1
