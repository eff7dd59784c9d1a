"""Leakage, of models of which it is known what they look at, and from run to file."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.files import write_json
from pipelines.images import open_rgb
from pipelines.shards import writer
from pipelines.shards.manifest import Manifest
from rg.attribution.faithful import Chosen, make_batch
from rg.attribution.surroundings import Answers, ask, movement, surroundings
from rg.cli.main import main
from rg.config import BackboneConfig, EvaluationConfig, ModelConfig
from rg.evaluation.evaluate import evaluate
from rg.evaluation.intervals import PerImage, intervals
from rg.evaluation.leakage import CHANGES, Measure, leakage
from rg.evaluation.leakage_protocol import Protocol
from rg.model.build import build_model
from rg.model.plain import PlainOutput
from rg.runs.folder import RECORD, Classes, load_model, save_config, save_weights
from tests.conftest import schema
from tests.support import miniature_run
from tests.support.launch import Launch

CONFIG = BirdsConfig(species=4, size=64)
TEST = Birds(CONFIG, "test", 2)
SHORT = Protocol(images=6, margins=(0, 6))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards that can be drawn again."""
    birds = {"train": Birds(CONFIG, "train", 2), "test": TEST}
    folder = tmp_path_factory.mktemp("data")
    options = dataclasses.asdict(CONFIG) | dict.fromkeys(birds, 2)
    writer.write(folder, "birds", birds, schema=schema(TEST), options=options)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Of region grouping on images of 64 px."""
    return miniature_run.build(tmp_path_factory.mktemp("run") / "run", data)


class LooksAt(nn.Module):
    """Its two logits are how bright the n-th image of a batch is inside the n-th mask, and the negative of that."""

    multi_label = False

    def __init__(self, masks):
        super().__init__()
        self.masks = masks
        self.backbone = SimpleNamespace(pixel_mean=torch.full((1, 3, 1, 1), 120.0))

    def forward(self, images):
        values = images.double().mean(1)
        score = (values * self.masks[: len(images)]).sum((1, 2)) / self.masks[: len(images)].sum((1, 2)) - 100
        return PlainOutput(torch.stack([score, -score], 1))


def measured(data, look):
    """What is measured of a model that looks at ``look`` of the true masks."""
    keys = [f"test-{number:06d}" for number in range(6)]
    masks = np.stack([TEST.drawing(number).part_map > 0 for number in range(6)])
    model, source = LooksAt(torch.from_numpy(look(masks)).double()), Chosen(data, "test", keys, None)
    return Measure(model, miniature_run.CONFIG, source, TEST, SHORT, True)(range(6)), masks


def test_a_model_that_looks_at_the_object_alone_does_not_move(data):
    values, masks = measured(data, lambda masks: masks)
    for change in CHANGES:
        for margin in SHORT.margins:
            assert max(values[f"{change}/{margin}/changed"]) > 0.1
            for measure in ("answer", "probability", "logit"):
                assert values[f"{change}/{margin}/{measure}"] == [0.0] * 6
            assert values[f"{change}/{margin}/accuracy"] == values["whole/accuracy"]
    assert values["noise/0/changed"] == pytest.approx((~masks).mean((1, 2)).tolist())


def test_a_model_that_looks_at_the_surroundings_moves_as_far_as_they_do(data):
    values, masks = measured(data, lambda masks: ~masks)
    grey = 120 - 100  # the score of an image whose surroundings are grey
    pixels = [np.asarray(open_rgb(TEST[number].jpeg), float).mean(2) for number in range(6)]
    before = [image[~mask].mean() - 100 for image, mask in zip(pixels, masks, strict=True)]
    assert values["grey/0/logit"] == pytest.approx([abs(score - grey) for score in before])
    assert values["grey/0/answer"] == [float(score < 0) for score in before]
    probabilities = 1 / (1 + np.exp(-2 * np.array(before)))
    expected = np.abs(probabilities - 1 / (1 + np.exp(-2 * grey)))
    assert values["grey/0/probability"] == pytest.approx(expected.tolist())
    assert min(values["noise/0/logit"]) > 0.1
    assert values["grey/6/logit"] != values["grey/0/logit"]  # the ring around the object stayed


def test_the_margin_is_the_distance_to_the_object():
    objects = np.random.default_rng(0).random((3, 20, 24)) > 0.98
    objects[2] = False
    places = np.argwhere(np.ones((20, 24)))
    for margin in (0, 1, 3.5):
        found = surroundings(objects, margin)
        for one, far in zip(objects[:2], found, strict=False):
            nearest = cdist(places, np.argwhere(one)).min(1).reshape(one.shape)
            np.testing.assert_array_equal(far, nearest > margin)
        assert not found[2].any()


def test_contributions_move_as_the_model_says(run):
    model, _, _ = load_model(run)
    images = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.requires_grad_(False)
    before = ask(model, images[0])
    after = ask(model, images[1], before.classes)
    moved = movement(before, after, multi_label=False)
    for n in range(2):
        label = int(before.classes[n])
        logits = [float(model(pair[n : n + 1]).logits[0, label]) for pair in images]
        # Batches of one and of two round differently, in float32.
        assert moved["logit"][n] == pytest.approx(abs(logits[1] - logits[0]), abs=1e-5)
    # The constant is the same for both, so logits move by the sum of the contributions.
    change = (after.contributions - before.contributions).sum(1)
    np.testing.assert_allclose(np.abs(change), moved["logit"], atol=1e-5)
    assert (moved["contributions"] * model.num_parts >= np.abs(change) - 1e-9).all()


def test_attributes_count_by_the_share_that_is_called_otherwise():
    before = Answers(np.array([[1.0, -1.0, 2.0, 3.0]]), np.array([[0.7, 0.3, 0.9, 0.95]]), np.array([3]), None)
    after = Answers(np.array([[-1.0, -1.0, 2.0, 1.0]]), np.array([[0.3, 0.3, 0.9, 0.7]]), np.array([3]), None)
    moved = movement(before, after, multi_label=True)
    assert {name: float(value[0]) for name, value in moved.items() if name != "contributions"} == pytest.approx(
        {"answer": 0.25, "probability": (0.4 + 0.25) / 4, "logit": 2.0}
    )


def test_the_command_measures_an_evaluated_run(run, data, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert main(["leakage", str(copy), "--data", str(data), "--images", "99", "--margins", "[0,6]"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((copy / "leakage.json").read_text())
    assert (result["samples"], result["split"], result["object"]) == (8, "test", "masks")
    metrics = evaluate(copy, data, "test", settings=EvaluationConfig())
    assert result["whole"]["accuracy"]["mean"] == pytest.approx(metrics["accuracy"])
    assert f"accuracy {100 * metrics['accuracy']:.1f} %" in printed
    samples = PerImage()
    kept = result["images"]["noise"]["6"]["logit"]
    samples.mean("logit", np.array(kept))
    figure = result["noise"]["6"]["logit"]
    assert figure["mean"] == pytest.approx(np.mean(kept))
    assert figure["interval"] == pytest.approx(intervals(samples)["logit"])
    assert f"{figure['mean']:.3f} [" in printed
    assert len(result["images"]["keys"]) == len(kept) == 8
    assert not (copy / "leakage.json.pieces").exists()


def test_pieces_of_any_size_give_the_same_surroundings(run, data, tmp_path):
    """Noise and lent scenery belong to the image. Convolutions round by the size of the batch."""
    results = []
    for size in (2, 5):
        copy = shutil.copytree(run, tmp_path / str(size))
        results.append(leakage(copy, data, protocol=SHORT, batch_size=size)["images"])
    for change in CHANGES:
        for margin in ("0", "6"):
            one, other = (result[change][margin] for result in results)
            assert one["changed"] == other["changed"]
            np.testing.assert_allclose(one["logit"], other["logit"], atol=1e-4)


def test_the_parts_of_the_model_are_the_object_where_there_are_no_masks(run, data, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    result = leakage(copy, data, protocol=dataclasses.replace(SHORT, object="parts"))
    assert result["object"] == "parts"
    model, config, _ = load_model(copy)
    images = make_batch(model, config, [TEST[TEST.index_of(key)] for key in result["images"]["keys"]]).images
    with torch.no_grad():
        assign = model(images).assign
    up = torch.nn.Upsample(scale_factor=16, mode="bilinear")(assign)
    shown = ~model.background[up.argmax(1)]
    expected = [float((~one).float().mean()) if one.any() else 0 for one in shown]
    kept = result["images"]["grey"]["0"]["changed"]
    assert kept == pytest.approx([share or None for share in expected])


def test_what_cannot_be_measured_is_refused(data, tmp_path, capsys):
    for field, value in (("images", 1), ("seed", -1), ("margins", ()), ("margins", (8, 0)), ("margins", (-1,))):
        with pytest.raises(ValueError, match=f"^{field}: expected"):
            Protocol(**{field: value})
    plain = tmp_path / "plain"
    plain.mkdir()
    config = dataclasses.replace(
        miniature_run.CONFIG, model=ModelConfig(BackboneConfig(name="resnet18", weights="none"), kind="plain")
    )
    save_config(plain, config, Classes(tuple(Manifest.load(data).classes)))
    save_weights(plain, build_model(config.model, 4))
    write_json(plain / RECORD, {"recipe": "plain"})
    words = ["leakage", str(plain), "--data", str(data), "--object"]
    assert main([*words, "parts"]) == 2
    assert capsys.readouterr().err.startswith("rg: error: --object: expected masks in the data for a plain network")
    assert main([*words, "masks", "--images", "4", "--margins", "[0]"]) == 0
    assert "contributions" in capsys.readouterr().out


def test_several_processes_leave_what_one_leaves(run, data, tmp_path):
    alone, together = (shutil.copytree(run, tmp_path / name) for name in ("alone", "together"))
    expected = leakage(alone, data, protocol=SHORT, batch_size=2, device="cpu")
    words = ["leakage", together, "--data", data, "--images", "6", "--margins", "[0,6]", "--batch-size", "2"]
    launch = Launch([*words, "--device", "cpu"], tmp_path, 2)
    assert launch.wait() == [0, 0], launch.said
    assert launch.said.count("birds, test: 6 images") == 1
    found = json.loads((together / "leakage.json").read_text())
    assert found == json.loads((alone / "leakage.json").read_text())
    assert found["images"] == expected["images"]
