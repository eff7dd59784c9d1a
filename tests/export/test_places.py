"""Exported models that know of places: a second input, and what it adds as an output of its own."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from rg.config import BackboneConfig, PlaceConfig
from rg.export.card import example
from rg.export.export import export
from rg.model.build import build_model
from rg.runs.folder import Classes, load_model, save_config, save_weights
from tests.support.miniature_run import CONFIG

NAMES = ("wren", "robin", "jay")
PLACES = torch.tensor([[52.5, 13.4, 172.0], [torch.nan] * 3, [torch.nan, torch.nan, 9.0]])


def make_run(folder, kind):
    place = PlaceConfig(on=True, width=8, blocks=1)
    backbone = BackboneConfig("test_resnet", "none")
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, kind=kind, place=place, backbone=backbone)
    )
    torch.manual_seed(0)
    model = build_model(config.model, 3)
    torch.nn.init.normal_(model.place.last.weight)
    folder.mkdir()
    save_config(folder, config, Classes(NAMES))
    save_weights(folder, model)
    return folder


@pytest.mark.parametrize("kind,format", [("region_grouping", "onnx"), ("plain", "torch-export")])
def test_places_are_an_input_and_what_they_add_an_output(tmp_path, kind, format):
    run = make_run(tmp_path / "run", kind)
    file, differences = export(run, format)
    assert differences["place"] < 1e-5
    images = 255 * torch.rand(3, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_model(run)[0](images, places=PLACES)
    if format == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["images", "places"]
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {"images": images.numpy(), "places": PLACES.numpy()})
        found = dict(zip(names, values, strict=True))
    else:
        program = torch.export.load(file).module()
        found = {name: value.detach().numpy() for name, value in program(images, PLACES).items()}
    assert list(found)[-1] == "place"
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
    np.testing.assert_allclose(found["place"], expected.place, atol=1e-5)
    assert not found["place"][1].any()
    assert "latitude and longitude in degrees" in file.with_name(f"{file.name}.md").read_text()


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("outputs", [["logits", "place"], ["logits", "assign", "attention", "place"]])
def test_the_example_hands_places_in(file, outputs):
    metadata = {"multi_label": False, "input": {"view": "crop", "crop": 64, "short_side": 64}, "places": ["latitude"]}
    code = example(file, metadata | {"outputs": outputs})
    compile(code, file, "exec")
    assert "places = " in code
    assert "place = " in code.replace("places = ", "")
