"""Runs that start from the weights of another one."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.files import sha256
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig, SecondStageConfig
from rg.model.build import build_model
from rg.runs.folder import WEIGHTS, save_weights
from rg.training.warm_start import start_from

CONFIG = ModelConfig(
    BackboneConfig(name="test_resnet", weights="none"),
    GroupingConfig(num_parts=4, smoothing_padding="same"),
    HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Weights in a run folder, and the same in a checkpoint folder and in two files."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    save_weights(folder, build_model(CONFIG, 3))
    checkpoint = folder / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    shutil.copy(folder / WEIGHTS, checkpoint)
    torch.save({"model": load_file(folder / WEIGHTS), "epoch": 3}, folder / "weights.pth")
    return folder


@pytest.mark.parametrize("place", [".", "checkpoints/step-00000007", WEIGHTS, "weights.pth"])
def test_the_same_model_is_taken_whole(run, place):
    model = build_model(CONFIG, 3)
    record = start_from(model, run / place)
    expected = load_file(run / WEIGHTS)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert (record["taken"], record["left"]) == (len(expected), [])
    file = run / place / WEIGHTS if (run / place).is_dir() else run / place
    assert (record["file"], record["sha256"]) == (str(file.resolve()), sha256(file))


def test_layers_of_other_classes_start_anew(run, caplog):
    caplog.set_level("INFO")
    model = build_model(CONFIG, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record = start_from(model, run)
    expected = load_file(run / WEIGHTS)
    assert record["left"] == ["classifier.linear.weight", "classifier.linear.bias"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name in record["left"] else expected)[name]), name
    assert "new are classifier.linear.weight, classifier.linear.bias" in caplog.text


def test_another_backbone_is_refused(run):
    backbone = BackboneConfig(name="test_resnet", weights="none", stride=32)
    model = build_model(dataclasses.replace(CONFIG, backbone=backbone), 3)
    with pytest.raises(ValueError, match=r"^model\.init: \S+ does not fit the backbone: .*model\.backbone\.weights$"):
        start_from(model, run)
    with pytest.raises(ValueError, match=r"^model\.init: there is no file"):
        start_from(model, run / "nowhere")


def test_a_part_does_not_become_the_background(run):
    """Four parts, and three with a background slot, have dictionaries of the same shape."""
    grouping = dataclasses.replace(CONFIG.grouping, num_parts=3, background=True)
    model = build_model(dataclasses.replace(CONFIG, grouping=grouping), 3)
    before = model.dictionary.centers.clone()
    left = start_from(model, run)["left"]
    assert set(left) == {"attention_share", "dictionary.centers", "dictionary.raw_sigma", "dictionary.border"}
    assert torch.equal(model.dictionary.centers, before)


def test_a_background_slot_stays_one(tmp_path):
    grouping = dataclasses.replace(CONFIG.grouping, background=True)
    config = dataclasses.replace(CONFIG, grouping=grouping)
    trained = build_model(config, 3).train()
    trained(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    assert trained.attention_share[-1] == 0
    save_weights(tmp_path, trained)
    assert start_from(build_model(config, 3), tmp_path)["left"] == []


def test_a_second_stage_begins_with_the_statistics_of_the_backbone(run, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        grouping=dataclasses.replace(CONFIG.grouping, background=True),
        second_stage=SecondStageConfig("together"),
    )
    state = load_file(run / WEIGHTS)
    for name in [name for name in state if name.startswith("backbone.") and "running" in name]:
        state[name] = torch.rand(state[name].shape)
    save_file(state, tmp_path / "changed.safetensors")
    model = build_model(config, 3)
    start_from(model, tmp_path / "changed.safetensors")
    statistics = model.second_stage.statistics.state_dict()
    for name, value in state.items():
        if name.startswith("backbone.") and "running" in name:
            assert torch.equal(statistics[name.removeprefix("backbone.").replace(".", "_")], value)
    again = build_model(config, 3)
    with torch.no_grad():
        for value in model.second_stage.statistics.buffers():
            value.zero_()
    save_weights(tmp_path, model)
    assert start_from(again, tmp_path)["left"] == []
    assert not any(value.any() for value in again.second_stage.statistics.buffers())
