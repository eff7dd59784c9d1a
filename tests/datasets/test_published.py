"""The published data sets from their raw layout to the paper's tables, by the commands that a user types."""

import json

import pytest

from pipelines.shards.manifest import Manifest
from rg.cli.main import main
from tests.support import forked, miniature_celeba, miniature_cub200, miniature_inat2017

SMALL = {  # what makes a recipe of the paper run in seconds
    "model.backbone.name": "resnet18",
    "model.backbone.weights": "none",
    "model.backbone.stride": 8,
    "model.backbone.dilated": "false",
    "model.scops.features": "tf_efficientnet_lite0",
    "model.head.region_channels": 16,
    "model.head.region_width": 8,
    "model.head.region_blocks": 1,
    "model.head.attention_width": 8,
    "input.short_side": 64,
    "input.crop": 64,
    "input.test_short_side": 64,
    "optimizer.schedule": "cosine",
    "optimizer.milestones": "[]",
    "train.epochs": 2,
    "train.global_batch": 8,
    "train.precision": "fp32",
}
CASES = {  # recipe -> data set, its miniature, splits, what is measured, the tables that show it
    "cub200_resnet101": (
        "cub200",
        lambda raw: miniature_cub200.build(raw, classes=4, images=8),
        {"train", "test"},
        {"accuracy", "landmark_error", "pointing_error", "nmi"},
        (3, 4),
    ),
    "celeba_attributes_resnet101": (
        "celeba",
        miniature_celeba.build,
        {"train", "val", "test"},
        {"accuracy", "nmi"},  # aligned faces have no boxes, so no error of the box
        (1,),
    ),
    "celeba_landmarks_resnet101": (
        "celeba_unaligned",
        miniature_celeba.build,
        {"train", "fit", "test"},
        {"accuracy", "landmark_error", "pointing_error"},
        (2, 7),
    ),
    "cub200_scops": (
        "cub200",
        lambda raw: miniature_cub200.build(raw, classes=4, images=8),
        {"train", "test"},
        {"landmark_error", "nmi"},
        (4,),
    ),
    "celeba_landmarks_scops": (
        "celeba_unaligned",
        miniature_celeba.build,
        {"train", "fit", "test"},
        {"landmark_error"},
        (2,),
    ),
    "inat2017_resnet101": (
        "inat2017",
        lambda raw: miniature_inat2017.build(raw, species=4, images=8),
        {"train", "test"},
        {"accuracy", "pointing_error"},
        (5, 6),
    ),
}


def words(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def train(recipe, data, out, **more):
    result = forked.run(["train", recipe, "--data", data, "--out", out, *words(SMALL | more)])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("recipe", CASES)
def test_from_the_raw_files_to_the_tables(recipe, tmp_path, capsys):
    dataset, build, splits, measured, numbers = CASES[recipe]
    raw, data, run = tmp_path / "raw", tmp_path / "data", tmp_path / "run"
    build(raw)
    prepare = ["prepare", dataset, "--raw", str(raw), "--out", str(data), "--jobs", "1"]
    assert main(prepare) == 2  # nobody takes a miniature for the data set by mistake
    error = capsys.readouterr().err
    assert "--allow-partial" in error
    assert error.count("\n") == 1
    assert not data.exists()
    assert main([*prepare, "--allow-partial"]) == 0
    manifest = Manifest.load(data)
    assert set(manifest.splits) == splits
    assert manifest.dataset == dataset

    train(recipe, data, run)
    assert main(["evaluate", str(run), "--data", str(data), "--batch-size", "8"]) == 0
    result = json.loads((run / "metrics.json").read_text())
    assert result["samples"] == manifest.split("test").samples
    for name in measured:
        assert 0 <= result[name] <= 2
    if dataset == "inat2017":  # the fully convolutional test of Table 5, beside the first
        words = ["--evaluation.view", "whole"]
        assert main(["evaluate", str(run), "--data", str(data), "--batch-size", "8", *words]) == 0
        assert json.loads((run / "metrics.json").read_text()) == result
        whole = json.loads((run / "metrics.whole.json").read_text())
        assert whole["evaluation"]["view"] == "whole"
        assert set(whole["levels"]) == {"genus", "super_category"}
    capsys.readouterr()
    assert main(["tables", str(run), "--format", "json"]) == 0
    tables = {table["title"].partition(".")[0]: json.dumps(table) for table in json.loads(capsys.readouterr().out)}
    for number in numbers:
        assert tables[f"Table {number}"].count(f'"{run}"') >= (2 if number == 5 else 1)


def test_the_baselines_fill_their_rows(tmp_path, capsys):
    """The plain network on CUB: its accuracy, the pointing game of its activation maps, landmarks of its factors."""
    raw, data, run = tmp_path / "raw", tmp_path / "data", tmp_path / "run"
    miniature_cub200.build(raw, classes=4, images=8)
    assert main(["prepare", "cub200", "--raw", str(raw), "--out", str(data), "--jobs", "1", "--allow-partial"]) == 0
    train("cub200_resnet101_plain", data, run)
    assert main(["evaluate", str(run), "--data", str(data), "--batch-size", "8"]) == 0
    result = json.loads((run / "metrics.json").read_text())
    assert set(result["pointing_errors"]) == {"cam", "grad_cam", "guided_grad_cam"}
    assert all(0 <= error <= 1 for error in result["pointing_errors"].values())
    assert 0 < result["dff_landmark_error"] < 2
    assert len(result["dff_landmark_errors_alone"]) == 3
    measured = {name for name, value in result["dff_field"].items() if value is not None}
    assert measured == {"keypoint_error", "nmi", "ari", "consistency", "stability"}
    assert {"accuracy", "dff_landmark_error", "dff_nmi", "dff_ari", "dff_field"} == result["intervals"].keys()
    printed = capsys.readouterr().out
    assert "Grad-CAM" in printed
    assert "The field's protocol, of DFF" in printed
    for verb in (["report", str(run)], ["explain", str(run), str(raw), "--out", str(tmp_path / "explained")]):
        assert main(verb) == 2
        assert "holds a plain network" in capsys.readouterr().err


def test_the_embedded_creatures_go_the_same_way(tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    size = {"creatures.species": 4, "creatures.size": 64, "train": 3, "val": 1, "test": 2}
    assert main(["prepare", "creatures", "--out", str(data), "--jobs", "1", *words(size)]) == 0
    train("mini_inat", data, run, **{"input.test_crop": 64})
    assert main(["evaluate", str(run), "--data", str(data)]) == 0
    result = json.loads((run / "metrics.json").read_text())
    assert 0 <= result["reliability"]["ece"] <= 1
    assert set(result["levels"]) == {"genus", "super_category"}
    capsys.readouterr()
    assert main(["tables", str(run)]) == 0
    assert "Creatures (embedded)" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "Accuracy by super-category" in (run / "report.html").read_text()
