"""Answers with parts off, told from one pass: what the model says that has them off, in Python and in a browser."""

import dataclasses
import itertools
import json
import shutil
import subprocess
from importlib import resources

import numpy as np
import pytest
import torch

import rg
from pipelines.files import sha256, write_json
from rg.explain import choices as choosing
from rg.explain.choices import Choices
from rg.explain.explainer import Explainer
from rg.runs.confidence import Confidence, write_confidence
from tests.support import miniature_run

NODE = shutil.which("node")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SETS = [off for size in range(4) for off in itertools.combinations(range(4), size)]


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    """Probabilities are calibrated by a temperature, and no answer is withheld."""
    folder = miniature_run.build(tmp_path_factory.mktemp("choices") / "run", small_birds)
    weights = sha256(folder / "model.safetensors")
    confidence = Confidence(1.7, 0.0, None, 0.95, 0.01, 1.0, 1.0, 200, "birds", weights)
    write_confidence(folder / "confidence.json", confidence)
    return folder


def asked(run, off):
    """What a run says whose part_names.json has parts off: probability and logit by name."""
    write_json(run / "part_names.json", {str(k): {"off": True} for k in off})
    edits = {"off": list(off), "merged": {}} if off else {}
    write_json(run / "confidence.json", json.loads((run / "confidence.json").read_text()) | {"edits": edits})
    explanation = rg.load(run, device="cpu").explain(PIXELS, top_k=4)
    return dict(explanation.top_k) | {"logit": explanation.logit}


@pytest.fixture(scope="module")
def expected(run):
    return {off: asked(run, off) for off in SETS}


@pytest.fixture(scope="module")
def choices(run):
    asked(run, ())
    return rg.load(run, device="cpu").explain(PIXELS).choices


@pytest.mark.parametrize("off", SETS, ids=str)
def test_they_are_those_of_a_model_with_the_parts_off(choices, expected, off):
    found = choices.without(off)
    assert choices.complete
    assert found[0][2] == pytest.approx(expected[off]["logit"], abs=1e-5)
    shares = {label: share for label, share, _ in found}
    assert shares == pytest.approx({name: expected[off][name] for name in shares}, abs=1e-6)


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_a_browser_tells_the_same(choices, expected):
    script = (resources.files("rg.pages") / "choices.js").read_text()
    told = json.dumps(json.loads(json.dumps(choices.to_dict())))
    program = f"{script}; const sets = {json.dumps(SETS)};"
    program += f"console.log(JSON.stringify(sets.map((off) => answersWithout({told}, new Set(off)))))"
    done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, check=True)
    for off, answers in zip(SETS, json.loads(done.stdout), strict=True):
        assert [answer["logit"] for answer in answers] == sorted((a["logit"] for a in answers), reverse=True)
        assert answers[0]["logit"] == pytest.approx(expected[off]["logit"], abs=1e-4)
        shares = {answer["label"]: answer["probability"] for answer in answers}
        assert shares == pytest.approx({name: expected[off][name] for name in shares}, abs=1e-4)


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_none_is_certain():
    """A logit that is 50 above rounds to a probability of 1 in either language."""
    sure = Choices(("a", "b"), np.float32([50, 0]), np.zeros((2, 1), np.float32), 1.0, True)
    script = (resources.files("rg.pages") / "choices.js").read_text()
    program = f"{script}; console.log(JSON.stringify(answersWithout({json.dumps(sure.to_dict())}, new Set())))"
    done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, check=True)
    found = [answer["probability"] for answer in json.loads(done.stdout)]
    assert found == pytest.approx([share for _, share, _ in sure.without(())], rel=1e-12)
    assert 0 < found[1] < found[0] < 1


def test_of_many_classes_the_most_probable_are_kept(run, monkeypatch):
    monkeypatch.setattr(choosing, "ALL", 3)
    monkeypatch.setattr(choosing, "MOST_PROBABLE", 2)
    explanation = rg.load(run, device="cpu").explain(PIXELS)
    assert explanation.choices.labels == tuple(label for label, _ in explanation.top_k[:2])
    assert not explanation.choices.complete


def test_attributes_have_none(run):
    explainer = rg.load(run, device="cpu")
    model = type(explainer.model)(explainer.config.model, 3, multi_label=True)
    classes = dataclasses.replace(explainer.classes, names=("red", "small", "loud"), multi_label=True)
    with torch.no_grad():
        explanation = Explainer(model, explainer.config, classes, explainer.device).explain(PIXELS)
    assert explanation.choices is None
