"""Training on a GPU: the losses of a CPU, and what a checkpoint says of it."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.test_train import metrics

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs DeepSpeed")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4"}
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


@pytest.mark.gpu
@needs_a_gpu
def test_losses_are_those_of_a_cpu(small_birds, tmp_path):
    """Fused kernels beside plain PyTorch; steps hand on what float32 rounds, as in tests/test_fused_model.py."""
    gpu = losses(small_birds, tmp_path / "gpu", {})
    cpu = losses(small_birds, tmp_path / "cpu", CPU)
    assert len(gpu) == 4
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.gpu
@needs_a_gpu
def test_losses_of_replayed_steps_are_the_same(small_birds, tmp_path):
    eager, replayed = (
        losses(small_birds, tmp_path / compiler, {}, train__compile=compiler) for compiler in ("no", "cuda_graphs")
    )
    assert len(eager) == 4
    assert replayed == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize(
    "surroundings", [CPU, pytest.param({}, marks=[pytest.mark.gpu, needs_a_gpu])], ids=["cpu", "gpu"]
)
def test_a_checkpoint_has_the_statistics_of_its_model(small_birds, tmp_path, surroundings):
    """A single rank's own running means and variances are those that the model is saved with."""
    losses(small_birds, tmp_path / "run", surroundings)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    model, rank = load_file(folder / "model.safetensors"), load_file(folder / "rank-00000.safetensors")
    expected = [model[name] for name in model if name.endswith(("running_mean", "running_var"))]
    found = [rank[name] for name in rank if name.startswith("statistic-")]
    assert len(expected) > 50
    for value in expected:
        assert any(value.shape == other.shape and torch.equal(value, other) for other in found)
