"""Sampling grids against statements of their own in float64, and the way back against scipy's interpolation."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.path import Path
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import map_coordinates

from rg.model import grids

SIDE = 31


def nodes_of(side=SIDE):
    places = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.stack([places.expand(side, -1), places[:, None].expand(-1, side)], 2)[None]


def middles(side):
    return (2 * np.arange(side) + 1) / side - 1


@pytest.fixture
def saliency():
    """Two images, one with a peak and one of noise."""
    x = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    peak = torch.exp(-((x - 0.4) ** 2 + (x[:, None] + 0.3) ** 2) / 0.1) + 0.05
    noise = torch.rand(SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).mul(3).exp()
    return torch.stack([peak, noise])


@pytest.mark.parametrize("shape", [(5, 5), (4, 6)])
def test_saliency_grid(shape):
    """Node by node: the mean of all places, by saliency and distance, with edges that go on."""
    height, width = shape
    own = np.random.default_rng(1).uniform(0.1, 2, shape)
    spread = 3.0
    variance = (spread / (2 * math.sqrt(2 * math.log(2)))) ** 2
    found = grids.saliency_grid(torch.from_numpy(own)[None], spread)[0]
    for row in range(height):
        for column in range(width):
            total, x, y = 0.0, 0.0, 0.0
            for r in range(row - (height - 1), row + height):
                for c in range(column - (width - 1), column + width):
                    inside = own[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
                    weight = inside * math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * variance))
                    total += weight
                    x += weight * (2 * c / (width - 1) - 1)
                    y += weight * (2 * r / (height - 1) - 1)
            expected = np.clip([x / total, y / total], -1, 1)
            np.testing.assert_allclose(found[row, column], expected, atol=1e-12)


def test_what_is_uniform_is_left_as_it_is():
    even = torch.ones(1, SIDE, SIDE, dtype=torch.float64)
    torch.testing.assert_close(grids.saliency_grid(even, 13.0), nodes_of(), atol=1e-12, rtol=0)
    torch.testing.assert_close(grids.marginal_grid(even[:, :9], 4.0, SIDE), nodes_of(), atol=1e-12, rtol=0)


def test_a_peak_of_saliency_is_magnified(saliency):
    """Nodes are nearer to each other at the peak than far from it, and near the peak on the average."""
    nodes = grids.saliency_grid(saliency[:1], 13.0)[0]
    places = torch.tensor([0.4, -0.3], dtype=torch.float64)
    assert (nodes - places).square().sum(2).mean() < (nodes_of()[0] - places).square().sum(2).mean()
    steps = (nodes[:, 1:, 0] - nodes[:, :-1, 0]) / (2 / (SIDE - 1))
    distance = ((nodes[:, 1:] + nodes[:, :-1]) / 2 - places).norm(dim=2)
    assert steps[distance < 0.2].max() < 0.7
    assert steps[distance > 1.2].mean() > 1


def test_marginal_grid():
    """Maxima, cumulative sums, and numpy's inverse of them; no density here is above the largest zoom."""
    attention = np.random.default_rng(2).uniform(0.5, 1, (7, 9))
    nodes = grids.marginal_grid(torch.from_numpy(attention)[None], 4.0, 33)[0].numpy()
    shares = np.linspace(0, 1, 33)
    for density, places in ((attention.max(0), nodes[0, :, 0]), (attention.max(1), nodes[:, 0, 1])):
        cumulative = np.concatenate([[0], np.cumsum(density) / density.sum()])
        edges = np.linspace(-1, 1, len(density) + 1)
        np.testing.assert_allclose(places, np.interp(shares, cumulative, edges), atol=1e-12)
    assert (nodes == nodes[:1])[..., 0].all()
    assert (nodes == nodes[:, :1])[..., 1].all()


