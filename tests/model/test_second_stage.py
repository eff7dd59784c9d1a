"""The second look: what is not shown does not count, and the masks learn by the gradients of what was seen."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rg.attribution.maps import grad_cam
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig, SamplerConfig, SecondStageConfig
from rg.model.build import build_model
from rg.model.maps import part_map
from rg.model.second_stage import _shares
from rg.training.activation_checkpointing import checkpoint_blocks

PARTS = 3
STRIDE = 16
TOGETHER = ModelConfig(
    BackboneConfig(name="resnet18", weights="none"),
    GroupingConfig(num_parts=PARTS, background=True, standardize=True, smoothing_padding="same"),
    HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
    second_stage=SecondStageConfig("together"),
)
EACH = dataclasses.replace(TOGETHER, second_stage=SecondStageConfig("each"))
BOTH = pytest.mark.parametrize("config", [TOGETHER, EACH], ids=["together", "each"])


def pixels(count=3, height=80, width=96, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(count, 3, 5, 6, generator=generator)  # so that parts are larger than a position
    return F.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)


def build(config, classes=5, multi_label=False):
    torch.manual_seed(0)
    model = build_model(config, classes, multi_label)
    model.initialize_dictionary(pixels(8), 0)
    model.eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.weight.uniform_(0.5, 1.5)
    return model


def masks_of(model, images):
    with torch.no_grad():
        assign = model(images).assign
    return assign, model.second_stage.masks(assign, tuple(images.shape[2:]))


def answer(model, images, masks):
    """Logits and regions of given masks."""
    with torch.no_grad():
        regions = model.second_stage(model.backbone, model.dictionary, images, masks)
        return model.classify(regions, model.attend(regions)), regions


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_a_pixel_that_is_not_shown_changes_no_bit(config, training):
    """Given the masks; in training too, where other images are of the same batch."""
    model = build(config)
    images = pixels()
    _, masks = masks_of(model, images)
    hidden = masks[:, PARTS].bool()
    assert 0.05 < hidden.float().mean() < 0.95
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for other in (noise, torch.zeros_like(images), 255 * torch.ones_like(images)):
        changed = torch.where(hidden[:, None], other, images)
        found = [answer(copy.deepcopy(model).train(training), pair, masks) for pair in (images, changed)]
        assert not torch.equal(images, changed)
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
    shown = torch.where(hidden[:, None], images, noise)
    assert not torch.equal(answer(model, shown, masks)[0], answer(model, images, masks)[0])


@BOTH
def test_the_model_answers_by_its_own_masks(config):
    model = build(config)
    images = pixels()
    output = model(images)
    assign, masks = masks_of(model, images)
    assert torch.equal(masks.argmax(1), part_map(assign, tuple(images.shape[2:])))
    assert torch.equal(masks.sum(1), torch.ones_like(masks[:, 0]))
    logits, regions = answer(model, images, masks)
    assert torch.equal(output.logits, logits)
    assert torch.equal(output.regions, regions)


def test_a_part_that_is_seen_alone_is_told_nothing_by_the_others():
    """One that is seen together with others is: their pixels are in its receptive field."""
    images = pixels()
    for config, alone in ((EACH, True), (TOGETHER, False)):
        model = build(config)
        _, masks = masks_of(model, images)
        changed = torch.where(masks[:, :1].bool(), 255 - images, images)
        before, after = (answer(model, pair, masks)[1] for pair in (images, changed))
        assert not torch.equal(before[:, 0], after[:, 0])
        assert torch.equal(before[:, 1:PARTS], after[:, 1:PARTS]) == alone


@BOTH
def test_regions_are_means_over_what_is_shown(config):
    """In float64, position by position."""
    model = build(config).double()
    images = pixels(2)
    output = model(images)
    strongest = part_map(output.assign, (80, 96)).numpy()
    grey = model.backbone.pixel_mean
    centers, sigma = model.dictionary.centers.detach().numpy(), model.dictionary.sigma.detach().numpy()
    for n in range(2):
        for k in range(PARTS):
            own = strongest[n] == k
            seen = own if config is EACH else strongest[n] < PARTS
            image = torch.where(torch.from_numpy(seen), images[n].double(), grey[0])
            with torch.no_grad():
                x = model.standardization(model.backbone(image[None]))[0].numpy()  # statistics are still the same
            total, mass = np.zeros(len(x)), 0.0
            for row in range(5):
                for column in range(6):
                    cell = own[STRIDE * row : STRIDE * (row + 1), STRIDE * column : STRIDE * (column + 1)]
                    total += cell.mean() * x[:, row, column]
                    mass += cell.mean()
            residual = (total / max(mass, 1e-5) - centers[k]) / sigma[k]
            expected = residual / np.linalg.norm(residual)
            np.testing.assert_allclose(output.regions[n, k].detach().numpy(), expected, atol=1e-9)


@BOTH
@pytest.mark.parametrize("multi_label", [False, True])
def test_contributions_add_up_to_the_logits(config, multi_label):
    model = build(config, multi_label=multi_label).double()
    with torch.no_grad():
        output = model(pixels())
        contributions, constant = model.contributions(output, torch.arange(5).expand(3, 5))
    assert not contributions[..., PARTS].any()  # of the background
    torch.testing.assert_close(contributions.sum(2) + constant, output.logits, rtol=0, atol=1e-10)


def test_an_image_without_any_part_says_nothing():
    model = build(TOGETHER)
    nothing = torch.zeros(3, PARTS + 1, 80, 96)
    nothing[:, PARTS] = 1
    logits = [answer(model, pixels(seed=seed), nothing)[0] for seed in (1, 2)]
    assert torch.equal(*logits)
    assert torch.isfinite(logits[0]).all()


# What the masks learn by


def linear(size, cells):
    """The matrix [size, cells] of bilinear up-sampling along one axis."""
    matrix = np.zeros((size, cells))
    for pixel in range(size):
        place = min(max((pixel + 0.5) * cells / size - 0.5, 0), cells - 1)
        low = min(int(place), cells - 2)
        matrix[pixel, low], matrix[pixel, low + 1] = 1 - (place - low), place - low
    return matrix


def test_masks_are_hard_and_their_gradient_is_that_of_the_assignment():
    model = build(TOGETHER).train()
    generator = torch.Generator().manual_seed(0)
    assign = torch.rand(2, PARTS + 1, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    masks = model.second_stage.masks(assign, (80, 96))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    weights = torch.randn(masks.shape, generator=generator, dtype=torch.float64)
    (weights * masks).sum().backward()
    expected = np.einsum("pr,nkpq,qc->nkrc", linear(80, 5), weights.numpy(), linear(96, 6))
    np.testing.assert_allclose(assign.grad.numpy(), expected, atol=1e-12)


@BOTH
def test_gradients_of_the_answer_reach_what_finds_the_parts(config, monkeypatch):
    """Against differences of a model whose masks move by as much as the assignment: that is straight-through.

    The pixels that are shown stay, as masks do not learn by them.
    """
    model = build(config).double().train()
    model.backbone.features.maxpool = nn.AvgPool2d(3, 2, 1)  # the maximum of equal grey pixels has no derivative
    images = pixels(4, seed=2)  # no part is smaller than a position
    weights = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss = (weights * model(images).logits).sum()
    loss.backward()
    centers = model.dictionary.centers
    assert centers.grad.abs().max() > 1e-6
    hard, soft = [], []

    def masks(assign, size):
        up = F.interpolate(assign, size, mode="bilinear", align_corners=False)
        if not hard:
            hard.append(F.one_hot(up.argmax(1), PARTS + 1).movedim(3, 1).double())
            soft.append(up.clone())
        return hard[0] + (up - soft[0])

    show = model.second_stage.show
    monkeypatch.setattr(model.second_stage, "masks", masks)
    monkeypatch.setattr(model.second_stage, "show", lambda images, _, grey: show(images, hard[0][:, :PARTS], grey))
    with torch.no_grad():
        assert (weights * model(images).logits).sum() == pytest.approx(loss.item(), abs=1e-9)
        sizes = hard[0][:, :PARTS].sum((2, 3)) / STRIDE**2
        assert sizes.min() >= 1  # smaller parts pass no gradient
        start = centers.clone()
        direction = torch.randn(centers.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        ends = []
        for step in (-1e-7, 1e-7):
            centers.copy_(start + step * direction)
            ends.append((weights * model(images).logits).sum().item())
    slope = (ends[1] - ends[0]) / 2e-7
    assert (centers.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4)


def test_masks_learn_nothing_by_the_pixels_that_they_show():
    model = build(TOGETHER)
    masks = masks_of(model, pixels(2))[1][:, :PARTS].double().requires_grad_()
    images = pixels(2).double().requires_grad_()
    shown = model.second_stage.show(images, masks, model.backbone.pixel_mean.double())
    shown.sum().backward()
    assert masks.grad is None
    assert torch.equal(images.grad, masks.detach().sum(1, keepdim=True).expand_as(images))


def test_a_part_of_a_few_pixels_learns_by_what_is_shown_alone():
    """The mean over a part has gradients as large as the part is small."""
    masks = torch.zeros(2, 2, 80, 96)
    masks[:, 0] = 1
    masks[:, :, 40, 40] = torch.tensor([0.0, 1.0])
    masks.requires_grad_()
    shares = _shares(masks, (5, 6), STRIDE)
    torch.testing.assert_close(shares.sum((2, 3)) * STRIDE**2, torch.tensor([[80.0 * 96 - 1, 1.0]] * 2))
    (gradient,) = torch.autograd.grad(shares.sum(), masks)
    assert (gradient[:, 0] == 1 / STRIDE**2).all()
    assert not gradient[:, 1].any()


# One network, two looks


def test_either_look_has_batch_statistics_of_its_own():
    first = dataclasses.replace(TOGETHER, second_stage=SecondStageConfig())
    once, twice = build(first), build(TOGETHER)
    twice.load_state_dict(once.state_dict(), strict=False)
    shown = copy.deepcopy(twice.backbone)
    images = pixels(4)
    once.train()(images)
    twice.train()
    output = twice(images)
    for name, value in once.backbone.state_dict().items():
        assert torch.equal(twice.backbone.state_dict()[name], value), name
    hidden = part_map(output.assign, (80, 96)) == PARTS
    shown.train()(torch.where(hidden[:, None], twice.backbone.pixel_mean, images.float()))
    expected = {name.replace(".", "_"): value for name, value in shown.state_dict().items()}
    statistics = twice.second_stage.statistics.state_dict()
    assert len(statistics) == 3 * sum(isinstance(module, nn.BatchNorm2d) for module in twice.backbone.modules())
    for name, value in statistics.items():
        # What is shown is grey + (pixel - grey), so it is rounded once more.
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert not torch.equal(statistics["features_bn1_running_mean"], twice.backbone.features.bn1.running_mean)


def test_activations_may_be_computed_again():
    plain = build(TOGETHER).train()
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again.backbone)
    for model in (plain, again):
        model(pixels(4)).logits.square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_the_first_look_may_see_less():
    model = build(dataclasses.replace(TOGETHER, second_stage=SecondStageConfig("together", shrink=2)))
    images = pixels(2, 160, 192)
    output = model(images)
    assert output.assign.shape[2:] == (5, 6)
    small = images.float().unflatten(3, (96, 2)).unflatten(2, (80, 2)).mean((3, 5))
    torch.testing.assert_close(output.assign, model.dictionary.group(model.encode(small))[0])
    moved = model.train()(images, None, images)[1]
    assert moved.shape == output.assign.shape


def test_what_does_not_go_together_is_refused():
    for change, name in (
        ({"kind": "plain"}, "model.kind"),
        ({"grouping": GroupingConfig()}, "model.grouping.background"),
        ({"sampler": SamplerConfig("saliency")}, "model.sampler.kind"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            dataclasses.replace(TOGETHER, **change)
    with pytest.raises(ValueError, match=r"^model\.second_stage\.shrink: expected 1 with"):
        SecondStageConfig(shrink=2)
    with pytest.raises(ValueError, match="got a second stage"):
        grad_cam(build(TOGETHER), pixels(), torch.tensor([0, 1, 2]))
