"""Parts that are switched off or merged: what that does to the answer, the maps and the contributions."""

import copy
import dataclasses

import pytest
import torch

from rg.model.edits import Edits
from tests.model.test_model import SMALL, build, images

BOTH = pytest.mark.parametrize("multi_label", [False, True], ids=["classes", "attributes"])
SLOT = dataclasses.replace(SMALL, grouping=dataclasses.replace(SMALL.grouping, background=True))


def edited(model, **edits):
    other = copy.deepcopy(model)
    other.edits = Edits(**edits)
    return other


@torch.no_grad()
def test_a_logit_loses_what_the_part_that_is_off_has_added():
    model = build().double()
    whole, classes = model(images()), torch.arange(5).expand(3, 5)
    contributions, constant = model.contributions(whole, classes)
    output = edited(model, off=(1, 2))(images())
    expected = whole.logits - contributions[:, :, 1] - contributions[:, :, 2]
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.assign, whole.assign)  # it is still found
    assert (output.attention[:, [1, 2]] == 0).all()
    assert torch.equal(output.attention[:, [0, 3]], whole.attention[:, [0, 3]])  # not shared out anew
    left, same = edited(model, off=(1, 2)).contributions(output, classes)
    torch.testing.assert_close(left[:, :, [0, 3]], contributions[:, :, [0, 3]])
    assert (left[:, :, [1, 2]] == 0).all()
    assert torch.equal(same, constant)


@torch.no_grad()
def test_an_attribute_is_asked_without_the_part():
    """Beside the attended sum without it, by hand; Shapley values of what is left add up to the new logit."""
    model = build(multi_label=True).double()
    output = edited(model, off=(3,))(images())
    regions, attention = model(images()).regions, model(images()).attention
    features = model.region_transform(regions)
    attended = attention[:, :, :3] @ features[:, :3]
    expected = torch.cat([model.classifier._logit(attended[:, label], label)[:, None] for label in range(5)], 1)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-12)
    classes = torch.arange(5).expand(3, 5)
    contributions, constant = edited(model, off=(3,)).contributions(output, classes)
    assert contributions[:, :, 3].abs().max() < 1e-12
    torch.testing.assert_close(contributions.sum(2) + constant, output.logits, rtol=0, atol=1e-12)


@BOTH
@torch.no_grad()
def test_parts_that_are_one_have_what_both_had(multi_label):
    model = build(multi_label=multi_label).double()
    one = edited(model, merged={3: 0})
    whole, output = model(images()), one(images())
    assert torch.equal(output.logits, whole.logits)
    classes = torch.tensor([[4, 0], [1, 2], [3, 1]])
    for values, found, dim in (
        (whole.assign, output.assign, 1),
        (whole.attention, output.attention, -1),
        (model.contributions(whole, classes)[0], one.contributions(output, classes)[0], -1),
    ):
        parts, merged = values.unbind(dim), found.unbind(dim)
        torch.testing.assert_close(merged[0], parts[0] + parts[3], rtol=0, atol=1e-12)
        assert (merged[3] == 0).all()
        assert torch.equal(merged[1], parts[1])
    assert (output.occurrence[:, 0] >= whole.occurrence[:, [0, 3]].amax(1)).all()
    assert (output.occurrence[:, 3] == 0).all()


@BOTH
@pytest.mark.parametrize("edits", [{}, {"merged": {3: 0}}, {"off": (1,)}, {"off": (2,), "merged": {3: 0}}], ids=str)
@pytest.mark.parametrize("config", [SMALL, SLOT], ids=["", "background"])
@torch.no_grad()
def test_without_each_part_is_what_the_model_says_with_that_part_off(multi_label, edits, config):
    model = edited(build(config, multi_label=multi_label).double(), **edits)
    output = model(images())
    without = model.logits_without_each(output)
    assert without.shape == (3, output.assign.shape[1], 5)
    merged = edits.get("merged", {})
    for k in range(without.shape[1]):
        off = {*edits.get("off", ()), *(part for part in range(4) if merged.get(part, part) == k)}
        expected = edited(model, off=tuple(sorted(off)), merged=merged)(images()).logits
        torch.testing.assert_close(without[:, k], expected, rtol=0, atol=1e-12)


def test_edits_are_told_in_words_and_kept_as_json():
    edits = Edits((1, 4, 5), {5: 1})
    assert str(edits) == "part 1 switched off, part 4 switched off, part 5 merged into part 1"
    assert Edits.from_dict(edits.to_dict()) == edits
    assert (Edits().to_dict(), str(Edits()), bool(Edits())) == ({}, "", False)
