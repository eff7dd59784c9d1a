"""Where something stands out in an image, without learning: the spectral residual (Hou & Zhang, CVPR 2007)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64  # at which images are looked at, as in the paper
SMOOTHING_STD = 2.5
SMOOTHING_RADIUS = 5


def spectral_residual(images: Tensor) -> Tensor:
    """What the logarithm of the spectrum has beyond its own average.

    The image, grey and of 64 x 64 pixels, has the spectrum A exp(iP). With L = log A, the residual is R = L - mean of L
    over 3 x 3 frequencies, and the saliency is the square of the inverse transform of exp(R + iP), smoothed.

    Args:
        images: Float [N, 3, H, W].

    Returns:
        [N, 64, 64] in 0 to 1; the largest value of an image is 1, but for one without any contrast, which gets zeros.
    """
    grey = F.interpolate(images.mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(grey)
    logarithm = spectrum.abs().clamp(min=torch.finfo(images.dtype).eps).log()
    average = F.avg_pool2d(F.pad(logarithm, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    residual = torch.polar((logarithm - average).exp(), spectrum.angle())
    energy = torch.fft.ifft2(residual).abs().square()
    offsets = torch.arange(-SMOOTHING_RADIUS, SMOOTHING_RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / SMOOTHING_STD) ** 2)
    window = window / window.sum()
    padded = F.pad(energy, (SMOOTHING_RADIUS,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).squeeze(1)
    contrast = images.amax((2, 3)) > images.amin((2, 3))
    return smooth / smooth.amax((1, 2), keepdim=True) * contrast.any(1)[:, None, None]
