"""Stability of maps under noise and shift, with explainers whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from rg.attribution.stability import rank_correlation, under_noise, under_shift

CLASSES = torch.zeros(3, dtype=torch.int64)


def images():
    return torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def brightness(of, classes):
    """The mean of every 16 x 16 cell: moves with the image."""
    return F.avg_pool2d(of.float().mean(1), 16) + 0 * classes[:, None, None]


def pixels(of, classes):
    """The same at the size of the image."""
    return of.float().mean(1) + 0 * classes[:, None, None]


def middle(of, classes):
    """Looks at no pixel."""
    y, x = (torch.linspace(-1, 1, side) for side in (of.shape[2] // 16, of.shape[3] // 16))
    return -(y[:, None] ** 2 + 0.3 * x**2 + 0.1 * x).expand(len(classes), -1, -1)


def nothing(of, classes):
    return torch.zeros(len(classes), of.shape[2] // 16, of.shape[3] // 16)


def test_rank_correlation_is_that_of_scipy():
    a, b = np.random.default_rng(0).integers(0, 5, (2, 20, 9))
    np.testing.assert_allclose(rank_correlation(a, b), [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert np.isnan(rank_correlation(np.ones((1, 4)), np.arange(4.0)[None])).all()


@pytest.mark.parametrize("explain", [brightness, pixels])
def test_a_map_that_moves_with_the_image_is_stable_under_shift(explain):
    maps = explain(images(), CLASSES)
    np.testing.assert_allclose(under_shift(explain, images(), CLASSES, maps, 16), 1)


def test_a_map_that_stays_where_it_is_is_not():
    shifted = under_shift(middle, images(), CLASSES, middle(images(), CLASSES), 16)
    assert (shifted < 0.9).all()


def test_noise_disturbs_the_more_the_louder_it_is():
    maps = pixels(images(), CLASSES)
    quiet, loud = (under_noise(pixels, images(), CLASSES, maps, sigma, 0) for sigma in (2.0, 100.0))
    assert (quiet > 0.99).all()
    assert (loud < quiet).all()
    again = under_noise(pixels, images(), CLASSES, maps, 100.0, 0)
    np.testing.assert_array_equal(loud, again)
    assert (under_noise(pixels, images(), CLASSES, maps, 100.0, 1) != loud).all()


def test_the_noise_is_as_loud_as_it_says():
    seen = []

    def watch(of, classes):
        seen.append(of)
        return brightness(of, classes)

    grey = torch.full((3, 3, 64, 48), 128, dtype=torch.uint8)
    under_noise(watch, grey, CLASSES, brightness(images(), CLASSES), 4.0, 0)
    noise = seen[0].double() - 128
    assert seen[0].dtype == torch.uint8
    # 27,648 pixels: 3 standard errors of the deviation are 0.05; rounding adds 1/12 to the variance
    assert noise.std().item() == pytest.approx((16 + 1 / 12) ** 0.5, abs=0.06)


def test_what_cannot_be_told_is_nan():
    maps = nothing(images(), CLASSES)
    assert np.isnan(under_noise(nothing, images(), CLASSES, maps, 4.0, 0)).all()
    assert np.isnan(under_shift(nothing, images(), CLASSES, maps, 16)).all()
    small = images()[:, :, :16, :16]
    assert np.isnan(under_shift(brightness, small, CLASSES, brightness(small, CLASSES), 16)).all()
