"""``evaluate`` by several processes of a launch: the files of one, also if they are killed in between."""

import dataclasses
import json
import shutil
import signal
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch

from pipelines.shards.manifest import Manifest
from rg.config import EvaluationConfig
from rg.evaluation.evaluate import evaluate
from rg.model.plain import PlainModel
from rg.runs import inputs
from rg.runs.folder import Classes, load_config, load_model, save_config, save_weights
from tests.support.launch import Launch
from tests.support.miniature_run import CONFIG, build
from tests.support.strikes import strike

WRITTEN = ("metrics.json", "predictions.jsonl", "confidence.json", "part_pictures.webp")


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs") / "run", small_birds)


@pytest.fixture(scope="module")
def plain_run(small_birds, tmp_path_factory):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, kind="plain"))
    folder = tmp_path_factory.mktemp("runs") / "plain"
    shutil.copytree(build(folder.parent / "parts", small_birds), folder)
    classes = Classes(tuple(Manifest.load(small_birds).classes))
    save_config(folder, config, classes)
    torch.manual_seed(0)
    save_weights(folder, PlainModel(config.model.backbone, len(classes.names)))
    return folder


@pytest.fixture(scope="module")
def alone(run, small_birds, tmp_path_factory):
    """Evaluated by one process, one image at a time: pieces of 16."""
    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("alone") / "run"))
    evaluate(copy, small_birds, batch_size=1, device="cpu")
    return copy


def launch_evaluate(run, data, logs, processes=3, more=(), before=None):
    words = ["evaluate", run, "--data", data, "--batch-size", "1", "--device", "cpu", *more]
    return Launch(words, logs, processes, before)


# Kills a process that is about to write its second piece.
KILLED = partial(strike, "rg.evaluation.passes:_write", 2, signal.SIGKILL)


def pieces(run):
    return sorted(path.name for path in (run / "metrics.json.pieces").glob("*-??????"))


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_leave_the_files_of_one(run, small_birds, alone, tmp_path, processes):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    launch = launch_evaluate(copy, small_birds, tmp_path, processes)
    assert launch.wait() == [0] * processes, launch.said
    for name in WRITTEN:
        assert (copy / name).read_bytes() == (alone / name).read_bytes(), name
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert launch.said.count("Accuracy") == 1  # one table


