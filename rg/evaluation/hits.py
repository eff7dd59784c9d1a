"""Which landmarks the peak of a part meets: consistency and stability of EvalProtoPNet (Huang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rg.attribution.pointing import peaks
from rg.model.noise import Stream, uniform

HALF_BOX, SIDE = 36, 224  # pixels, of an image with that side
CONSISTENT_FROM = 0.8  # share of the images of a class
NOISE, NOISE_LIMIT = 0.2, 0.25  # standard deviation and largest value, in standard deviations of the pixels


def hit_vectors(assign: Tensor, landmarks: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
    """Which visible landmarks lie in a box around the peak of a part.

    Landmarks count at the pixel that they lie in; the border of the box belongs to it.

    Args:
        assign: Maps of the parts [N, K, h, w].
        landmarks: [N, P, 2], x and y in pixels of the image.
        visibility: bool [N, P].
        size: Height and width of the image.

    Returns:
        bool [N, K, P].
    """
    height, width = size
    peak = torch.stack([peaks(maps, size) for maps in assign]).cpu() - 0.5
    distance = (peak[:, :, None] - landmarks.floor()[:, None]).abs()
    inside = (distance <= torch.tensor([width, height]) * HALF_BOX / SIDE).all(3)
    return inside & visibility[:, None]


def consistency(hits: np.ndarray, visibility: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of consistent parts of classes: those that meet one landmark in at least 0.8 of the images that show it.

    Args:
        hits: bool [N, K, P].
        visibility: bool [N, P].
        labels: int [N]; classes without a visible landmark are left out.

    Returns:
        None if no class is left, or no part.
    """
    consistent: list[np.ndarray] = []
    for label in np.unique(labels):
        own = labels == label
        seen = visibility[own].sum(0)
        if seen.any():
            shares = hits[own].sum(0) / np.maximum(seen, 1)
            consistent.append((shares >= CONSISTENT_FROM).any(1))
    return float(np.mean(consistent)) if np.size(consistent) else None


def noisy(images: Tensor, numbers: Sequence[int], pixel_std: Tensor) -> Tensor:
    """Images under Gaussian noise that depends on their number in the split alone, and is clipped.

    Args:
        images: [N, 3, H, W] in 0..255.
        numbers: Of their samples in the split, N of them.
        pixel_std: Standard deviation of the pixels [1, 3, 1, 1], in grey levels.

    Returns:
        float32 [N, 3, H, W], neither rounded nor clipped to 0..255.
    """
    seeds = torch.tensor(numbers, device=images.device)
    shape = images.shape[1:]
    uniforms = torch.stack([uniform(seed, shape.numel(), Stream.MEASUREMENT).view(shape) for seed in seeds.split(1)])
    noise = (NOISE * 2**0.5 * torch.erfinv(2 * uniforms - 1)).clamp(-NOISE_LIMIT, NOISE_LIMIT)
    return images + noise * pixel_std
