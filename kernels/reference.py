"""Every operator in plain PyTorch: the definition of correct.

Sizes: N images, C channels, H x W positions, K parts.

    q_k(x)  = softmax_k( -|x - d_k|^2 / (2 sigma_k^2) )                       assignment, Eq. 1
    z'_k    = ( sum_x q_k(x) x / max(sum_x q_k(x), 1e-5) - d_k ) / sigma_k    pooling, Eq. 3
    z_k     = z'_k / |z'_k|
    t_k     = max_o (G * q_k)(o)                                              occurrence, Section 3.1

Logits of Eq. 1 reach hundreds, where bf16 and fp16 have no digits left after the point. So everything here runs in
float32, or in float64 if the arguments are float64, whatever autocast says, and that is also the dtype of the outputs.

Equations are those of Huang and Li, "Interpretable and Accurate Fine-grained Recognition via Region Grouping",
CVPR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASS_FLOOR = 1e-5


def region_grouping(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """kernels.region_grouping, arguments already checked."""
    assign = part_assignment(x, centers, sigma)
    return assign, vlad_pooling(x, assign, centers, sigma)


def part_assignment(x: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """kernels.part_assignment, arguments already checked."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        features, centers, sigma = x.flatten(2).to(dtype), centers.to(dtype), sigma.to(dtype)
        squared_distance = (
            features.square().sum(1, keepdim=True) - 2 * centers @ features + centers.square().sum(1).unsqueeze(1)
        )
        assign = torch.softmax(-squared_distance / (2 * sigma.square().unsqueeze(1)), dim=1)
    return assign.unflatten(2, x.shape[2:])


def vlad_pooling(x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """kernels.vlad_pooling, arguments already checked."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        features, weights = x.flatten(2).to(dtype), assign.flatten(2).to(dtype)
        centers, sigma = centers.to(dtype), sigma.to(dtype)
        mass = weights.sum(2, keepdim=True).clamp(min=MASS_FLOOR)
        mean = weights @ features.transpose(1, 2) / mass
        return F.normalize((mean - centers) / sigma.unsqueeze(1), dim=2)


def part_occurrence(assign: Tensor, radius: int = 2, std: float = 0.4, padding: str = "valid") -> Tensor:
    """kernels.part_occurrence, arguments already checked."""
    height, width = assign.shape[2:]
    dtype = compute_dtype(assign)
    with torch.autocast(assign.device.type, enabled=False):
        rows = _smoothing_matrix(height, radius, std, padding, dtype, assign.device)
        columns = _smoothing_matrix(width, radius, std, padding, dtype, assign.device)
        smoothed = rows @ assign.to(dtype) @ columns.T
        return smoothed.flatten(2).max(2).values


def _smoothing_matrix(
    size: int, radius: int, std: float, padding: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[outputs, size]: row o holds the 1D Gaussian around its position, so rows @ map @ columns.T is the 2D one."""
    margin = radius if padding == "valid" else 0
    centers = torch.arange(margin, size - margin, device=device).unsqueeze(1)
    offset = torch.arange(size, device=device) - centers
    window = torch.arange(-radius, radius + 1, device=device, dtype=dtype)
    weights = torch.exp(-0.5 * (offset.to(dtype) / std) ** 2) / torch.exp(-0.5 * (window / std) ** 2).sum()
    return weights.masked_fill(offset.abs() > radius, 0)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What everything is computed in, and the outputs have: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
