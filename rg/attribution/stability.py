"""Whether a map stays as it is when the image hardly changes: Spearman's correlation of the map before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

Explain = Callable[[Tensor, Tensor], Tensor]


def under_noise(explain: Explain, images: Tensor, classes: Tensor, maps: Tensor, sigma: float, seed: int) -> np.ndarray:
    """Correlation of maps with those of the images under Gaussian noise.

    Args:
        explain: Images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w].
        images: uint8 [N, 3, H, W].
        classes: int64 [N].
        maps: What ``explain`` says of them.
        sigma: Standard deviation of the noise, in grey levels; noisy pixels are rounded and stay in 0..255.
        seed: Of the noise.

    Returns:
        float64 [N], nan where a map is constant.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    noisy = (images + sigma * noise).round().clamp(0, 255).to(torch.uint8)
    return _correlation(maps, explain(noisy, classes))


def under_shift(explain: Explain, images: Tensor, classes: Tensor, maps: Tensor, stride: int) -> np.ndarray:
    """Correlation of maps with those of the images shifted by one stride to the right and down, shifted back.

    The pixels that come in are those of the border again; what goes out and what comes in is not compared.

    Args:
        explain: Images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w].
        images: uint8 [N, 3, H, W].
        classes: int64 [N].
        maps: What ``explain`` says of them; of the size of the images, or a position for every ``stride`` pixels.
        stride: Pixels per position of the feature map.

    Returns:
        float64 [N], nan where a map is constant, or where nothing is left to compare.
    """
    rows, columns = images.shape[2:]
    padded = F.pad(images.float(), (stride, 0, stride, 0), mode="replicate")
    shifted = padded[:, :, :rows, :columns].to(images.dtype)
    step = stride if maps.shape[1:] == images.shape[2:] else 1
    after = explain(shifted, classes)
    return _correlation(maps[:, :-step, :-step], after[:, step:, step:])


def _correlation(before: Tensor, after: Tensor) -> np.ndarray:
    return rank_correlation(*(maps.flatten(1).double().cpu().numpy() for maps in (before, after)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of every row of a with that of b [N, M]: float64 [N], nan where a row is constant."""
    centred = [rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (a, b)]
    spread = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    together = (centred[0] * centred[1]).sum(1)
    return np.divide(together, spread, out=np.full(len(a), np.nan), where=spread > 0)
