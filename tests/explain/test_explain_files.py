"""Explaining many files: each once, whatever interrupts it, and nothing half is ever seen."""

import dataclasses
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rg
from pipelines.files import sha256
from pipelines.locks import locked
from rg.explain.explainer import Explainer
from rg.explain.files import explain_files
from rg.explain.image_files import distinct_names, name_each
from rg.model.region_grouping import RegionGroupingModel
from rg.pages import gallery
from rg.runs.confidence import Confidence, write_confidence
from rg.runs.folder import CONFIDENCE, WEIGHTS, Classes, save_config, save_weights
from tests.support import forked
from tests.support.miniature_run import CONFIG
from tests.support.strikes import strike

OF_THE_FILE = ("truth", "name", "picture", "bytes", "modified")


@given(st.lists(st.lists(st.sampled_from("ab\udc80"), min_size=1, max_size=4).map("/".join), unique=True, max_size=9))
def test_names_for_people_are_the_shortest_ends_that_are_apart(paths):
    names = distinct_names(map(Path, paths))
    assert len(set(names.values())) == len(names) == len(paths)
    for path, name in names.items():
        text = str(path).replace("\udc80", "\ufffd")
        assert text == name or text.endswith(f"/{name}")
        shorter = name.partition("/")[2]
        others = [str(other).replace("\udc80", "\ufffd") for other in names if other != path]
        assert not shorter or any(other == shorter or other.endswith(f"/{shorter}") for other in others)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_config(folder, CONFIG, Classes(("wren", "robin")))
    save_weights(folder, RegionGroupingModel(CONFIG.model, 2))
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two birds of one name in two class folders, one that nobody knows, one that is broken."""
    folder = tmp_path / "photos"
    for number, place in enumerate(("wren", "robin", "other")):
        (folder / place).mkdir(parents=True)
        paint(folder / place / "bird.jpg", number)
    (folder / "other" / "broken.png").write_text("no image")
    (folder / "other" / "notes.txt").write_text("not looked at")
    return folder


def paint(path, seed, size=(96, 72)):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def lines(folder, name="explanations.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture
def seen(monkeypatch):
    """Every image that the model is shown."""
    explained = []
    explain = Explainer._explain

    def watched(self, waiting, *arguments):
        explained.extend(Path(one.source) for one in waiting)
        return explain(self, waiting, *arguments)

    monkeypatch.setattr(Explainer, "_explain", watched)
    return explained


def test_an_answer_that_is_withheld_is_told(run, photos, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = sha256(copy / WEIGHTS)
    unsure = Confidence(None, None, None, 0.95, 0.01, 0.0, None, images=9, dataset="birds", weights=weights)
    write_confidence(copy / CONFIDENCE, unsure)
    with caplog.at_level("INFO"):
        explain_files(copy, [photos / "wren"], tmp_path / "out", device="cpu", pictures="none")
    (line,) = lines(tmp_path / "out")
    assert line["answer"] == "unsure"
    assert f"bird.jpg: {line['label']} (unsure, {100 * line['probability']:.1f} %)" in caplog.text


def test_what_is_written(run, photos, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        explain_files(run, [photos], out, jobs=2, device="cpu", write_page=gallery.write)
    explained = {Path(line["source"]).parent.name: line for line in lines(out)}
    assert [line["name"] for line in explained.values()] == ["bird", "robin-bird", "wren-bird"]
    assert {place: line["truth"] for place, line in explained.items()} == {
        "wren": "wren",
        "robin": "robin",
        "other": None,
    }
    explainer = rg.load(run, "cpu")
    for line in explained.values():
        expected = json.loads(json.dumps(explainer.explain(line["source"]).to_dict()))
        facts = {name: value for name, value in line.items() if name not in OF_THE_FILE}
        assert facts.keys() == expected.keys()
        assert facts["logit"] == pytest.approx(expected["logit"], abs=1e-4)  # batches round otherwise
        assert line["picture"] == f"pictures/{line['name']}.webp"
        with (
            Image.open(out / line["picture"]) as picture,
            Image.open(out / "thumbnails" / f"{line['name']}.webp") as small,
        ):
            assert (picture.format, small.format, small.size) == ("WEBP", "WEBP", (320, 240))
    (left_out,) = lines(out, "left_out.jsonl")
    assert left_out["source"] == str(photos / "other" / "broken.png")
    assert "not an image" in left_out["reason"]
    assert sorted(path.name for path in out.iterdir()) == [
        "explanations.csv",
        "explanations.jsonl",
        "gallery.html",
        "left_out.jsonl",
        "pictures",
        "settings.json",
        "thumbnails",
    ]
    assert "3 images explained" in caplog.text
    assert "1 left out" in caplog.text
    assert f"{photos / 'wren' / 'bird.jpg'}: " in caplog.text


def test_what_the_model_did_not_see_is_told(run, tmp_path, caplog):
    """Of a panorama 10:1 the middle 4:1 is looked at in the whole view, and less than a square in the other."""
    Image.new("RGB", (1000, 100), "teal").save(tmp_path / "panorama.png")
    Image.new("RGB", (120, 100), "teal").save(tmp_path / "photo.png")
    for view, shares in (("whole", (0.4, 1.0)), ("crop", (0.1, 100 / 120))):
        caplog.clear()
        out = tmp_path / view
        explain_files(
            run, [tmp_path / "panorama.png", tmp_path / "photo.png"], out, view=view, write_page=gallery.write
        )
        told = [line["seen"] for line in lines(out)]
        assert told == pytest.approx(shares)
        assert caplog.text.count("of the image") == 1
        assert "panorama.png: wren" in caplog.text or "panorama.png: robin" in caplog.text
        assert f"saw {100 * shares[0]:.0f} % of the image" in caplog.text
        assert "of 1 images the model saw less than 75 %" in caplog.text
        page = (out / "gallery.html").read_text()
        assert "Of 1 images the model saw less than 75\N{NO-BREAK SPACE}%" in page
    explanation = rg.load(run).explain(tmp_path / "panorama.png", view="crop")
    assert (explanation.seen, explanation.to_dict()["seen"]) == pytest.approx((0.1, 0.1))


def test_a_place_that_cannot_be_written_to_is_found_before_the_first_image(run, photos, tmp_path, seen):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"^--out: expected a folder, but .*file is a file$"):
        explain_files(run, [photos], tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=r"^--out: expected names of at most 255 bytes, got x{300}$"):
        explain_files(run, [photos], tmp_path / ("x" * 300) / "below")
    assert not seen


@pytest.mark.parametrize("kind", ["png", "none"])
def test_other_pictures_or_none(run, photos, tmp_path, kind):
    out = tmp_path / "out"
    explain_files(run, [photos / "wren"], out, pictures=kind, device="cpu")
    (line,) = lines(out)
    if kind == "png":
        assert line["picture"] == "pictures/bird.png"
        assert Image.open(out / line["picture"]).format == "PNG"
    else:
        assert line["picture"] is None
        names = ["explanations.csv", "explanations.jsonl", "left_out.jsonl", "settings.json"]
        assert sorted(path.name for path in out.iterdir()) == names


def test_only_what_is_not_done_is_explained(run, photos, tmp_path, seen):
    out = tmp_path / "out"
    wren, robin, other = (photos / place / "bird.jpg" for place in ("wren", "robin", "other"))

    def again(*paths):
        seen.clear()
        explain_files(run, paths, out, device="cpu")
        explained = {Path(line["source"]): line for line in lines(out)}
        assert len(explained) == len(lines(out))
        assert all((out / line["picture"]).is_file() for line in explained.values())
        return explained

    first = again(photos / "other", photos / "robin")
    assert seen == [other, robin]
    assert again(photos) == first | {wren: again(photos)[wren]}  # other files join
    assert seen == []
    assert [line["source"] for line in lines(out, "left_out.jsonl")] == [str(photos / "other" / "broken.png")]
    paint(wren, 7)
    assert again(photos)[wren]["logit"] != first[robin]["logit"]
    assert seen == [wren]
    (out / "pictures" / "robin-bird.webp").unlink()
    again(photos)
    assert seen == [robin]
    with (out / "explanations.jsonl").open("r+b") as file:  # half a line
        file.truncate(file.seek(0, os.SEEK_END) - 20)
    (out / "pictures" / "bird.webp.tmp").write_text("half a picture")
    again(photos)
    assert len(seen) == 1
    assert not list(out.rglob("*.tmp"))


def test_a_confidence_fitted_on_other_shards_decides_nothing(run, photos, tmp_path, seen):
    """0.2.0 did not name the shards, and its folders go on."""
    copy, out = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "out"
    weights = sha256(copy / "model.safetensors")
    fitted = Confidence(2.0, 0.1, None, 0.95, 0.01, 1.0, 1.0, 200, "birds", weights=weights)
    for shards in (None, "0" * 64):
        write_confidence(copy / "confidence.json", dataclasses.replace(fitted, shards=shards))
        explain_files(copy, [photos / "wren"], out, device="cpu")
    assert len(seen) == 1


def test_other_settings_are_refused(run, photos, tmp_path, seen):
    out = tmp_path / "out"
    explain_files(run, [photos / "wren"], out, device="cpu")
    before = (out / "explanations.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"^--out: .* explained with other settings \(view, pictures\); .*--over"):
        explain_files(run, [photos / "wren"], out, view="crop", pictures="png", device="cpu")
    assert (out / "explanations.jsonl").read_bytes() == before
    (out / "pictures" / "mine.webp").write_text("not of explain")
    (out / "part_pictures.webp").write_text("of the parts of another run, which was evaluated")
    seen.clear()
    explain_files(run, [photos / "robin"], out, view="crop", pictures="png", overwrite=True, device="cpu")
    assert [line["truth"] for line in lines(out)] == ["robin"]
    assert not (out / "part_pictures.webp").exists()
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["bird.png", "mine.webp"]
    other = tmp_path / "other"
    torch.manual_seed(1)
    save_config(other.mkdir() or other, CONFIG, Classes(("wren", "robin")))
    save_weights(other, RegionGroupingModel(CONFIG.model, 2))
    with pytest.raises(ValueError, match="weights"):
        explain_files(other, [photos / "robin"], out, view="crop", pictures="png", device="cpu")


def test_a_run_that_was_renamed_goes_on(run, photos, tmp_path, seen):
    out = tmp_path / "out"
    explain_files(run, [photos / "wren"], out, device="cpu")
    shutil.copytree(run, tmp_path / "renamed")
    explain_files(tmp_path / "renamed", [photos / "wren", photos / "robin"], out, device="cpu")
    assert len(seen) == 2
    assert [line["truth"] for line in lines(out)] == ["wren", "robin"]


def test_its_own_pictures_are_not_explained(run, photos, seen):
    out = photos / "explained"
    for _ in range(2):
        explain_files(run, [photos / "wren", photos], out, device="cpu")
    assert len(seen) == 3


def test_files_that_lie_where_pictures_are_written_are_refused(run, photos, seen):
    """compare would write the picture of a photo over the photo."""
    named = sorted(path for path in photos.rglob("*") if path.is_file())
    for out in (photos, named[0].parent):
        with pytest.raises(ValueError, match=rf"^{named[0]}: lies in --out {out}, where pictures are written"):
            explain_files(run, named, out, device="cpu")
    assert not seen


def test_two_at_once_are_refused(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with locked(out), pytest.raises(ValueError, match="another process is writing into this folder"):
        explain_files(run, [photos], out, device="cpu")


def test_nothing_to_explain_is_told(run, photos, tmp_path):
    out = tmp_path / "out"
    for path, message in (
        (tmp_path / "c", "no such file or folder"),
        (photos / "*.tif", r"\*\.tif: no file matches this pattern$"),
        (photos / "other" / "broken.png", "none of 1 images"),
    ):
        with pytest.raises(ValueError, match=message):
            explain_files(run, [path], out, device="cpu")


def test_a_run_that_is_killed_goes_on(run, tmp_path):
    """SIGKILL, then Ctrl-C, then to the end: as if nothing had happened, and every picture is whole all the time."""
    count = 40
    photos, out, whole = (tmp_path / name for name in ("photos", "out", "whole"))
    photos.mkdir()
    for number in range(count):
        paint(photos / f"{number}.jpg", number)
    words = ["explain", run, photos, "--out", out, "--batch-size", "2", "--jobs", "2", "--device", "cpu"]

    def stop(number):
        there = len(done())
        result = forked.run(words, before=partial(strike, "rg.explain.folder:ExplainedFolder.append", 6, number))
        assert len(done()) == there + 5
        for line in done():
            for picture in (out / line["picture"], out / "thumbnails" / f"{line['name']}.webp"):
                Image.open(picture).load()
        for path in out.rglob("*.webp"):
            Image.open(path).load()
        return result.returncode, result.stderr

    def done():
        path = out / "explanations.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    assert stop(signal.SIGKILL)[0] == -signal.SIGKILL
    code, output = stop(signal.SIGINT)
    assert (code, output.splitlines()[-1]) == (130, "rg: interrupted")
    assert f"of {count} images are explained already" in output
    assert "the same command goes on where it stopped" in output
    assert (out / "gallery.html").is_file()
    explain_files(run, [photos], out, batch_size=2, jobs=2, device="cpu")
    explain_files(run, [photos], whole, batch_size=2, jobs=2, device="cpu")
    assert [line["name"] for line in lines(out)] == [line["name"] for line in lines(whole)]
    for one, other in zip(lines(out), lines(whole), strict=True):
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-4)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == sorted(f"{n}.webp" for n in range(count))


@given(st.lists(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=3), max_size=12))
def test_names_are_apart_and_harmless(paths):
    files = list(dict.fromkeys(Path(*(word.replace("/", "_").replace("\0", "_") for word in words)) for words in paths))
    names = name_each(files, {})
    assert len({name.casefold() for name in names.values()}) == len(files)
    for name in names.values():
        assert len(f"{name}.webp.tmp".encode()) <= 255
        assert not set(name) & set("/\\?#%\"'<>:|*&\0\n ")
        assert not name.startswith(".")
    half = {str(file): names[str(file)] for file in files[1::2]}
    assert name_each(files, half) == names
