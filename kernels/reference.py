"""Every operator in plain PyTorch: the definition of correct.

Sizes: N images, C channels, H x W positions, K parts.

    q_k(x)  = softmax_k( -|x - d_k|^2 / (2 sigma_k^2) )                       assignment, Eq. 1
    z'_k    = ( sum_x q_k(x) x / max(sum_x q_k(x), 1e-5) - d_k ) / sigma_k    pooling, Eq. 3
    z_k     = z'_k / |z'_k|
    t_k     = max_o (G * q_k)(o)                                              occurrence, Section 3.1

Logits of Eq. 1 reach hundreds, where bf16 and fp16 have no digits left after the point. So everything here runs in
float32, or in float64 if any input is float64, whatever autocast says, and that is also the dtype of the outputs.

Equations are those of Huang and Li, "Interpretable and Accurate Fine-grained Recognition via Region Grouping",
CVPR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASS_FLOOR = 1e-5


def region_grouping(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Assign every position to the parts and pool one feature per part (Eq. 1 and Eq. 3).

    Args:
        x: Features [N, C, H, W], any float dtype and memory layout.
        centers: Part dictionary [K, C].
        sigma: Bandwidth of every part [K], positive.

    Returns:
        assign: [N, K, H, W], sums to 1 over K.
        regions: [N, K, C], unit length.

    Raises:
        ValueError: ranks, sizes, dtypes or devices do not fit together.
    """
    assign = part_assignment(x, centers, sigma)
    return assign, vlad_pooling(x, assign, centers, sigma)


def part_assignment(x: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """Soft assignment of every position to the parts of the dictionary (Eq. 1).

    Args:
        x: Features [N, C, H, W], any float dtype and memory layout.
        centers: Part dictionary [K, C].
        sigma: Bandwidth of every part [K], positive.

    Returns:
        assign [N, K, H, W], sums to 1 over K.

    Raises:
        ValueError: ranks, sizes, dtypes or devices do not fit together.
    """
    _check_dictionary(x, centers, sigma)
    dtype = _compute_dtype(x, centers, sigma)
    with torch.autocast(x.device.type, enabled=False):
        features, centers, sigma = x.flatten(2).to(dtype), centers.to(dtype), sigma.to(dtype)
        squared_distance = (
            features.square().sum(1, keepdim=True) - 2 * centers @ features + centers.square().sum(1).unsqueeze(1)
        )
        assign = torch.softmax(-squared_distance / (2 * sigma.square().unsqueeze(1)), dim=1)
    return assign.unflatten(2, x.shape[2:])


def vlad_pooling(x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """One unit-length feature per part: the normalised mean residual to its centre (Eq. 3).

    The mass of a part is floored at 1e-5, so a part that no position belongs to gets the direction of ``-centers``
    instead of a division by zero.

    Args:
        x: Features [N, C, H, W], any float dtype and memory layout.
        assign: Soft assignment [N, K, H, W].
        centers: Part dictionary [K, C].
        sigma: Bandwidth of every part [K], positive.

    Returns:
        regions [N, K, C], unit length.

    Raises:
        ValueError: ranks, sizes, dtypes or devices do not fit together.
    """
    _check_dictionary(x, centers, sigma)
    expected = (x.shape[0], centers.shape[0], *x.shape[2:])
    if tuple(assign.shape) != expected:
        raise ValueError(f"assign: expected [N, K, H, W] = {list(expected)}, got {list(assign.shape)}")
    dtype = _compute_dtype(x, assign, centers, sigma)
    with torch.autocast(x.device.type, enabled=False):
        features, weights = x.flatten(2).to(dtype), assign.flatten(2).to(dtype)
        centers, sigma = centers.to(dtype), sigma.to(dtype)
        mass = weights.sum(2, keepdim=True).clamp(min=MASS_FLOOR)
        mean = weights @ features.transpose(1, 2) / mass
        return F.normalize((mean - centers) / sigma.unsqueeze(1), dim=2)


def part_occurrence(assign: Tensor, radius: int = 2, std: float = 0.4, padding: str = "valid") -> Tensor:
    """How surely every part occurs: the largest value of its Gaussian-smoothed assignment map (Section 3.1).

    Of several equal maxima the first one, in row-major order, receives the gradient.

    Args:
        assign: Soft assignment [N, K, H, W].
        radius: The window is ``2 * radius + 1`` positions wide.
        std: Standard deviation of the Gaussian, in positions.
        padding: ``valid`` (the authors' choice: only windows that lie inside the map count) or ``same`` (zeros around).

    Returns:
        occurrence [N, K], in (0, 1) for assignments in (0, 1).

    Raises:
        ValueError: assign has not four dimensions, the map is smaller than a ``valid`` window, or an option is off.
    """
    if assign.ndim != 4 or not assign.is_floating_point():
        raise ValueError(f"assign: expected floats [N, K, H, W], got {assign.dtype} {list(assign.shape)}")
    if radius < 0 or std <= 0:
        raise ValueError(f"expected radius >= 0 and std > 0, got radius {radius} and std {std}")
    if padding not in ("valid", "same"):
        raise ValueError(f"padding: expected 'valid' or 'same', got {padding!r}")
    height, width = assign.shape[2:]
    if padding == "valid" and min(height, width) < 2 * radius + 1:
        raise ValueError(
            f"assign: a {height}x{width} map is smaller than the {2 * radius + 1}x{2 * radius + 1} smoothing window; "
            "use larger images, a smaller radius or padding='same'"
        )
    dtype = _compute_dtype(assign)
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


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _check_dictionary(x: Tensor, centers: Tensor, sigma: Tensor) -> None:
    for name, tensor in (("x", x), ("centers", centers), ("sigma", sigma)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected floats, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: expected [N, C, H, W] with C, H, W >= 1, got {list(x.shape)}")
    if centers.ndim != 2 or centers.shape[0] == 0 or centers.shape[1] != x.shape[1]:
        raise ValueError(f"centers: expected [K, {x.shape[1]}] with K >= 1, got {list(centers.shape)}")
    if sigma.shape != centers.shape[:1]:
        raise ValueError(f"sigma: expected [{centers.shape[0]}], got {list(sigma.shape)}")
