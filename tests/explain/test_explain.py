"""Explanations: exact, at image size, for any image."""

import contextlib
import dataclasses
import html
import io
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit, softmax

from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.files import sha256
from pipelines.shards import reader, writer
from pipelines.shards.manifest import Schema
from pipelines.shards.samples import Sample
from rg.config import (
    BackboneConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    RunConfig,
    SamplerConfig,
)
from rg.explain import overlays, pictures
from rg.explain.explainer import Explainer
from rg.explain.explanation import Explanation
from rg.explain.facts import PartExplanation, at_image_size
from rg.explain.summary import summarize
from rg.model import grids
from rg.model.device import pick_device
from rg.model.region_grouping import RegionGroupingModel
from rg.model.samplers import Sampled
from rg.runs.confidence import Confidence, write_confidence
from rg.runs.folder import WEIGHTS, Classes, save_config, save_weights
from rg.runs.part_names import read_parts, unnamed

NO_SAMPLER = SamplerConfig()


def make(multi_label=False, backbone="tf_efficientnet_lite0", sampler=NO_SAMPLER, **size):
    torch.manual_seed(0)
    config = RunConfig(
        model=ModelConfig(
            backbone=BackboneConfig(name=backbone, weights="imagenet" if "lite0" in backbone else "none"),
            grouping=GroupingConfig(num_parts=4, standardize=True, smoothing_padding="same"),
            head=HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
            sampler=sampler,
        ),
        input=InputConfig(**({"short_side": 72, "crop": 64, "test_short_side": 64} | size)),
    )
    model = RegionGroupingModel(config.model, 3, multi_label)
    crop = config.input.test_size[1]
    model.initialize_dictionary(torch.randint(0, 256, (8, 3, crop, crop), dtype=torch.uint8), 0)
    return Explainer(model, config, Classes(("wren", "robin", "jay"), multi_label), torch.device("cpu"))


@pytest.fixture(scope="module")
def explainer():
    return make()


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("multi_label", [False, True])
def test_an_explanation_adds_up(multi_label):
    explanation = make(multi_label).explain(noise(90, 70))
    total = sum(part.contribution for part in explanation.parts) + explanation.constant
    assert total == pytest.approx(explanation.logit, abs=1e-4)
    assert sum(part.attention for part in explanation.parts) == pytest.approx(1, abs=1e-5)
    assert explanation.top_k[0] == (explanation.label, explanation.probability)
    assert [name for name, _ in explanation.top_k] == sorted(
        ("wren", "robin", "jay"), key=lambda name: -dict(explanation.top_k)[name]
    )
    if not multi_label:
        assert sum(probability for _, probability in explanation.top_k) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_so_does_that_of_the_rival(multi_label):
    """The rival is the runner-up, or the class that was asked for; maps sum up to what the parts add."""
    explainer = make(multi_label)
    explanation = explainer.explain(noise(90, 70), top_k=3)
    assert explanation.rival.label == explanation.top_k[1][0]
    for name, probability in explanation.top_k:
        asked = explainer.explain(noise(90, 70), versus=name, top_k=1)
        assert (asked.label, len(asked.top_k)) == (explanation.label, 1)
        rival = asked.rival
        assert rival.label == (explanation.top_k[1][0] if name == explanation.label else name)
        total = sum(part.rival_contribution for part in asked.parts) + rival.constant
        assert total == pytest.approx(rival.logit, abs=1e-4)
        if name == rival.label:
            assert rival.probability == pytest.approx(probability, abs=1e-6)
        difference = asked.logit - asked.constant - (rival.logit - rival.constant)
        assert asked.contribution_map(versus_rival=True).sum(dtype=float) == pytest.approx(difference, abs=1e-4)
        assert asked.contribution_map().sum(dtype=float) == pytest.approx(asked.logit - asked.constant, abs=1e-4)
    with pytest.raises(ValueError, match="versus: expected one of the 3 classes, got 'kite'"):
        explainer.explain(noise(64, 64), versus="kite")


