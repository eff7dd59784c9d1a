"""Warps against scipy, and pixels against points."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.stats import kstest

from rg.model import warping
from rg.model.warping import POINTS, places, random_warps, shown, spline, warp

LINE = np.linspace(-1, 1, POINTS)
CONTROL = np.array([(x, y) for y in LINE for x in LINE])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_spline_is_that_of_scipy():
    values = CONTROL + 0.3 * random(2, POINTS**2, 2)
    points = np.random.default_rng(1).uniform(-1.5, 1.5, (2, 40, 2))
    made = places(torch.from_numpy(points), spline(torch.from_numpy(values))).numpy()
    for n in range(2):
        expected = RBFInterpolator(CONTROL, values[n], kernel="thin_plate_spline")(points[n])
        np.testing.assert_allclose(made[n], expected, atol=1e-9)


def test_the_spline_goes_through_its_points():
    values = torch.from_numpy(CONTROL + random(1, POINTS**2, 2))
    torch.testing.assert_close(places(torch.from_numpy(CONTROL)[None], spline(values)), values, rtol=0, atol=1e-9)


def test_a_gradient_at_a_point_of_the_spline_is_finite():
    points = torch.from_numpy(CONTROL)[None].requires_grad_()
    places(points, spline(torch.from_numpy(CONTROL + 0.1 * random(1, POINTS**2, 2)))).sum().backward()
    assert torch.isfinite(points.grad).all()


def test_gradients_of_places():
    warps = random_warps(torch.tensor([3, 4]), 20, 30).double()
    points = torch.from_numpy(random(2, 5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: places(points, warps), points)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (80, 120)])
def test_points_are_where_the_pixels_are(height, width):
    """A blob of the source is found in the warped image; the function of points brings its centre back."""
    seeds = torch.arange(8)
    warps = random_warps(seeds, height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    at = torch.tensor([0.2, -0.3])
    x, y = 2 * x / width - 1, 2 * y / height - 1
    blob = torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.01)
    warped = warp(blob.expand(8, 1, height, width), warps)[:, 0]
    mass = warped.sum((1, 2))
    centers = torch.stack([(warped * x).sum((1, 2)) / mass, (warped * y).sum((1, 2)) / mass], 1)
    # The spline is nearly linear over a blob; a position is 0.02 wide.
    np.testing.assert_allclose(places(centers[:, None], warps)[:, 0], at.expand(8, 2), atol=5e-3)
    assert (centers - at).norm(dim=1).max() > 0.1  # moved at all


def test_a_rotation_turns_pixels(monkeypatch):
    """In an image twice as wide as high, lengths in pixels all change by one factor, and right angles stay."""
    monkeypatch.setattr(warping, "SIGMA", 0.0)
    height, width = 40, 80
    half = torch.tensor([width / 2, height / 2])
    points = torch.tensor([[[0.0, 0.0], [0.3, 0.0], [0.0, 0.3]]])
    pixels = places(points, random_warps(torch.arange(50), height, width)) * half
    across, down = pixels[:, 1] - pixels[:, 0], pixels[:, 2] - pixels[:, 0]
    torch.testing.assert_close((across * down).sum(1), torch.zeros(50), rtol=0, atol=1e-3)
    scales = across.norm(dim=1) / (0.3 * half[0])
    torch.testing.assert_close(down.norm(dim=1) / (0.3 * half[1]), scales, rtol=1e-4, atol=0)
    assert scales.min() >= 0.7
    assert scales.max() <= 2
    assert torch.atan2(across[:, 1], across[:, 0]).abs().max() <= math.pi / 3 + 1e-4


def test_what_is_drawn(monkeypatch):
    """Rotation, scale and shift are uniform, the points of the spline move by a Gaussian of 0.01."""
    warps = random_warps(torch.arange(4000), 64, 64)
    at = places(torch.from_numpy(CONTROL).float()[None], warps)
    monkeypatch.setattr(warping, "SIGMA", 0.0)
    straight = random_warps(torch.arange(4000), 64, 64)
    origin = places(torch.zeros(1, 1, 2), straight)[:, 0]
    unit = places(torch.tensor([[[1.0, 0.0]]]), straight)[:, 0] - origin
    scales = unit.norm(dim=1)
    for values, low, high in (
        (torch.atan2(unit[:, 1], unit[:, 0]), -math.pi / 3, math.pi / 3),
        (scales, 0.7, 2.0),
        (origin[:, 0], -0.1, 0.1),
        (origin[:, 1], -0.1, 0.1),
    ):
        assert kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    moves = (at - places(torch.from_numpy(CONTROL).float()[None], straight)) / scales[:, None, None]
    assert kstest(moves[:, 7].flatten().numpy() / 0.01, "norm").pvalue > 1e-3


def test_warps_depend_on_the_image_alone():
    seeds = torch.tensor([5, 99, -3])
    together = random_warps(seeds, 32, 32)
    alone = torch.cat([random_warps(seed[None], 32, 32) for seed in seeds])
    # The product of a batch of matrices may be summed in another order.
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_what_is_shown():
    """An image of ones, zeros beyond: bilinear samples of it are 1 where the place is well inside, 0 well outside."""
    warps = random_warps(torch.arange(6), 48, 48)
    ones = torch.ones(6, 1, 48, 48)
    sampled, seen = warp(ones, warps, padding="zeros")[:, 0], shown(warps, ones)
    assert (sampled[seen] >= 0.25 - 1e-5).all()  # in a corner a quarter of the four positions around is inside
    assert (sampled[~seen] <= 0.5 + 1e-5).all()
    assert 0.3 < seen.float().mean() < 0.99
