"""What training says is what people need: no line of a library stands between."""

import os
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "input.short_side": 72,
    "input.crop": 64,
    "input.test_short_side": 64,
    "input.test_crop": 64,
    "model.grouping.num_parts": 3,
    "model.grouping.smoothing_padding": "same",
    "train.epochs": 1,
    "train.global_batch": 8,
    "train.log_steps": 2,
}


def test_training_prints_its_own_lines_alone(small_birds, tmp_path):
    command = [sys.executable, "-m", "rg", "train", "birds_lite0", "--data", str(small_birds), "--out", str(tmp_path)]
    command += [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    toolkit = {"CUDA_HOME": str(tmp_path)}  # one without a GPU is what PyTorch warns of
    homeless = {"HOME": "~"}  # what Python makes of a home that is nowhere
    result = subprocess.run(
        command, env=os.environ | toolkit | homeless, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    first_words = [line.partition(" ")[0] for line in result.stderr.splitlines()]
    assert not Path("~").exists()
    assert first_words == ["train", "step", "step", "epoch", "trained"]