def test_behind_a_sampler_all_is_told_in_pixels_of_the_photo(monkeypatch):
    """Through a known grid, which shows the place (0.2, -0.1) of the window twice as large."""
    sampler = SamplerConfig("saliency", 64, 1, "test_resnet", "none", glimpse=64)
    explainer = make(sampler=sampler, short_side=96, crop=96, test_short_side=96)
    places = torch.linspace(-1, 1, 9)
    nodes = 0.5 * torch.stack([places.expand(9, -1), places[:, None].expand(-1, 9)], 2) + torch.tensor([0.2, -0.1])

    def forward(images, *_):
        own = nodes.expand(len(images), -1, -1, -1)
        return Sampled(grids.sample(images, own, 64), own)

    monkeypatch.setattr(explainer.model.sampler, "forward", forward)
    explanation = explainer.explain(noise(140, 96), top_k=3)
    assert explanation.window == (22, 0, 118, 96)  # a sampler takes squares
    total = explanation.logit - explanation.constant
    assert sum(part.contribution for part in explanation.parts) == pytest.approx(total, abs=1e-4)
    assert explanation.contribution_map().sum(dtype=float) == pytest.approx(total, abs=1e-4)
    assert explanation.zoom.shape == (17, 17, 2)
    np.testing.assert_allclose(explanation.zoom[0, 0], [0.35, 0.2], atol=1e-6)
    np.testing.assert_allclose(explanation.zoom[-1, -1], [0.85, 0.7], atol=1e-6)
    assert explanation.assign.shape == (4, 6, 6)  # of the 96 pixels, not of the 64 that were seen
    model = explainer.model
    with torch.no_grad():
        shown = torch.from_numpy(np.array(noise(140, 96).crop((22, 0, 118, 96)))).permute(2, 0, 1)[None]
        own = model.describe(model.features(shown)).assign
    expected = grids.carry_back(own, grids.inverse(nodes[None], (6, 6)))[0].numpy()
    np.testing.assert_allclose(explanation.assign, expected, atol=1e-5)
    assert pictures.panel(explanation).width > pictures.panel(dataclasses.replace(explanation, zoom=None)).width + 300
    with pytest.raises(ValueError, match="view: expected crop or auto"):
        explainer.explain(noise(140, 96), view="whole")


def test_the_lines_of_a_zoom_lie_where_the_grid_says():
    """Of a grid that shows the middle half: five lines either way."""
    places = np.linspace(0.25, 0.75, 5)
    zoom = np.stack(np.meshgrid(places, places), 2)
    explanation = dataclasses.replace(make().explain(noise(65, 65)), zoom=zoom)
    before, after = (np.asarray(draw(explanation)).astype(int) for draw in (overlays.photo, overlays.zoom_overlay))
    changed = (before != after).any(2)
    lines = np.zeros((65, 65), dtype=bool)
    lines[16:49:8, 16:49] = lines[16:49, 16:49:8] = True
    assert (changed <= lines).all()
    assert changed.sum() > 0.99 * lines.sum()  # a pixel may have had the colour of the line


SURE = Confidence(None, 0.0, None, 0.95, 0.01, 1.0, 1.0, 100, "birds", "0" * 64)


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_calibrated(multi_label):
    """Logits divided by the temperature, in double precision; the logits themselves stay as they are."""
    explainer = make(multi_label)
    with torch.no_grad():
        explainer.model.classifier.weight.mul_(30) if multi_label else explainer.model.classifier.linear.weight.mul_(30)
    before = explainer.explain(noise(64, 64), view="crop", top_k=3)
    explainer.confidence = dataclasses.replace(SURE, temperature=2.5)
    after = explainer.explain(noise(64, 64), view="crop", top_k=3)
    with torch.no_grad():
        logits = explainer.model(torch.from_numpy(np.array(noise(64, 64))).permute(2, 0, 1)[None]).logits[0].double()
    scaled = (logits / 2.5).numpy()
    expected = dict(zip(("wren", "robin", "jay"), expit(scaled) if multi_label else softmax(scaled), strict=True))
    assert dict(after.top_k) == pytest.approx(expected, abs=1e-5)
    assert after.probability == after.top_k[0][1] != pytest.approx(before.probability, abs=0.01)
    assert after.rival.probability == after.top_k[1][1]
    assert (after.label, after.logit, after.rival.logit) == (before.label, before.logit, before.rival.logit)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_label_may_be_withheld(multi_label):
    """Presence is counted here from what the model says: attention (the mean over attributes) times occurrence."""
    explainer = make(multi_label)
    with torch.no_grad():
        output = explainer.model(torch.from_numpy(np.array(noise(64, 64))).permute(2, 0, 1)[None])
    attention = output.attention[0].double().reshape(-1, 4).numpy().mean(0)
    presence = float(attention @ output.occurrence[0].double().numpy())
    image = noise(64, 64)
    sure = explainer.explain(image, view="crop")
    assert sure.answer == sure.to_dict()["answer"] == "label"
    for threshold, limit, answer in (
        (sure.probability - 1e-4, presence - 1e-4, "label"),
        (sure.probability + 1e-4, presence - 1e-4, "unsure"),
        (sure.probability - 1e-4, presence + 1e-4, "unknown"),
        (sure.probability + 1e-4, presence + 1e-4, "unknown"),
        (0.0, None, "label"),
        (None, None, "unsure"),
    ):
        explainer.confidence = dataclasses.replace(SURE, threshold=threshold, presence_limit=limit)
        found = explainer.explain(image, view="crop")
        assert found.answer == found.to_dict()["answer"] == answer
        assert found.label == sure.label
        assert {"label": sure.label, "unsure": "not sure", "unknown": "not know"}[answer] in found.summary


