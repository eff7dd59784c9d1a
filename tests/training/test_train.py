"""Training through the command line: what it writes, that it resumes exactly, and what it refuses."""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.locks import locked
from pipelines.shards import writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.samples import Sample
from rg import recipes
from rg.config import OptimizerConfig, RunConfig
from rg.distributed.group import Group, PeerLostError
from rg.distributed.heartbeat import Heartbeat
from rg.distributed.ranks import Ranks
from rg.evaluation.evaluate import evaluate
from rg.runs.folder import load_model
from rg.training.objective import OF_STREAMS, OPTIONAL
from rg.training.train import _starts_with_statistics_of_batches
from tests.support import forked
from tests.support.ports import free_port
from tests.support.strikes import strike

OPTIONS = {
    "input.short_side": 72,
    "input.crop": 64,
    "input.test_short_side": 64,
    "input.test_crop": 64,
    "model.grouping.num_parts": 3,
    "model.grouping.smoothing_padding": "same",
    "train.epochs": 3,
    "train.global_batch": 8,
    "train.log_steps": 2,
}


def command(data: Path, out: Path, *more: str, **changed: object) -> list[str]:
    """Arguments of ``python -m rg``."""
    options = OPTIONS | {name.replace("__", "."): value for name, value in changed.items()}
    settings = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["train", "birds_lite0", "--data", str(data), "--out", str(out), *settings, *more]


