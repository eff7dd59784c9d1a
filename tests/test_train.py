"""Training through the command line: what it writes, that it resumes exactly, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rg
from rg.config import OptimizerConfig

OPTIONS = {
    "input.short_side": 72,
    "input.crop": 64,
    "input.test_short_side": 64,
    "model.grouping.num_parts": 3,
    "model.grouping.smoothing_padding": "same",
    "train.epochs": 3,
    "train.global_batch": 8,
    "train.log_steps": 2,
}


def command(data: Path, out: Path, *more: str, **changed: object) -> list[str]:
    options = OPTIONS | {name.replace("__", "."): value for name, value in changed.items()}
    settings = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [
        sys.executable,
        "-m",
        "rg",
        "train",
        "birds_lite0",
        "--data",
        str(data),
        "--out",
        str(out),
        *settings,
        *more,
    ]


def run(*arguments: object, **changed: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments, **changed), capture_output=True, text=True, check=False, timeout=300)  # type: ignore[arg-type]


def metrics(out: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    timing = ("images_per_second", "data_wait")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]


@pytest.fixture(scope="module")
def finished(small_birds, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = run(small_birds, out)
    assert result.returncode == 0, result.stderr
    return out


def test_a_run_leaves_what_the_readme_lists(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoints",
        "classes.json",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        "tensorboard",
        "train.log",
    ]
    assert (finished / "checkpoints" / "latest").read_text() == "step-00000012"
    assert sorted(path.name for path in (finished / "checkpoints").glob("step-*")) == ["step-00000008", "step-00000012"]
    record = json.loads((finished / "run.json").read_text())
    assert record["environment"]["torch"] == torch.__version__.split("+")[0] or "torch" in record["environment"]
    assert record["data"]["options"] == {"made": "by the tests"}
    kinds = [(line["kind"], line["step"]) for line in metrics(finished)]
    assert [step for kind, step in kinds if kind == "train"] == [2, 4, 6, 8, 10, 12]
    assert [step for kind, step in kinds if kind == "validation"] == [4, 8, 12]


def test_the_model_loads_without_the_engine(finished):
    explainer = rg.load(finished)
    assert len(explainer.classes.names) == 4
    state = load_file(finished / "model.safetensors")
    for name, value in explainer.model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_bit_for_bit(small_birds, finished, tmp_path, number):
    """Killed after two epochs, or stopped by Ctrl-C in the middle of one."""
    out = tmp_path / "run"
    process = subprocess.Popen(command(small_birds, out), stderr=subprocess.PIPE, text=True)
    marker = "step 10/12" if number == signal.SIGKILL else "step 6/12"
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(marker):
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait(120) == (-number if number == signal.SIGKILL else 128 + number), rest
    if number == signal.SIGINT:
        assert "continue with --resume" in rest
        assert (out / "model.safetensors").exists()
    result = run(small_birds, out, "--resume")
    assert result.returncode == 0, result.stderr
    assert "continue at" in result.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(finished)


def test_the_same_seed_gives_the_same_bits(small_birds, finished, tmp_path):
    assert run(small_birds, tmp_path / "again").returncode == 0
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (finished / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "more,changed,message",
    [
        ((), {}, "holds a run already"),
        (("--resume",), {"loss__prior_weight": 3}, "was started with loss.prior_weight = 0.5, now it is 3.0"),
    ],
)
def test_a_run_folder_is_not_overwritten(small_birds, finished, more, changed, message):
    before = (finished / "config.json").read_bytes()
    result = run(small_birds, finished, *more, **changed)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert (finished / "config.json").read_bytes() == before


def test_a_map_smaller_than_the_smoothing_window_is_refused(small_birds, tmp_path):
    result = run(small_birds, tmp_path / "run", model__grouping__smoothing_padding="valid")
    assert result.returncode == 2
    assert "input.crop: 64 pixels make a 4x4 map, smaller than the 5x5 smoothing window" in result.stderr
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume(small_birds, tmp_path):
    result = run(small_birds, tmp_path / "nothing", "--resume")
    assert result.returncode == 2
    assert "no such run folder" in result.stderr


def test_a_config_file_is_a_run(small_birds, finished, tmp_path):
    """The config.json of a run repeats it."""
    out = tmp_path / "repeated"
    arguments = ["train", "photos_lite0", "--config", finished / "config.json", "--data", small_birds, "--out", out]
    result = subprocess.run([sys.executable, "-m", "rg", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


GATHER = """
import torch, torch.distributed as dist
from rg.engine import Engine, connect
from rg.losses import occurrence_prior_loss
ranks = connect()
engine = Engine.__new__(Engine)
engine.ranks = ranks
torch.manual_seed(0)
whole = torch.rand(8, 3, dtype=torch.float64)
weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
own = whole[ranks.rank * 4 : (ranks.rank + 1) * 4]
loss = occurrence_prior_loss(engine.gather(own * weight), 2e-3, 1e-3)
loss.backward()
dist.all_reduce(weight.grad)
weight.grad /= ranks.world_size
single = torch.ones(3, dtype=torch.float64, requires_grad=True)
expected = occurrence_prior_loss(whole * single, 2e-3, 1e-3)
expected.backward()
torch.testing.assert_close(loss, expected)
torch.testing.assert_close(weight.grad, single.grad)
assert engine.sum(torch.tensor([ranks.rank + 1.0])).item() == 3
assert engine.any(ranks.rank == 1) and not engine.any(False)
"""


def test_the_prior_of_two_ranks_is_that_of_one(tmp_path):
    """Loss and averaged gradient do not depend on how the batch is split."""
    script = tmp_path / "gather.py"
    script.write_text(GATHER)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_learning_rate_schedules():
    from rg.engine import lr_scale

    cosine = lr_scale(OptimizerConfig(warmup_epochs=1), epochs=5, steps_per_epoch=10)
    assert [cosine(step) for step in (0, 4)] == pytest.approx([1 / 11, 5 / 11])
    assert cosine(10) == 1
    assert cosine(30) == pytest.approx(0.5)
    assert cosine(50) == pytest.approx(0, abs=1e-12)
    step = lr_scale(OptimizerConfig(schedule="step", milestones=(2, 4), gamma=0.1), epochs=5, steps_per_epoch=10)
    assert [step(n) for n in (19, 20, 40)] == pytest.approx([1, 0.1, 0.01])