def test_a_run_is_loaded_with_its_confidence(explainer, tmp_path):
    save_config(tmp_path, explainer.config, explainer.classes)
    save_weights(tmp_path, explainer.model)
    assert Explainer.load(tmp_path, "cpu").confidence is None
    confidence = dataclasses.replace(SURE, weights=sha256(tmp_path / WEIGHTS))
    write_confidence(tmp_path / "confidence.json", confidence)
    assert Explainer.load(tmp_path, "cpu").confidence == confidence
    write_confidence(tmp_path / "confidence.json", SURE)  # of other weights
    assert Explainer.load(tmp_path, "cpu").confidence is None


def test_confidence_is_that_of_the_view(explainer, tmp_path):
    """What was fitted on whole photos is not for crops; where nothing was fitted, that of the run is taken."""
    save_config(tmp_path, explainer.config, explainer.classes)
    save_weights(tmp_path, explainer.model)
    right = dataclasses.replace(SURE, weights=sha256(tmp_path / WEIGHTS), temperature=2.0)
    write_confidence(tmp_path / "confidence.json", right)
    photo = noise(96, 64)

    def logs(view):
        found = Explainer.load(tmp_path, "cpu").explain(photo, view=view, top_k=3)
        return np.diff(np.log([probability for _, probability in found.top_k]))

    cold = {view: logs(view) for view in ("whole", "crop", "auto")}
    write_confidence(tmp_path / "confidence.whole.json", dataclasses.replace(right, temperature=1.0))
    for view, times in (("whole", 2), ("auto", 2), ("crop", 1)):
        np.testing.assert_allclose(logs(view), times * cold[view], rtol=1e-4)
    write_confidence(tmp_path / "confidence.whole.json", SURE)  # of other weights
    np.testing.assert_allclose(logs("whole"), cold["whole"], rtol=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_sentences_know_what_the_run_knows(multi_label, tmp_path):
    """Whether a temperature was fitted, how often parts occur, and what labels are."""
    explainer = make(multi_label)
    save_config(tmp_path, explainer.config, explainer.classes)
    save_weights(tmp_path, explainer.model)
    digest = sha256(tmp_path / WEIGHTS)

    def explain():
        return Explainer.load(tmp_path, "cpu").explain(noise(64, 64))

    def frequencies(found):
        return [part.frequency for part in found.parts]

    before = explain()
    assert (before.calibrated, before.multi_label, frequencies(before)) == (False, multi_label, [None] * 4)
    assert "not calibrated" in before.summary
    assert str(before) == before.summary == before.to_dict()["summary"] == summarize(before)
    write_confidence(tmp_path / "confidence.json", dataclasses.replace(SURE, weights=digest))
    assert not explain().calibrated  # T = 1, as the images were too few
    write_confidence(tmp_path / "confidence.json", dataclasses.replace(SURE, weights=digest, temperature=2.0))
    shares = [0.25, 0.5, 1.0, 0.0]
    metrics = {"weights": digest, "parts": [{"on": share, "true_parts": []} for share in shares]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    after = explain()
    assert (after.calibrated, after.multi_label, frequencies(after)) == (True, multi_label, shares)
    assert "not calibrated" not in after.summary
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"weights": "0" * 64}))
    assert frequencies(explain()) == [None] * 4


