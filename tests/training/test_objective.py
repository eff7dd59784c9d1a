"""The loss of a step: the terms that are asked for, and the same whatever the ranks."""

import dataclasses

import numpy as np
import pytest
import torch

from rg.config import GroupingConfig, LossConfig, ModelConfig, RunConfig
from rg.model.losses import classification_loss, occurrence_prior_loss, prior_quantiles
from rg.model.noise import image_seeds
from rg.model.region_grouping import ModelOutput
from rg.training.objective import OPTIONAL, Objective

K, SIZE = 3, 12
EVERY = {f"{name}_weight": 0.5 for name in OPTIONAL}
WORLDS = [(SIZE,), (6, 6), (5, 4, 3), (3, 3, 3, 3)]


def config(**loss):
    grouping = GroupingConfig(num_parts=K, background=True)
    return RunConfig(model=ModelConfig(grouping=grouping), loss=LossConfig(**loss))


def draw(count):
    torch.manual_seed(0)
    assign = torch.randn(count, K + 1, 5, 5, dtype=torch.float64).softmax(1)
    occurrence = assign.amax((2, 3))
    regions, attention = torch.randn(count, K + 1, 8).double(), torch.rand(count, K + 1).double()
    output = ModelOutput(torch.randn(count, 4).double(), assign, attention, occurrence, regions)
    return output, torch.randint(0, 4, (count,)), torch.randn(count, K + 1, 5, 5).double().softmax(1)


def part(output, first, size):
    return ModelOutput(*(tensor[first : first + size] for tensor in output if tensor is not None))


def test_terms_of_weight_nothing_are_not_computed():
    output, labels, _ = draw(SIZE)
    objective = Objective(config(), [SIZE], 0)
    means, batch = objective.of_images(output, labels, None, None), objective.of_batch(objective.rows(output))
    assert objective.names == ("classification", "prior") == (*means, *batch)
    assert not objective.noisy
    expected = classification_loss(output.logits, labels) + 0.5 * occurrence_prior_loss(
        output.occurrence[:, :K], 1.0, 1e-3
    )
    torch.testing.assert_close(objective.total(means | batch), expected)


def test_labels_are_smoothed_in_training():
    output, labels, _ = draw(SIZE)
    means = Objective(config(label_smoothing=0.2), [SIZE], 0).of_images(output, labels, None, None)
    expected = torch.nn.functional.cross_entropy(output.logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(means["classification"], expected)


@pytest.mark.parametrize("sizes", WORLDS)
@pytest.mark.parametrize("share", [1.0, 0.75, 0.5])
def test_ranks_make_the_loss_of_one(sizes, share):
    output, labels, moved = draw(SIZE)
    settings = config(**EVERY, equivariance_share=share)
    seeds = image_seeds(0, 3, 0, 0, SIZE)

    def total(sizes):
        objectives = [Objective(settings, sizes, rank) for rank in range(len(sizes))]
        firsts = [sum(sizes[:rank]) for rank in range(len(sizes))]
        chosen = [first + n for first, objective in zip(firsts, objectives, strict=True) for n in objective.moved]
        rows, loss = [], torch.zeros(())
        for first, size, objective in zip(firsts, sizes, objectives, strict=True):
            own = part(output, first, size)
            picture = torch.zeros(size, 3, 8, 8)
            inverse = objective.move(picture, seeds[first : first + size])[1]
            theirs = moved[[first + n for n in objective.moved]]
            means = objective.of_images(own, labels[first : first + size], theirs, inverse)
            loss = loss + objective.total(means, size / SIZE)
            rows.append(objective.rows(own))
        return loss + objectives[0].total(objectives[0].of_batch(torch.cat(rows))), chosen

    alone, together = total((SIZE,)), total(sizes)
    assert alone[1] == together[1]
    assert len(alone[1]) == share * SIZE
    torch.testing.assert_close(together[0], alone[0])


def test_a_rank_without_an_image_to_move_is_refused():
    settings = config(equivariance_weight=1.0, equivariance_share=0.1)
    assert Objective(settings, [SIZE], 0).moved == [9]
    with pytest.raises(ValueError, match=r"loss.equivariance_share: .* got 0.1 of 12 images over 2 ranks"):
        Objective(settings, [6, 6], 0)


def test_a_plain_network_has_no_parts_to_shape():
    settings = config(**EVERY)
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, kind="plain"))
    objective = Objective(settings, [SIZE], 0)
    assert objective.names == ("classification", "prior")
    assert not objective.noisy


def test_the_weight_of_background_needs_its_slot():
    with pytest.raises(ValueError, match=r"loss.background_weight: expected 0 without model.grouping.background"):
        RunConfig(loss=LossConfig(background_weight=1.0))


def test_the_queue_holds_the_occurrences_of_the_last_images():
    objective = Objective(config(prior_queue=5, presence_weight=1.0), [4], 0)
    np.testing.assert_allclose(objective.past[:, 1].sort().values, prior_quantiles(5, 1.0, 1e-3), rtol=1e-6)
    rows = torch.rand(3, 4, 2 * K)
    for images in rows:
        objective.remember(images)
    expected = torch.cat([*rows])[-5:, :K]
    torch.testing.assert_close(objective.past, expected)
    occurrence = torch.rand(4, 2 * K)
    torch.testing.assert_close(
        objective.of_batch(occurrence)["prior"], occurrence_prior_loss(occurrence[:, :K], 1.0, 1e-3, expected)
    )


def test_while_a_queue_fills_the_prior_asks_of_images_what_it_asks_of_all():
    """Two thirds of them to have a part, one third not to: so is Beta(0.002, 0.001), nearly all of it at 0 and at 1."""
    objective = Objective(config(prior_queue=252, prior_alpha=2e-3, prior_beta=1e-3), [4], 0)
    generator, raised = torch.Generator().manual_seed(0), []
    for _ in range(126):
        occurrence = (0.3 + 0.6 * torch.rand(4, K, generator=generator)).requires_grad_()
        (grad,) = torch.autograd.grad(objective.of_batch(occurrence)["prior"], occurrence)
        raised.append((grad < 0).float().mean(0))
        objective.remember(occurrence)
    # Of 64 images in a row, three standard deviations of a share of 2 / 3 are 3 sqrt(2 / 9 / 64) = 0.18.
    for shares in torch.stack(raised).unfold(0, 16, 1).mean(-1):
        assert (shares - 2 / 3).abs().max() < 0.18


def test_without_a_queue_nothing_is_remembered():
    objective = Objective(config(), [4], 0)
    objective.remember(torch.rand(4, K))
    assert objective.past is None
