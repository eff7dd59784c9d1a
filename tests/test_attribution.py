"""Attribution baselines against other computations of the same: by hand, by autograd's graph, from known parts."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rg.attribution import cam, grad_cam, guided_grad_cam, integrated_gradients
from rg.backbones import Backbone
from rg.config import BackboneConfig
from rg.plain import PlainModel

CLASSES = torch.tensor([2, 0])
METHODS = (cam, grad_cam, guided_grad_cam)


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
    model.backbone = Backbone(features, 6, 1, (0.5,) * 3, (0.5,) * 3)
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