def test_a_part_hands_out_its_contribution_where_it_is():
    """One part of two, in the left half of the window, adds everything."""
    assign = np.repeat(np.array([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=np.float32), 64, axis=2)
    strongest = np.zeros((6, 300), np.int8)
    parts = [
        PartExplanation(k, f"part {k}", strongest, (0, 0), 1, 0.5, contribution, 0, False)
        for k, contribution in enumerate((3.0, 0.0))
    ]
    window = (20.0, 0.0, 276.0, 6.0)
    image = np.zeros((6, 300, 3), np.uint8)
    found = Explanation("wren", 1, 3, 0, [("wren", 1)], None, image[..., 0], assign, parts, image, window)
    values = found.contribution_map()
    assert values.shape == (6, 300)
    np.testing.assert_allclose(values[:, 22:146], 3 / (6 * 128), rtol=1e-6)
    assert (values[:, :20] == 0).all()
    assert (values[:, 150:] == 0).all()


def test_names_and_kinds_of_parts_are_those_of_the_file(explainer, tmp_path):
    """Written by hand: a name, a kind, or both; what is not said stays as the model sees it."""
    seen = [True, False, False, True]
    assert read_parts(tmp_path, seen) == unnamed(seen)
    content = {"3": "crown", "1": {"name": "sky", "background": True}, "0": {"background": False}}
    (tmp_path / "part_names.json").write_text(json.dumps(content))
    parts = read_parts(tmp_path, seen)
    assert [part.name for part in parts] == ["part 0", "sky", "part 2", "crown"]
    assert [part.background for part in parts] == [False, True, False, True]
    assert [part.named for part in parts] == [False, True, False, True]
    named = Explainer(explainer.model, explainer.config, explainer.classes, explainer.device, parts)
    told = named.explain(noise(64, 64)).to_dict()["parts"]
    assert [(part["name"], part["background"]) for part in told] == [(part.name, part.background) for part in parts]


@pytest.mark.parametrize(
    "content,message",
    [
        ([], "expected a JSON object, got list"),
        ({"4": "crown"}, "expected numbers of parts, 0 to 3, got '4'"),
        ({"-1": "crown"}, "expected numbers of parts, 0 to 3, got '-1'"),
        ({"1": 7}, "part 1: expected a name, or any of name, background, off, merge, got 7"),
        ({"1": {"nome": "x"}}, "part 1: expected a name, or any of name, background, off, merge"),
        ({"1": " "}, "part 1: expected a name of 1 to 40 characters, got ' '"),
        ({"1": {"background": "no"}}, "part 1: expected background true or false, got 'no'"),
    ],
)
def test_names_that_cannot_be_are_told(tmp_path, content, message):
    (tmp_path / "part_names.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"part_names\.json: {message}"):
        read_parts(tmp_path, [False] * 4)


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (40, 200), (333, 77), (1, 1), (1, 30), (2000, 16), (7, 5)])
@pytest.mark.parametrize("view", ["whole", "crop"])
def test_any_size_comes_back_at_its_size(explainer, size, view):
    explanation = explainer.explain(noise(*size), view=view)
    width, height = size
    assert explanation.image.shape == (height, width, 3)
    assert explanation.attribution.shape == (height, width)
    assert all(part.mask.shape == (height, width) for part in explanation.parts)
    x0, y0, x1, y1 = (round(value) for value in explanation.window)
    seen = np.zeros((height, width), bool)
    seen[y0:y1, x0:x1] = True
    # Inside the window every pixel belongs to one part; outside to none, and nothing is attributed to it.
    covered = np.sum([part.mask for part in explanation.parts], axis=0)
    assert np.array_equal(covered, seen.astype(int))
    assert (explanation.attribution[~seen] == 0).all()
    if view == "whole" and max(size) <= 4 * min(size):
        assert seen.all()
    for part in explanation.parts:
        assert x0 <= part.center[0] <= x1
        assert y0 <= part.center[1] <= y1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16", "LA"])
def test_any_mode_is_explained(explainer, mode):
    image = (
        Image.fromarray(np.arange(80 * 80, dtype=np.uint16).reshape(80, 80)) if mode == "I;16" else noise(80, 80, mode)
    )
    assert explainer.explain(image).image.shape == (80, 80, 3)


