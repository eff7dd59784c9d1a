"""Training on a GPU: the losses of a CPU, and what a checkpoint says of it."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rg.runs.folder import load_model
from tests.training.test_train import metrics

needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs DeepSpeed")
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
    assert "skipping cudagraphs" not in result.stderr
    return [line["loss"] for line in metrics(out) if line["kind"] == "train"]


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("engine", [pytest.param("deepspeed", marks=needs_deepspeed), "ddp"])
def test_losses_are_those_of_a_cpu(small_birds, tmp_path, engine):
    """Fused kernels beside plain PyTorch; steps hand on what float32 rounds, as in tests/model/test_fused_model.py."""
    gpu = losses(small_birds, tmp_path / "gpu", {}, train__engine=engine)
    cpu = losses(small_birds, tmp_path / "cpu", CPU, train__engine=engine)
    assert len(gpu) == 4
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.gpu
@needs_a_gpu
def test_losses_of_captured_steps_are_the_same(small_birds, tmp_path):
    """Three of eight steps are launched, the fourth is captured, and from then on all are replayed."""
    launched, captured = (
        losses(small_birds, tmp_path / str(capture), {}, train__engine="ddp", train__capture=capture, train__epochs=2)
        for capture in (False, True)
    )
    assert len(launched) == 8
    assert captured == pytest.approx(launched, rel=1e-3)


@pytest.mark.gpu
@needs_a_gpu
@needs_deepspeed
def test_losses_of_replayed_steps_are_the_same(small_birds, tmp_path):
    """The first step of a graph warms up and the second is captured; from the third on they are replayed."""
    eager, replayed = (
        losses(small_birds, tmp_path / compiler, {"TORCH_LOGS": "perf_hints"}, train__compile=compiler, train__epochs=2)
        for compiler in ("no", "cuda_graphs")
    )
    assert len(eager) == 8
    assert replayed == pytest.approx(eager, rel=1e-3)


@needs_deepspeed
@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=[pytest.mark.gpu, needs_a_gpu])])
def test_a_checkpoint_has_the_statistics_of_its_model(small_birds, tmp_path, device):
    """Those of a single rank are those that the model is saved with, in its order; on a GPU the model has moved."""
    losses(small_birds, tmp_path / "run", CPU if device == "cpu" else {})
    model, *_ = load_model(tmp_path / "run")
    rank = load_file(next((tmp_path / "run" / "checkpoints").iterdir()) / "rank-00000.safetensors")
    expected = [value for value in model.buffers() if value.is_floating_point()]
    found = [rank[name] for name in sorted(rank) if name.startswith("statistic-")]
    assert len(expected) > 50
    assert all(map(torch.equal, expected, found))
    assert len(found) == len(expected)