def run(*arguments: object, **changed: object) -> subprocess.CompletedProcess:
    return forked.run(command(*arguments, **changed))  # type: ignore[arg-type]


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
    kept = sorted((finished / "checkpoints").iterdir())
    best = max((line["accuracy"], line["step"]) for line in metrics(finished) if line["kind"] == "validation")[1]
    assert {path.name for path in kept} == {f"step-{step:08d}" for step in (8, 12, best)}
    assert sorted(path.name for path in kept[-1].iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "momentum.safetensors",
        "rank-00000.safetensors",
    ]
    assert (kept[-1] / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    record = json.loads((finished / "run.json").read_text())
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    assert record["command"].startswith("python -m rg train birds_lite0 --data ")
    assert record["data"]["options"] == {"made": "by the tests"}
    kinds = [(line["kind"], line["step"]) for line in metrics(finished)]
    assert [step for kind, step in kinds if kind == "train"] == [2, 4, 6, 8, 10, 12]
    assert [step for kind, step in kinds if kind == "validation"] == [4, 8, 12]


WITHOUT = """
import sys
for name in ("nvidia.dali", "deepspeed", "tensorboard"):
    sys.modules[name] = None
import rg
from PIL import Image
explanation = rg.load(sys.argv[1]).explain(Image.new("RGB", (90, 70), "teal"))
total = sum(part.contribution for part in explanation.parts) + explanation.constant
assert abs(total - explanation.logit) < 1e-4 and explanation.attribution.shape == (70, 90)
"""


def test_a_run_says_what_it_is_about_to_do(finished):
    first = (finished / "train.log").read_text().splitlines()[0]
    assert re.search(r"train 12 steps \(3 epochs of 4\) on (cpu|cuda:0), global batch 8 over 1 rank$", first)


def test_the_model_explains_without_dali_and_deepspeed(finished):
    result = subprocess.run([sys.executable, "-c", WITHOUT, finished], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def without_deepspeed() -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == "deepspeed" or name.endswith("deepspeed_driver")
    ]:
        del sys.modules[name]
    sys.modules["deepspeed"] = None  # type: ignore[assignment]


def test_a_run_begun_with_deepspeed_goes_on_without_it(small_birds, finished, tmp_path):
    """Bit for bit, as its gradients are not clipped."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    words = command(small_birds, out, "--resume")
    refused = forked.run(words, before=without_deepspeed)
    assert refused.returncode == 2
    advice = "pip install 'region-grouping[train]' on Linux, or take ddp"
    assert refused.stderr == f"rg: error: train.engine: DeepSpeed is not installed; {advice}\n"
    result = forked.run([*words, "--train.engine", "ddp"], before=without_deepspeed)
    assert result.returncode == 0, result.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(finished)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGUSR1])
def test_an_interrupted_run_goes_on_bit_for_bit(small_birds, finished, tmp_path, number):
    """Killed after two epochs, or stopped by a signal in the middle of one."""
    out = tmp_path / "run"
    step = 11 if number == signal.SIGKILL else 7
    result = forked.run(
        command(small_birds, out), before=partial(strike, "rg.training.loop:Loop._inputs", step, number)
    )
    assert result.returncode == (-number if number == signal.SIGKILL else 75), result.stderr
    if number != signal.SIGKILL:
        assert f"stopped by {number.name} at step {step} of 12" in result.stderr
        assert (out / "model.safetensors").exists()
    result = run(small_birds, out, "--auto-resume", train__peer_timeout=99)
    assert result.returncode == 0, result.stderr
    assert re.search(r"continue at step \d+ of 12 \(3 epochs of 4\) on ", result.stderr)
    record = json.loads((out / "run.json").read_text())
    (session,) = record["resumed"]
    # Checkpoints are written in the background: that of step 8 need not be whole when the run is killed.
    assert session["step"] in ((4, 8) if number == signal.SIGKILL else (step,))
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(finished)


def test_the_same_seed_gives_the_same_bits(small_birds, finished, tmp_path):
    assert run(small_birds, tmp_path / "again").returncode == 0
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (finished / "model.safetensors").read_bytes()


EVERYTHING = {
    "optimizer.kind": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.depth_decay": 0.9,
    "optimizer.rates": '{"*.bias": 0.5}',
    "loss.label_smoothing": 0.1,
    "train.ema": 0.9,
    "train.balance": 0.5,
    "input.mixup": 0.4,
    "input.cutmix": 1.0,
    "model.backbone.fused_strides": "[32]",
    "model.grouping.background": True,
    "model.grouping.centered": True,
    "model.grouping.gumbel": True,
    "model.head.part_dropout": 0.3,
    "loss.prior_queue": 20,
    **{f"loss.{name}_weight": 0.1 for name in OPTIONAL},
    "train.epochs": 2,
    "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 9,
}


def go_on_in_mid_epoch(data: Path, folder: Path, settings: dict[str, object]) -> tuple[Path, Path]:
    """A run of 8 steps, and one that went on from the third; their records are the same."""
    whole, resumed = folder / "whole", folder / "resumed"
    assert run(data, whole, **settings).returncode == 0
    shutil.copytree(whole, resumed)
    for step in (4, 6, 8):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    result = run(data, resumed, "--resume", **settings)
    assert "continue at step 3 of 8" in result.stderr
    assert metrics(resumed) == metrics(whole)
    return whole, resumed


def test_a_run_with_every_option_of_training_goes_on_bit_for_bit(small_birds, tmp_path):
    """From a checkpoint in the middle of an epoch; what is saved is the moving average of what is trained."""
    whole, resumed = go_on_in_mid_epoch(small_birds, tmp_path, EVERYTHING)
    for name in ("model", "trained", "momentum", "queue"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    last = whole / "checkpoints" / "step-00000008"
    assert (whole / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    trained = load_file(last / "trained.safetensors")
    assert not torch.equal(trained["dictionary.centers"], load_file(whole / "model.safetensors")["dictionary.centers"])


SAMPLED = {
    "input.short_side": 104,
    "input.crop": 96,
    "input.test_short_side": 0,
    "input.test_crop": 0,
    "model.sampler.size": 64,
    "model.sampler.glimpse": 64,
    "model.sampler.oversampling": 2,
    "model.sampler.network": "tf_efficientnet_lite0",
    "train.epochs": 2,
    "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 9,
}
TEACHING = {"model.sampler.kind": "trilinear", **{f"loss.{name}_weight": 0.5 for name in OF_STREAMS}}
SHRINKING = {"model.sampler.kind": "saliency", "model.sampler.shrink_epochs": 1, "optimizer.restarts": "[1]"}


@pytest.mark.parametrize("kind", ["region_grouping", "plain"])
@pytest.mark.parametrize("sampler", [SHRINKING, TEACHING])
def test_a_run_behind_a_sampler_goes_on_bit_for_bit_and_is_evaluated(small_birds, tmp_path, sampler, kind):
    """From a checkpoint in the middle of the first epoch, in which SSN shrinks."""
    whole, resumed = go_on_in_mid_epoch(small_birds, tmp_path, SAMPLED | sampler | {"model.kind": kind})
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    train = [line for line in metrics(whole) if line["kind"] == "train"]
    names = {f"{name}_loss" for name in OF_STREAMS} if sampler is TEACHING else set()
    assert all(names == {f"{name}_loss" for name in OF_STREAMS} & {*line} for line in train)
    evaluate(whole, small_birds, device="cpu")
    measured = json.loads((whole / "metrics.json").read_text())
    error = measured["landmark_error" if kind == "region_grouping" else "dff_landmark_error"]
    assert 0 < error < 1


def test_more_epochs_go_on_after_the_end(small_birds, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    result = run(small_birds, out, "--resume", train__epochs=4)
    assert result.returncode == 0, result.stderr
    assert "train.epochs: 3 before, now 4; the learning rate goes on along the schedule of 4" in result.stderr
    assert "continue at step 12 of 16" in result.stderr
    assert json.loads((out / "config.json").read_text())["train"]["epochs"] == 4
    assert metrics(out)[: len(metrics(finished))] == metrics(finished)


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


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"classes": ("wren", "robin", "jay", "owl")}, "got 4 classes, but number "),
        ({"classes": ("wren", "robin"), "super_categories": ()}, "got 2 classes\n"),
        ({"multi_label": True}, "got 4 attributes\n"),
    ],
)
def test_a_run_does_not_go_on_with_other_classes(small_birds, finished, tmp_path, changed, message):
    data = shutil.copytree(small_birds, tmp_path / "data")
    dataclasses.replace(Manifest.load(data), **changed).save(data)
    result = run(data, finished, "--resume")
    assert result.returncode == 2
    assert f"--data: expected the 4 classes of {finished}, {message}" in result.stderr


def test_a_run_without_its_checkpoints_is_not_overwritten(small_birds, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    result = run(small_birds, out)
    assert result.returncode == 2
    assert "holds a run already (model.safetensors)" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_what_cannot_be_validated_is_found_before_training(small_birds, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_birds, data)
    with (data / "val-00000.tar").open("r+b") as file:
        file.truncate(5000)
    result = run(data, tmp_path / "run")
    assert result.returncode == 2
    assert "val-00000.tar: expected" in result.stderr
    assert not (tmp_path / "run").exists()


SEEN_AT_48 = {
    "model__backbone__weights": "none",
    "model__sampler__kind": "saliency",
    "model__sampler__network": "test_resnet",
    "model__sampler__weights": "none",
    "model__sampler__size": 48,
    "model__sampler__glimpse": 48,
}
TEST_AT_256 = {
    "input__short_side": 224,
    "input__crop": 224,
    "input__test_short_side": 256,
    "input__test_crop": 256,
}


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"input__decoder": "mixed"}, "input.decoder: mixed needs a GPU"),
        ({"train__global_batch": 2, "train__accumulation": 2}, "leave 1 for each of 1 ranks x 2 micro batches"),
        (
            {"model__backbone__name": "mixer_s16_224", "model__backbone__weights": "none"},
            "); take 224, which it was trained on",
        ),
        (
            TEST_AT_256 | {"model__backbone__name": "mixer_s16_224", "model__backbone__weights": "none"},
            "input.test_crop: mixer_s16_224 takes no 256x256",
        ),
        (
            {"model__grouping__smoothing_padding": "valid"},
            "input.crop: 64 pixels make a 4x4 map, smaller than the 5x5 smoothing window",
        ),
        (
            {"model__grouping__smoothing_padding": "valid", "input__short_side": 96, "input__crop": 96}
            | {"input__test_crop": 48},
            "input.test_crop: 48 pixels make a 3x3 map, smaller than the 5x5 smoothing window",
        ),
        (
            {"loss__equivariance_weight": 1, "loss__equivariance_share": 0.1},
            "loss.equivariance_share: expected at least one image of every rank, got 0.1 of 8 images",
        ),
        (
            {"loss__presence_weight": 1, "loss__presence_margin": 1},
            "input.crop: 64 pixels make a 4x4 map, and loss.presence_weight needs one of at least 5x5",
        ),
        (
            {"loss__background_weight": 1, "model__grouping__background": True, "input__crop": 32},
            "input.crop: 32 pixels make a 2x2 map, and loss.background_weight needs one of at least 3x3",
        ),
        (
            SEEN_AT_48 | {"model__grouping__smoothing_padding": "valid"},
            "model.sampler.size: 48 pixels make a 3x3 map, smaller than the 5x5 smoothing window",
        ),
        (
            SEEN_AT_48 | {"model__backbone__name": "mixer_s16_224"},
            "model.sampler.size: mixer_s16_224 takes no 48x48",
        ),
        (
            SEEN_AT_48 | {"model__sampler__network": "mixer_s16_224"},
            "model.sampler.glimpse: mixer_s16_224 takes no 48x48 images",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_written(small_birds, tmp_path, changed, message):
    if "input__decoder" in changed and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run(small_birds, tmp_path / "run", **changed)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def test_a_folder_that_another_process_writes_is_refused_on_all_ranks(small_birds, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [place | {"RANK": rank, "LOCAL_RANK": rank, "GLOO_SOCKET_IFNAME": "lo"} for rank in ("0", "1")]
    with locked(out):
        programs = [
            forked.Program(command(small_birds, out), tmp_path / rank["RANK"], before=set_variables, arguments=[rank])
            for rank in ranks
        ]
        assert [program.wait() for program in programs] == [2, 2]
        assert list(out.iterdir()) == [out / ".lock"]
    owner = f"process {os.getpid()} on {socket.gethostname()}, since "
    assert f"{out}: another process is writing into this folder ({owner}" in programs[0].output
    assert not programs[1].output  # one line, not one of every rank


def limit_files() -> None:
    """A limit on the size of files stands for a disk that is full when the checkpoint is written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


def test_a_full_disk_is_one_line_and_leaves_no_half_checkpoint(small_birds, tmp_path):
    result = forked.run(command(small_birds, tmp_path / "run", train__epochs=1), before=limit_files)
    assert result.returncode == 2
    assert "the last checkpoint cannot be written, is the disk full?" in result.stderr
    assert "Traceback" not in result.stderr
    assert "step 4: the checkpoint cannot be written" in result.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    # Nothing was finished there, so the folder may be used again.
    assert run(small_birds, tmp_path / "run", train__epochs=1).returncode == 0


def test_resuming_mends_the_weights_and_keeps_the_record(small_birds, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "model.safetensors").unlink()
    assert run(small_birds, out, "--resume").returncode == 0
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (finished, out))
    (session,) = after.pop("resumed")
    assert after == before
    assert session["step"] == 12
    assert "--resume" in session["command"]


