"""SCOPS through the command line: it trains without labels, goes on exactly, and ranks agree."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rg
from pipelines.shards import reader
from pipelines.shards.manifest import Manifest
from pipelines.shards.samples import PART_MAP
from rg import recipes
from rg.config import OptimizerConfig, RunConfig, ScopsConfig, TrainConfig
from rg.distributed.group import Group
from rg.model.build import build_model
from rg.model.noise import image_seeds
from rg.training.engine import Engine
from rg.training.scops_objective import TERMS, ScopsObjective
from rg.training.train import _objective
from tests.support import forked
from tests.support.world import World
from tests.training.test_train import OPTIONS, metrics

CONFIG = recipes.get("birds_lite0_scops")
SETTINGS = {
    **OPTIONS,
    "model.scops.saliency": "mask",
    "optimizer.warmup_epochs": 0,
    "train.epochs": 2,
    "train.checkpoint_steps": 3,
    "train.keep_checkpoints": 9,
    "train.ema": 0.9,
}
del SETTINGS["model.grouping.smoothing_padding"]


def train(data, out, *more, recipe="birds_lite0_scops", **changed):
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changed.items()}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return forked.run(["train", recipe, "--data", str(data), "--out", str(out), *words, *more])


@pytest.fixture(scope="module")
def finished(small_birds, tmp_path_factory):
    out = tmp_path_factory.mktemp("scops") / "run"
    result = train(small_birds, out)
    assert result.returncode == 0, result.stderr
    assert "step 2/8 loss " in result.stderr
    assert "acc" not in result.stderr
    return out


def test_places_are_not_rounded_in_bf16():
    """Of a model under autocast, as in training: maps have full precision, and the terms those of it."""
    torch.manual_seed(0)
    model = build_model(CONFIG.model, 4, pretrained=False).train()
    objective = ScopsObjective(replace(CONFIG.model.scops, feature_weights="none"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    moved, sight = objective.move(images, torch.tensor([1, 2]), None)
    with torch.autocast("cpu", torch.bfloat16):
        output, training = model(images, None, moved)
    assert output.assign.dtype == training.warped_logits.dtype == torch.float32
    means = objective.of_images(output, torch.zeros(2), training, sight)
    assert set(means) == set(TERMS)
    assert all(torch.isfinite(value) for value in means.values())


def test_it_is_recorded_what_was_learned_and_no_accuracy(finished):
    lines = metrics(finished)
    assert [line["kind"] for line in lines] == ["train"] * 4
    assert {f"{name}_loss" for name in TERMS} | {"loss"} == {name for name in lines[0] if "loss" in name}
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert not any("accuracy" in line for line in lines)
    total = sum(getattr(CONFIG.model.scops, f"{name}_weight") * lines[0][f"{name}_loss"] for name in TERMS)
    assert lines[0]["loss"] == pytest.approx(total, rel=1e-4)
    assert json.loads((finished / "run.json").read_text())["saliency"] == "mask"


def test_the_network_that_is_looked_at_is_not_saved(finished):
    names = {name.partition(".")[0] for name in load_file(finished / "model.safetensors")}
    assert names == {"backbone", "pyramid", "basis"}


def test_it_goes_on_bit_for_bit_from_the_middle_of_an_epoch(small_birds, finished, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(finished, resumed)
    for step in (4, 6, 8):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    result = train(small_birds, resumed, "--resume")
    assert "continue at step 3 of 8" in result.stderr
    assert metrics(resumed) == metrics(finished)
    for name in ("model", "trained", "momentum"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert (resumed / file).read_bytes() == (finished / file).read_bytes()


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"model__grouping__background": False}, "model.grouping.background: expected true with model.kind = scops"),
        ({"model__sampler__kind": "saliency"}, "model.sampler.kind: expected none with model.kind = scops"),
        ({"input__mixup": 0.2}, "input.mixup: expected 0 with model.kind = scops, got 0.2"),
        ({"model__scops__equivariance_weight": -1}, "model.scops.equivariance_weight: expected 0 or more, got -1"),
        ({"model__scops__features": "vgg20"}, "neither resnet50, resnet101 nor a timm model: 'vgg20'"),
        ({"model__scops__feature_weights": "no.pth"}, "no.pth"),
    ],
)
def test_what_cannot_run_is_one_line(small_birds, tmp_path, changed, message):
    result = train(small_birds, tmp_path / "run", **changed)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_masks_are_asked_of_the_data(small_birds):
    manifest = Manifest.load(small_birds)
    assert PART_MAP in manifest.fields
    object.__setattr__(manifest, "fields", tuple(name for name in manifest.fields if name != PART_MAP))
    masked = replace(CONFIG, model=replace(CONFIG.model, scops=replace(CONFIG.model.scops, saliency="mask")))
    with pytest.raises(ValueError, match=r"model.scops.saliency: expected spectral_residual, as birds has no masks"):
        _objective(masked, manifest, [8], 0)


IMAGES = 6


def gradients(group: Group, saliency: str) -> dict[str, torch.Tensor]:
    """Of a step, of six images over all ranks, by the loss as the loop adds it up."""
    weights = {f"{name}_weight": 1.0 for name in TERMS}
    model_config = replace(
        CONFIG.model,
        backbone=replace(CONFIG.model.backbone, train="all"),
        scops=ScopsConfig(**weights, features="tf_efficientnet_lite0", saliency=saliency),
    )
    config = RunConfig(
        model=model_config,
        optimizer=OptimizerConfig(momentum=0.0, lr=1.0, new_layer_lr_scale=1.0, weight_decay=0.0),
        train=TrainConfig(global_batch=IMAGES, batch_norm="frozen"),
    )
    torch.manual_seed(0)
    model = build_model(config.model, 4)
    engine = Engine(model, config, group, 10)
    before = {name: value.clone() for name, value in engine.weights().items()}
    first = sum(engine.sizes[: group.ranks.rank])
    own = slice(first, first + engine.sizes[group.ranks.rank])
    images = torch.randint(0, 256, (IMAGES, 3, 64, 64), generator=torch.Generator().manual_seed(0))[own]
    masks = torch.zeros(IMAGES, 64, 64, dtype=torch.uint8)
    masks[:, 16:40, 20:60] = torch.arange(IMAGES, dtype=torch.uint8)[:, None, None]
    objective = ScopsObjective(config.model.scops)
    moved, sight = objective.move(images, image_seeds(0, 0, 0, own.start, own.stop - own.start), masks[own])
    output, training = engine(images, None, moved)
    means = objective.of_images(output, torch.zeros(len(images)), training, sight)
    engine.backward(objective.total(means, engine.share * len(engine.sizes)))
    engine.step(0, last=True)
    learning = dict(model.named_parameters())
    return {name: before[name] - value for name, value in engine.weights().items() if name in learning}


@pytest.mark.parametrize(("saliency", "size"), [("mask", 4), ("spectral_residual", 2)])
def test_several_ranks_learn_what_one_does(tmp_path, saliency, size):
    with World(1, tmp_path / "one") as world:
        (alone,) = world(gradients, saliency)
    with World(size, tmp_path / f"{size}") as world:
        for of_rank in world(gradients, saliency):
            assert {name for name, value in of_rank.items() if value.any()} == {*alone}
            for name, value in of_rank.items():
                # float32: sums of other shares.
                torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-5 + 1e-3 * alone[name].abs().max())


@pytest.fixture(scope="module")
def evaluated(small_birds, finished, tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished, run)
    result = forked.run(["evaluate", str(run), "--data", str(small_birds)])
    assert result.returncode == 0, result.stderr
    assert "Learned without labels          saliency: mask" in result.stdout
    assert "Accuracy" not in result.stdout
    return run


@pytest.fixture(scope="module")
def photo(small_birds, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "bird.jpg"
    path.write_bytes(next(reader.read(small_birds, "test")).jpeg)
    return path


def test_it_is_measured_as_all_others_are(evaluated):
    result = json.loads((evaluated / "metrics.json").read_text())
    assert result["saliency"] == "mask"
    for key in ("accuracy", "mean_class_accuracy", "chance", "reliability", "selective", "confidence"):
        assert result[key] is None
    for key in ("landmark_error", "nmi", "ari", "pointing_error"):
        assert np.isfinite(result[key])
    assert len(result["parts"]) == 4
    assert (result["parts"][-1]["state"], result["parts"][-1]["attention"]) == ("background slot", 0)
    lines = [json.loads(line) for line in (evaluated / "predictions.jsonl").open()]
    assert len(lines) == 40
    assert {"key", "label", "occurrence", "area", "landmark_error"} <= lines[0].keys()
    assert not {"predicted", "probability", "contributions"} & lines[0].keys()


REFUSED = [
    "report {run}",
    "serve {run}",
    "export {run}",
    "export-authors {run} --out {out}",
    "faithful {run} --data {data}",
    "compare {run} {photo} --out {out}",
]


@pytest.mark.parametrize("words", REFUSED)
def test_what_asks_for_a_class_is_refused_in_one_line(small_birds, evaluated, photo, tmp_path, words):
    words = words.format(run=evaluated, data=small_birds, photo=photo, out=tmp_path / "out")
    result = forked.run(words.split())
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "expected a run that names classes, got one of model.kind = scops, which learned without labels" in line


def test_explain_shows_the_parts_without_a_label(evaluated, photo, tmp_path):
    result = forked.run(["explain", str(evaluated), str(photo), "--out", str(tmp_path / "out")])
    assert result.returncode == 0, result.stderr
    assert "learned without labels, names no class" in result.stderr
    (line,) = map(json.loads, (tmp_path / "out" / "explanations.jsonl").open())
    assert (line["answer"], line["label"], line["top_k"], line["rival"]) == ("none", "", [], None)
    assert [part["name"] for part in line["parts"]][-1] == "background"
    assert sum(part["area"] for part in line["parts"]) == pytest.approx(1)
    with Image.open(tmp_path / "out" / line["picture"]) as picture:
        assert picture.height > 300
    assert not (tmp_path / "out" / "gallery.html").exists()


def test_an_explanation_has_the_maps_of_the_model(evaluated, photo):
    explainer = rg.load(evaluated, device="cpu")
    explanation = explainer.explain(photo, view="crop")
    with torch.no_grad(), Image.open(photo) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        output = explainer.model(pixels)
    np.testing.assert_allclose(explanation.assign, output.assign[0].numpy(), atol=1e-5)
    assert explanation.assign.sum(0) == pytest.approx(1)
    assert "label" not in repr(explanation)
    with pytest.raises(ValueError, match="versus: expected None, as the run learned without labels"):
        explainer.explain(photo, versus="a bird")
