"""Explanations side by side: what is drawn, what is recorded, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import rg
from pipelines.files import sha256
from rg.cli.main import main
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, InputConfig, ModelConfig, RunConfig
from rg.explain.colors import HEAT
from rg.model.build import build_model
from rg.pages import compare as compare_module
from rg.pages.compare import compare
from rg.pages.heat_maps import Cell, Strip, overlay, sheet
from rg.pages.numbers import signed
from rg.runs.confidence import Confidence, write_confidence
from rg.runs.folder import Classes, save_config, save_weights
from tests.support.launch import Launch

NAMES = ("wren", "<robin>", "jay & co")
METHODS = ["attribution", "contribution", "cam", "grad_cam", "guided_grad_cam", "integrated_gradients", "dff"]


def make_run(folder, kind="region_grouping", multi_label=False, names=NAMES):
    torch.manual_seed(0)
    config = RunConfig(
        model=ModelConfig(
            BackboneConfig(name="resnet18", weights="none"),
            GroupingConfig(num_parts=4, standardize=True, smoothing_padding="same"),
            HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
            kind=kind,
        ),
        input=InputConfig(short_side=72, crop=64),
    )
    model = build_model(config.model, len(names), multi_label)
    with torch.no_grad():
        for _ in range(5):  # batch norm statistics that keep activations in range
            model(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
        for parameter in model.classifier.parameters():
            parameter.mul_(30)  # the answers stay the same, and parts stand out
    folder.mkdir()
    save_config(folder, config, Classes(names, multi_label))
    save_weights(folder, model)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "parts"), make_run(folder / "plain", "plain")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, size in (("tall & <b>.png", (90, 130)), ("wide.png", (200, 80))):
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def compared(runs, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    assert compare(runs[0], [photos], out, runs[1]) == out / "compare.html"
    return out


def test_a_folder_of_pictures_a_page_and_a_record_are_written(compared):
    assert sorted(path.name for path in compared.iterdir()) == [
        "compare.html", "compare.json", "compare.jsonl", "tall_b_.png", "wide.png",
    ]  # fmt: skip


def test_the_record_says_what_was_compared(compared, runs):
    record = json.loads((compared / "compare.json").read_text())
    parts, plain = record["models"]
    assert [method["name"] for method in parts["methods"]] == METHODS
    assert [method["name"] for method in plain["methods"]] == METHODS[2:]
    undefined = {
        (model["title"], method["name"]) for model in (parts, plain) for method in model["methods"] if method["why_not"]
    }
    assert undefined == {("Region grouping", "cam")}
    assert [Path(model["run"]) for model in (parts, plain)] == list(runs)
    for image in record["images"]:
        for model, answer in zip((parts, plain), image["answers"], strict=True):
            missing = {name for name, peak in answer["peaks"].items() if peak is None}
            assert missing == {method["name"] for method in model["methods"] if method["why_not"]}


def test_labels_are_those_of_explain(compared, runs):
    record = json.loads((compared / "compare.json").read_text())
    for image in record["images"]:
        explanation = rg.load(runs[0]).explain(image["file"], view="crop")
        assert image["answers"][0]["label"] == explanation.label
        assert image["answers"][0]["probability"] == pytest.approx(explanation.probability, abs=1e-5)


@pytest.fixture
def quick(monkeypatch):
    """Integrated Gradients in one step."""
    monkeypatch.setattr(compare_module, "STEPS", 1)


@pytest.mark.usefixtures("quick")
def test_probabilities_and_answers_are_those_of_explain_with_its_confidence(runs, photos, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    fitted = Confidence(90.0, 0.9, None, 0.95, 0.01, 0.5, 0.9, 200, "birds", weights=sha256(run / "model.safetensors"))
    write_confidence(run / "confidence.json", fitted)
    compare(run, [photos / "wide.png"], tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "compare.json").read_text())["images"]
    explanation = rg.load(run).explain(image["file"], view="crop")
    (answer,) = image["answers"]
    assert (answer["label"], answer["answer"]) == (explanation.label, explanation.answer) == (answer["label"], "unsure")
    assert answer["probability"] == pytest.approx(explanation.probability, abs=1e-6)
    other = rg.load(runs[0]).explain(image["file"], view="crop").probability
    assert answer["probability"] != pytest.approx(other, abs=1e-3)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f"{100 * answer['probability']:.1f}\N{NO-BREAK SPACE}%, unsure" in page


@pytest.mark.usefixtures("quick")
def test_what_is_compared_already_is_kept(runs, photos, tmp_path, monkeypatch, caplog):
    """A run that stops half-way has written what it did, and the next one does the rest only."""
    out = tmp_path / "out"
    judge, judged = compare_module._judge, []

    def stopping(side, named, image):
        if len(judged) == stop:
            raise KeyboardInterrupt
        judged.append(image.size)
        return judge(side, named, image)

    monkeypatch.setattr(compare_module, "_judge", stopping)
    caplog.set_level("INFO")
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        compare(runs[0], [photos], out)
    assert sorted(path.name for path in out.iterdir()) == ["compare.jsonl.pieces", "tall_b_.png"]
    assert "stopped; the same command goes on where it stopped" in caplog.text
    stop = 2
    compare(runs[0], [photos], out)
    assert judged == [(90, 130), (200, 80)]
    assert "going on with what was done before" in caplog.text
    assert "2 images compared" in caplog.text
    record = json.loads((out / "compare.json").read_text())
    assert [Path(image["file"]).name for image in record["images"]] == ["tall & <b>.png", "wide.png"]
    assert (out / "compare.html").read_text().count("<tr>") == 2 + 2
    compare(runs[0], [photos], out)  # all is there
    assert len(judged) == 2
    assert "2 images are compared already" in caplog.text
    stop = 3  # other images have other factors, so nothing is kept
    compare(runs[0], [photos / "wide.png"], out)
    assert judged[2:] == [(200, 80)]


def test_several_processes_leave_the_folder_of_one(runs, photos, compared, tmp_path):
    words = ["compare", runs[0], photos, "--plain", runs[1], "--out", tmp_path / "out", "--device", "cpu"]
    launch = Launch(words, tmp_path, 2)
    assert launch.wait() == [0, 0], launch.said
    names = sorted(path.name for path in compared.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (compared / name).read_bytes(), name
    assert launch.said.count("2 images compared") == 1


@pytest.mark.usefixtures("quick")
def test_files_of_one_name_are_told_apart(runs, photos, tmp_path):
    """Also by the name of a folder that is no text, in place of which a page shows a mark."""
    for place in ("a", "caf\udce9"):
        (tmp_path / place).mkdir()
        shutil.copy(photos / "wide.png", tmp_path / place / "IMG_0001.png")
    compare(runs[0], [tmp_path / "a", tmp_path / "caf\udce9"], tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert [page.count(f">{place}/IMG_0001.png</p>") for place in ("a", "caf\ufffd")] == [1, 1]


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_compared(runs, photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"^--out: expected a folder, but .*file is a file$"):
            compare(runs[0], [photos], out)


def test_peaks_are_pixels_of_the_photo_inside_of_what_the_models_see(compared):
    record = json.loads((compared / "compare.json").read_text())
    windows = {"tall & <b>.png": (5, 25, 85, 105), "wide.png": (64.5, 4.5, 135.5, 75.5)}  # 64 of 72 of the short side
    for image in record["images"]:
        x0, y0, x1, y1 = windows[Path(image["file"]).name]
        for answer in image["answers"]:
            for x, y in filter(None, answer["peaks"].values()):
                assert x0 - 1 <= x <= x1 + 1
                assert y0 - 1 <= y <= y1 + 1


def test_the_page_is_whole_escaped_and_alone(compared):
    page = (compared / "compare.html").read_text()
    assert page.count("<tr>") == 2 + 2  # two lines of headings, two images
    assert page.count('src="data:image/webp;base64,') == 2 * (1 + 6 + 5)
    assert "Not defined" not in page
    assert page.count("CAM is not defined for region grouping: needs a linear classifier") == 1
    columns = re.findall(r"<th scope=\"col\"[^>]*>([^<]+)</th>", page)
    assert len(columns) == 1 + 6 + 5
    assert columns.count("CAM") == 1  # of the plain network
    assert "<b>.png" not in page
    assert "tall &amp; &lt;b&gt;.png" in page
    assert "<robin>" not in page
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|@import", page)


def test_the_parts_that_spoke_are_those_of_explain(compared, runs):
    explainer, named = rg.load(runs[0]), 0
    rows = (compared / "compare.html").read_text().split("<tr>")[3:]
    record = json.loads((compared / "compare.json").read_text())
    for row, image in zip(rows, record["images"], strict=True):
        parts = explainer.explain(image["file"], view="crop").parts
        most = sorted(parts, key=lambda part: -part.contribution)[:3]
        told = re.findall(r">(\d)</span><span>([^<]+)</span></p>", row)
        assert told == [(str(part.index), signed(part.contribution)) for part in most if part.contribution >= 0.05]
        named += len(told)
    assert named


def test_one_model_alone_and_attributes(tmp_path, photos):
    run = make_run(tmp_path / "attributes", multi_label=True)
    assert main(["compare", str(run), str(photos / "wide.png"), "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    (image,) = record["images"]
    (answer,) = image["answers"]
    explanation = rg.load(run).explain(photos / "wide.png", view="crop")
    assert (answer["label"], answer["probability"]) == (
        explanation.label,
        pytest.approx(explanation.probability, abs=1e-5),
    )


def test_a_plain_network_alone_says_what_is_not_defined_for_it(tmp_path, runs, photos):
    compare(runs[1], [photos / "wide.png"], tmp_path / "out")
    (plain,) = json.loads((tmp_path / "out" / "compare.json").read_text())["models"]
    assert plain["title"] == "Plain network"
    assert [method["name"] for method in plain["methods"]] == METHODS
    assert {method["name"] for method in plain["methods"] if method["why_not"]} == {"attribution", "contribution"}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("is not defined for plain network: a plain network has no parts.") == 2
    assert "Not defined" not in page


def test_an_image_that_cannot_be_decoded_is_named_and_left_out(tmp_path, runs, photos, caplog):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photos / "wide.png").read_bytes()[:200])
    out = tmp_path / "out"
    compare(runs[0], [broken, photos / "wide.png"], out)
    assert json.loads((out / "compare.json").read_text())["left_out"] == [str(broken)]
    assert "broken.jpg" in (out / "compare.html").read_text()
    assert "broken.jpg" in caplog.text
    with pytest.raises(ValueError, match="none of 1 images"):
        compare(runs[0], [broken], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_runs_that_do_not_go_together_are_refused(tmp_path, runs, photos):
    other = make_run(tmp_path / "other", "plain", names=(NAMES[0], "b", "c"))
    fewer = make_run(tmp_path / "fewer", "plain", names=NAMES[:2])
    attributes = make_run(tmp_path / "attributes", "plain", multi_label=True)
    for run, plain, message in (
        (runs[0], runs[0], "--plain: expected the run of a plain network"),
        (
            runs[0],
            other,
            r"^--plain: expected the 3 classes of .*parts, got 3 classes, but number 1 is 'b' instead of ",
        ),
        (runs[0], fewer, r"^--plain: expected the 3 classes of .*parts, got 2 classes$"),
        (runs[0], attributes, r"^--plain: expected the 3 classes of .*parts, got 3 attributes$"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(run, [photos], tmp_path / "out", plain)
    assert not (tmp_path / "out").exists()


def test_the_overlay_is_black_up_to_the_neutral_value_and_pale_at_the_peak():
    image = Image.new("RGB", (120, 80), (100, 100, 100))
    values = torch.zeros(80, 120)
    values[:, 60:] = torch.linspace(0, 1, 60)
    values[:, :20] = -3
    dark, (red, green, blue) = 0.65 * 100, ImageColor.getrgb(HEAT[-1])
    out = np.asarray(overlay(image, values))
    assert np.abs(out[:, 25:60].astype(float) - dark).max() <= 1  # nothing to say
    assert np.abs(out[:, :18].astype(float) - dark).max() <= 1  # speaks against it
    assert np.abs(out[70, 119] - (0.65 * np.array([red, green, blue]) + 0.35 * 100)).max() <= 1.5
    brightness = out[70, 62:].astype(int).sum(1)
    assert (np.diff(brightness) >= -1).all()


def test_a_map_that_prefers_nothing_is_dark_and_has_no_ring():
    """Without attention the attribution is 1/K everywhere, but for rounding."""
    noise = 1e-7 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    out = np.asarray(overlay(Image.new("RGB", (64, 64), (200, 200, 200)), 0.25 + noise, neutral=0.25))
    assert np.abs(out.astype(float) - 0.65 * 200).max() <= 1


def test_the_ring_is_where_the_map_is_largest():
    values = torch.zeros(8, 8)
    values[2, 5] = 1.0
    image = Image.new("RGB", (128, 128), (90, 90, 90))
    rows, columns = np.nonzero((np.asarray(overlay(image, values)) == 255).all(2))
    assert (columns.mean(), rows.mean()) == pytest.approx((5.5 * 16, 2.5 * 16), abs=1.5)


def test_a_sheet_says_what_is_missing_and_aligns_the_maps_of_a_method():
    image = Image.new("RGB", (100, 60), (10, 20, 30))
    red, green = (Image.new("RGB", (100, 60), color) for color in ("red", "lime"))
    missing = Cell("a", None, "it has no parts")
    strips = [Strip("one", [missing, Cell("b", red)]), Strip("two", [Cell("b", green), Cell("c", red)])]
    out = np.asarray(sheet("a very long title " * 20, image, strips))
    places = {color: np.nonzero((out == color).all(2)) for color in ((255, 0, 0), (0, 255, 0), (10, 20, 30))}
    assert [len(xs) for _, xs in places.values()] == [2 * 6000, 6000, 6000]
    assert set(places[0, 255, 0][1]) < set(places[255, 0, 0][1])  # b of two below b of one
    strips[0] = Strip("one", [Cell("a", red), *strips[0].cells[1:]])
    drawn = np.asarray(sheet("a very long title " * 20, image, strips))
    ys, xs = np.nonzero((out != drawn).any(2))
    assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (100, 60)
