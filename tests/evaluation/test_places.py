"""What evaluation says of places: how right a run is with them, and by the images alone."""

import dataclasses
import json

import pytest
import torch

from pipelines.batches.loader import Loader
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import read
from rg.config import EvaluationConfig, PlaceConfig
from rg.evaluation.evaluate import evaluate
from rg.model.build import build_model
from rg.pages.report import report
from rg.runs import inputs
from rg.runs.folder import load_model, save_weights
from rg.tables.evaluation import table
from tests.support import miniature_run, told_creatures

ON = PlaceConfig(on=True, width=8, blocks=1)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_creatures.write(tmp_path_factory.mktemp("told") / "shards", train=1, val=1, test=2)


def make_run(folder, data, kind):
    """A run whose places say much."""
    config = dataclasses.replace(
        miniature_run.CONFIG, model=dataclasses.replace(miniature_run.CONFIG.model, kind=kind, place=ON)
    )
    miniature_run.build(folder, data, config)
    model = build_model(config.model, len(Manifest.load(data).classes))
    torch.nn.init.normal_(model.place.last.weight, std=3)
    save_weights(folder, model)
    return folder


@pytest.mark.parametrize(("kind", "flip"), [("region_grouping", True), ("plain", False)])
def test_accuracy_with_and_without_places(told, tmp_path, kind, flip):
    run = make_run(tmp_path / "run", told, kind)
    result = evaluate(run, told, device="cpu", settings=EvaluationConfig(flip=flip, stability=False))
    model, config, _ = load_model(run)
    decoding = inputs.decoding(config.input, torch.device("cpu"))
    (batch,) = Loader(told, "test", inputs.evaluation_geometry(config.input), 64, decoding=decoding)
    with torch.no_grad():
        alone = model(batch.images).logits
        if flip:
            alone = (alone + model(batch.images.flip(3)).logits) / 2
        places = model.place(batch.places)
    lines = {line["key"]: line for line in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}
    found = [lines[key] for key in batch.keys]
    assert [line["without_place"] for line in found] == alone.argmax(1).tolist()
    assert [line["predicted"] for line in found] == (alone + places).argmax(1).tolist()
    labels = batch.labels
    changed = alone.argmax(1) != (alone + places).argmax(1)
    known = sum(sample.place is not None for sample in read(told, "test"))
    assert result["places"] == {
        "told": known,
        "accuracy_without": pytest.approx((alone.argmax(1) == labels).double().mean().item()),
        "changed": pytest.approx(changed.double().mean().item()),
    }
    assert result["accuracy"] == pytest.approx(((alone + places).argmax(1) == labels).double().mean().item())
    assert 0 < known < len(labels)
    assert 0 < result["places"]["changed"] <= known / len(labels)
    assert "Accuracy without places" in table(result)
    if kind == "region_grouping":
        assert result["decomposition_error"] < 1e-3
        page = report(run, told, tmp_path / "report.html").read_text()
        assert "Accuracy without places" in page
        assert "<small>place and date</small>" in page