@pytest.mark.parametrize("orientation,quarters", [(6, -1), (8, 1), (3, 2)])
def test_exif_rotation_is_applied(explainer, tmp_path, orientation, quarters):
    """6: to be turned clockwise, 8: counter-clockwise, 3: upside down."""
    image, path = noise(80, 40), tmp_path / "turned.jpg"
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    expected = np.rot90(np.asarray(Image.open(path)), quarters)
    for source in (path, Image.open(path)):
        assert np.array_equal(explainer.explain(source).image, expected)


def test_a_list_is_explained_in_order_and_in_batches(explainer):
    images = [noise(64, 64).rotate(90 * turn) for turn in range(4)] + [noise(128, 64), noise(64, 64).rotate(45)]
    alone = [explainer.explain(image) for image in images]
    together = explainer.explain(images, batch_size=3)
    for one, other in zip(alone, together, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.attribution, other.attribution, atol=1e-4)
    shown = together._repr_html_()
    assert [shown.index(one._repr_html_()) for one in together] == sorted(
        {m.start() for m in re.finditer("<p>", shown)}
    )


class Photos:
    """Photos of odd shapes, smooth, as the filters of Pillow and DALI differ on noise."""

    sizes = ((70, 101), (101, 70), (76, 75), (99, 64), (64, 97), (71, 150), (3, 8), (1, 1))

    def __len__(self):
        return len(self.sizes)

    def source(self, index):
        return str(index)

    def __getitem__(self, index):
        width, height = self.sizes[index]
        buffer = io.BytesIO()
        noise(12, 12).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=98, subsampling=0)
        return Sample(f"photo-{index}", buffer.getvalue(), index % 2, width, height, str(index))


@pytest.mark.parametrize("short_side,crop", [(64, 48), (72, 64), (80, 64)])
def test_crop_shows_the_model_the_pixels_of_the_loader(tmp_path, short_side, crop):
    """To the last row and column, but for one level of rounding in the two resizing filters."""
    writer.write(tmp_path, "photos", {"val": Photos()}, schema=Schema(("a", "b")), options={})
    (batch,) = list(Loader(tmp_path, "val", Geometry(short_side, crop), len(Photos())))
    explainer = make(test_short_side=short_side, test_crop=crop)
    seen = []
    explainer.model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    images = [Image.open(io.BytesIO(sample.jpeg)) for sample in reader.read(tmp_path, "val", batch.keys)]
    explanations = explainer.explain(images, view="crop")
    for image, explanation, shown, expected in zip(images, explanations, seen, batch.images, strict=True):
        assert (shown.int() - expected.int()).abs().max() <= 1, image.size
        x0, y0, x1, y1 = explanation.window
        assert abs(x0 + x1 - image.width) <= 1
        assert abs(y0 + y1 - image.height) <= 1


@pytest.fixture(scope="module")
def fixed_size():
    return make(backbone="mixer_s16_224", test_short_side=256, test_crop=224)


def test_a_backbone_of_fixed_size_sees_the_crop(fixed_size, caplog):
    photos = [noise(300, 200), noise(90, 90)]
    expected = [explanation.to_dict() for explanation in fixed_size.explain(photos, view="crop")]
    assert expected[0]["window"] == [63, 13, 238, 188]  # 224 / 256 * 200 = 175 of 300 and of 200 pixels
    assert caplog.messages == []
    for _ in range(2):
        assert [explanation.to_dict() for explanation in fixed_size.explain(photos)] == expected
    (message,) = caplog.messages
    assert "mixer_s16_224 takes images of 224x224 only" in message


def test_a_backbone_of_fixed_size_refuses_the_whole_image(fixed_size):
    with pytest.raises(ValueError, match=r"^view: .*mixer_s16_224 takes images of 224x224 only, got 'whole'$"):
        fixed_size.explain(noise(300, 200), view="whole")


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"])
def test_other_backbones_see_the_whole_image(backbone, caplog):
    explainer = make(backbone=backbone)
    assert explainer.explain(noise(90, 70)).window == (0, 0, 90, 70)
    assert caplog.messages == []


