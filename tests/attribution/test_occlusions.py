"""Infidelity against Captum's and sensitivity-n against NumPy's correlation, on models whose answers are known."""

import numpy as np
import pytest
import torch
from captum import metrics

from rg.attribution.infidelity import SIDES, SQUARES, infidelity, squares
from rg.attribution.occlusions import Occlusions
from rg.attribution.sensitivity_n import GRID, NUMBERS, SUBSETS, sensitivity_n, subsets

GREY = torch.tensor([100.0, 110.0, 120.0])
CLASSES = torch.tensor([1, 0])


def images(rows=32, columns=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, rows, columns), dtype=torch.uint8, generator=generator)


def weights():
    return torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) / 255


def linear(of, classes):
    return (of * weights()[classes]).sum((1, 2, 3))


def curved(of, classes):
    return torch.tanh(linear(of, classes) / 40)


def exact():
    """What every pixel adds to the linear logit over grey."""
    return ((images() - GREY.view(3, 1, 1)) * weights()[CLASSES]).sum(1)


def test_the_falls_and_the_sums_are_those_of_a_plain_loop():
    masks = squares(32, 24, (0,))
    occlusions = Occlusions(curved, images(), CLASSES, GREY, masks)
    maps = torch.rand(2, 32, 24, generator=torch.Generator().manual_seed(2))
    for m, mask in enumerate(masks):
        hidden = images().double()
        hidden[:, :, torch.from_numpy(mask)] = GREY.double().view(1, 3, 1)
        fall = curved(images().double(), CLASSES) - curved(hidden, CLASSES)
        np.testing.assert_allclose(occlusions.falls[:, m], fall, atol=1e-4)
        np.testing.assert_allclose(occlusions.sums(maps)[:, m], maps.numpy()[:, mask].sum(1), rtol=1e-5)


def test_infidelity_is_that_of_captum_as_a_share_of_the_squared_falls():
    masks = squares(32, 24, (5,))
    maps = exact() + 0.5 * torch.randn(2, 32, 24, generator=torch.Generator().manual_seed(3))
    occlusions = Occlusions(curved, images(), CLASSES, GREY, masks)
    drawn = torch.from_numpy(masks).repeat(2, 1, 1)[:, None]  # of the first image all masks, then of the second

    def perturb(of, _):
        binary = drawn.expand_as(of)
        return binary.to(of), torch.where(binary, GREY.view(3, 1, 1), of)

    theirs = metrics.infidelity(
        lambda of, classes: curved(of, classes),
        perturb,
        images().float(),
        (maps / 3)[:, None].expand(-1, 3, -1, -1),  # a channel has a third of its pixel
        baselines=0.0,
        additional_forward_args=CLASSES,
        n_perturb_samples=len(masks),
        normalize=True,
    )
    ours = infidelity(occlusions.sums(maps), occlusions.falls)
    np.testing.assert_allclose(ours, theirs.numpy() / (occlusions.falls**2).mean(1), rtol=1e-3)  # float32 there
    assert ((ours > 0.01) & (ours < 0.9)).all()


def test_a_map_of_what_every_pixel_adds_foretells_all_and_its_opposite_nothing():
    masks = squares(32, 24, (0,))
    occlusions = Occlusions(linear, images(), CLASSES, GREY, masks)
    for scale in (1, 1000):
        np.testing.assert_allclose(infidelity(occlusions.sums(scale * exact()), occlusions.falls), 0, atol=1e-6)
    np.testing.assert_array_equal(infidelity(occlusions.sums(-exact()), occlusions.falls), 1)
    np.testing.assert_array_equal(infidelity(occlusions.sums(0 * exact()), occlusions.falls), 1)
    assert np.isnan(infidelity(occlusions.sums(exact()), 0 * occlusions.falls)).all()


def test_sensitivity_n_is_the_correlation_within_every_n():
    masks = subsets(32, 24, (0,))
    occlusions = Occlusions(curved, images(), CLASSES, GREY, masks)
    maps = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(4))
    sums = occlusions.sums(maps)
    found = sensitivity_n(sums, occlusions.falls)
    for image in range(2):
        parts = [slice(start, start + SUBSETS) for start in range(0, len(masks), SUBSETS)]
        pearson = [np.corrcoef(sums[image, part], occlusions.falls[image, part])[0, 1] for part in parts]
        assert found[image] == pytest.approx(np.mean(pearson))
    whole = Occlusions(linear, images(), CLASSES, GREY, masks)
    np.testing.assert_allclose(sensitivity_n(whole.sums(exact()), whole.falls), 1, atol=1e-6)
    np.testing.assert_allclose(sensitivity_n(whole.sums(-exact()), whole.falls), -1, atol=1e-6)
    assert np.isnan(sensitivity_n(0 * sums, occlusions.falls)).all()


@pytest.mark.parametrize("rows,columns", [(32, 24), (50, 70), (8, 8)])
def test_masks_hide_what_they_say(rows, columns):
    cells = subsets(rows, columns, (1,))
    y, x = (np.arange(side) * GRID // side for side in (rows, columns))
    for mask, n in zip(cells, np.repeat(NUMBERS, SUBSETS), strict=True):
        hidden = {*zip(*(axis[places] for axis, places in zip((y, x), np.nonzero(mask), strict=True)), strict=True)}
        assert len(hidden) == n
        assert mask.sum() == sum((y == v).sum() * (x == u).sum() for v, u in hidden)
    hidden = squares(rows, columns, (1,))
    assert len(hidden) == SQUARES
    for mask in hidden:
        height, width = mask.any(1).sum(), mask.any(0).sum()
        assert height == width
        assert mask.sum() == height * width
        assert round(SIDES[0] * min(rows, columns)) <= height <= round(SIDES[1] * min(rows, columns))
    assert not np.array_equal(hidden, squares(rows, columns, (2,)))