@pytest.mark.parametrize("cells", [8, 14, 31])
def test_a_single_peak_is_magnified_as_much_as_asked_and_the_rest_shares_what_is_left(cells):
    """Five rounds leave less than 1e-4 of the excess of a peak over 8 cells, and of more cells far less."""
    attention = torch.zeros(1, cells, cells, dtype=torch.float64)
    attention[0, 0, 0] = 1
    steps = grids.marginal_grid(attention, 3.0, 4097)[0, 0, :, 0].diff() / (2 / 4096)
    assert 1 / steps.min().item() == pytest.approx(3, rel=1e-4)
    assert 1 / steps.max().item() == pytest.approx((cells - 3) / (cells - 1), rel=1e-4)


def test_without_a_grid_images_are_resized():
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    nodes = nodes_of().float().expand(2, -1, -1, -1)
    torch.testing.assert_close(grids.sample(images, nodes, 24), images.float(), atol=1e-3, rtol=0)
    expected = F.avg_pool2d(images.float(), 2)
    torch.testing.assert_close(grids.sample(images, nodes, 12, oversampling=2), expected, atol=1e-3, rtol=0)


def test_sampling_against_scipy(saliency):
    image = np.random.default_rng(5).uniform(0, 255, (20, 20))
    nodes = grids.saliency_grid(saliency, 13.0)
    found = grids.sample(torch.from_numpy(image).expand(2, 1, -1, -1), nodes, 16)
    for n in range(2):
        between = RegularGridInterpolator((np.linspace(-1, 1, SIDE),) * 2, nodes[n].numpy())
        rows, columns = np.meshgrid(middles(16), middles(16), indexing="ij")
        places = between(np.stack([rows, columns], 2))
        pixels = [(places[..., axis] + 1) * 10 - 0.5 for axis in (1, 0)]
        expected = map_coordinates(image, pixels, order=1, mode="nearest")
        np.testing.assert_allclose(found[n, 0], expected, atol=1e-9)