def test_the_crop_gives_the_logits_of_evaluation(explainer, small_birds):
    """The explained logits are those of evaluation, up to the rounding of the two resizing filters."""
    loader = Loader(small_birds, "val", Geometry(64, 64), 24)
    (batch,) = list(loader)
    with torch.no_grad():
        expected = explainer.model(batch.images).logits
    images = [Image.open(io.BytesIO(s.jpeg)) for s in reader.read(small_birds, "val", batch.keys)]
    for logits, explanation in zip(expected, explainer.explain(images, view="crop"), strict=True):
        assert explanation.logit == pytest.approx(logits.max().item(), abs=1e-3)


def test_attribution_is_attention_times_assignment(explainer):
    image = noise(64, 64)
    explanation = explainer.explain(image)
    with torch.no_grad():
        output = explainer.model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    maps = torch.einsum("k,khw->hw", output.attention[0], output.assign[0])
    expected = torch.nn.functional.interpolate(maps[None, None], (64, 64), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(explanation.attribution, expected.numpy(), atol=1e-5)


def test_maps_at_image_size_are_those_of_all_parts_at_once():
    scores, attention = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.3])
    assign = torch.softmax(3 * scores, 0)
    strongest, attribution = at_image_size(assign.numpy(), attention.numpy(), (2, 1, 14, 9), (12, 16))
    up = torch.nn.functional.interpolate(assign[None], (8, 12), mode="bilinear", align_corners=False)[0]
    assert np.array_equal(strongest[1:9, 2:14], up.argmax(0).numpy())
    np.testing.assert_allclose(attribution[1:9, 2:14], torch.einsum("k,khw->hw", attention, up).numpy(), atol=1e-6)
    assert (strongest == -1).sum() == (attribution == 0).sum() == 12 * 16 - 8 * 12


