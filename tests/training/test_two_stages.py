"""A run of two stages through the command line: it goes on exactly, and every verb takes it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rg
from rg.cli.main import main
from tests.training.test_train import go_on_in_mid_epoch

OWN = "second_stage.statistics.features_"
TWICE = {
    "model.grouping.background": True,
    "model.second_stage.masks": "together",
    "loss.background_weight": 0.2,
    "train.epochs": 2,
    "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 9,
}


def test_a_run_of_two_stages_goes_on_bit_for_bit_and_is_measured(small_birds, tmp_path):
    """From a checkpoint in the middle of the first epoch. Statistics of the second look are saved, too."""
    whole, resumed = go_on_in_mid_epoch(small_birds, tmp_path, TWICE)
    weights = load_file(whole / "model.safetensors")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, second = (f"{place}bn1{dot}running_mean" for place, dot in (("backbone.features.", "."), (OWN, "_")))
    assert not torch.equal(weights[first], weights[second])

    assert main(["evaluate", str(whole), "--data", str(small_birds), "--evaluation.view", "whole"]) == 0
    assert json.loads((whole / "metrics.whole.json").read_text())["decomposition_error"] < 1e-4
    assert main(["leakage", str(whole), "--data", str(small_birds), "--images", "8", "--object", "parts"]) == 0
    assert json.loads((whole / "leakage.json").read_text())["object"] == "parts"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    explanation = rg.load(whole).explain(image)
    total = sum(part.contribution for part in explanation.parts) + explanation.constant
    assert total == pytest.approx(explanation.logit, abs=1e-4)
    assert explanation.parts[-1].background
    assert explanation.parts[-1].contribution == 0
