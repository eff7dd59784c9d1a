"""ROAD's imputation against a dense system that is written down pixel by pixel, and its curves against a plain loop."""

import numpy as np
import pytest
import torch

from rg.attribution.imputation import NOISE, impute
from rg.attribution.road import SHARES, road

SILENT = np.zeros((9, 7, 3))


def image():
    return 255 * np.random.default_rng(0).random((9, 7, 3))


def by_hand(pixels, missing):
    """Each missing pixel is the weighted mean of the neighbours that there are."""
    rows, columns = missing.shape
    system, known = np.eye(rows * columns), pixels.reshape(-1, 3).copy()
    for y, x in zip(*np.nonzero(missing), strict=True):
        near = [(y + dy, x + dx, 2 if not dy or not dx else 1) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        near = [(v, u, weight) for v, u, weight in near if 0 <= v < rows and 0 <= u < columns]
        for v, u, weight in near:
            system[y * columns + x, v * columns + u] = -weight / sum(weight for *_, weight in near)
        known[y * columns + x] = 0
    return np.linalg.solve(system, known).reshape(pixels.shape)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_missing_pixels_are_the_means_of_their_neighbours(share):
    missing = np.random.default_rng(1).random((9, 7)) < share
    missing[0, 0], missing[8, 6] = True, False
    np.testing.assert_allclose(impute(image(), missing, SILENT), by_hand(image(), missing), atol=1e-9)


def test_a_slope_is_continued_and_what_is_there_stays():
    """A linear function is its own mean, away from the border."""
    y, x = np.mgrid[:9, :7].astype(float)
    slope = np.stack([3 * y, 5 * x, y - x], 2)
    missing = np.zeros((9, 7), bool)
    missing[2:7, 1:6] = True
    np.testing.assert_allclose(impute(slope, missing, SILENT), slope, atol=1e-9)
    noise = np.random.default_rng(2).standard_normal(slope.shape)
    np.testing.assert_allclose(impute(slope, missing, noise) - slope, noise * missing[:, :, None], atol=1e-9)
    np.testing.assert_array_equal(impute(slope, np.zeros((9, 7), bool), noise), slope)


def test_an_image_of_which_nothing_is_left_is_refused():
    with pytest.raises(ValueError, match="missing: expected a pixel to be left, got none"):
        impute(image(), np.ones((9, 7), bool), SILENT)


def redness(of, classes):
    """A probability that can be told by hand: the mean of one channel."""
    return of.mean((2, 3)).gather(1, classes[:, None])[:, 0] / 255


def test_the_curves_are_those_of_a_plain_loop():
    pixels = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([2, 0])
    ranks = torch.stack([torch.randperm(63, generator=torch.Generator().manual_seed(n)).view(9, 7) for n in (1, 2)])
    noise = NOISE * np.random.default_rng((3, 4)).standard_normal((2, 9, 7, 3))
    found = road(redness, pixels, classes, ranks, (3, 4))
    for values, order in zip(found, (ranks, 62 - ranks), strict=True):
        for n in range(2):
            own = pixels[n].permute(1, 2, 0).double().numpy()
            gone = [order[n].numpy() < round(share * 63) for share in SHARES]
            seen = [np.where(mask[:, :, None], by_hand(own, mask) + noise[n], own) for mask in gone]
            expected = np.mean([one[:, :, classes[n]].mean() / 255 for one in seen])
            assert values[n] == pytest.approx(expected, abs=1e-6)  # float32 images


def test_a_map_that_knows_loses_the_class_first_and_keeps_it_last():
    """A white spot on grey is the class: imputed, it is gone; its surroundings, imputed, are what they were."""
    spot = torch.full((1, 3, 12, 12), 100, dtype=torch.uint8)
    spot[:, :, 4:7, 4:7] = 255
    knows = (spot[:, 0] < 200).flatten(1).double().argsort(dim=1, stable=True).argsort(dim=1).view(1, 12, 12)
    white = lambda of, classes: (of[:, 0] == 255).flatten(1).double().mean(1) * 16 + 0 * classes  # noqa: E731
    morf, lerf = road(white, spot, torch.tensor([0]), knows, (0,))
    assert morf[0] == 0
    assert lerf[0] == pytest.approx(1)