def damage(checkpoint: Path) -> None:
    with (checkpoint / "momentum.safetensors").open("r+b") as file:
        file.truncate(5000)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(small_birds, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out / "checkpoints" / "step-00000012")
    result = run(small_birds, out, "--resume")
    assert result.returncode == 0, result.stderr
    assert "step-00000012 is damaged (momentum.safetensors has 5000 bytes instead of" in result.stderr
    assert "continuing from step-00000008 instead" in result.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(finished)


def test_damaged_checkpoints_are_one_line(small_birds, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out / "checkpoints" / "step-00000012")
    for checkpoint in set((out / "checkpoints").iterdir()) - {out / "checkpoints" / "step-00000012"}:
        (checkpoint / "rank-00000.safetensors").unlink()
    result = run(small_birds, out, "--resume")
    assert result.returncode == 2
    error = next(line for line in result.stderr.splitlines() if line.startswith("rg: error: "))
    assert "step-00000012 is damaged (momentum.safetensors has 5000 bytes" in error
    assert "step-00000008 is damaged (rank-00000.safetensors is missing" in error
    assert "Traceback" not in result.stderr


CLOCK = """
import sys
from types import SimpleNamespace
import rg.training.batch_reader, rg.training.history
now = 0.0
def taking(seconds, function):
    def timed(*arguments, **options):
        global now
        now += seconds
        return function(*arguments, **options)
    return timed
rg.training.history.time = rg.training.batch_reader.time = SimpleNamespace(perf_counter=lambda: now)
from rg.training.loop import Loop
Loop._train_step = taking(2, Loop._train_step)
Loop._validate, Loop._save = taking(1000, Loop._validate), taking(1000, Loop._save)
from rg.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_rate_is_that_of_training_alone(small_birds, tmp_path):
    """By a clock that counts 2 s a step and 1000 s a validation or checkpoint: 8 images in 2 s are 4 a second."""
    arguments = command(small_birds, tmp_path / "run", train__epochs=2)
    result = subprocess.run([sys.executable, "-c", CLOCK, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in lines if line["kind"] == "train"] == [4] * 4


LATE = """
import atexit, os, signal, sys
from rg.distributed.heartbeat import Heartbeat
def late(self, stop=Heartbeat.stop):
    os.kill(os.getpid(), signal.SIGTERM)
    stop(self)
