"""Training with places: told of some images at random, the same after an interruption, refused where there are none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import told_creatures
from tests.training.test_train import go_on_in_mid_epoch, run

SETTINGS = {
    "model.place.on": "true",
    "model.place.width": 16,
    "model.place.blocks": 1,
    "train.epochs": 2,
    "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 9,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told_creatures.write(tmp_path_factory.mktemp("told") / "shards", train=2, val=1)


def test_a_run_with_places_goes_on_bit_for_bit(told: Path, tmp_path: Path) -> None:
    whole, resumed = go_on_in_mid_epoch(told, tmp_path, SETTINGS)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    weights = load_file(whole / "model.safetensors")
    assert weights["place.last.weight"].abs().max() > 0  # where it began
    assert torch.isfinite(weights["place.first.weight"]).all()


def test_data_without_places_is_refused(small_birds: Path, tmp_path: Path) -> None:
    result = run(small_birds, tmp_path / "run", **SETTINGS)
    assert result.returncode == 2
    assert "model.place.on: expected false, as the shards of birds have no places, got true" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
