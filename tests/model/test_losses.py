"""The occurrence prior against scipy's Wasserstein distance, and its published facts."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, wasserstein_distance

from rg.model.losses import classification_loss, occurrence_prior_loss, prior_quantiles


@pytest.mark.parametrize("count", [1, 2, 7, 128])
@pytest.mark.parametrize("alpha,bet", [(1.0, 1e-3), (2e-3, 1e-3), (2.0, 5.0)])
def test_is_the_wasserstein_distance_of_logarithms(count, alpha, bet):
    occurrence = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    quantiles = [beta.ppf((2 * n - 1) / (2 * count), alpha, bet) for n in range(1, count + 1)]
    expected = np.mean(
        [wasserstein_distance(np.log(occurrence[:, k] + 1e-5), np.log(np.array(quantiles) + 1e-5)) for k in range(3)]
    )
    assert occurrence_prior_loss(occurrence, alpha, bet).item() == pytest.approx(expected, rel=1e-9)


def test_order_of_the_batch_does_not_matter():
    occurrence = torch.rand(16, 4)
    shuffled = torch.stack([occurrence[torch.randperm(16), k] for k in range(4)], dim=1)
    torch.testing.assert_close(
        occurrence_prior_loss(occurrence, 2e-3, 1e-3), occurrence_prior_loss(shuffled, 2e-3, 1e-3)
    )


def test_halves_of_a_batch_are_another_loss():
    occurrence = torch.linspace(0.01, 0.99, 8, dtype=torch.float64).unsqueeze(1)
    whole = occurrence_prior_loss(occurrence, 2e-3, 1e-3)
    halves = (occurrence_prior_loss(occurrence[:4], 2e-3, 1e-3) + occurrence_prior_loss(occurrence[4:], 2e-3, 1e-3)) / 2
    assert abs(whole - halves) > 0.1


def test_with_a_queue_places_are_counted_among_all():
    generator = np.random.default_rng(0)
    occurrence, past = generator.random((4, 3)), generator.random((9, 3))
    quantiles = [beta.ppf((2 * n + 1) / 26, 0.5, 0.2) for n in range(13)]
    expected = np.mean(
        [
            abs(np.log(value + 1e-5) - np.log(quantiles[np.sum(column < value)] + 1e-5))
            for values, column in zip(occurrence.T, np.concatenate([occurrence, past]).T, strict=True)
            for value in values
        ]
    )
    loss = occurrence_prior_loss(torch.tensor(occurrence), 0.5, 0.2, torch.tensor(past))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)


def test_an_empty_queue_is_none():
    occurrence = torch.rand(7, 2, dtype=torch.float64)
    torch.testing.assert_close(
        occurrence_prior_loss(occurrence, 1.0, 0.1, torch.empty(0, 2)), occurrence_prior_loss(occurrence, 1.0, 0.1)
    )


def test_inaturalist_prior_is_42_off_84_on():
    quantiles = prior_quantiles(128, 2e-3, 1e-3)
    assert (quantiles < 1e-6).sum() == 42
    assert (quantiles > 1 - 1e-6).sum() == 84


def test_cub_prior_is_always_on():
    np.testing.assert_allclose(prior_quantiles(32, 1.0, 1e-3)[1:], 1.0)


def test_a_dead_part_still_gets_gradient():
    occurrence = torch.full((4, 1), 1e-9, requires_grad=True)
    occurrence_prior_loss(occurrence, 1.0, 1e-3).backward()
    # d/dt log(t + 1e-5) / 4 images
    torch.testing.assert_close(occurrence.grad, torch.full((4, 1), -1 / (1e-9 + 1e-5) / 4))


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 2, 2)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        occurrence_prior_loss(torch.rand(shape), 1.0, 1.0)


def test_parameters_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        occurrence_prior_loss(torch.rand(2, 2), 0.0, 1.0)


def test_classification_loss_of_classes_and_attributes():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    probability = torch.softmax(logits, 1)
    expected = -(probability[0, 0].log() + probability[1, 0].log()) / 2
    torch.testing.assert_close(classification_loss(logits, torch.tensor([0, 0])), expected)
    attributes = torch.tensor([[1, 0], [0, 0]])
    p = torch.sigmoid(logits)
    expected = -(p[0, 0].log() + (1 - p[0, 1]).log() + (1 - p[1, 0]).log() + (1 - p[1, 1]).log()) / 4
    torch.testing.assert_close(classification_loss(logits, attributes), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_labels_are_targets_between(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    targets = (1 - smoothing) * torch.eye(5, dtype=torch.float64)[labels] + smoothing / 5
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, labels, smoothing), expected)
    attributes = torch.randint(0, 2, (6, 5), generator=generator)
    targets = (1 - smoothing) * attributes + smoothing / 2
    on, off = logits.sigmoid(), (-logits).sigmoid()
    expected = -(targets * on.log() + (1 - targets) * off.log()).mean()
    torch.testing.assert_close(classification_loss(logits, attributes, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_any_of_several_right_answers_will_do(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    weights = torch.rand(6, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    answers = torch.nn.functional.one_hot(labels, 5).bool() | (torch.rand(6, 5, generator=generator) < 0.4)
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    any_right = -np.log((probabilities * answers.numpy()).sum(1))
    expected = (1 - smoothing) * any_right - smoothing * np.log(probabilities).mean(1)
    loss = classification_loss(logits, labels, smoothing, answers=answers)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-12)
    weighted = classification_loss(logits, labels, smoothing, weights, answers)
    assert weighted.item() == pytest.approx((weights.numpy() * expected).mean(), rel=1e-12)


def test_one_right_answer_is_the_label():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    losses = [
        classification_loss(logits, labels, 0.1, answers=answers)
        for answers in (None, torch.nn.functional.one_hot(labels, 5).bool())
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))
