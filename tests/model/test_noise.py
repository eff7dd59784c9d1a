"""Noise of an image: uniform, independent, and the same wherever the image is computed."""

import numpy as np
import pytest
import torch
from scipy.stats import gumbel_r, kstest

from rg.model import noise
from rg.model.layers import kept_parts, perturb
from rg.model.motion import move, random_motions
from rg.model.noise import image_seeds, uniform

MASK = (1 << 64) - 1


def splitmix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_numbers_are_those_of_splitmix64_in_plain_integers():
    seeds = image_seeds(3, 17, 0, 0, 4)
    numbers = uniform(seeds, 5, stream=2)
    for seed, row in zip(seeds.tolist(), numbers.tolist(), strict=True):
        for place, number in enumerate(row, start=1 + (2 << 32)):
            z = (splitmix(seed & MASK) + place * 0x9E3779B97F4A7C15) & MASK
            assert number == ((splitmix(z) >> 41) + 0.5) / 2**23


def test_no_number_is_nothing_or_one(monkeypatch):
    for bits in (0, -1):  # the smallest and the largest hash
        monkeypatch.setattr(noise, "_mix", lambda z, bits=bits: torch.full_like(z, bits))
        assert 0 < noise.uniform(torch.zeros(1, dtype=torch.int64), 1, 0).item() < 1


def test_numbers_are_uniform_and_independent():
    seeds = image_seeds(0, 0, 0, 0, 64)
    numbers, others = uniform(seeds, 500, 0), uniform(seeds, 500, 1)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    pairs = [(numbers, others), (numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])]
    for first, second in pairs:  # of independent numbers the correlation has a deviation of 1 / sqrt(count)
        correlation = np.corrcoef(first.flatten(), second.flatten())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.numel())


def test_ranks_share_out_the_seeds_of_a_step():
    whole = image_seeds(1, 2, 0, 0, 10)
    assert torch.equal(torch.cat([image_seeds(1, 2, 0, 0, 3), image_seeds(1, 2, 0, 3, 7)]), whole)
    for other in (image_seeds(1, 3, 0, 0, 10), image_seeds(2, 2, 0, 0, 10), image_seeds(1, 2, 1, 0, 10)):
        assert not set(whole.tolist()) & set(other.tolist())


def test_the_noise_of_the_assignment_is_gumbel_noise():
    """The difference of two Gumbel numbers is logistic; of equal parts it is what the noise turns into."""
    assign = torch.full((40, 2, 10, 10), 0.5)
    noisy = perturb(assign, image_seeds(0, 0, 0, 0, 40))
    torch.testing.assert_close(noisy.sum(1), torch.ones(40, 10, 10))
    assert kstest((noisy[:, 0] / noisy[:, 1]).log().flatten().numpy(), "logistic").pvalue > 1e-3
    # In float64 and with numbers of its own: softmax of logits plus noise.
    logits = torch.randn(40, 3, 4, 4, dtype=torch.float64)
    numbers = uniform(image_seeds(0, 0, 0, 0, 40), 48, 2).view(40, 3, 4, 4).double()
    expected = (logits + torch.from_numpy(gumbel_r.ppf(numbers))).softmax(1)
    torch.testing.assert_close(perturb(logits.softmax(1), image_seeds(0, 0, 0, 0, 40)), expected, rtol=1e-5, atol=1e-6)


def test_dropout_leaves_out_the_share_it_is_asked_for_and_never_all():
    kept = kept_parts(image_seeds(0, 0, 0, 0, 4000), 8, 0.3)
    # 32,000 draws with a deviation of sqrt(0.21 / 32000) = 0.0026; that all 8 fall is too rare (7e-5) to be seen in it
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.013)
    assert kept_parts(image_seeds(0, 0, 0, 0, 500), 2, 0.99).any(1).all()


def test_motions_undo_each_other_and_turn_pixels():
    seeds = image_seeds(0, 1, 0, 0, 200)
    forward, inverse = random_motions(seeds, 60, 90)
    last = torch.tensor([0.0, 0.0, 1.0]).expand(200, 1, 3)
    both = torch.cat([forward, last], 1) @ torch.cat([inverse, last], 1)
    torch.testing.assert_close(both, torch.eye(3).expand(200, 3, 3), atol=1e-5, rtol=0)
    pixels = torch.diag(torch.tensor([90.0, 60.0])) / 2
    linear = pixels @ forward[:, :, :2] @ pixels.inverse()
    scale = linear.det().sqrt()
    assert 1 / 1.4 <= scale.min() < 0.75
    assert 1.2 < scale.max() <= 1 / 0.8
    rotation = linear / scale[:, None, None]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(2).expand(200, 2, 2), atol=1e-5, rtol=0)


def test_an_image_that_is_moved_and_moved_back_is_the_same_in_the_middle():
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 65), torch.linspace(0, 2, 97), indexing="ij")
    image = (torch.sin(rows) + torch.cos(columns)).expand(4, 3, 65, 97)
    forward, inverse = random_motions(image_seeds(5, 0, 0, 0, 4), 65, 97)
    back = move(move(image, forward), inverse)
    torch.testing.assert_close(back[..., 25:40, 35:60], image[..., 25:40, 35:60], atol=5e-3, rtol=0)
