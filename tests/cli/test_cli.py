"""The command line: bad input is one line on standard error, exit code 2 and no traceback."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from pipelines.shards.manifest import Manifest
from rg import __version__, recipes
from rg.cli.main import VERBS, main
from rg.model.region_grouping import RegionGroupingModel
from rg.runs import threads
from rg.runs.folder import Classes, save_config, save_weights
from tests.support import forked


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["trian"], ["verb 'trian'", "train"]),
        (["prepare", "bird", "--out", "x"], ["data set 'bird'", "birds"]),
        (["prepare", "birds"], ["out"]),
        (["prepare", "birds", "--out", "x", "--birds.spcies", "3"], ["--birds.spcies", "did you mean --birds.species"]),
        (["prepare", "birds", "--out", "x", "--birds.species", "1"], ["species: expected 2 to 500, got 1"]),
        (["prepare", "birds", "--out", "x", "--train", "0"], ["at least 1 image, got 0"]),
        (["prepare", "folder", "--out", "x", "--raw", "nowhere"], ["nowhere", "no such folder"]),
        (["evaluate", "https://host/run", "--data", "d"], ["run: expected a file or folder", "got https://host/run;"]),
        (["explain", "r", "a.jpg", "s3://b/c.jpg", "--out", "o"], ["images: expected a file", "got s3://b/c.jpg;"]),
        (["export", "r", "--out", "https://host/m.onnx"], ["--out: expected a file", "got https://host/m.onnx;"]),
        (["verify", "nowhere"], ["nowhere", "no such folder"]),
        (["verify", __file__], ["test_cli.py", "expected a folder of shards, got a file; give the folder it lies in"]),
        (["verify", "s3://bucket/birds"], ["expected a local folder, got s3://bucket/birds"]),
        (["train", "birds_lite0", "--data", "ftp://host/birds", "--out", "y"], ["s3://", "got ftp://host/birds"]),
        (["train", "bird_lite", "--data", "x", "--out", "y"], ["recipe", "birds_lite0"]),
        (["train", "birds_lite0", "--out", "y"], ["data"]),
        (["train", "birds_lite0", "--data", "nowhere", "--out", "y"], ["nowhere", "no such folder"]),
        (
            ["train", "birds_lite0", "--data", "x", "--out", "y", "--model.groping.num_parts", "4"],
            ["--model.groping.num_parts", "did you mean --model.grouping.num_parts"],
        ),
        (
            ["train", "birds_lite0", "--data", "x", "--out", "y", "--train.epoch", "3"],
            ["--train.epoch", "did you mean --train.epochs"],
        ),
        (
            ["train", "birds_lite0", "--data", "x", "--out", "y", "--model.grouping.num_parts", "100"],
            ["model.grouping.num_parts: expected 1 to 64 parts, got 100"],
        ),
        (
            ["train", "birds_lite0", "--data", "x", "--out", "y", "--model.grouping.num_parts", "many"],
            ["--model.grouping.num_parts: expected int, got 'many'; see"],
        ),
        (["evaluate", "x", "--data", "y", "--batch-size", "z"], ["--batch-size: expected int, got 'z'; see"]),
        (
            ["train", "birds_lite0", "--data", "x", "--out", "y", "--model.grouping.init", "luck"],
            ["--model.grouping.init: expected one of 'random', 'kmeans', 'salient', got 'luck'; see"],
        ),
        (["evaluate", "x"], ["required: --data; see"]),
        (["explain", "x"], ["required: images, --out; see"]),
        (["train", "birds_lite0", "--data", "x", "--out", "y", "--config", "nowhere.json"], ["nowhere.json"]),
        (["evaluate", "nowhere", "--data", "x"], ["nowhere", "no such run folder"]),
        (["explain", "nowhere", "x.jpg", "--out", "y"], ["x.jpg"]),
        (["report", "nowhere"], ["nowhere"]),
        (
            ["explain", "x", os.fsdecode(b"caf\xe9.jpg"), "--out", "y"],
            [r"expected arguments in UTF-8, got b'caf\xe9.jpg'"],
        ),
        (["recipes", "nothing"], ["recipe", "nothing"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert captured.err.startswith("rg: error: ")
    for word in words:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_reaches_nobody(tmp_path):
    arguments = [sys.executable, "-m", "rg", "evaluate", str(tmp_path), "--data", str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"rg: error: {tmp_path}: not a run folder (no classes.json)\n"


@pytest.mark.parametrize("words", [["recipes"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rg", *words]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert result.stderr == ""
    assert result.returncode == 141


WITHOUT_DALI = "import sys; sys.modules['nvidia.dali'] = None; from rg.cli.main import main; sys.exit(main())"


def test_what_is_not_installed_is_one_line(small_birds, tmp_path):
    config = recipes.get("birds_lite0")
    grouping = dataclasses.replace(config.model.grouping, num_parts=2)
    model, size = dataclasses.replace(config.model, grouping=grouping), dataclasses.replace(config.input, decoder="cpu")
    config = dataclasses.replace(config, model=model, input=size)
    classes = Classes(Manifest.load(small_birds).classes)
    save_config(tmp_path, config, classes)
    save_weights(tmp_path, RegionGroupingModel(config.model, len(classes.names), pretrained=False))
    arguments = [sys.executable, "-c", WITHOUT_DALI, "evaluate", str(tmp_path), "--data", str(small_birds)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "rg: error: NVIDIA DALI is not installed; pip install 'region-grouping[train]'\n"


def test_another_package_of_the_name_of_ours_is_one_line(monkeypatch, capsys):
    def verb(_):
        raise ImportError("x/kernels: expected ours", name="kernels")

    monkeypatch.setitem(VERBS, "recipes", verb)
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "rg: error: x/kernels: expected ours\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--config", "FILE", "--model.grouping.num_parts", "9"],
        ["--model.grouping.num_parts", "9", "--config", "FILE"],
        ["--model.grouping.num_parts=9", "--config=FILE"],
    ],
)
def test_an_option_wins_over_the_config_file(options, tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_text('{"seed": 5, "model": {"grouping": {"num_parts": 3, "smoothing_padding": "same"}}}')
    seen = []
    monkeypatch.setitem(
        sys.modules, "rg.training.train", SimpleNamespace(train=lambda config, *_: seen.append(config), SIGNALS=())
    )
    words = [word.replace("FILE", str(file)) for word in options]
    assert main(["train", "birds_lite0", "--data", "x", "--out", "y", *words]) == 0
    (config,) = seen
    assert (config.seed, config.model.grouping.smoothing_padding) == (5, "same")
    assert config.model.grouping.num_parts == 9


def test_help_lists_every_verb(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    result = forked.run([verb, "--help"])
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout


HELP = """
import contextlib, io, sys
from rg.cli.main import VERBS, main
for verb in VERBS:
    first = {"train": ["birds_lite0"], "prepare": ["birds"]}.get(verb, [])
    for words in ([verb, "--help"], [verb, *first, "--nonsense"]):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main(words)
        print(verb, [name for name in ("torch", "scipy", "timm") if name in sys.modules])
