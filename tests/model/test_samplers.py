"""Samplers: attention against statements of its own in float64, what learns from what, and models behind them."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import log_softmax, softmax

from rg.attribution.maps import cam, contribution_map, grad_cam
from rg.config import (
    BackboneConfig,
    EvaluationConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SamplerConfig,
)
from rg.model import grids, samplers
from rg.model.build import build_model
from rg.model.losses import distillation_loss
from rg.model.maps import part_centers
from rg.model.noise import Stream, uniform

NETWORK = {"network": "test_resnet", "weights": "none", "glimpse": 64, "size": 64}
SALIENCY = SamplerConfig("saliency", **NETWORK)
TRILINEAR = SamplerConfig("trilinear", **NETWORK)
SMALL = ModelConfig(
    backbone=BackboneConfig("test_resnet", "none"),
    grouping=GroupingConfig(num_parts=3, smoothing_padding="same"),
    head=HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
)
SEEDS = torch.tensor([5, 17, 99, 1234])


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def sampler_of(config, classes=5):
    torch.manual_seed(0)
    return samplers.build_sampler(config, classes, multi_label=False, pretrained=False)


def model_of(config, kind="region_grouping"):
    torch.manual_seed(0)
    return build_model(dataclasses.replace(SMALL, sampler=config, kind=kind), 5, pretrained=False)


def zooming(model, monkeypatch, scale=0.5, shift=(0.2, -0.1)):
    """The same known grid for all images."""
    places = torch.linspace(-1, 1, 9)
    nodes = torch.stack([places.expand(9, -1), places[:, None].expand(-1, 9)], 2) * scale + torch.tensor(shift)

    def forward(images, *_):
        own = nodes.expand(len(images), -1, -1, -1)
        return samplers.Sampled(grids.sample(images, own, 64), own)

    monkeypatch.setattr(model.sampler, "forward", forward)


def test_trilinear_attention():
    features = np.random.default_rng(0).uniform(0, 1, (2, 6, 4, 5))
    found = samplers.trilinear_attention(torch.from_numpy(features))
    for n in range(2):
        x = features[n].reshape(6, 20)
        expected = softmax(softmax(7 * x, 1) @ x.T, 1) @ x
        np.testing.assert_allclose(found[n].reshape(6, 20), expected, atol=1e-12)


@pytest.mark.parametrize("dilations", [(1, 2), (1, 2, 3)])
def test_dilated_convolution(dilations):
    torch.manual_seed(0)
    layer = samplers.DilatedConvolution(3, dilations).double()
    x = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    weight = layer.convolution.weight.detach().numpy()
    for out in range(3):
        expected = np.zeros((8, 9))
        for rate in dilations:
            kernel = np.zeros((3, 2 * rate + 1, 2 * rate + 1))
            kernel[:, ::rate, ::rate] = weight[out]
            maps = [correlate2d(x[0, c].numpy(), kernel[c], mode="same") for c in range(3)]
            expected += np.maximum(sum(maps) + layer.convolution.bias[out].item(), 0)
        np.testing.assert_allclose(layer(x)[0, out].detach(), expected, atol=1e-12)


def test_distillation():
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(0, 20, (4, 6)), rng.normal(0, 20, (4, 6))
    expected = -(softmax(teacher / 10, 1) * log_softmax(student / 10, 1)).sum(1).mean()
    own = torch.from_numpy(student).requires_grad_()
    other = torch.from_numpy(teacher).requires_grad_()
    assert distillation_loss(own, other).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, other.detach()), own)
    (nothing,) = torch.autograd.grad(distillation_loss(own, other), other, allow_unused=True)
    assert nothing is None


def test_a_saliency_sampler_begins_with_images_as_they_are_and_learns_from_the_task(images):
    sampler = sampler_of(SALIENCY).train()
    sampled = sampler(images)
    identity = torch.linspace(-1, 1, 31)
    torch.testing.assert_close(sampled.nodes[..., 0], identity.expand(4, 31, 31), atol=1e-5, rtol=0)
    (sampled.images * torch.arange(64.0)).mean().backward()
    assert sampler.saliency.weight.grad.abs().max() > 0
    with torch.no_grad():
        sampler.saliency.weight.normal_()
    (sampler(images).images * torch.arange(64.0)).mean().backward()
    assert next(sampler.network.parameters()).grad.abs().max() > 0


def test_a_trilinear_sampler_learns_from_its_own_classifier_alone(images):
    sampler = sampler_of(TRILINEAR).train()
    sampled = sampler(images, SEEDS)
    assert not sampled.images.requires_grad
    assert not sampled.details.requires_grad
    sampled.logits.sum().backward()
    assert next(sampler.network.parameters()).grad.abs().max() > 0
    assert sampler(images).details is None
    assert sampler.eval()(images, SEEDS).details is None


def test_the_structure_is_all_channels_and_a_detail_one(images, monkeypatch):
    """With attention that says in which channel it is: channel c stands out in column c of 8."""
    sampler = sampler_of(TRILINEAR).train()
    channels = sampler.network.channels

    def attention(features):
        maps = torch.full((len(features), channels, 8, 8), 0.1)
        maps[:, torch.arange(channels), :, torch.arange(channels) % 8] = 1
        return maps

    seen = []
    monkeypatch.setattr(samplers, "trilinear_attention", attention)
    monkeypatch.setattr(sampler, "_grid", lambda own: seen.append(own) or grids.marginal_grid(own, 4.0, 65))
    sampler(images, SEEDS)
    structure, detail = seen
    torch.testing.assert_close(structure, attention(images).sum(1).square())
    columns = detail.amax(1).argmax(1)
    assert torch.equal(detail.amax((1, 2)), torch.ones(4))
    sampler(images[1:2], SEEDS[1:2])
    assert seen[-1].amax(1).argmax(1) == columns[1]  # whatever the other images of the batch are
    assert len({int(uniform(SEEDS + n, 1, Stream.DETAIL)[0, 0] * channels) for n in range(9)}) > 4


@pytest.mark.parametrize("config", [SALIENCY, TRILINEAR])
def test_places_are_not_rounded_in_bf16(images, config):
    """Under autocast the network that looks is; between -1 and 1 bfloat16 has 8 bits, and two neighbours are alike."""
    sampler = sampler_of(config).train()
    for parameter in sampler.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        sampled = sampler(images, SEEDS)
    assert sampled.nodes.dtype == sampled.images.dtype == torch.float32
    assert (sampled.nodes.to(torch.bfloat16).float() != sampled.nodes).float().mean() > 0.9


def test_shrinking_depends_on_the_image_alone():
    pixels = torch.rand(4, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    together = samplers.shrink(pixels, SEEDS)
    for n in range(4):
        torch.testing.assert_close(together[n : n + 1], samplers.shrink(pixels[n : n + 1], SEEDS[n : n + 1]))
    sides = [16 + int(share * 41) for share in uniform(SEEDS, 1, Stream.SHRINKING)[:, 0].tolist()]
    kept = (together.flatten(1).var(1) / pixels.flatten(1).var(1)).tolist()
    assert np.argsort(sides).tolist() == np.argsort(kept).tolist()  # the smaller, the less is left of noise
    assert max(kept) < 1


def test_only_training_shrinks_and_only_while_asked_to(images):
    sampler = sampler_of(SALIENCY).train()
    plain = sampler(images, SEEDS).images
    sampler.shrinking = True
    assert not torch.equal(sampler(images, SEEDS).images, plain)
    sampler.eval()
    torch.testing.assert_close(sampler(images, SEEDS).images, sampler(images).images)


@pytest.mark.parametrize("config", [SALIENCY, TRILINEAR])
def test_an_assignment_is_that_of_the_image_in_evaluation(images, config, monkeypatch):
    model = model_of(config).eval()
    zooming(model, monkeypatch)
    with torch.no_grad():
        output = model(images)
        own = model.describe(model.encode(model.seen(images)))
        nodes = model.sampler(images).nodes
    stride = model.backbone.stride
    assert output.assign.shape == (4, 3, 96 // stride, 96 // stride)
    torch.testing.assert_close(output.assign.sum(1), torch.ones(4, 96 // stride, 96 // stride))
    torch.testing.assert_close(
        output.assign, grids.carry_back(own.assign, model.sampler.inverse(nodes, (96 // stride, 96 // stride)))
    )
    torch.testing.assert_close(output.logits, own.logits)
    assert model.train()(images, SEEDS).assign.shape == own.assign.shape == (4, 3, 64 // stride, 64 // stride)


def test_a_part_is_found_where_it_is_in_the_photograph():
    """A map that peaks in the middle of what was seen, through grids that show other places."""
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 4] = 1
    places = torch.linspace(-1, 1, 9)
    nodes = torch.stack([places.expand(9, -1), places[:, None].expand(-1, 9)], 2)[None]
    for shift in ((0.3, -0.2), (-0.4, 0.1)):
        found = grids.carry_back(maps, grids.inverse(0.5 * nodes + torch.tensor(shift), (64, 64)))
        center = 2 * part_centers(found)[0, 0] - 1
        torch.testing.assert_close(center, torch.tensor(shift), atol=0.01, rtol=0)


@pytest.mark.parametrize("config", [SALIENCY, TRILINEAR])
def test_contributions_and_their_map_sum_to_the_logit(images, config, monkeypatch):
    model = model_of(config).eval()
    zooming(model, monkeypatch)
    classes = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        output = model(images)
        parts, constant = model.contributions(output, classes[:, None])
    logit = output.logits.gather(1, classes[:, None])
    torch.testing.assert_close(parts.sum(2) + constant, logit)
    maps = contribution_map(model, images, classes)
    assert maps.shape == output.assign[:, 0].shape
    torch.testing.assert_close(maps.sum((1, 2)) + constant[:, 0], logit[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [cam, grad_cam])
def test_maps_of_the_features_are_carried_back(images, method, monkeypatch):
    model = model_of(SALIENCY, "plain").eval()
    zooming(model, monkeypatch)
    classes = torch.tensor([0, 1, 2, 3])
    found = method(model, images, classes)
    with torch.no_grad():
        sampled = model.sampler(images)
    unsampled = model_of(SamplerConfig(), "plain").eval()
    unsampled.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("sampler.")})
    own = method(unsampled, sampled.images, classes)[:, None]
    torch.testing.assert_close(found[:, None], model.carry_back(own, sampled, images))


def test_streams_share_all_but_their_classifiers(images):
    for kind in ("plain", "region_grouping"):
        model = model_of(TRILINEAR, kind).train()
        output, streams = model(images, SEEDS)
        assert output.logits.shape == streams.detail.shape == streams.glimpse.shape == (4, 5)
        streams.detail.sum().backward()
        assert next(model.backbone.parameters()).grad is not None
        assert model.detail_classifier is not model.classifier
        assert all(parameter.grad is None for parameter in model.classifier.parameters())


def test_networks_are_pretrained_and_the_rest_is_new():
    model = model_of(TRILINEAR)
    pretrained, new = model.parameter_groups()
    networks = {id(p) for p in (*model.backbone.parameters(), *model.sampler.network.parameters())}
    assert networks == set(map(id, pretrained))
    assert len({*map(id, pretrained), *map(id, new)}) == len(list(model.parameters()))


def test_without_a_sampler_nothing_is_added():
    names = model_of(SamplerConfig()).state_dict()
    assert not [name for name in names if "sampler" in name or "detail" in name]


@pytest.mark.parametrize(
    "changed,message",
    [
        (
            {"loss": LossConfig(detail_weight=1)},
            "loss.detail_weight: expected 0 without model.sampler.kind = trilinear",
        ),
        (
            {"input": InputConfig(short_side=60, crop=60)},
            "model.sampler.size: expected at most the 60 pixels",
        ),
        (
            {"input": InputConfig(crop=96, test_crop=40)},
            "model.sampler.size: expected at most the 40 pixels",
        ),
        ({"loss": LossConfig(equivariance_weight=1)}, "loss.equivariance_weight: expected 0 with a model.sampler"),
        ({"evaluation": EvaluationConfig(view="whole")}, "evaluation.view: expected input with a model.sampler"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(model=dataclasses.replace(SMALL, sampler=SALIENCY), **changed)


@pytest.mark.parametrize("name", ["detail_weight", "glimpse_weight"])
def test_what_a_trilinear_sampler_teaches_has_a_weight(name):
    weights = {"detail_weight": 0.5, "glimpse_weight": 0.5, "distillation_weight": 1.0}
    model = dataclasses.replace(SMALL, sampler=TRILINEAR)
    RunConfig(model=model, loss=LossConfig(**weights))
    with pytest.raises(ValueError, match=f"loss.{name}: expected a weight above 0 with model.sampler.kind = trilinear"):
        RunConfig(model=model, loss=LossConfig(**weights | {name: 0.0}))


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"size": 0}, "model.sampler.size: expected at least 1"),
        ({"nodes": 1}, "model.sampler.nodes: expected at least 2"),
        ({"spread": 0}, "model.sampler.spread: expected a positive number"),
        ({"largest_zoom": 1}, "model.sampler.largest_zoom: expected a finite number above 1"),
        ({"largest_zoom": float("inf")}, "model.sampler.largest_zoom: expected a finite number above 1"),
        ({"dilated": True, "stride": 32}, "model.sampler.stride: expected 8 or 16 of dilated stages, got 32"),
    ],
)
def test_settings_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SALIENCY, **changed)


def test_a_network_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"model\.sampler\.network: neither .* 'no_such'"):
        sampler_of(dataclasses.replace(SALIENCY, network="no_such"))


def test_attributes_have_no_details():
    with pytest.raises(ValueError, match=r"kind: expected none or saliency for attributes, got trilinear"):
        samplers.build_sampler(TRILINEAR, 5, multi_label=True, pretrained=False)
