"""A whole run of captured steps, with the stand-in for CUDA graphs: what it leaves is what a launched one leaves."""

import json
import signal

import pytest

from rg.training import captured_step, train
from tests.batches.test_damage import UNDECODABLE, damaged_copy, some
from tests.support import forked
from tests.support.recorded_graph import recorded
from tests.support.strikes import strike
from tests.training.test_captured_step import TRAIN
from tests.training.test_train import command, metrics

RATES = {name: json.dumps(value) if isinstance(value, tuple) else value for name, value in TRAIN.items()}
SETTINGS = RATES | {"train.epochs": 3, "train.global_batch": 8, "input.max_damaged": 1.0, "optimizer.warmup_epochs": 0}


def as_on_a_gpu() -> None:
    captured_step.graph_of = recorded
    train.check_engine = lambda *_: None  # type: ignore[attr-defined]


def stopped_at_step_7() -> None:
    as_on_a_gpu()
    strike("rg.training.loop:Loop._inputs", 7, signal.SIGTERM)


@pytest.fixture(scope="module")
def data(small_birds, tmp_path_factory):
    """Shards with samples that turn out to be damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    return damaged_copy(small_birds, folder / "data", some(small_birds, "train"), UNDECODABLE["not an image"])


@pytest.fixture(scope="module")
def launched(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("launched") / "run"
    result = forked.run(command(data, out, **SETTINGS))
    assert result.returncode == 0, result.stderr
    assert [line for line in metrics(out) if line["kind"] == "train"][-1]["damaged"] > 0
    return out


def check_same(out, launched):
    assert (out / "model.safetensors").read_bytes() == (launched / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(launched)
    newest = sorted((launched / "checkpoints").iterdir())[-1].name
    one, other = (json.loads((run / "checkpoints" / newest / "manifest.json").read_text()) for run in (out, launched))
    assert one["loader"] == other["loader"]
    assert one["counters"]["damaged"] == other["counters"]["damaged"]
    assert one["counters"]["read"] == other["counters"]["read"]


@pytest.mark.parametrize("stopped", [False, True], ids=["whole", "stopped"])
def test_captured_runs_leave_what_launched_ones_leave(data, launched, tmp_path, stopped):
    out = tmp_path / "run"
    words = command(data, out, "--auto-resume", **SETTINGS, train__capture=True)
    if stopped:
        first = forked.run(words, before=stopped_at_step_7)
        assert first.returncode == 75, first.stderr
    result = forked.run(words, before=as_on_a_gpu)
    assert result.returncode == 0, result.stderr
    if stopped:
        assert "continue at step 7 of 12" in result.stderr
    check_same(out, launched)