"""


def test_help_and_what_is_mistyped_wait_for_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{verb} []" for verb in VERBS for _ in range(2)]


COMPUTING = {
    "explain": ["photo.jpg", "--out", "out"],
    "faithful": ["--data", "data"],
    "leakage": ["--data", "data"],
    "compare": ["photo.jpg", "--out", "out"],
    "report": [],
    "parts": ["--data", "data"],
    "export": [],
    "serve": [],
}


@pytest.mark.parametrize("verb", COMPUTING)
def test_verbs_compute_with_the_cores_that_are_ours(verb, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(threads, "limit_threads", lambda *processes: asked.append(processes))
    monkeypatch.chdir(tmp_path)
    assert main([verb, "no-such-run", *COMPUTING[verb]]) == 2
    assert asked == [()]
    assert capsys.readouterr().err.startswith("rg: error: ")


def test_every_setting_is_explained():
    text = " ".join(forked.run(["train", "--help"]).stdout.split())
    for words in ("K, the number of parts", "Weight of the occurrence prior", "Images of one optimiser step"):
        assert words in text


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    assert "inat2017_resnet101" in capsys.readouterr().out
    assert main(["recipes", "show", "inat2017_resnet101"]) == 0
    shown = capsys.readouterr().out
    assert "loss.prior_alpha" in shown
    assert "0.002" in shown


def test_photos_are_packed_and_what_is_broken_is_named(tmp_path, capsys):
    raw = tmp_path / "raw"
    for number, name in enumerate(("cat", "great tit")):
        (raw / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (40 + index, 30), (60 * number, 40 * index, 0)).save(
                raw / name / f"{index} a.b.JPG", "JPEG"
            )
    (raw / "cat" / "empty.jpg").touch()
    (raw / "cat" / "text.png").write_text("hello")
    out = tmp_path / "shards"
    assert main(["prepare", "folder", "--raw", str(raw), "--out", str(out), "--jobs", "1"]) == 0
    captured = capsys.readouterr()
    assert "2 left out" in captured.out or captured.out.count("1 left out") == 2
    assert "2 classes" in captured.out
    assert Manifest.load(out).dataset == "raw"
    Image.new("RGB", (20, 30)).save(raw / "cat" / "new.png")
    shutil.copytree(raw, tmp_path / "copy")
    assert main(["prepare", "folder", "--raw", str(tmp_path / "copy"), "--out", str(out), "--jobs", "1"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"rg: error: {out}: the images have changed since these shards were written "
        "(train: 10 then, 10 now; val: 2 then, 3 now); delete the folder or choose another --out"
    )
    assert main(["verify", str(out), "--jobs", "1"]) == 0
    assert "every shard is good" in capsys.readouterr().out
    (out / "train-00000.idx").unlink()
    assert main(["verify", str(out), "--jobs", "1"]) == 1
    assert "train-00000.idx" in capsys.readouterr().out
    environment = dict(os.environ)
    assert main(["train", "photos_lite0", "--data", str(out), "--out", str(tmp_path / "run")]) == 2
    assert "train-00000.idx is missing" in capsys.readouterr().err
    assert [name for name in os.environ if name not in environment and "RANK" in name] == []


def test_a_class_without_usable_training_images_is_left_out_unless_asked_for(tmp_path, caplog):
    raw = tmp_path / "raw"
    for name in ("cat", "dog", "emu"):
        for split, count in (("train", 3), ("val", 2)):
            (raw / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40, 30), (len(name + split) * index, 9, 0)).save(raw / split / name / f"{index}.png")
    for path in (raw / "train" / "dog").iterdir():
        path.write_text("no image")
    command = ["prepare", "folder", "--raw", str(raw), "--jobs", "1", "--out"]
    assert main([*command, str(tmp_path / "left out")]) == 0
    manifest = Manifest.load(tmp_path / "left out")
    assert manifest.classes == ("cat", "emu")
    assert manifest.options["empty_classes"] == ["dog"]
    assert [split.class_counts for split in manifest.splits.values()] == [(3, 3), (2, 2)]
    assert "class dog left out: none of its training images can be used; the first: train/dog/" in caplog.text
    caplog.clear()
    assert main([*command, str(tmp_path / "kept"), "--keep-empty-classes"]) == 0
    manifest = Manifest.load(tmp_path / "kept")
    assert manifest.classes == ("cat", "dog", "emu")
    assert [split.class_counts for split in manifest.splits.values()] == [(3, 0, 3), (2, 2, 2)]
    assert "1 of 3 classes have no training image, such as dog: they keep their numbers" in caplog.text


def test_names_that_are_no_unicode_are_printed(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in ("cat", "dog"):
        (raw / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40, 30), (9, 9, index)).save(raw / name / os.fsdecode(b"\xe9%d.jpg" % index))
    assert forked.run(["prepare", "folder", "--raw", raw, "--jobs", "1", "--out", out]).returncode == 0
    content = bytearray((out / "train-00000.tar").read_bytes())
    content[512:514] = b"no"  # instead of the first bytes of the first image
    (out / "train-00000.tar").write_bytes(content)
    result = forked.run(["verify", out, "--repair", "--jobs", "1"])
    assert result.returncode == 0, result.stderr
    assert re.search(r"left out (cat|dog)/\\udce9\d\.jpg: not an image", result.stdout)


def test_a_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "birds_lite0", "--data", "x", "--out", "y", "--print_config"])
    assert ended.value.code == 0
    assert "num_parts: 12" in capsys.readouterr().out
