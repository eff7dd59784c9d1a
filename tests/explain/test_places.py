"""Explanations of a model that knows of places: what the place adds is told apart from what the image says."""

import csv
import dataclasses
import json
import shutil
import subprocess
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

import rg
from rg.cli.main import main
from rg.config import PlaceConfig
from rg.explain.contributions import bars
from rg.explain.explainer import Explainer
from rg.model.edits import Edits
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.folder import Classes, save_config, save_weights
from tests.support.miniature_run import CONFIG

NAMES = ("wren", "robin", "jay")
ON = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, place=PlaceConfig(on=True, width=8, blocks=1)))
BERLIN = rg.Place(52.5, 13.4, 172)


def model(config=ON, multi_label=False):
    torch.manual_seed(0)
    made = RegionGroupingModel(config.model, 3, multi_label)
    if made.place:
        torch.nn.init.normal_(made.place.last.weight, std=3, generator=torch.Generator().manual_seed(1))
    return made


def make(config=ON, multi_label=False):
    return Explainer(model(config, multi_label), config, Classes(NAMES, multi_label), torch.device("cpu"))


@pytest.fixture(scope="module")
def explainer():
    return make()


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_config(folder, ON, Classes(NAMES))
    save_weights(folder, model())
    return folder


@pytest.fixture
def photos(tmp_path, image):
    """One with a place, one with a date alone, one that says nothing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, gps, taken in (("a", True, True), ("b", False, True), ("c", False, False)):
        exif = Image.Exif()
        if gps:
            exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 24.0, 0.0)})
        if taken:
            exif.get_ifd(0x8769)[0x9003] = "2017:06:21 12:00:00"
        image.save(folder / f"{name}.jpg", exif=exif)
    return folder


def test_answers_without_parts_hold_what_the_place_adds(explainer, image):
    """As of a model whose parts are off; in Python, and in a browser if node is here."""
    explanation = explainer.explain(image, place=BERLIN, top_k=3)
    edited = make()
    edited.model.edits = Edits((1,))
    for off, expected in (((), explanation), ((1,), edited.explain(image, place=BERLIN, top_k=3))):
        answers = [explanation.choices.without(off)]
        if node := shutil.which("node"):
            script = (resources.files("rg.pages") / "choices.js").read_text()
            told = f"answersWithout({json.dumps(explanation.choices.to_dict())}, new Set({list(off)}))"
            program = f"{script}; console.log(JSON.stringify({told}))"
            printed = subprocess.run([node, "-"], input=program, capture_output=True, text=True, check=True).stdout
            answers.append([(one["label"], one["probability"], one["logit"]) for one in json.loads(printed)])
        for found in answers:
            assert found[0][2] == pytest.approx(expected.logit, abs=1e-4)
            assert {name: share for name, share, _ in found} == pytest.approx(dict(expected.top_k), abs=1e-4)
    assert not explainer.explain(image).choices.places.any()


@pytest.mark.parametrize("multi_label", [False, True])
def test_parts_constant_and_place_sum_to_the_logit(image, multi_label):
    explanation = make(multi_label=multi_label).explain(image, place=BERLIN)
    total = sum(part.contribution for part in explanation.parts) + explanation.constant + explanation.place.contribution
    assert total == pytest.approx(explanation.logit, abs=1e-4)
    rival = explanation.rival
    total = sum(part.rival_contribution for part in explanation.parts) + rival.constant
    assert total + explanation.place.rival_contribution == pytest.approx(rival.logit, abs=1e-4)
    assert (explanation.place.located, explanation.place.dated) == (True, True)


def test_what_the_place_adds_is_all_that_changes(explainer, image):
    alone, told = (
        explainer.explain(image),
        explainer.explain(image, place=BERLIN, versus=explainer.explain(image).label),
    )
    assert alone.place is None
    assert alone.to_dict()["place"] is None
    assert told.place.label_without == alone.label
    added = {told.label: told.place.contribution, told.rival.label: told.place.rival_contribution}
    again = explainer.explain(image, versus=told.label) if told.label != alone.label else alone
    before = {again.label: again.logit, again.rival.label: again.rival.logit}
    for name in added.keys() & before.keys():
        logit = told.logit if name == told.label else told.rival.logit
        assert logit - added[name] == pytest.approx(before[name], abs=1e-4)
    assert [part.attention for part in told.parts] == [part.attention for part in alone.parts]


def test_a_place_may_overrule_the_image(explainer, image):
    """Somewhere on earth, another class wins, and the explanation says which one the image alone would be."""
    alone = explainer.explain(image).label
    places = [rg.Place(float(latitude), float(longitude)) for latitude in (-60, 0, 60) for longitude in (-120, 0, 120)]
    found = [explainer.explain(image, place=place) for place in places]
    assert {explanation.place.label_without for explanation in found} == {alone}
    overruled = next(explanation for explanation in found if explanation.label != alone)
    assert overruled.place.name == "place"
    assert overruled.picture().size[0] > explainer.explain(image).picture().size[0] - 1


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 100])
@pytest.mark.parametrize("versus", [False, True])
def test_one_bar_more(explainer, image, limit, versus):
    explanation = explainer.explain(image, place=BERLIN)
    rows = bars(explanation, limit, versus)
    assert len(rows) == min(limit, 4 + 2)
    assert [row.number for row in rows[-2:]] == ["place and date", "constant"]
    expected = explanation.logit - (explanation.rival.logit if versus else 0)
    assert sum(row.value for row in rows) == pytest.approx(expected, abs=1e-4)
    assert len(bars(explainer.explain(image), limit, versus)) == min(limit, 4 + 1)


def test_files_are_asked_for_their_own_place(explainer, photos):
    found = explainer.explain(sorted(photos.iterdir()), place="exif", batch_size=2)
    assert [one.place and one.place.name for one in found] == ["place and date", "date", None]
    typed = explainer.explain(photos / "a.jpg", place=rg.Place(52.5, 13.4, 172))
    assert typed.place.contribution == pytest.approx(found[0].place.contribution, abs=1e-5)
    assert explainer.explain(photos / "a.jpg").place is None


@pytest.mark.parametrize(("place", "got"), [((52.5, 13.4), r"\(52.5, 13.4\)"), ("Berlin", "'Berlin'")])
def test_what_is_no_place(explainer, image, place, got):
    with pytest.raises(ValueError, match=f"place: expected a Place, 'exif' or None, got {got}"):
        explainer.explain(image, place=place)


def test_an_image_in_memory_has_no_file(explainer, image):
    with pytest.raises(ValueError, match="place: expected a Place of an image that is no file, got 'exif'"):
        explainer.explain(image, place="exif")


@pytest.mark.parametrize("place", [BERLIN, "exif"])
def test_a_run_without_places_is_told_none(image, place):
    with pytest.raises(ValueError, match="place: expected None, as the run was trained without places"):
        make(CONFIG).explain(image, place=place)


def test_a_folder_with_the_place_typed(run, photos, tmp_path):
    words = ["explain", str(run), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert not main([*words, "--latitude", "-33.9", "--longitude", "151.2", "--date", "2017-06-21"])
    lines = [json.loads(line) for line in (tmp_path / "out/explanations.jsonl").read_text().splitlines()]
    for line in lines:
        assert (line["place"]["located"], line["place"]["dated"]) == (True, True)
        total = sum(part["contribution"] for part in line["parts"]) + line["constant"] + line["place"]["contribution"]
        assert total == pytest.approx(line["logit"], abs=1e-4)
    with (tmp_path / "out/explanations.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    adds = {row["file"]: float(row["place: adds"]) for row in rows}
    assert adds == {line["source"]: line["place"]["contribution"] for line in lines}
    assert main(words) == 2  # other settings


def test_no_position_of_a_file_is_written_down(run, photos, tmp_path):
    out = tmp_path / "out"
    assert not main(["explain", str(run), str(photos), "--out", str(out), "--device", "cpu", "--exif"])
    written = b"".join(path.read_bytes() for path in out.iterdir() if path.is_file())
    assert b"52.5" not in written
    assert b"13.4" not in written
    lines = [json.loads(line) for line in (out / "explanations.jsonl").read_text().splitlines()]
    assert {line["source"][-5]: line["place"] and line["place"]["located"] for line in lines} == {
        "a": True,
        "b": False,
        "c": None,
    }
    assert "place and date" in (out / "gallery.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latitude", "91", "--longitude", "0"], "latitude: expected -90 to 90 degrees, got 91"),
        (["--latitude", "1"], "latitude, longitude: expected both or neither, got one"),
        (["--date", "yesterday"], "date: expected YYYY-MM-DD, got 'yesterday'"),
        (["--exif", "--date", "2017-06-21"], "--exif: expected no --latitude, --longitude or --date beside it"),
        (["--latitude", "north"], "latitude: expected degrees such as 52.5, got 'north'"),
    ],
)
def test_bad_places_are_one_line(run, photos, tmp_path, capsys, words, message):
    assert main(["explain", str(run), str(photos), "--out", str(tmp_path / "out"), *words]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert message in error
    assert not (tmp_path / "out").exists()