def test_the_gradient_of_sampling_and_of_both_grids():
    small = torch.rand(1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.5
    image = torch.rand(1, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

    def by_saliency(own):
        return grids.sample(image, grids.saliency_grid(own, 2.0), 4, 2)

    def by_attention(own):
        return grids.marginal_grid(own, 4.0, 6)

    assert torch.autograd.gradcheck(by_saliency, small.clone().requires_grad_())
    assert torch.autograd.gradcheck(by_attention, small.clone().requires_grad_())


def strong_saliency():
    """Contrasts of a thousand within a few nodes."""
    return torch.rand(4, 31, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).mul(7).exp()


def test_the_way_back_leads_where_the_grid_came_from(saliency):
    """Through scipy's own interpolation of the nodes; what is shown nowhere goes to the nearest node."""
    nodes = grids.saliency_grid(torch.cat([saliency, strong_saliency()]), 13.0)
    places = grids.inverse(nodes, (20, 20))
    targets = np.stack(np.meshgrid(middles(20), middles(20)), 2)
    axes = (np.linspace(-1, 1, nodes.shape[1]),) * 2
    shares = []
    for n in range(len(nodes)):
        reached = RegularGridInterpolator(axes, nodes[n].numpy())(places[n].flip(2).numpy())
        missed = np.linalg.norm(reached - targets, axis=2)
        own = nodes[n].numpy()
        outline = np.concatenate([own[0], own[:, -1], own[-1, ::-1], own[::-1, 0]])
        shown = Path(outline).contains_points(targets.reshape(-1, 2), radius=-1e-6).reshape(20, 20)
        assert missed[shown].max() < 1e-6
        nearest = np.linalg.norm(targets[:, :, None] - nodes[n].reshape(-1, 2).numpy(), axis=3).min(2)
        outside = ~Path(outline).contains_points(targets.reshape(-1, 2), radius=1e-6).reshape(20, 20)
        np.testing.assert_allclose(missed[outside], nearest[outside], atol=1e-6)
        shares.append(shown.mean())
    assert 0.6 < min(shares) < max(shares) <= 1


@pytest.mark.parametrize("cells", [9, 28])
def test_the_way_back_of_columns_and_rows_is_that_of_numpy(cells):
    """Of densities that differ more than a hundredfold, everywhere."""
    attention = torch.rand(3, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 200
    attention[:, 2, 3] = 1
    nodes = grids.marginal_grid(attention, 1e6, 225)
    steps = nodes[:, 0, :, 0].diff(dim=1)
    assert (steps.amax(1) / steps.amin(1)).min() > 100
    places = grids.separable_inverse(nodes, (20, 30))
    lines = np.linspace(-1, 1, 225)
    for n in range(3):
        across = np.interp(middles(30), nodes[n, 0, :, 0], lines)
        down = np.interp(middles(20), nodes[n, :, 0, 1], lines)
        np.testing.assert_allclose(places[n, ..., 0], np.broadcast_to(across, (20, 30)), atol=1e-9)
        np.testing.assert_allclose(places[n, ..., 1], np.broadcast_to(down[:, None], (20, 30)), atol=1e-9)


def test_autocast_does_not_round_places(saliency):
    """As training in bf16 asks for."""
    saliency = saliency.float()
    image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(8))

    def all_of_it():
        nodes = grids.saliency_grid(saliency, 13.0)
        return nodes, grids.sample(image, nodes, 16), grids.inverse(nodes, (8, 8))

    expected = all_of_it()
    with torch.autocast("cpu", torch.bfloat16):
        found = all_of_it()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_what_a_grid_shows_nowhere_goes_to_the_edge():
    """To the nearest of 31 nodes of a side, a fifteenth apart."""
    places = grids.inverse(0.5 * nodes_of(), (8, 8))
    shown = np.abs(middles(8)) < 0.5
    expected = np.where(shown, 2 * middles(8), np.sign(middles(8)))
    np.testing.assert_allclose(places[0, 4, :, 0], expected, atol=1 / 15)
    np.testing.assert_allclose(places[0, 4, shown, 0], expected[shown], atol=1e-9)
    np.testing.assert_allclose(places[0, 0, 0], [-1, -1], atol=1e-9)


def test_maps_are_carried_back_as_scipy_would():
    """Through a grid that shows the place (0.2, -0.1) twice as large: its inverse is known."""
    nodes = 0.5 * nodes_of() + torch.tensor([0.2, -0.1], dtype=torch.float64)
    maps = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).softmax(1)
    found = grids.carry_back(maps, grids.inverse(nodes, (16, 12)))
    y, x = np.meshgrid((middles(16) + 0.1) / 0.5, (middles(12) - 0.2) / 0.5, indexing="ij")
    shown = (np.abs(y) <= 1) & (np.abs(x) <= 1)
    assert shown.sum() == 48
    pixels = [(places + 1) * 4 - 0.5 for places in (y, x)]
    for k in range(3):
        expected = map_coordinates(maps[0, k].numpy(), pixels, order=1, mode="nearest")
        np.testing.assert_allclose(found[0, k][shown], expected[shown], atol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 16, 12, dtype=torch.float64))


def test_a_grid_that_stands_still_leaves_numbers():
    places = grids.inverse(torch.zeros(1, 5, 5, 2), (4, 4))
    assert torch.isfinite(places).all()


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_grid_without_numbers_spoils_its_own_image_alone(lost):
    """Backward, too, which would end the process if PyTorch saw these places."""
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    nodes = nodes_of(5).repeat(2, 1, 1, 1)
    nodes[1] *= lost
    nodes.requires_grad_()
    for see in (functools.partial(grids.sample, side=8), grids.carry_back):
        seen, alone = see(images, nodes), see(images[:1], nodes[:1])
        assert torch.equal(seen[:1], alone)
        assert seen[1].isnan().all()
        found = torch.autograd.grad(seen.sum(), (images, nodes))
        expected = torch.autograd.grad(alone.sum(), (images, nodes))
        assert all(torch.equal(one[0], other[0]) for one, other in zip(found, expected, strict=True))
