"""Training on a GPU: the losses of a CPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tests.test_train import metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs DeepSpeed"),
]
SETTINGS = {
    "input.short_side": 72,
    "input.crop": 64,
    "input.test_crop": 64,
    "input.decoder": "pillow",  # the same pixels on both
    "model.grouping.num_parts": 3,
    "train.epochs": 1,
    "train.global_batch": 8,
    "train.log_steps": 1,
    "optimizer.lr": 0.001,
}


def losses(data, out, surroundings, **changed):
    words = [sys.executable, "-m", "rg", "train", "birds_lite0", "--data", data, "--out", out]
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changed.items()}
    words += [word for name, value in settings.items() for word in (f"--{name}", value)]
    # Without it convolutions round their factors to ten bits.
    environment = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"} | surroundings
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return [line["loss"] for line in metrics(out) if line["kind"] == "train"]


def test_losses_are_those_of_a_cpu(small_birds, tmp_path):
    """Fused kernels beside plain PyTorch; steps hand on what float32 rounds, as in tests/test_fused_model.py."""
    gpu = losses(small_birds, tmp_path / "gpu", {})
    cpu = losses(small_birds, tmp_path / "cpu", {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4"})
    assert len(gpu) == 4
    assert gpu == pytest.approx(cpu, rel=1e-3)


def test_losses_of_replayed_steps_are_the_same(small_birds, tmp_path):
    eager, replayed = (
        losses(small_birds, tmp_path / compiler, {}, train__compile=compiler, train__accumulation=2)
        for compiler in ("no", "cuda_graphs")
    )
    assert len(eager) == 4
    assert replayed == pytest.approx(eager, rel=1e-3)
