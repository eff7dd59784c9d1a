"""The background slot: a part that takes positions and is not heard of."""

import dataclasses

import pytest
import torch

from tests.model.test_model import SMALL, build, images

WITH = dataclasses.replace(SMALL, grouping=dataclasses.replace(SMALL.grouping, background=True))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_the_classifier_does_not_hear_of_it(multi_label, attention):
    config = dataclasses.replace(WITH, head=dataclasses.replace(WITH.head, attention=attention))
    model = build(config, multi_label=multi_label)
    output = model(images())
    assert output.assign.shape == (3, 5, 6, 6)
    torch.testing.assert_close(output.assign.sum(1), torch.ones(3, 6, 6))
    assert not output.attention[..., -1].any()
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(output.attention.shape[:-1]))
    noisy = output.regions.clone()
    noisy[:, -1] = torch.randn(3, 256)
    torch.testing.assert_close(model.attend(noisy), output.attention)
    classes = torch.tensor([[0, 3], [1, 4], [2, 2]])
    for regions in (output.regions, noisy):
        parts, constant = model.contributions(output._replace(regions=regions), classes)
        assert not parts[..., -1].any()
        torch.testing.assert_close(parts.sum(2) + constant, output.logits.gather(1, classes), rtol=1e-5, atol=1e-5)


def test_it_alone_is_background():
    model = build(WITH)
    model.dictionary.border.copy_(torch.rand(2, 5))
    assert model.background.tolist() == [False] * 4 + [True]


def test_it_starts_at_what_surrounds_the_object():
    """Grey all around and coloured stripes in the middle."""
    model = build(WITH)
    scenes = torch.full((6, 3, 96, 96), 128, dtype=torch.uint8)
    scenes[:, 0, 28:68, 28:68] = torch.arange(40, dtype=torch.uint8) * 6
    model.initialize_dictionary(scenes, seed=0)
    assign = model(scenes).assign
    border, middle = assign[:, -1, 0].mean(), assign[:, -1, 2:4, 2:4].mean()
    assert border > 2 * middle


def test_parts_are_dropped_in_training_alone():
    config = dataclasses.replace(WITH, head=dataclasses.replace(WITH.head, part_dropout=0.5))
    model, seeds = build(config).train(), torch.arange(3)
    output = model(images(), seeds)
    assert (output.attention[:, :4] == 0).any()
    torch.testing.assert_close(output.attention.sum(1), torch.ones(3))
    assert (model.eval()(images()).attention[:, :4] > 0).all()
