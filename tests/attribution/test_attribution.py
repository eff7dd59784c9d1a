"""Attribution baselines against other computations of the same: by hand, by autograd's graph, from known parts."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.maps import (
    cam,
    contribution_map,
    factor_map,
    grad_cam,
    guided_grad_cam,
    integrated_gradients,
    part_attribution,
)
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig, SamplerConfig
from rg.model.backbones import Backbone
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel
from rg.model.samplers import Sampled

CLASSES = torch.tensor([2, 0])
METHODS = (cam, grad_cam, guided_grad_cam, integrated_gradients)


def images(*size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=["resnet50", "tf_efficientnet_lite0"])
def model(request):
    torch.manual_seed(0)
    model = PlainModel(BackboneConfig(name=request.param, weights="none"), 5)
    with torch.no_grad():
        for _ in range(20):  # batch norm statistics that keep activations in range
            model(images(96, 64))
    return model.eval()


def small(first, second, classes=3):
    """Conv, activation, conv, activation, average, linear, on pixels that are normalised by (x - 127.5) / 127.5."""
    torch.manual_seed(0)
    model = PlainModel(BackboneConfig(name="resnet18", weights="none"), classes)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), first, nn.Conv2d(8, 6, 3, padding=1), second)
    model.backbone = Backbone(features, [6], 1, (0.5,) * 3, (0.5,) * 3)
    model.classifier = nn.Linear(6, classes)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter *= 8  # some activations above 6
    return model.eval()


def test_cam_averages_to_the_logit(model):
    maps = cam(model, images(96, 64), CLASSES)
    assert maps.shape == (2, 3, 2)
    assert maps.dtype == torch.float32
    with torch.no_grad():
        logits = model(images(96, 64)).logits[[0, 1], CLASSES]
    torch.testing.assert_close(maps.mean((1, 2)) + model.classifier.bias[CLASSES], logits, rtol=1e-4, atol=1e-5)


def test_grad_cam_is_the_positive_part_of_cam(model):
    expected = cam(model, images(96, 64), CLASSES).clamp(min=0) / 6
    assert (expected > 0).any()
    assert (expected == 0).any()
    torch.testing.assert_close(grad_cam(model, images(96, 64), CLASSES), expected, rtol=1e-4, atol=1e-6)


def graph(node, found):
    """All nodes of autograd's graph."""
    if node is not None and node not in found:
        found.add(node)
        for following, _ in node.next_functions:
            graph(following, found)
    return found


def gradients(model, pixels, guided):
    """Gradient of the logits to the pixels; guided at the nodes of the graph that are a ReLU or ReLU6."""
    sys.setrecursionlimit(10_000)
    pixels = pixels.float().requires_grad_()
    total = model(pixels).logits[[0, 1], CLASSES].sum()
    nodes = [node for node in graph(total.grad_fn, set()) if node.name() in ("ReluBackward0", "HardtanhBackward0")]
    assert len(nodes) > 1
    if guided:
        for node in nodes:
            node.register_hook(lambda inner, _: (inner[0].clamp(min=0),))
    return torch.autograd.grad(total, pixels)[0]


def test_guided_grad_cam_is_guided_at_every_relu_of_the_graph(model):
    """ResNets run one in-place ReLU three times in a block; EfficientNet-Lite0 has ReLU6 instead."""
    weights = F.interpolate(grad_cam(model, images(96, 64), CLASSES)[:, None], (96, 64), mode="bilinear")
    expected = gradients(model, images(96, 64), guided=True).abs().amax(1) * weights[:, 0]
    unguided = gradients(model, images(96, 64), guided=False).abs().amax(1) * weights[:, 0]
    scale = expected.max()
    maps = guided_grad_cam(model, images(96, 64), CLASSES)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps / scale, expected / scale, rtol=1e-4, atol=1e-5)
    assert (unguided - expected).abs().max() > 0.1 * scale