Heartbeat.stop = late
atexit.register(os.kill, os.getpid(), signal.SIGUSR1)
from rg.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_that_comes_late_changes_nothing(small_birds, tmp_path):
    """To a rank that has come to its end, or stopped because another one had received its signal earlier."""
    arguments = command(small_birds, tmp_path / "run", train__epochs=1)
    result = subprocess.run([sys.executable, "-c", LATE, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "SIGTERM" in result.stderr
    assert "train 4 steps (1 epoch of 4) on " in result.stderr


@pytest.mark.parametrize(
    "error,expected",
    [
        (PeerLostError("Connection closed by peer"), ["cut off", "Connection closed by peer"]),
        (RuntimeError("the connection to the database was closed"), ["the connection to the database was closed"]),
        (RuntimeError("gloo: broken"), ["gloo: broken"]),
        (ConnectionError("Connection reset by peer"), ["Connection reset by peer"]),
    ],
)
def test_only_a_lost_rank_is_waited_for(monkeypatch, tmp_path, error, expected):
    """The heartbeat judges what happened; any other error is this rank's own, and ends the others at once."""
    from rg.training.train import train

    def fail(*_: object) -> None:
        raise error

    calls = []
    monkeypatch.setattr("rg.training.train.connect", lambda *_, **__: Group(Ranks()))
    monkeypatch.setattr("rg.training.train._set_up", fail)
    monkeypatch.setattr(Heartbeat, "cut_off", lambda _: calls.append("cut off"))
    monkeypatch.setattr(Heartbeat, "fail", lambda _, reason: calls.append(reason))
    with pytest.raises(type(error)) as caught:
        train(RunConfig(), tmp_path, tmp_path / "run")
    assert caught.value is error
    assert calls == expected


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda state: state.pop("classifier.linear.bias"), "classifier.linear.bias is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more is not expected"),
        (
            lambda state: state.update({"classifier.linear.bias": state["classifier.linear.bias"][:2].clone()}),
            "classifier.linear.bias: expected shape [4], got [2]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(finished, tmp_path, change, message):
    for name in ("config.json", "classes.json"):
        shutil.copy(finished / name, tmp_path)
    state = load_file(finished / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"does not fit config.json ({message})")):
        load_model(tmp_path)


def test_a_run_is_evaluated_to_the_same_bytes(small_birds, finished, tmp_path):
    """Once in this process and once in another."""
    for name in ("config.json", "classes.json", "model.safetensors"):
        shutil.copy(finished / name, tmp_path)
    evaluate(tmp_path, small_birds, device="cpu")
    files = [tmp_path / "metrics.json", tmp_path / "predictions.jsonl"]
    first = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    arguments = ["evaluate", tmp_path, "--data", small_birds, "--device", "cpu"]
    result = forked.run(arguments)
    assert result.returncode == 0, result.stderr
    assert [file.read_bytes() for file in files] == first


def test_settings_of_precision_accumulation_and_clipping(small_birds, tmp_path):
    changed = {"train__precision": "bf16", "train__accumulation": 2, "optimizer__clip_norm": 1, "train__epochs": 2}
    schedule = {"optimizer__schedule": "step", "optimizer__milestones": "[1]", "optimizer__warmup_epochs": 0}
    result = run(small_birds, tmp_path / "run", **changed, **schedule)
    assert result.returncode == 0, result.stderr
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["lr"] == pytest.approx(lines[0]["lr"] / 10)


def test_a_model_that_is_lost_pushes_out_no_checkpoint(small_birds, tmp_path):
    """The second step is the first whose loss is not finite; what was being written then is published, too."""
    steps = {"train__validate_epochs": 0, "train__checkpoint_steps": 1, "train__max_skipped": 4}
    result = run(small_birds, tmp_path / "run", optimizer__lr=3e38, **steps)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("rg: error: ")]
    assert "5 steps in a row (train.max_skipped); the newest checkpoint is step-00000001; start again with a" in line
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_model_that_is_lost_is_no_trained_model(small_birds, tmp_path):
    result = run(small_birds, tmp_path / "run", optimizer__lr=3e38, train__epochs=1)
    assert result.returncode == 1
    assert "rg: error: step 4: the loss of the validation images is nan; the newest checkpoint is none" in result.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()


