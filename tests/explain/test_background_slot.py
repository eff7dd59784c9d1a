"""A model with a background slot, fused maps and centring, through all that is made of a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import rg
from rg import recipes
from rg.evaluation.evaluate import evaluate
from rg.evaluation.parts import problems
from rg.export.export import _Outputs, find_sizes, trace
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.part_names import read_parts
from tests.support import forked, miniature_run

K = 4


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    config = miniature_run.CONFIG
    grouping = replace(config.model.grouping, background=True, centered=True)
    backbone = replace(config.model.backbone, fused_strides=(32,))
    config = replace(config, model=replace(config.model, grouping=grouping, backbone=backbone))
    folder = miniature_run.build(tmp_path_factory.mktemp("slot") / "run", small_birds, config)
    evaluate(folder, small_birds, device="cpu")
    return folder


def test_the_slot_is_measured_as_what_it_is(run):
    metrics = json.loads((run / "metrics.json").read_text())
    *parts, slot = metrics["parts"]
    assert (len(parts), slot["name"], slot["state"], slot["background"]) == (K, "background", "background slot", True)
    assert slot["attention"] == 0
    assert sum(part["attention"] for part in parts) == pytest.approx(1, abs=1e-5)
    assert not any(part["background"] for part in parts)
    assert metrics["parts_in_use"] <= K
    assert not any("of 5 parts" in text for text, _ in problems(metrics["parts"]))
    assert all(line["contributions"][K] == 0 for line in map(json.loads, (run / "predictions.jsonl").open()))


def test_explanations_give_it_no_say(run):
    explainer = rg.load(run, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    explanation = explainer.explain(Image.fromarray(pixels))
    slot = explanation.parts[-1]
    assert (slot.name, slot.background, slot.attention, slot.contribution) == ("background", True, 0.0, 0.0)
    total = sum(part.contribution for part in explanation.parts) + explanation.constant
    assert total == pytest.approx(explanation.logit, abs=1e-4)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        exported, output = _Outputs(explainer.model)(images), explainer.model(images)
    torch.testing.assert_close(exported["logits"], output.logits)
    assert exported["assign"].shape[1] == K + 1


def test_fused_maps_are_exported_for_images_of_any_size():
    torch.manual_seed(0)
    model = RegionGroupingModel(recipes.get("birds_lite0_parts").model, 5, pretrained=False).eval()
    sizes = find_sizes(model, 144)
    assert (sizes.any_size, sizes.side) == (True, 64)  # two positions of the deepest map
    program = trace(model, sizes).module()
    for height, width in ((64, 80), (130, 77)):
        images = torch.randint(0, 256, (1, 3, height, width)).float()
        with torch.no_grad():
            torch.testing.assert_close(program(images)["logits"], model(images).logits)


def test_pages_are_made_of_it(run, tmp_path):
    for words in (["report", str(run)], ["export", str(run), "--out", str(tmp_path / "model.onnx")]):
        result = forked.run(words)
        assert result.returncode == 0, result.stderr
    page, card = (run / "report.html").read_text(), (tmp_path / "model.onnx.md").read_text()
    assert "Few parts are left" not in page
    assert "into 4 parts" in page
    assert "no part: no class rests on it" in page
    assert "gather at the border" not in page
    assert "| parts K | 4 |" in card


def test_a_person_may_name_it_but_not_make_it_a_part(run):
    (run / "part_names.json").write_text('{"4": "scenery"}')
    background = [False] * K + [True]
    assert read_parts(run, background, slot=True)[-1].name == "scenery"
    (run / "part_names.json").write_text('{"4": {"background": false}}')
    with pytest.raises(ValueError, match="background slot of the model"):
        read_parts(run, background, slot=True)
    (run / "part_names.json").unlink()
