"""The model of SCOPS: its pyramid, what it says, and the network whose features are looked at."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision

from rg.config import BackboneConfig, GroupingConfig, ModelConfig, ScopsConfig
from rg.model.backbones import build_backbone, build_features, feature_channels
from rg.model.build import build_model
from rg.model.maps import part_centers
from rg.model.scops import AtrousPyramid

K = 4
CONFIG = ModelConfig(
    BackboneConfig(name="resnet50", weights="none", stride=8, dilated=True),
    GroupingConfig(num_parts=K, background=True),
    scops=ScopsConfig(features="tf_efficientnet_lite0"),
    kind="scops",
)


def normalized(images):
    """As torchvision's networks expect them, float64."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(CONFIG, 7, pretrained=False).eval()


def test_the_pyramid_is_a_sum_of_dilated_convolutions():
    torch.manual_seed(1)
    pyramid = AtrousPyramid(3, 5).double()
    x = torch.randn(2, 3, 9, 70, dtype=torch.float64)
    expected = torch.zeros(2, 5, 9, 70, dtype=torch.float64)
    for branch, dilation in zip(pyramid.branches, (6, 12, 18, 24), strict=True):
        padded = F.pad(x, (dilation,) * 4)
        for i in range(3):
            for j in range(3):
                seen = padded[:, :, i * dilation : i * dilation + 9, j * dilation : j * dilation + 70]
                expected += torch.einsum("oc,nchw->nohw", branch.weight[:, :, i, j], seen)
        expected += branch.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(pyramid(x), expected)


def test_it_says_what_a_model_with_a_background_slot_says(model, images):
    with torch.no_grad():
        output = model(images)
        logits = model.pyramid(model.features(images))
    assert output.logits.shape == (2, 0)
    assert output.assign.shape == (2, K + 1, 8, 12)
    torch.testing.assert_close(output.assign, logits.softmax(1))
    torch.testing.assert_close(output.attention, torch.tensor([[1 / K] * K + [0.0]] * 2))
    torch.testing.assert_close(output.occurrence, output.assign.flatten(2).max(2).values)
    assert model.background.tolist() == [False] * K + [True]
    assert part_centers(output.assign).shape == (2, K + 1, 2)


def test_warped_images_are_passed_like_others(model, images):
    moved = images.flip(3)
    with torch.no_grad():
        output, training = model(images, None, moved)
        torch.testing.assert_close(training.warped_logits.softmax(1), model(moved).assign)
        torch.testing.assert_close(output.assign, model(images).assign)
    assert training.basis is model.basis
    assert model.basis.shape == (K, 432)


def test_a_dilated_resnet_is_that_of_torchvision(images):
    """As DeepLab has it: the last stage at the stride of 8."""
    torch.manual_seed(0)
    network = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None).backbone
    backbone = build_backbone(CONFIG.backbone)
    backbone.features.load_state_dict(network.state_dict())
    network, backbone = network.double().eval(), backbone.double().eval()
    assert (backbone.channels, backbone.stride, backbone.coarsest) == (2048, 8, 8)
    with torch.no_grad():
        expected = network(normalized(images))["out"]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-6)


def test_vgg_gives_two_layers_of_its_last_block(tmp_path, images):
    torch.manual_seed(0)
    network = torchvision.models.vgg19(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "vgg19.pth")
    features = build_features("vgg19", str(tmp_path / "vgg19.pth"))
    assert features.channels == feature_channels("vgg19") == 1024
    x = normalized(images).float()
    convolutions, expected = 0, {}
    with torch.no_grad():
        for layer in network.features:
            x = layer(x)
            convolutions += isinstance(layer, torch.nn.Conv2d)
            if isinstance(layer, torch.nn.ReLU):
                expected[convolutions] = x.clone()
        # Blocks of 2, 2, 4, 4 and 4 convolutions: those of the fifth are 13 to 16.
        torch.testing.assert_close(features(images), torch.cat([expected[14], expected[16]], 1))
    assert not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_channels_are_known_without_weights():
    assert feature_channels("tf_efficientnet_lite0") == build_features("tf_efficientnet_lite0", "none").channels == 432


WEIGHTS = [field.name for field in dataclasses.fields(ScopsConfig) if field.name.endswith("_weight")]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_checked(name):
    with pytest.raises(ValueError, match=rf"model.scops.{name}: expected 0 or more, got -0.5"):
        ScopsConfig(**{name: -0.5})


def test_something_is_to_be_learned():
    with pytest.raises(ValueError, match=r"model.scops: expected a weight above 0"):
        ScopsConfig(**dict.fromkeys(WEIGHTS, 0.0))
