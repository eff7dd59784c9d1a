"""The spectral residual against numpy and scipy in float64."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

from rg.model.saliency import spectral_residual


def test_against_numpy():
    images = 255 * torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for image, saliency in zip(images, spectral_residual(images), strict=True):
        spectrum = np.fft.fft2(image.mean(0).numpy())
        logarithm = np.log(np.abs(spectrum))
        residual = logarithm - uniform_filter(logarithm, 3, mode="wrap")
        energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        smooth = gaussian_filter(energy, 2.5, mode="nearest", radius=5)
        np.testing.assert_allclose(saliency.numpy(), smooth / smooth.max(), rtol=1e-6)


def test_a_thing_before_texture_stands_out():
    images = 100 + 10 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    images[:, :, 40:60, 80:100] = 250
    saliency = spectral_residual(images)[0]
    row, column = divmod(int(saliency.argmax()), 64)
    assert 18 <= row <= 31
    assert 38 <= column <= 51
    assert saliency[18:32, 38:52].mean() > 3 * saliency.mean()


def test_nothing_stands_out_of_one_colour():
    saliency = spectral_residual(torch.full((1, 3, 50, 70), 90.0))
    assert torch.equal(saliency, torch.zeros(1, 64, 64))