def test_whole_images_are_put_together_alike_by_any_number_of_processes(run, small_birds, tmp_path):
    for processes in (1, 3):
        copy = Path(shutil.copytree(run, tmp_path / f"{processes}"))
        launch = launch_evaluate(copy, small_birds, tmp_path, processes, ("--evaluation.view", "whole"))
        assert launch.wait() == [0] * processes, launch.said
    for name in ("metrics.whole.json", "predictions.whole.jsonl", "confidence.whole.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


def test_factors_of_a_plain_network_are_those_of_one_process(plain_run, small_birds, tmp_path):
    copy = Path(shutil.copytree(plain_run, tmp_path / "run"))
    expected = evaluate(plain_run, small_birds, batch_size=1, device="cpu")
    launch = launch_evaluate(copy, small_birds, tmp_path, 2)
    assert launch.wait() == [0, 0], launch.said
    assert expected["dff_landmark_error"] > 0
    assert json.loads((copy / "metrics.json").read_text()) == expected


def test_killed_twice_it_goes_on_where_it_was(run, small_birds, alone, tmp_path):
    """Each process is killed in a piece, or ends as another one was."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for count in (2, 4):
        launch = launch_evaluate(copy, small_birds, tmp_path, before=dict.fromkeys(range(3), KILLED))
        codes = launch.wait()
        assert -signal.SIGKILL in codes, launch.said
        assert set(codes) <= {-signal.SIGKILL, 76}, launch.said
        assert len(pieces(copy)) >= count
        assert not (copy / "metrics.json").exists()
    launch = launch_evaluate(copy, small_birds, tmp_path, 2)
    assert launch.wait() == [0, 0], launch.said
    assert "going on with what was done before" in launch.programs[0].output
    for name in WRITTEN:
        assert (copy / name).read_bytes() == (alone / name).read_bytes(), name
    assert not (copy / "metrics.json.pieces").exists()


@pytest.fixture
def stopped(run, small_birds, tmp_path, monkeypatch):
    """An evaluation that was stopped by an error when all was looked at, and the ranges that loaders then read."""
    copy = Path(shutil.copytree(run, tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr("rg.evaluation.evaluate._write", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            evaluate(copy, small_birds, batch_size=1, device="cpu")
    load, read = inputs.evaluation_loader, []

    def loader(config, data, split, *others):
        read.extend((split, piece.start, piece.stop) for piece in others[3])
        return load(config, data, split, *others)

    monkeypatch.setattr(inputs, "evaluation_loader", loader)
    return copy, read


def test_only_what_is_missing_is_measured(stopped, small_birds, alone):
    copy, read = stopped
    (copy / "metrics.json.pieces" / "test-answers-000001").unlink()
    evaluate(copy, small_birds, batch_size=1, device="cpu")
    assert read == [("test", 16, 32)]
    for name in WRITTEN:
        assert (copy / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.parametrize("changed", ["batch size", "settings", "weights", "run", "code"])
def test_what_was_measured_otherwise_does_not_count(stopped, small_birds, caplog, monkeypatch, changed):
    copy, read = stopped
    config, classes = load_config(copy)
    settings = None
    if changed == "settings":
        settings = EvaluationConfig(flip=True)
    elif changed == "weights":
        model, *_ = load_model(copy)
        with torch.no_grad():
            model.classifier.linear.bias += 1
        save_weights(copy, model)
    elif changed == "run":
        larger = dataclasses.replace(config.input, short_side=80)
        save_config(copy, dataclasses.replace(config, input=larger), classes)
    elif changed == "code":
        monkeypatch.setattr("rg.runs.agreement.code_sum", lambda: "other")
    evaluate(copy, small_birds, batch_size=2 if changed == "batch size" else 1, device="cpu", settings=settings)
    assert {split for split, *_ in read} == {"train", "val", "test"}
    assert "metrics.json.pieces: begun anew; " in caplog.text


def test_samples_that_were_mended_meanwhile_are_measured(run, small_birds, alone, tmp_path, monkeypatch):
    data = Path(shutil.copytree(small_birds, tmp_path / "data"))
    tar = data / "test-00000.tar"
    content = tar.read_bytes()
    first, size = jpegs(tar)[3]
    tar.write_bytes(content[:first] + b"x" * size + content[first + size :])
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr("rg.evaluation.evaluate._write", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            evaluate(copy, data, batch_size=1, device="cpu")
    tar.write_bytes(content)
    found = evaluate(copy, data, batch_size=1, device="cpu")
    expected = json.loads((alone / "metrics.json").read_text())
    assert {**found, "data": None} == {**expected, "data": None}


def test_a_process_that_is_lost_ends_the_others(run, small_birds, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    launch = launch_evaluate(copy, small_birds, tmp_path, before={1: KILLED})
    assert launch.wait() == [76, -signal.SIGKILL, 76]
    assert "Traceback" not in launch.said


def test_processes_with_other_arguments_are_refused(run, small_birds, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    words = ["evaluate", copy, "--data", small_birds, "--device", "cpu", "--batch-size"]
    launch = Launch([[*words, "1"], [*words, "2"]], tmp_path, 2)
    assert launch.wait() == [2, 2], launch.said
    (line,) = [line for line in launch.said.splitlines() if "rg: error: " in line]
    assert "the ranks are not the same: batch_size is 1 on rank 0" in line
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in run.iterdir())


def test_what_only_the_first_process_meets_ends_all(plain_run, small_birds, tmp_path):
    """Factors are found by the first one alone."""
    data = Path(shutil.copytree(small_birds, tmp_path / "data"))
    for tar in data.glob("train-*.tar"):
        for first, size in jpegs(tar):
            with tar.open("r+b") as file:
                file.seek(first)
                file.write(b"x" * size)
    launch = launch_evaluate(plain_run, data, tmp_path, 2)
    assert launch.wait() == [2, 2], launch.said
    assert launch.said.count("rg: error: ") == 1
    assert "Traceback" not in launch.said


def test_one_gpu_for_several_processes_is_refused(run, small_birds, tmp_path):
    words = ["evaluate", run, "--data", small_birds, "--device", "cuda:0"]
    launch = Launch(words, tmp_path, 2)
    assert launch.wait() == [2, 2], launch.said
    assert launch.said.count("--device: expected auto, cpu or cuda for 2 processes, got cuda:0") == 1


def test_what_one_process_refuses_is_said_once_and_ends_all(run, small_birds, tmp_path):
    launch = launch_evaluate(run, small_birds, tmp_path, 2, ("--split", "nothing"))
    assert launch.wait() == [2, 2]
    assert launch.said.count("rg: error: ") == 1
    assert "Traceback" not in launch.said


def test_pieces_without_a_single_good_image(small_birds, tmp_path):
    """Damaged are 25 of 40 images, so that the last pieces of 16 hold nothing."""
    data = Path(shutil.copytree(small_birds, tmp_path / "data"))
    entries = [(shard, key) for shard in data.glob("test-*.tar") for key in jpegs(shard)]
    for shard, (first, size) in sorted(entries)[15:]:
        with shard.open("r+b") as file:
            file.seek(first)
            file.write(b"x" * size)
    config = dataclasses.replace(CONFIG, input=dataclasses.replace(CONFIG.input, max_damaged=1))
    run = build(tmp_path / "run", data, config)
    result = evaluate(run, data, batch_size=1, device="cpu")
    assert (result["samples"], result["damaged"]) == (15, 25)
    keys = [json.loads(line)["key"] for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 15


def jpegs(shard):
    """Place and size of every image in a tar."""
    with tarfile.open(shard) as tar:
        return [(member.offset_data, member.size) for member in tar if member.name.endswith(".jpg")]
