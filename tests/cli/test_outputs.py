"""Where nothing can be written, or an input is missing, is found out before the first image is looked at."""

import shutil
from pathlib import Path

import pytest

from rg.cli.main import main
from rg.model.region_grouping import RegionGroupingModel
from tests.support import miniature_run


@pytest.fixture(scope="module")
def runs(small_birds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [miniature_run.build(folder / name, small_birds) for name in ("a", "b")]


@pytest.fixture(autouse=True)
def blind(monkeypatch):
    """Whoever shows a model an image fails."""

    def look(*_):
        raise AssertionError("an image was looked at")

    monkeypatch.setattr(RegionGroupingModel, "forward", look)


@pytest.mark.parametrize(
    "verb,name,words",
    [
        ("evaluate {run} --data {data}", "predictions.jsonl", "run: expected the name of a file, but"),
        ("evaluate {run} --data {data}", "confidence.json", "run: expected the name of a file, but"),
        ("faithful {other} {run} --data {data}", "faithful.json", "run: expected the name of a file, but"),
        ("leakage {run} --data {data}", "leakage.json", "run: expected the name of a file, but"),
        ("report {run}", "report.html", "--out: expected the name of a file, but"),
        ("export {run}", "model.onnx", "out: expected the name of a file, but"),
        ("export {run}", "model.onnx.md", "out: expected the name of a file, but"),
    ],
)
def test_a_folder_in_place_of_a_file(verb, name, words, runs, small_birds, tmp_path, capsys):
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(verb.format(run=run, other=runs[1], data=small_birds).split()) == 2
    assert capsys.readouterr().err == f"rg: error: {words} {run / name} is a folder\n"
    assert sorted(tmp_path.rglob("*")) == before
    assert not (runs[1] / "faithful.json").exists()


@pytest.mark.parametrize(
    "verb",
    [
        "prepare birds",
        "prepare folder --raw nowhere",
        "prepare inat2017 --raw nowhere",
        "train birds_lite0 --data {data}",
        "explain {run} {photo}",
        "compare {run} {photo}",
    ],
)
def test_a_file_in_place_of_a_folder(verb, runs, small_birds, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"not looked at")
    words = verb.format(run=runs[0], data=small_birds, photo=photo).split()
    assert main([*words, "--out", str(photo / "below")]) == 2
    assert capsys.readouterr().err == f"rg: error: --out: expected a folder, but {photo} is a file\n"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody can write to")
@pytest.mark.parametrize("verb", ["prepare birds", "explain {run} {run}", "report {run}", "export {run}"])
def test_a_place_where_nothing_can_be_written(verb, runs, capsys):
    suffix = ".onnx" if verb.startswith("export") else ""
    assert main([*verb.format(run=runs[0]).split(), "--out", f"/proc/new/out{suffix}"]) == 2
    assert "cannot be written to (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb,split", [("evaluate", "train"), ("evaluate", "val"), ("faithful", "test"), ("leakage", "test")]
)
def test_a_shard_that_is_missing(verb, split, runs, small_birds, tmp_path, capsys):
    data = shutil.copytree(small_birds, tmp_path / "data")
    missing = sorted(data.glob(f"{split}-*.tar"))[-1]
    missing.unlink()
    assert main([verb, str(runs[0]), "--data", str(data)]) == 2
    assert capsys.readouterr().err.endswith(f"{missing.name} is missing\n")