class Attributes:
    """Two attributes of a plain image: is it red, is it bright."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def source(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        red, bright = index % 2, index // 2 % 2
        level = 230 if bright else 90
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (level, 0 if red else level, 0 if red else level)).save(buffer, "JPEG")
        return Sample(f"a-{index}", buffer.getvalue(), (red, bright), 64, 64, str(index))


def test_attributes_are_trained_and_evaluated(tmp_path):
    sources = {"train": Attributes(64), "val": Attributes(8)}
    schema = Schema(("red", "bright"), multi_label=True)
    writer.write(tmp_path / "data", "attributes", sources, schema=schema, options={})
    out = tmp_path / "run"
    result = run(tmp_path / "data", out, train__epochs=12, optimizer__warmup_epochs=0)
    assert result.returncode == 0, result.stderr
    found = evaluate(out, tmp_path / "data", device="cpu")
    assert found["accuracy"] > 0.9
    assert found["landmark_error"] is found["pointing_error"] is found["nmi"] is None
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    truth = {sample.key: list(sample.label) for sample in map(sources["val"].__getitem__, range(8))}
    assert {line["key"]: line["label"] for line in lines} == truth
    assert len(lines) == 8


def test_nothing_to_resume(small_birds, tmp_path):
    result = run(small_birds, tmp_path / "nothing", "--resume")
    assert result.returncode == 2
    assert "no such run folder" in result.stderr
    assert not (tmp_path / "nothing").exists()


def test_a_config_file_is_a_run(small_birds, finished, tmp_path):
    """The config.json of a run repeats it."""
    out = tmp_path / "repeated"
    arguments = ["train", "photos_lite0", "--config", finished / "config.json", "--data", small_birds, "--out", out]
    result = forked.run(arguments)
    assert result.returncode == 0, result.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "recipe,expected",
    [
        ("birds_lite0_parts", True),
        ("birds_lite0", False),  # no salient start
        ("photos_lite0_parts", False),  # statistics of pretraining
        ("cub200_dinov2_parts", False),  # a backbone of which tokens alone learn
    ],
)
def test_a_salient_start_is_normalised_as_training_will(recipe, expected):
    assert _starts_with_statistics_of_batches(recipes.get(recipe)) == expected


def test_learning_rate_schedules():
    from rg.training.optimizers import lr_scale

    cosine = lr_scale(OptimizerConfig(warmup_epochs=1), epochs=5, steps_per_epoch=10)
    assert [cosine(step) for step in (0, 4)] == pytest.approx([1 / 11, 5 / 11])
    assert cosine(10) == 1
    assert cosine(30) == pytest.approx(0.5)
    assert cosine(50) == pytest.approx(0, abs=1e-12)
    poly = lr_scale(OptimizerConfig(schedule="poly", warmup_epochs=1), epochs=5, steps_per_epoch=10)
    assert [poly(step) for step in (0, 10, 30, 50)] == pytest.approx([1 / 11, 1, 0.5**0.9, 0])
    step = lr_scale(OptimizerConfig(schedule="step", milestones=(2, 4), gamma=0.1), epochs=5, steps_per_epoch=10)
    assert [step(n) for n in (19, 20, 40)] == pytest.approx([1, 0.1, 0.01])
    anew = OptimizerConfig(schedule="step", milestones=(1, 3), restarts=(2,), gamma=0.1)
    step = lr_scale(anew, epochs=4, steps_per_epoch=10)
    assert [step(n) for n in (9, 10, 19, 20, 29, 30, 39)] == pytest.approx([1, 0.1, 0.1, 1, 1, 0.1, 0.1])
    cosine = lr_scale(OptimizerConfig(restarts=(2,)), epochs=4, steps_per_epoch=10)
    assert [cosine(n) for n in (0, 10, 20, 30, 40)] == pytest.approx([1, 0.5, 1, 0.5, 0], abs=1e-12)


def test_activation_checkpointing_gives_the_same_bits(small_birds, finished, tmp_path):
    assert run(small_birds, tmp_path / "run", train__activation_checkpointing=True).returncode == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_activation_checkpointing_of_a_backbone_without_blocks_is_refused(small_birds, tmp_path):
    changed = {
        "model__backbone__name": "densenet121",
        "model__backbone__weights": "none",
        "model__grouping__init": "random",
    }
    result = run(small_birds, tmp_path / "run", train__activation_checkpointing=True, **changed)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "rg: error: train.activation_checkpointing: expected a backbone that is made of blocks, got densenet121"
    )


def test_a_compiled_run_is_one_graph_and_learns_the_same(small_birds, finished, tmp_path):
    """aot_eager: what inductor is given, with its arithmetic; inductor takes minutes."""
    words = [sys.executable, "-m", "rg", *command(small_birds, tmp_path / "run", train__compile="aot_eager")]
    surroundings = os.environ | {"TORCH_LOGS": "aot_graphs"}
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=surroundings)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Forward graph") == 1  # of every step; validation is not compiled
    compiled, eager = (
        [line["loss"] for line in metrics(out) if line["kind"] == "train"] for out in (tmp_path / "run", finished)
    )
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_a_file_for_deepspeed_is_refused_with_ddp(small_birds, tmp_path):
    file = tmp_path / "stage1.json"
    result = run(small_birds, tmp_path / "run", "--deepspeed", str(file), train__engine="ddp")
    assert result.returncode == 2
    assert result.stderr == f"rg: error: --deepspeed: expected no file with train.engine = ddp, got {file}\n"


def test_inductor_without_a_compiler_is_refused_at_once(small_birds, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = run(small_birds, tmp_path / "run", train__compile="inductor")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "rg: error: train.compile: inductor needs a C++ compiler on a CPU, expected no-such-compiler, found none"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for CPUs")
def test_cuda_graphs_without_a_gpu_are_refused_at_once(small_birds, tmp_path):
    result = run(small_birds, tmp_path / "run", train__compile="cuda_graphs")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "rg: error: train.compile: expected no, inductor or aot_eager on a CPU, got cuda_graphs"
    )
    assert not (tmp_path / "run").exists()
