"""What training says is what people need: no line of a library stands between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

from tests.training.test_train import command


@pytest.mark.parametrize("engine", ["deepspeed", "ddp"])
def test_training_prints_its_own_lines_alone(small_birds, tmp_path, engine):
    words = [sys.executable, "-m", "rg", *command(small_birds, tmp_path, train__epochs=1, train__engine=engine)]
    toolkit = {"CUDA_HOME": str(tmp_path)}  # one without a GPU is what PyTorch warns of
    homeless = {"HOME": "~"}  # what Python makes of a home that is nowhere
    # What DeepSpeed compiles, others have compiled.
    compiled = {"TORCH_EXTENSIONS_DIR": str(Path(_get_build_directory("any", verbose=False)).parent)}
    environment = {**compiled, **os.environ, **toolkit, **homeless}
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    first_words = [line.partition(" ")[0] for line in result.stderr.splitlines()]
    assert not Path("~").exists()
    assert first_words == ["train", "step", "step", "epoch", "trained"]