def test_save_and_to_dict(explainer, tmp_path):
    explanation = explainer.explain(noise(100, 80))
    explanation.save(tmp_path / "a.json")
    explanation.save(tmp_path / "a.png")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == json.loads(json.dumps(explanation.to_dict()))
    assert sum(part["area"] for part in content["parts"]) == pytest.approx(1)
    assert Image.open(tmp_path / "a.png").format == "PNG"
    explanation.save(tmp_path / "a.webp")
    assert Image.open(tmp_path / "a.webp").format == "WEBP"
    assert 'alt="robin' in dataclasses.replace(explanation, label="robin")._repr_html_()
    assert "<b>" not in dataclasses.replace(explanation, label="<b>")._repr_html_()
    assert f"<p>{html.escape(explanation.summary)}</p>" in explanation._repr_html_()
    with pytest.raises(ValueError, match=r"\.png, \.webp or \.json"):
        explanation.save(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"no/folder: no such folder$"):
        explanation.save(tmp_path / "no" / "folder" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png", "a.webp"]


def test_an_explanation_is_printed_in_a_line(explainer):
    explanation = explainer.explain(noise(64, 64))
    expected = f"Explanation(label={explanation.label!r}, probability={100 * explanation.probability:.1f} %, parts=4)"
    assert repr(explanation) == expected
    sure = dataclasses.replace(explanation, probability=1 - 1e-12)
    assert "probability=> 99.9 %" in repr(sure)
    assert ", &gt; 99.9 %: the parts" in sure._repr_html_()
    assert "array" not in repr(explanation.parts)


def test_arrays_are_explained_like_images(explainer):
    images = [noise(64, 64), noise(70, 80)]
    expected = [explanation.to_dict() for explanation in explainer.explain(images)]
    arrays = [np.asarray(image) for image in images]
    assert [explanation.to_dict() for explanation in explainer.explain(arrays)] == expected
    assert explainer.explain(arrays[1]).to_dict() == expected[1]


@pytest.mark.parametrize(
    "images,got",
    [
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        ([np.zeros((3, 8, 8), np.uint8)], r"uint8 \[3, 8, 8\]"),
        (torch.zeros(3, 8, 8), "Tensor"),
        (b"", "bytes"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused(explainer, images, got):
    with pytest.raises(ValueError, match=rf"^images: expected a path, .* or a uint8 array \[H, W, 3\], .* got {got}$"):
        explainer.explain(images)


@pytest.mark.parametrize(
    "arguments,match",
    [({"view": "half"}, "auto, whole, crop"), ({"top_k": 0}, "at least 1"), ({"batch_size": 0}, "at least 1")],
)
def test_bad_arguments(explainer, arguments, match):
    with pytest.raises(ValueError, match=match):
        explainer.explain(noise(64, 64), **arguments)


def test_bad_files_are_named(explainer, tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg: not an image"):
        explainer.explain(tmp_path / "empty.jpg")


def test_device_that_is_not_there():
    with pytest.raises(ValueError, match="device"):
        pick_device("cuda:77")
    with pytest.raises(ValueError, match="device"):
        pick_device("abacus")


@pytest.mark.parametrize("view", ["whole", "crop"])
def test_a_large_photo_is_shown_smaller_and_explained_the_same(explainer, view):
    """The model sees the photo itself; what is told is in its pixels."""
    photo = noise(12, 9).resize((1200, 900), Image.Resampling.BICUBIC)
    (small,) = explainer.stream([photo], view=view, longest_side=300)
    whole = explainer.explain(photo, view=view)
    assert (small.image.shape, small.attribution.shape) == ((225, 300, 3), (225, 300))
    found, expected = small.to_dict(), whole.to_dict()
    for one, other in zip(found.pop("parts"), expected.pop("parts"), strict=True):
        assert one.pop("center") == pytest.approx(other.pop("center"), abs=0.02)
        assert one.pop("area") == pytest.approx(other.pop("area"), abs=0.02)
        assert one == other
    assert found == expected


@pytest.mark.parametrize("size", [(6000, 1), (6000, 2), (1, 6000), (9000, 3)])
@pytest.mark.parametrize("view", ["whole", "crop"])
def test_of_a_thin_photo_at_least_a_pixel_is_shown(explainer, size, view):
    """Made smaller, less than half a pixel would be left of what the model saw."""
    (small,) = explainer.stream([noise(*size)], view=view, longest_side=640)
    seen = np.argwhere(small.parts[0].strongest >= 0)
    middle = [(length - 1) / 2 for length in small.image.shape[:2]]
    assert seen.mean(0) == pytest.approx(middle, abs=1)
    assert small.picture().width > 0


def test_threads_change_nothing(explainer, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    images = [noise(64, 64 + 8 * number) for number in range(6)]
    images.insert(2, tmp_path / "broken.jpg")
    failed = []
    found = explainer.stream(images, batch_size=1, jobs=3, failed=lambda image, reason: failed.append((image, reason)))
    expected = [explainer.explain(image).to_dict() for image in images if isinstance(image, Image.Image)]
    assert [explanation.to_dict() for explanation in found] == expected
    ((image, reason),) = failed
    assert image == tmp_path / "broken.jpg"
    assert reason.startswith(f"{image}: not an image")
    with pytest.raises(ValueError, match=r"broken\.jpg: not an image"):
        list(explainer.stream(images, jobs=3))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "state",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
        torch.enable_grad,
        torch.inference_mode,
    ],
)
def test_whatever_the_caller_has_set_an_image_is_explained_alike(explainer, state):
    photo = noise(90, 70)
    expected = explainer.explain(photo)
    with state():
        explanation = explainer.explain(photo)
    assert explanation.to_dict() == expected.to_dict()
    total = sum(part.contribution for part in explanation.parts) + explanation.constant
    assert total == pytest.approx(explanation.logit, abs=1e-4)


def test_a_model_in_training_is_left_as_it_was(explainer):
    """Not one statistic moves, frozen modules stay so, and the caller has its modes back with the first explanation."""
    photos = [noise(90, 70)] * 3
    expected = explainer.explain(photos)
    model = explainer.model
    try:
        model.train()
        model.backbone.eval()
        modes = [module.training for module in model.modules()]
        state = {name: value.clone() for name, value in model.state_dict().items()}
        stream = Explainer(model, explainer.config, explainer.classes, explainer.device).stream(iter(photos))
        model.train()
        model.backbone.eval()
        explanations = [next(stream)]
        assert [module.training for module in model.modules()] == modes
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)
        explanations += stream
    finally:
        model.eval()
    assert [e.to_dict() for e in explanations] == [e.to_dict() for e in expected]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("threads,refused", [(2, True), (1, False)])
def test_a_forked_process_is_refused_where_it_would_wait_forever(explainer, monkeypatch, threads, refused):
    explainer.explain(noise(40, 40))
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ValueError, match=r"spawn.*set_num_threads") if refused else contextlib.nullcontext():
        explainer.explain(noise(40, 40))
