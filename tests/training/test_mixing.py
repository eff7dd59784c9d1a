"""Mixtures of neighbours: their pixels, their shares and their loss, whatever the ranks."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, kstest

from rg.config import InputConfig, LossConfig, RunConfig, TrainConfig
from rg.model.noise import image_seeds
from rg.model.plain import PlainOutput
from rg.training.engine import micro_batches
from rg.training.mixing import mix
from rg.training.objective import Objective

BOTH = InputConfig(mixup=0.4, cutmix=1.0)


def draw(count: int, side: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return images, image_seeds(0, 7, 0, 0, count)


def neighbours(values: torch.Tensor) -> torch.Tensor:
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def test_mixup_blends_neighbours():
    images, seeds = draw(400, 4)
    mixed, shares = mix(images, seeds, InputConfig(mixup=0.4))
    own, kept = images.float(), shares[:, None, None, None]
    torch.testing.assert_close(mixed, kept * own + (1 - kept) * neighbours(own), rtol=0, atol=1e-4)
    assert torch.equal(shares, neighbours(shares))
    assert kstest(shares[::2].numpy(), beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_cutmix_swaps_a_box():
    images, seeds = draw(400)
    mixed, shares = mix(images, seeds, InputConfig(cutmix=1.0))
    own, other = (mixed == images.float()).all(1), (mixed == neighbours(images).float()).all(1)
    assert (own | other).all()
    torch.testing.assert_close(own.double().mean((1, 2)), shares.double(), rtol=0, atol=0.01)  # equal by chance
    for foreign in ~own[(~own).flatten(1).any(1)]:
        rows, columns = foreign.any(1), foreign.any(0)
        assert (foreign == rows[:, None] & columns).float().mean() > 0.98
    # A box of side s shows s - s^2 / 4 of it, as its centre lies anywhere; s^2 is uniform.
    assert shares.mean().item() == pytest.approx(1 - (1 / 2 - 1 / 2 * 2 / 5 + 1 / 16 / 3), abs=0.05)


def test_half_of_the_pairs_are_mixed_in_each_way():
    images, seeds = draw(600)
    mixed, _ = mix(images, seeds, BOTH)
    copied = ((mixed == images.float()) | (mixed == neighbours(images).float())).flatten(1).all(1)
    assert 0.42 < copied.float().mean() < 0.58


@pytest.mark.parametrize("sizes", [(6, 6), (4, 4, 4), (2, 4, 6)])
def test_ranks_mix_as_one_does(sizes):
    images, _ = draw(12)
    whole, shares = mix(images, image_seeds(0, 7, 1, 0, 12), BOTH)
    first = 0
    for size in sizes:
        own = slice(first, first + size)
        mixed, kept = mix(images[own], image_seeds(0, 7, 1, first, size), BOTH)
        assert torch.equal(mixed, whole[own])
        assert torch.equal(kept, shares[own])
        first += size


@pytest.mark.parametrize("attributes", [False, True])
def test_labels_are_mixed_as_much(attributes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    shares = torch.rand(6, dtype=torch.float64, generator=generator)
    if attributes:
        labels = torch.randint(0, 2, (6, 4), generator=generator)
        targets = labels.double()
    else:
        labels = torch.tensor([0, 1, 2, 3, 1, 1])
        targets = F.one_hot(labels, 4).double()
    mixed = shares[:, None] * targets + (1 - shares)[:, None] * neighbours(targets)
    smoothed = 0.9 * mixed + 0.1 * (0.5 if attributes else 0.25)
    loss = F.binary_cross_entropy_with_logits if attributes else F.cross_entropy
    objective = Objective(RunConfig(loss=LossConfig(label_smoothing=0.1)), [6], 0)
    means = objective.of_images(PlainOutput(logits), labels, None, None, shares)
    torch.testing.assert_close(means["classification"], loss(logits, smoothed))


def test_a_mixed_image_keeps_the_right_answers_of_both():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    shares = torch.tensor([0.9, 0.6, 0.5, 0.2], dtype=torch.float64)
    answers = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    losses = -torch.log((logits.softmax(1).unsqueeze(1) * answers.unsqueeze(0)).sum(2))  # of image n for answers m
    expected = sum(shares[n] * losses[n, n] + (1 - shares[n]) * losses[n, (1, 0, 3, 2)[n]] for n in range(4)) / 4
    objective = Objective(RunConfig(), [4], 0)
    labels = torch.tensor([0, 1, 0, 2])
    means = objective.of_images(PlainOutput(logits), labels, None, None, shares, answers=answers)
    torch.testing.assert_close(means["classification"], expected)


def test_every_rank_needs_pairs():
    config = RunConfig(input=BOTH, train=TrainConfig(global_batch=12))
    assert micro_batches(config, 2) == [6, 6]
    with pytest.raises(ValueError, match=r"an odd number for a rank, .* take a multiple of 8 = 2 x 4 ranks x 1 micro"):
        micro_batches(config, 4)
