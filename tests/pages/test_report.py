"""The report: one page that needs nothing but itself, says what was measured, and lets no text of the data act."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rg
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.files import sha256, write_json
from pipelines.shards import reader, writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.samples import Sample
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, InputConfig, ModelConfig, RunConfig
from rg.evaluation.calibration import Reliability, reliability
from rg.model.region_grouping import RegionGroupingModel
from rg.pages import charts, showcase
from rg.pages.numbers import percent, signed
from rg.pages.predictions import Predictions
from rg.pages.report import CARD_SIDE, STRIP_SIDE, report
from rg.runs.confidence import Confidence, write_confidence
from rg.runs.environment import environment
from rg.runs.folder import WEIGHTS, Classes, save_config, save_weights
from rg.runs.part_pictures import write_part_pictures

SCRIPT = "<script>alert(1)</script>"
NAMES = (SCRIPT, '"><img src="https://example.org/x" onerror=alert(2)>', "{{ 7 * 7 }} & 鷦鷯", "wren-" * 60)
K = 4
STATES = ("in use", "dead", "duplicate of part 0", "everywhere")
CONFIG = RunConfig(
    model=ModelConfig(
        BackboneConfig(name="resnet18", weights="none"),
        GroupingConfig(num_parts=K, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
    ),
    input=InputConfig(short_side=64, crop=64),
)
VOID = {"meta", "link", "img"}


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Birds whose species is told in two attributes instead of a class."""

    birds: Birds

    def __len__(self) -> int:
        return len(self.birds)

    def source(self, index: int) -> str:
        return self.birds.source(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.birds[index]
        assert isinstance(sample.label, int)
        return dataclasses.replace(sample, label=(sample.label % 2, sample.label // 2), super_category=None)


NAMED = "<b>crown</b> & neck"
SELECTIVE = {
    "threshold": 0.6,
    "presence_limit": 0.1,
    "target_precision": 0.95,
    "coverage": 0.8123,
    "precision": 0.9321,
    "unsure": 0.1234,
    "unknown": 0.0643,
    "aurc": 0.0456,
}
RELIABILITY = {"counts": [2, 0, 6], "confidences": [0.2, None, 0.9], "accuracies": [0.5, None, 1.0], "ece": 0.0789}


def make_run(folder: Path, multi_label: bool = False) -> Path:
    """Shards and the files of an evaluated run with random weights; what evaluate measures is made up."""
    birds = Birds(BirdsConfig(species=4, size=64), "test", 6)
    classes = Classes(NAMES[:2] if multi_label else NAMES, multi_label)
    schema = Schema(
        classes=classes.names,
        super_categories=() if multi_label else tuple(birds.super_categories),
        landmarks=tuple(birds.landmark_names),
        parts=tuple(birds.part_names),
        multi_label=multi_label,
    )
    data, run = folder / "data", folder / "run"
    source = Attributes(birds) if multi_label else birds
    writer.write(data, SCRIPT, {"test": source}, schema=schema, options={"size": 64})
    run.mkdir()
    torch.manual_seed(0)
    model = RegionGroupingModel(CONFIG.model, len(classes.names), multi_label)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(10)  # the answers stay the same, and parts stand out
    save_config(run, CONFIG, classes)
    save_weights(run, model)
    record = {
        "command": f"python -m rg train {SCRIPT}",
        "data": {"folder": str(data), "dataset": SCRIPT, "options": {"size": 64, "raw": SCRIPT}, "shards": ["0" * 64]},
        "ranks": 2,
        "device": SCRIPT,
        "environment": environment(),
    }
    write_json(run / "run.json", record)
    line = {"loss": 2.0, "classification_loss": 1.5, "prior_loss": 1.0, "accuracy": 0.25, "lr": 0.01}
    history = [{"kind": "train", "step": step, **line} for step in (10, 20, 30)]
    history[1]["loss"] = float("nan")
    history.append({"kind": "validation", "step": 30, "accuracy": 0.5, "classification_loss": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in history))

    samples = list(reader.read(data, "test"))
    images = [Image.open(io.BytesIO(sample.jpeg)) for sample in samples]
    write_json(run / "part_names.json", {"0": NAMED, "1": {"background": True}})
    explanations = rg.load(run, "cpu").explain(images, view="crop", top_k=len(classes.names))
    predictions = []
    for sample, explained in zip(samples, explanations, strict=True):
        attributes = [int(dict(explained.top_k)[name] > 0.5) for name in classes.names]
        predictions.append(
            {
                "key": sample.key,
                "label": list(sample.label) if isinstance(sample.label, tuple) else sample.label,
                "predicted": attributes if multi_label else classes.names.index(explained.label),
                "probability": explained.probability,
                "occurrence": [part.occurrence for part in explained.parts],
                "attention": [part.attention for part in explained.parts],
                "area": [part.mask.mean() for part in explained.parts],
                "contributions": [part.contribution for part in explained.parts],
                "explained": classes.names.index(explained.label),
                "landmark_error": None,
                "pointing": None,
            }
        )
    (run / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in predictions))
    parts = [
        {
            "part": k,
            "name": f"part {k}",
            "occurrence": 0.5,
            "on": 0.75,
            "prior_distance": 0.5,
            "area": 0.25,
            "background": False,
            "attention": 1 / K,
            "state": STATES[k],
        }
        for k in range(K)
    ]
    right = np.mean([np.mean(np.equal(one["label"], one["predicted"])) for one in predictions])
    metrics = {
        "data": str(data),
        "dataset": SCRIPT,
        "split": "test",
        "damaged": 0,
        "evaluation": {"landmark_scale": "box"},
        "levels": {"super_category": {"accuracy": 0.875, "accuracy_of_best_class": 0.75}},
        "temperature": 0.5,
        "selective": SELECTIVE,
        "reliability": RELIABILITY,
        "calibrated_reliability": RELIABILITY | {"ece": 0.0123},
        "samples": len(predictions),
        "chance": None if multi_label else 1 / len(classes.names),
        "accuracy": float(right),
        "mean_class_accuracy": float(right),
        "landmark_error": 0.1234,
        "mean_shape_error": 0.2345,
        "landmark_errors": {SCRIPT: 0.2, "eye": 0.1, "tail": None},
        "pointing_error": 0.125,
        "nmi": 0.3,
        "ari": 0.2,
        "part_map_nmi": 0.4,
        "part_map_ari": 0.1,
        "occurrence": [0.5] * K,
        "prior_loss": 0.5,
        "parts_in_use": 1,
        "parts": parts,
    }
    metrics["weights"] = sha256(run / WEIGHTS)
    write_json(run / "metrics.json", metrics)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def page(run):
    return report(run).read_text()


@pytest.fixture
def copy(run, tmp_path):
    """A run folder to spoil; the data stays where it is."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


class Reader(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.wrong = [], [], "", []
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def count(self, tag, name=None):
        named = [attributes.get("class", "").split() for found, attributes in self.tags if found == tag]
        return sum(name is None or name in names for names in named)

    def section(self, title):
        """Text from a heading to the next of the page."""
        headings = ("How to read this page", "Gallery", "Mistakes", "The parts", "Curves", "Metrics", "What ran")
        start = self.text.index(f"\n{title}\n")
        later = [found for heading in headings if (found := self.text.find(f"\n{heading}\n", start + 1)) > 0]
        return self.text[start : min(later, default=None)]


def edit(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_is_well_formed_and_complete(run, page):
    reader = Reader(page)
    assert reader.wrong == []
    predictions = lines(run / "predictions.jsonl")
    right = [one for one in predictions if one["label"] == one["predicted"]]
    assert 0 < len(right) < 12 < len(predictions) - len(right)  # so that both galleries are put to the test
    assert reader.count("article", "right") == len(right)
    assert reader.count("article", "mistake") == 12
    assert reader.count("article", "part") == K
    assert reader.count("svg") == K + 4 + 1
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert ids == ["legend", "gallery", "mistakes", "parts", "curves", "metrics", "run"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


class Folded(HTMLParser):
    """Articles by their classes, and the text of every summary, with how many closed details they lie in."""

    def __init__(self, text):
        super().__init__()
        self.depth, self.articles, self.summaries, self.inside = 0, [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.depth += tag == "details"
        if tag == "article":
            self.articles.append((values["class"], self.depth))
        if tag == "summary":
            self.inside = True
            self.summaries.append("")

    def handle_endtag(self, tag):
        self.depth -= tag == "details"
        self.inside = self.inside and tag != "summary"

    def handle_data(self, data):
        if self.inside:
            self.summaries[-1] += data


def test_a_few_birds_and_the_object_come_first_and_the_rest_is_folded(page):
    folded = Folded(page)
    for kind in ("card right", "card mistake"):
        depths = [depth for name, depth in folded.articles if name == kind]
        assert depths == [0] * min(4, len(depths)) + [1] * (len(depths) - 4)
    # Part 1 is background, as part_names.json says.
    assert sorted(depth for name, depth in folded.articles if name == "part") == [0, 0, 0, 1]
    (line,) = [" ".join(text.split()) for text in folded.summaries if "surroundings" in text]
    assert line == "1 part shows surroundings, or hardly counts: 1 dead"
    headings = [" ".join(text.split()) for text in folded.summaries]
    assert {"How to read this page", "Curves", "Metrics", "What ran"} <= set(headings)


def test_a_picture_of_the_part_stands_beside_every_number(copy, page):
    assert "url(" not in page
    write_part_pictures(copy, [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue", "white")])
    pictured = report(copy).read_text()
    style = re.search("<style>(.*)</style>", pictured, re.DOTALL).group(1)
    (source,) = re.findall(r"url\(([^)]*)\)", style)
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/webp;base64,")))) as row:
        assert row.size == (4 * 64, 64)
    assert pictured.count('class="thumb"') == pictured.count('class="badge') > 20


def test_nothing_of_the_page_is_elsewhere(page):
    reader = Reader(page)
    for tag, attributes in reader.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    style = re.search("<style>(.*)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] for tag, attributes in reader.tags if "http-equiv" in attributes)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_text_of_the_data_does_not_act(page):
    reader = Reader(page)
    assert SCRIPT not in page
    assert reader.text.count(SCRIPT) >= 6  # class, data set, command, device, option, landmark
    assert NAMES[1] in reader.text
    assert NAMES[2] in reader.text
    assert not [attributes for tag, attributes in reader.tags if tag == "img" and "onerror" in attributes]


def test_pictures_are_in_the_page(page):
    reader = Reader(page)
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    cards = reader.count("article", "card")
    sizes = []
    for source in sources:
        head, content = source.split(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            image.load()
            sizes.append(image.size)
    assert sizes.count((CARD_SIDE,) * 2) == 3 * cards
    assert sizes.count((STRIP_SIDE,) * 2) == len(sources) - 3 * cards == 3 * 6  # none for the dead part
    assert all(attributes["alt"] for tag, attributes in reader.tags if tag == "img")


def test_numbers_are_those_that_were_measured(run, page):
    reader = Reader(page)
    text = reader.text.replace("\N{NO-BREAK SPACE}", " ")
    accuracy = json.loads((run / "metrics.json").read_text())["accuracy"]
    for number in (f"{accuracy:.2%}".replace("%", " %"), "12.34 %", "23.45 %", "12.50 %", "1 of 4", "0.5000"):
        assert number in text
    right = sum(one["label"] == one["predicted"] for one in lines(run / "predictions.jsonl"))
    assert f"{right} of 24 images; chance: 25.0 %" in text
    assert "Pointing-game error12.5 %" in text.replace("\n", "")
    assert "3 of the object, 1 of the surroundings or hardly counting" in text
    assert "no box, or never visible" in text
    assert "ot measured" not in text
    assert "model.backbone.nameresnet18" in text
    assert "2 ranks" in text
    wrong = sum(one["label"] != one["predicted"] for one in lines(run / "predictions.jsonl"))
    assert f"{wrong} of 24 images have a wrong label" in text


def test_mistakes_name_the_truth_and_its_probability(run, page):
    explainer, predictions = rg.load(run, "cpu"), lines(run / "predictions.jsonl")
    mistakes = re.sub(r"\s+", " ", Reader(page).section("Mistakes"))
    surest = max((one for one in predictions if one["label"] != one["predicted"]), key=lambda one: one["probability"])
    data = json.loads((run / "metrics.json").read_text())["data"]
    sample = next(iter(reader.read(data, "test", [surest["key"]])))
    explained = explainer.explain(Image.open(io.BytesIO(sample.jpeg)), view="crop", top_k=4)
    truth = NAMES[surest["label"]]
    said = f"{explained.label}{explained.probability:.1%} In truth: {truth}{dict(explained.top_k)[truth]:.1%}"
    assert said.replace("%", " %") in mistakes
    best = max(explained.parts, key=lambda part: part.contribution)
    assert best.contribution > 0.05
    assert f"Most of what spoke for it: part {best.index} (+{best.contribution:.2f})" in mistakes
    assert f"<bdi>part {best.index}</bdi> (+" in page  # the number stays right of a name in Arabic


def test_an_image_that_a_decoder_tips_is_shown_and_said_to_be(copy):
    """As many mistakes as are counted: none goes because the explanation names another class than the evaluation."""
    predictions = lines(copy / "predictions.jsonl")
    first, *rest = predictions
    tipped = first | {"predicted": (first["predicted"] + 1) % 4, "label": first["predicted"], "probability": 1 - 1e-9}
    right = [one | {"label": one["predicted"]} for one in rest]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (tipped, *right)))
    page = Reader(report(copy).read_text())
    assert page.count("article", "mistake") == 1
    mistakes = re.sub(r"\s+", " ", page.section("Mistakes"))
    assert "1 of 24 images have a wrong label" in mistakes
    name = " ".join(NAMES[tipped["predicted"]].split())
    assert f"Evaluation named {name}. The image is so undecided" in mistakes
    assert "In truth" not in mistakes  # the explanation names the truth


def test_no_part_is_named_where_none_stands_out(run, monkeypatch, tmp_path):
    monkeypatch.setattr("rg.explain.contributions.NOTABLE", 1e9)
    text = Reader(report(run, out=tmp_path / "page.html").read_text()).text
    assert "No part stands out" in text
    assert "spoke for it" not in text


def test_a_part_is_shown_where_it_is(copy):
    predictions = lines(copy / "predictions.jsonl")
    predictions = [one | {"area": [n < 2, *one["area"][1:]]} for n, one in enumerate(predictions)]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in predictions))
    reader = Reader(report(copy).read_text())
    shown = [attributes for tag, attributes in reader.tags if attributes.get("alt", "").startswith(f"{NAMED} in")]
    assert len(shown) == 2


def test_parts_that_do_not_work_come_with_advice(page):
    parts = Reader(page).section("The parts")
    assert "No image shows this part." in parts
    for text in ("Part 1 is dead.", "Part 2 is a duplicate of part 0.", "Part 3 is everywhere."):
        assert text in parts
    assert f"{NAMED} is" not in parts
    assert parts.count("model.grouping.init=kmeans") == 3


def test_what_the_data_cannot_tell_is_said(copy):
    absent = ("landmark_error", "mean_shape_error", "landmark_errors", "pointing_error", "nmi", "ari")
    edit(copy / "metrics.json", **dict.fromkeys((*absent, "part_map_nmi", "part_map_ari")))
    reader = Reader(report(copy).read_text())
    assert "Not measured without landmarks, boxes or part maps: Landmark error, Mean-shape error" in reader.text
    assert reader.text.count("Landmark error") == reader.text.count("Pointing-game error") == 1
    assert reader.count("div", "tile") == 3
    assert "None" not in reader.text


def test_nothing_but_right_answers(copy):
    predictions = [one | {"predicted": one["label"]} for one in lines(copy / "predictions.jsonl")]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in predictions))
    reader = Reader(report(copy).read_text())
    assert "None: every answer on the 24 images is right." in reader.text
    assert reader.count("article", "mistake") == 0


def test_attributes(tmp_path):
    run = make_run(tmp_path, multi_label=True)
    reader = Reader(report(run).read_text())
    assert reader.wrong == []
    assert "of 2 attributes right" in reader.text
    assert reader.count("article", "right") == 12
    wrong = [one for one in lines(run / "predictions.jsonl") if one["label"] != one["predicted"]]
    assert reader.count("article", "mistake") == min(12, len(wrong))
    assert "of 2 attributes are right. " in reader.section("Mistakes")


def test_the_page_is_the_same_every_time_and_alone(run, page, tmp_path):
    again = report(run, out=tmp_path / "new" / "page.html")
    assert again.read_text() == page
    assert [path.name for path in again.parent.iterdir()] == ["page.html"]


def test_a_failure_leaves_the_old_page(copy, monkeypatch):
    (copy / "report.html").write_text("old")
    monkeypatch.setattr("os.replace", _no_space)
    with pytest.raises(OSError, match="No space left"):
        report(copy)
    assert (copy / "report.html").read_text() == "old"
    assert not list(copy.glob("*.tmp"))


def _no_space(*_):
    raise OSError(28, "No space left on device")


def test_it_refuses_what_it_cannot_report(copy, tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        report(tmp_path / "none")
    edit(copy / "metrics.json", data=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"^--data: the shards are no longer in .*gone; say where they are$"):
        report(copy)
    other = tmp_path / "other"
    birds = Birds(BirdsConfig(species=2, size=64), "test", 1)
    schema = Schema(
        tuple(birds.class_names), tuple(birds.super_categories), tuple(birds.landmark_names), tuple(birds.part_names)
    )
    writer.write(other, "birds", {"test": birds}, schema=schema, options={})
    with pytest.raises(ValueError, match=r"^--data: expected the 4 classes of .*copy, got 2 classes$"):
        report(copy, other)
    dataclasses.replace(Manifest.load(other), classes=NAMES, super_categories=(), multi_label=True).save(other)
    with pytest.raises(ValueError, match=r"^--data: expected the 4 classes of .*copy, got 4 attributes$"):
        report(copy, other)
    written = (copy / "predictions.jsonl").read_text()
    (copy / "predictions.jsonl").write_text(written.replace('"explained"', '"described"'))
    with pytest.raises(ValueError, match=r"was evaluated by an earlier version; run `python -m rg evaluate` again$"):
        report(copy)
    (copy / "predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"predictions.jsonl: expected a line for every image, got none$"):
        report(copy)
    first, second, *_ = map(json.loads, written.splitlines())
    uneven = [first, second | {"occurrence": [0.5]}]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in uneven))
    with pytest.raises(ValueError, match=rf"expected {K} numbers as occurrence, got 1 in line 2$"):
        report(copy)
    (copy / "predictions.jsonl").write_text(written)
    history = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text('{"part": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: expected kind, step in every line, but line 1 has others"):
        report(copy)
    (copy / "metrics.jsonl").write_text(history)
    (copy / "predictions.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"predictions.jsonl: expected one JSON value per line"):
        report(copy)
    (copy / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"has no metrics.json; run `python -m rg evaluate` first"):
        report(copy)


def test_a_run_that_was_trained_on_since_is_refused(copy):
    edit(copy / "metrics.json", weights="0" * 64)
    with pytest.raises(ValueError, match=r"was trained on since it was measured; run `python -m rg evaluate` again$"):
        report(copy)


def test_half_a_line_of_a_killed_run_is_no_record(copy, page):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    curve = r'class="curve" d="[^"]+"'
    assert re.findall(curve, report(copy).read_text()) == re.findall(curve, page)


def test_data_may_move(run, copy, page):
    data = json.loads((run / "metrics.json").read_text())["data"]
    edit(copy / "metrics.json", data="/nowhere")
    assert Reader(report(copy, Path(data)).read_text()).count("img") == Reader(page).count("img")


def test_curves_end_where_the_values_do(page):
    paths = re.findall(r'class="curve" d="([^"]+)"', page)
    assert len(paths) == 7  # the reliability has none: bins of few images are no curve
    loss, *_, accuracy, validation, rate = (
        np.array([point.split() for point in path[1:].split("L")], float) for path in paths
    )
    width, height = charts.WIDTH, charts.HEIGHT
    assert loss.tolist() == [[173.3, 0], [520, 0]]  # 2 of 2, and the nan is left out
    assert accuracy[-1].tolist() == [width, 0.75 * height]
    assert validation.tolist() == [[width, 0.5 * height]]
    assert rate[:, 0].tolist() == pytest.approx([width / 3, 2 * width / 3, width], abs=0.1)


@pytest.mark.parametrize("highest", [1e-7, 0.00312, 0.1, 0.3, 1, 1.01, 7.9, 8, 99, 12345, 4e9])
def test_ticks_are_round_and_enough(highest):
    ticks = charts.ticks(highest)
    assert ticks[0] == 0
    assert ticks[-2] < highest <= ticks[-1]
    assert 3 <= len(ticks) <= 6
    digits = f"{ticks[1]:.10e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "2.5", "5")
    assert np.diff(ticks) == pytest.approx(ticks[1])


def test_many_points_are_thinned_to_their_means():
    points = [(step, step % 2) for step in range(1, 30_001)]
    thin = charts.thinned(points)
    assert len(thin) == charts.CURVE_POINTS
    assert np.mean(thin, axis=0) == pytest.approx(np.mean(points, axis=0))
    assert charts.thinned(points[:5]) == points[:5]


def test_reliability_is_drawn_where_it_was_measured():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 1000)
    before, after = (reliability(confidence**power, rng.random(1000) < confidence, 10) for power in (0.3, 1))
    chart = charts.reliability_chart({"before": before, "after": after})
    assert chart.diagonal == f"M0 {charts.HEIGHT}L{charts.WIDTH} 0"
    assert chart.x_ticks[-1] == (charts.WIDTH, "100\N{NO-BREAK SPACE}%")
    assert chart.y_ticks[-1] == (0, "100\N{NO-BREAK SPACE}%")
    assert [curve.name for curve in chart.curves] == ["before", "after"]
    for curve, one in zip(chart.curves, (before, after), strict=True):
        assert curve.ece == percent(one.ece)
        assert f"{curve.ece} {curve.name}" in chart.description
        measured = [values for values in zip(one.counts, one.confidences, one.accuracies, strict=True) if values[0]]
        assert 0 < len(measured) < 10
        assert len(curve.dots) == len(measured)
        for dot, (count, sure, right) in zip(curve.dots, measured, strict=True):
            assert dot.x / charts.WIDTH == pytest.approx(sure, abs=1e-3)
            assert 1 - dot.y / charts.HEIGHT == pytest.approx(right, abs=1e-3)
            share = (dot.radius / charts.LARGEST_RADIUS) ** 2
            assert share == pytest.approx(count / 1000, abs=0.02) or dot.radius == charts.LEAST_RADIUS
            assert dot.text.startswith(f"{curve.name}: {count} decisions")
            # The ends of Wilson's interval are the shares p from which the measured one is 1.96 deviations away.
            for end in dot.interval:
                p = 1 - end / charts.HEIGHT
                assert abs(right - p) == pytest.approx(1.96 * (p * (1 - p) / count) ** 0.5, abs=0.004)
            assert dot.interval[0] >= dot.y >= dot.interval[1]


def test_a_reliability_of_one_bin_is_one_dot():
    (curve,) = charts.reliability_chart({"": Reliability((0, 8), (None, 0.75), (None, 0.5), 0.25)}).curves
    (dot,) = curve.dots
    assert (dot.x, dot.y, dot.radius) == (0.75 * charts.WIDTH, 0.5 * charts.HEIGHT, charts.LARGEST_RADIUS)


def test_names_of_parts_are_everywhere(run, page):
    reader = Reader(page)
    parts = reader.section("The parts")
    assert f"{NAMED} object" in parts
    assert "Part 1 surroundings, or hardly counts" in " ".join(parts.split())
    assert "Part 0" not in reader.text
    alternatives = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert sum(text.startswith(f"{NAMED} in an image") for text in alternatives) == 6
    assert {attributes["title"] for tag, attributes in reader.tags if tag == "small" and "title" in attributes} == {
        NAMED
    }
    wrong = [one for one in lines(run / "predictions.jsonl") if one["label"] != one["predicted"]]
    best_two = [sorted(range(K), key=lambda k, one=one: -one["contributions"][k])[:2] for one in wrong]
    assert any(0 in two for two in best_two)
    assert f"{NAMED} (+" in reader.section("Mistakes")


def test_parts_come_with_the_classes_that_they_matter_for(copy):
    """Part 0 adds 2, 1, -1, -2 to the four classes, whose mean is 0; the others add nothing."""
    predictions = lines(copy / "predictions.jsonl")
    adds = [2.0, 1.0, -1.0, -2.0]
    predictions = [
        one | {"explained": one["label"], "contributions": [adds[one["label"]], 0, 0, 0]} for one in predictions
    ]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in predictions))
    text = "".join(Reader(report(copy).read_text()).section("The parts").split())  # cells stand side by side
    for title, classes in {"Matters most for": (0, 1), "Argues against": (3, 2)}.items():
        said = [title, *(f"{NAMES[c]} {signed(adds[c])} ({signed(adds[c])})" for c in classes)]
        assert "".join("".join(said).split()) in text
    assert text.count("Itaddsnothingnotabletoanyclass.") == K - 1


def test_cards_say_why_not_another_class(run, page):
    reader = Reader(page)
    predictions = Predictions.read(run / "predictions.jsonl")
    assert reader.count("details", "versus") == reader.count("article", "card")
    mistakes = " ".join(reader.section("Mistakes").split())
    for label in {int(predictions.labels[image]) for image in showcase.worst(predictions)[:12]}:
        name = " ".join(NAMES[label].split())
        assert f"In truth: {name}" in mistakes
        assert f"Why not {name}" in mistakes


def test_figures_of_other_images_are_refused(copy, run):
    """Shards that were made anew may have the same keys: pictures of one set would stand beside figures of another."""
    manifest = Manifest.load(run.parent / "data")
    digest = hashlib.sha256("".join(shard.sha256 for shard in manifest.splits["test"].shards).encode()).hexdigest()
    assert "unknown, evaluated by an earlier version" in report(copy).read_text()
    edit(
        copy / "metrics.json",
        shards={"test": digest, "train": "0" * 64},
        predictions=sha256(copy / "predictions.jsonl"),
    )
    assert digest in report(copy).read_text()
    edit(copy / "metrics.json", shards={"test": "0" * 64})
    with pytest.raises(ValueError, match=r"^--data: expected the test split that .* was measured on, got other shards"):
        report(copy)
    edit(copy / "metrics.json", shards={"test": digest}, predictions="0" * 64)
    with pytest.raises(ValueError, match=r"predictions.jsonl is not that of metrics.json; run `python -m rg evaluate`"):
        report(copy)


def test_what_becomes_of_the_answers_is_in_the_page(page, copy):
    text = " ".join(Reader(page).section("Metrics").replace("\N{NO-BREAK SPACE}", " ").split())
    for name, value in {
        "coverage": "81.23 %",
        "precision": "93.21 %",
        "unsure": "12.34 %",
        "unknown": "6.43 %",
    }.items():
        assert value in text, name
    confidence = Confidence(None, 1.0, 2.0, 0.95, 0.01, 1.0, 1.0, 1, "birds", weights=sha256(copy / WEIGHTS))
    write_confidence(copy / "confidence.json", confidence)
    cards = Reader(report(copy).read_text()).section("Gallery")
    assert cards.count("no known part fits") == len(re.findall("Why not", cards)) > 0
    write_confidence(copy / "confidence.json", dataclasses.replace(confidence, presence_limit=0.0))
    edit(copy / "metrics.json", selective=None)
    text = Reader(report(copy).read_text())
    assert text.section("Gallery").count("unsure") == len(re.findall("Why not", cards))
    assert "Answers given" not in text.text


def test_groups_take_turns():
    assert showcase.take_turns(range(6), lambda image: "aabacb"[image]) == [0, 2, 4, 1, 5, 3]


@pytest.mark.parametrize(
    "value,text",
    [(None, "\N{EN DASH}"), (0, "0.0 %"), (1, "100.0 %"), (0.1234, "12.3 %"), (1e-9, "< 0.1 %"), (0.99999, "> 99.9 %")],
)
def test_percentages_do_not_claim_certainty(value, text):
    assert percent(value).replace("\N{NO-BREAK SPACE}", " ") == text


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
)


def browse(page, profile):
    """What a browser has to say about a file, and a picture of it."""
    picture = profile.with_suffix(".png")
    files = [f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]
    command = [BROWSER, *FLAGS.split(), "--disable-sync", "--enable-logging=stderr", "--window-size=1000,3000", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], Image.open(picture).convert("RGB")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it_without_errors_and_fetches_nothing(page, tmp_path):
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    good.write_text(page)
    # Whatever the page might fetch, its own policy refuses and reports on the console.
    bad.write_text(page.replace("<main>", '<main><img src="https://example.org/x.png" alt="">'))
    console, picture = browse(good, tmp_path / "one")
    assert console == []
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10_000  # photos and not an empty page
    console, _ = browse(bad, tmp_path / "two")
    assert "Content Security Policy" in console[0]