def by_hand(model, pixels, ceiling):
    """Guided Grad-CAM of the small network, its backward pass written out."""
    first, _, second, _ = model.backbone.features
    inner = first((pixels.float() - 127.5) / 127.5)
    outer = second(inner.clamp(0, ceiling))
    weights = model.classifier.weight[CLASSES][:, :, None, None] / outer[0, 0].numel()
    activation = (weights * outer.clamp(0, ceiling)).sum(1).clamp(min=0)
    back = weights.clamp(min=0) * ((outer > 0) & (outer < ceiling))
    back = F.conv_transpose2d(back, second.weight, padding=1)
    back = back.clamp(min=0) * ((inner > 0) & (inner < ceiling))
    back = F.conv_transpose2d(back, first.weight, padding=1) / 127.5
    return activation * back.abs().amax(1)


SHARED = nn.ReLU(inplace=True)
SHARED6 = nn.ReLU6(inplace=True)


@pytest.mark.parametrize(
    "first,second,ceiling",
    [
        (nn.ReLU(), nn.ReLU(), float("inf")),
        (SHARED, SHARED, float("inf")),
        (nn.ReLU6(), nn.ReLU6(), 6),
        (SHARED6, SHARED6, 6),
    ],
)
def test_guided_grad_cam_is_the_backward_pass_by_hand(first, second, ceiling):
    model = small(first, second)
    with torch.no_grad():
        expected = by_hand(model, images(8, 12), ceiling)
        above = model.backbone.features[0](images(8, 12) / 127.5 - 1) > 6
    assert above.any()
    assert expected.max() > 0
    torch.testing.assert_close(guided_grad_cam(model, images(8, 12), CLASSES), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_explained_the_same_alone(method):
    model = small(nn.ReLU(), nn.ReLU())
    together = method(model, images(8, 12), CLASSES)
    for n in range(2):
        alone = method(model, images(8, 12)[n : n + 1], CLASSES[n : n + 1])
        torch.testing.assert_close(alone[0], together[n])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("error")
def test_nothing_is_left_behind(method):
    model = small(SHARED6, SHARED6)
    before, pixels = copy.deepcopy(model.state_dict()), images(8, 12).float()
    kept = pixels.clone()
    method(model, pixels, CLASSES)
    assert torch.equal(pixels, kept)
    assert not pixels.requires_grad
    assert model.backbone.features[1] is SHARED6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_guided_grad_cam_keeps_the_grid_of_a_sampler():
    """The same as behind a sampler that looks nowhere: one whose grid is given."""
    torch.manual_seed(0)
    sampler = SamplerConfig("saliency", size=32, network="resnet18", weights="none", glimpse=32)
    model = PlainModel(BackboneConfig(name="resnet18", weights="none"), 3, sampler_config=sampler).eval()
    with torch.no_grad():
        model.sampler.saliency.weight.normal_(std=0.5)
        nodes = model.sampler(images(64, 64)).nodes
    found = guided_grad_cam(model, images(64, 64), CLASSES)
    pixels = images(64, 64).float().requires_grad_()
    assert torch.autograd.grad(model.sampler(pixels).nodes.square().sum(), pixels)[0].abs().max() > 0
    fixed = copy.deepcopy(model)
    fixed.sampler.forward = lambda images, seeds=None: Sampled(model.sampler.sample(images, nodes, seeds), nodes)
    expected = guided_grad_cam(fixed, images(64, 64), CLASSES)
    torch.testing.assert_close(found, expected)
    assert found.max() > 0


@pytest.mark.parametrize("activation,name", [(nn.SiLU(), "SiLU"), (nn.GELU(), "GELU"), (nn.Identity(), "none")])
def test_guided_backpropagation_through_other_activations_is_refused(activation, name):
    model = small(nn.ReLU() if name != "none" else activation, activation)
    with pytest.raises(ValueError, match=rf"^model: .*ReLU6 modules, got {name}$"):
        guided_grad_cam(model, images(8, 12), CLASSES)
    assert grad_cam(model, images(8, 12), CLASSES).shape == (2, 8, 12)


def test_activations_of_timm_are_refused_too():
    model = PlainModel(BackboneConfig(name="efficientnet_b0", weights="none"), 3).eval()
    with pytest.raises(ValueError, match=r"got SiLU, Sigmoid$"):
        guided_grad_cam(model, images(64, 64), CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments_are_refused(method):
    model = small(nn.ReLU(), nn.ReLU())
    for classes in (torch.tensor([1]), torch.tensor([[1, 0]]), torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"^classes: expected int64 \[2\]"):
            method(model, images(8, 8), classes)
    for classes in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"^classes: expected 0 to 2, got"):
            method(model, images(8, 8), classes)
    with pytest.raises(ValueError, match=r"^model: expected evaluation mode"):
        method(model.train(), images(8, 8), CLASSES)


def test_cam_and_grad_cam_need_no_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = small(nn.ReLU(), nn.ReLU())
    for method in (cam, grad_cam):
        assert method(model, images(8, 8), CLASSES).shape == (2, 8, 8)
    for method in (guided_grad_cam, integrated_gradients):
        with pytest.raises(ValueError, match=r"region-grouping\[baselines\]"):
            method(model, images(8, 8), CLASSES)


@pytest.fixture(scope="module", params=[False, True], ids=["classes", "attributes"])
def grouping(request):
    """Region grouping on EfficientNet-Lite0, whose backbone has ReLU6 alone and whose head has ReLU alone."""
    torch.manual_seed(0)
    config = ModelConfig(
        BackboneConfig(name="tf_efficientnet_lite0", weights="none"),
        GroupingConfig(num_parts=4, standardize=True, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=2, attention_width=16),
    )
    model = RegionGroupingModel(config, 5, request.param)
    with torch.no_grad():
        for _ in range(20):
            model(images(96, 64))
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # the last ones of residual blocks start at 0
    return model.eval()


def test_a_model_is_its_features_and_what_it_says_of_them(grouping):
    for model in (grouping, small(nn.ReLU(), nn.ReLU())):
        with torch.no_grad():
            x = model.features(images(96, 64))
            assert torch.equal(model.describe(x).logits, model(images(96, 64)).logits)


def test_a_contribution_map_adds_up_to_the_logit(grouping):
    with torch.no_grad():
        output = grouping(images(96, 64))
        _, constant = grouping.contributions(output, CLASSES[:, None])
    maps = contribution_map(grouping, images(96, 64), CLASSES)
    assert maps.shape == output.assign[:, 0].shape
    expected = output.logits[[0, 1], CLASSES] - constant[:, 0]
    torch.testing.assert_close(maps.sum((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_a_contribution_map_lays_every_part_out_over_its_positions(grouping):
    """The map of a position is what would be left of the sum if every part were cut to that position's share."""
    with torch.no_grad():
        output = grouping(images(96, 64))
        contributions, _ = grouping.contributions(output, CLASSES[:, None])
    maps = contribution_map(grouping, images(96, 64), CLASSES)
    for n in range(2):
        expected = sum(contributions[n, 0, k] * output.assign[n, k] / output.assign[n, k].sum() for k in range(4))
        torch.testing.assert_close(maps[n], expected, rtol=1e-4, atol=1e-6)


def test_the_attribution_is_the_expected_attention_of_the_class(grouping):
    with torch.no_grad():
        output = grouping(images(96, 64))
    maps = part_attribution(grouping, images(96, 64), CLASSES)
    for n, c in enumerate(CLASSES):
        attention = output.attention[n, c] if grouping.multi_label else output.attention[n]
        torch.testing.assert_close(maps[n], torch.tensordot(attention, output.assign[n], 1))


def test_grad_cam_is_that_of_captum(grouping):
    method = LayerGradCam(lambda pixels: grouping(pixels).logits, grouping.standardization)
    pixels = images(96, 64).float().requires_grad_()
    expected = method.attribute(pixels, CLASSES, relu_attributions=True)[:, 0].detach()
    assert (expected > 0).any()
    torch.testing.assert_close(grad_cam(grouping, images(96, 64), CLASSES), expected, rtol=1e-4, atol=1e-7)


def test_only_the_backbone_of_region_grouping_is_guided(grouping):
    """In autograd's graph the ReLU6 of the backbone are Hardtanh, and the ReLU of the head are ReLU."""
    sys.setrecursionlimit(10_000)
    pixels = images(96, 64).float().requires_grad_()
    total = grouping(pixels).logits[[0, 1], CLASSES].sum()
    names = [node.name() for node in graph(total.grad_fn, set())]
    assert {"HardtanhBackward0", "ReluBackward0"} <= set(names)
    for node in graph(total.grad_fn, set()):
        if node.name() == "HardtanhBackward0":
            node.register_hook(lambda inner, _: (inner[0].clamp(min=0),))
    gradient = torch.autograd.grad(total, pixels)[0]
    weights = F.interpolate(grad_cam(grouping, images(96, 64), CLASSES)[:, None], (96, 64), mode="bilinear")
    expected = gradient.abs().amax(1) * weights[:, 0]
    scale = expected.max()
    assert scale > 0
    maps = guided_grad_cam(grouping, images(96, 64), CLASSES)
    torch.testing.assert_close(maps / scale, expected / scale, rtol=1e-3, atol=1e-5)


def test_integrated_gradients_of_a_linear_network_are_its_terms():
    """With one step as with many; from grey, which the network sees as 0."""
    model = small(nn.Identity(), nn.Identity())
    grey = 127.5
    with torch.no_grad():
        unit = torch.zeros(3 * 4 * 5, 3, 4, 5, dtype=torch.float64)
        unit.view(60, 60).fill_diagonal_(1)
        precise = copy.deepcopy(model).double()  # what one grey level adds to a logit is lost in float32
        slopes = precise(grey + unit).logits - precise(torch.full_like(unit[:1], grey)).logits
    expected = ((images(4, 5).double() - grey).flatten(1) * slopes[:, CLASSES].T).view(2, 3, 4, 5).sum(1)
    for steps in (1, 7):
        maps = integrated_gradients(model, images(4, 5), CLASSES, steps)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-5)


def test_integrated_gradients_add_up_to_what_the_logit_gained():
    model = small(nn.Softplus(), nn.Softplus())  # smooth, so that a few steps do
    with torch.no_grad():
        gained = model(images(8, 12)).logits - model(torch.full((1, 3, 8, 12), 127.5)).logits
    maps = integrated_gradients(model, images(8, 12), CLASSES, 40)
    torch.testing.assert_close(maps.sum((1, 2)), gained[[0, 1], CLASSES], rtol=1e-3, atol=1e-4)


def test_integrated_gradients_of_region_grouping_do_not_depend_on_the_batch(grouping):
    exact = copy.deepcopy(grouping).double()  # so that no ReLU opens or closes by rounding
    together = integrated_gradients(exact, images(96, 64), CLASSES, 3)
    alone = integrated_gradients(exact, images(96, 64)[1:], CLASSES[1:], 3)
    torch.testing.assert_close(alone[0], together[1])


def test_factors_that_make_up_the_whole_map_share_out_the_logit():
    """As many factors as channels make up any map; what a class gains from all of them is the logit but for its bias,
    if it gains from each."""
    model = small(nn.ReLU(), nn.ReLU())
    with torch.no_grad():
        model.classifier.weight.abs_()
        features = model.features(images(8, 12))
        logits = model(images(8, 12)).logits[[0, 1], CLASSES]
    factors = DeepFeatureFactorization(6, 0).fit(features.numpy())
    maps = factor_map(model, images(8, 12), CLASSES, factors)
    torch.testing.assert_close(maps.sum((1, 2)), logits - model.classifier.bias[CLASSES], rtol=0.02, atol=1e-3)
    torch.testing.assert_close(maps, cam(model, images(8, 12), CLASSES) / 96, rtol=0.5, atol=0.05 * maps.max().item())


def test_factors_that_speak_against_a_class_are_left_out():
    model = small(nn.ReLU(), nn.ReLU())
    with torch.no_grad():
        model.classifier.weight.abs_().neg_()
        features = model.features(images(8, 12))
    factors = DeepFeatureFactorization(3, 0).fit(features.numpy())
    assert not factor_map(model, images(8, 12), CLASSES, factors).any()


@pytest.mark.parametrize(
    "method", [part_attribution, contribution_map, grad_cam, guided_grad_cam, integrated_gradients]
)
def test_region_grouping_refuses_bad_arguments_too(grouping, method):
    with pytest.raises(ValueError, match=r"^classes: expected 0 to 4, got"):
        method(grouping, images(96, 64), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"^model: expected evaluation mode"):
        method(copy.deepcopy(grouping).train(), images(96, 64), CLASSES)
