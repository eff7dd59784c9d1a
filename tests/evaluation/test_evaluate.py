"""Evaluation of a run on annotated data, against a second computation that shares only the model with it."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import map_coordinates
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torchvision.transforms import v2

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.files import sha256
from pipelines.shards import reader, writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.samples import Sample
from rg.config import BackboneConfig, EvaluationConfig, GroupingConfig, HeadConfig, InputConfig, ModelConfig, RunConfig
from rg.evaluation.evaluate import evaluate
from rg.evaluation.measured import FIELD, MEASURED, not_measured
from rg.evaluation.parts import shows
from rg.evaluation.tally import Answers
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.folder import Classes, load_model, save_config, save_weights
from rg.runs.part_names import read_parts
from rg.runs.part_pictures import read_part_pictures
from rg.tables.evaluation import table

SHORT_SIDE, CROP, K = 64, 56, 4  # of images of 64 px: the window needs neither resizing nor rounding
MARGIN = (SHORT_SIDE - CROP) // 2
CONFIG = RunConfig(
    model=ModelConfig(
        BackboneConfig(name="resnet18", weights="none", stride=8),
        GroupingConfig(num_parts=K, standardize=True, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
    ),
    input=InputConfig(short_side=72, crop=64, test_short_side=SHORT_SIDE, test_crop=CROP),
)

SETTINGS = EvaluationConfig(target_precision=0.85, false_alarms=0.05)  # 24 validation images can tell so much


def images(samples):
    transform = v2.Compose([v2.Resize(SHORT_SIDE), v2.CenterCrop(CROP), v2.PILToTensor()])
    return torch.stack([transform(Image.open(io.BytesIO(sample.jpeg)).convert("RGB")) for sample in samples])


def make_run(folder, data, classes):
    """A run without training: random weights, parts from k-means, attention that differs between the parts."""
    torch.manual_seed(0)
    model = RegionGroupingModel(CONFIG.model, len(classes.names), classes.multi_label)
    seen = images(reader.read(data, "train"))
    model.initialize_dictionary(seen, 0)
    model.train()
    with torch.no_grad():
        if not classes.multi_label:
            model.attention.layers[-2].bias.fill_(3)  # else the ReLU after it makes many parts count the same
        for _ in range(40):  # running statistics of the batch norms
            model(seen)
    folder.mkdir()
    save_config(folder, CONFIG, classes)
    save_weights(folder, model)
    return folder


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    classes = Classes(tuple(Manifest.load(small_birds).classes))
    return make_run(tmp_path_factory.mktemp("runs") / "run", small_birds, classes)


@pytest.fixture(scope="module")
def result(run, small_birds):
    return evaluate(run, small_birds, "test", 7, "cpu", SETTINGS)


@dataclasses.dataclass
class Truth:
    """Samples of a split as the model sees them, and what it says of them."""

    samples: list
    output: object
    landmarks: np.ndarray
    visibility: np.ndarray
    boxes: list


def look(run, data, split):
    """A plain forward pass over what ``reader.read`` yields; annotations moved by hand."""
    model, _, _ = load_model(run)
    samples = list(reader.read(data, split))
    with torch.no_grad():
        output = model(images(samples))
    landmarks = np.stack([sample.landmarks for sample in samples]).astype(np.float64) - MARGIN
    inside = ((landmarks >= 0) & (landmarks < CROP)).all(2)
    return Truth(
        samples,
        output,
        landmarks,
        np.stack([sample.visibility for sample in samples]) & inside,
        [np.clip(sample.boxes.astype(np.float64) - MARGIN, 0, CROP) for sample in samples],
    )


@pytest.fixture(scope="module")
def tested(run, small_birds):
    return look(run, small_birds, "test")


@pytest.fixture(scope="module")
def fitted(run, small_birds):
    return look(run, small_birds, "train")


def lines(run):
    return {line["key"]: line for line in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}


def test_accuracy(run, result, tested):
    labels = np.array([sample.label for sample in tested.samples])
    predicted = tested.output.logits.argmax(1).numpy()
    assert len(set(predicted)) > 1
    assert (result["samples"], result["chance"]) == (40, 0.25)
    assert result["accuracy"] == pytest.approx((predicted == labels).mean())
    of_a_class = [(predicted[labels == label] == label).mean() for label in range(4)]
    assert result["mean_class_accuracy"] == pytest.approx(np.mean(of_a_class))
    written = lines(run)
    assert [written[sample.key]["predicted"] for sample in tested.samples] == predicted.tolist()
    assert [written[sample.key]["label"] for sample in tested.samples] == labels.tolist()


def test_what_was_measured_names_what_it_was_measured_on(run, result, small_birds):
    manifest = json.loads((small_birds / "manifest.json").read_text())
    for split, digest in result["shards"].items():
        sums = [sha256(small_birds / f"{shard['name']}.tar") for shard in manifest["splits"][split]["shards"]]
        assert digest == hashlib.sha256("".join(sums).encode()).hexdigest()
    assert set(result["shards"]) == {"train", "val", "test"} & set(manifest["splits"])
    assert (result["weights"], result["predictions"]) == tuple(
        sha256(run / name) for name in ("model.safetensors", "predictions.jsonl")
    )


def test_pointing_error(run, result, tested):
    output = tested.output
    maps = (output.attention[:, :, None, None] * output.assign).sum(1, keepdim=True)
    up = F.interpolate(maps, (CROP, CROP), mode="bicubic", align_corners=False)[:, 0].numpy()
    hits = {}
    for sample, attribution, boxes in zip(tested.samples, up, tested.boxes, strict=True):
        row, column = np.unravel_index(attribution.argmax(), attribution.shape)
        hits[sample.key] = any(x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1 for x0, y0, x1, y1 in boxes)
    assert 0 < sum(hits.values()) < len(hits)
    assert result["pointing_error"] == pytest.approx(1 - np.mean(list(hits.values())))
    assert {key: line["pointing"] for key, line in lines(run).items()} == hits


def regressors(split):
    """Centres of mass of the parts, with a column of ones, and landmarks; all relative to the box."""
    assign = split.output.assign.double().numpy()
    N, _, H, W = assign.shape
    ys, xs = np.mgrid[:H, :W] + 0.5
    mass = assign.sum((2, 3))
    centers = np.stack([(assign * xs).sum((2, 3)) / mass / W, (assign * ys).sum((2, 3)) / mass / H], axis=2) * CROP
    corner, far = (np.stack([boxes[0, part] for boxes in split.boxes])[:, None] for part in ([0, 1], [2, 3]))
    relative = ((centers - corner) / (far - corner)).reshape(N, -1)
    return np.hstack([relative, np.ones((N, 1))]), (split.landmarks - corner) / (far - corner)


def test_landmark_errors(run, small_birds, result, fitted, tested):
    """One least-squares fit per landmark on the training split, here in double precision.

    The evaluation rounds its centres to float32, 6e-8 of their size; a least-squares fit makes that larger by the
    condition number, which stays below 1000.
    """
    (fit_centers, fit_landmarks), (centers, landmarks) = regressors(fitted), regressors(tested)
    errors, mean_shape_errors = np.full((2, *tested.visibility.shape), np.nan)
    for p in range(landmarks.shape[1]):
        fit, seen = fitted.visibility[:, p], tested.visibility[:, p]
        assert fit.sum() > fit_centers.shape[1]
        assert np.linalg.cond(fit_centers[fit]) < 1000
        weights = np.linalg.lstsq(fit_centers[fit], fit_landmarks[fit, p], rcond=None)[0]
        errors[seen, p] = np.hypot(*(centers[seen] @ weights - landmarks[seen, p]).T)
        mean_shape_errors[seen, p] = np.hypot(*(fit_landmarks[fit, p].mean(0) - landmarks[seen, p]).T)
    assert not tested.visibility.all()
    assert result["landmark_error"] == pytest.approx(np.nanmean(errors), rel=1e-4)
    assert result["mean_shape_error"] == pytest.approx(np.nanmean(mean_shape_errors), rel=1e-6)
    names = Manifest.load(small_birds).landmarks
    assert result["landmark_errors"] == pytest.approx(
        dict(zip(names, np.nanmean(errors, axis=0), strict=True)), rel=1e-4
    )
    written = lines(run)
    of_images = [written[sample.key]["landmark_error"] for sample in tested.samples]
    assert of_images == pytest.approx(np.nanmean(errors, axis=1).tolist(), rel=1e-4)


def test_clusters_at_landmarks(result, tested):
    assign = tested.output.assign.numpy()
    stride = CROP / assign.shape[2]
    predicted, truth = [], []
    for n, p in zip(*np.nonzero(tested.visibility), strict=True):
        x, y = tested.landmarks[n, p] / stride - 0.5
        values = [map_coordinates(assign[n, k], [[y], [x]], order=1, mode="nearest")[0] for k in range(K)]
        predicted.append(np.argmax(values))
        truth.append(p)
    assert len(set(predicted)) > 1
    assert result["nmi"] == pytest.approx(normalized_mutual_info_score(truth, predicted))
    assert result["ari"] == pytest.approx(adjusted_rand_score(truth, predicted))


def test_clusters_on_part_maps(result, tested):
    up = F.interpolate(tested.output.assign, (CROP, CROP), mode="bilinear", align_corners=False).argmax(1).numpy()
    inner = slice(MARGIN, MARGIN + CROP)
    truth = np.stack([sample.part_map[inner, inner] for sample in tested.samples])
    on = truth > 0
    assert result["part_map_nmi"] == pytest.approx(normalized_mutual_info_score(truth[on], up[on]), rel=1e-4)
    assert result["part_map_ari"] == pytest.approx(adjusted_rand_score(truth[on], up[on]), rel=1e-4)


def test_parts_are_described(run, result, tested):
    output = tested.output
    winner = output.assign.argmax(1)
    assert result["occurrence"] == pytest.approx(output.occurrence.mean(0).tolist(), rel=1e-4)
    assert [part["part"] for part in result["parts"]] == list(range(K))
    for k, part in enumerate(result["parts"]):
        assert part["attention"] == pytest.approx(output.attention[:, k].mean().item(), rel=1e-4)
        assert part["area"] == pytest.approx((winner == k).double().mean().item())
        assert part["on"] == pytest.approx((output.occurrence[:, k] > 0.5).double().mean().item())
    assert result["parts_in_use"] == sum(part["state"] == "in use" for part in result["parts"])
    written = lines(run)
    for n, sample in enumerate(tested.samples):
        areas = np.bincount(winner[n].flatten(), minlength=K) / winner[n].numel()
        assert written[sample.key]["area"] == pytest.approx(areas, abs=1e-6)


@pytest.mark.usefixtures("result")
def test_contributions_are_those_of_the_label(run, tested):
    """Their sum over parts is the logit but for a constant of the class: that of an image of which nothing is attended.

    In evaluation mode the batch norm is affine, so no attention at all leaves what the classifier makes of zeros.
    """
    model, _, _ = load_model(run)
    written, output = lines(run), tested.output
    with torch.no_grad():
        constants = model.classifier.linear(model.classifier.norm(torch.zeros(1, 16)))[0]
        transformed = model.region_transform(output.regions)
        for n, sample in enumerate(tested.samples):
            one = written[sample.key]
            label = output.logits[n].argmax().item()
            assert one["explained"] == one["predicted"] == label
            assert sum(one["contributions"]) == pytest.approx((output.logits[n] - constants)[label].item(), abs=1e-4)
            for k in range(K):
                alone = output.attention[n, k] * transformed[n, k]
                added = model.classifier.linear(model.classifier.norm(alone[None]))[0, label] - constants[label]
                assert one["contributions"][k] == pytest.approx(added.item(), abs=1e-4)


def test_what_contributions_leave_out_of_their_logits_is_measured(run, result, small_birds, tmp_path, monkeypatch):
    """Of the two best classes of every image, the largest, whatever the flipped image says."""
    assert result["decomposition_error"] < 1e-4
    contributions = RegionGroupingModel.contributions

    def leaving_out(model, output, explained):
        parts, constant = contributions(model, output, explained)
        constant[0, 1] += 0.5
        return parts, constant

    monkeypatch.setattr(RegionGroupingModel, "contributions", leaving_out)
    shutil.copytree(run, tmp_path / "run")
    how = dataclasses.replace(CONFIG.evaluation, flip=True)
    found = evaluate(tmp_path / "run", small_birds, "test", 7, "cpu", how)
    assert found["decomposition_error"] == pytest.approx(0.5, abs=1e-4)


def test_confidence_is_fitted_on_the_validation_split(run, result, small_birds, tested):
    """Limit and shares are counted here from a plain forward pass; presence is sum_k a_k t_k."""
    written = json.loads((run / "confidence.json").read_text())
    validated = look(run, small_birds, "val")

    def presence(output):
        return (output.attention.double() * output.occurrence.double()).sum(1).numpy()

    assert (written["images"], written["dataset"], written["weights"]) == (24, "birds", result["weights"])
    assert written["presence_limit"] == pytest.approx(presence(validated.output).min())
    assert written["temperature"] is result["temperature"] is None
    assert result["confidence"] == {"images": 24, "too_few": {"temperature": 50}}
    assert "24 validation images, too few for: temperature (takes 50)" in table(result)
    assert (written["target_precision"], written["false_alarms"]) == (0.85, 0.05)
    known = presence(tested.output) > written["presence_limit"] - 1e-6
    probability = torch.softmax(tested.output.logits.double() / (written["temperature"] or 1), 1).numpy().max(1)
    given = known & (probability >= (np.inf if written["threshold"] is None else written["threshold"]))
    found = result["selective"]
    assert (found["unknown"], found["coverage"]) == pytest.approx(((~known).mean(), given.mean()))
    assert found["unsure"] == pytest.approx(1 - found["unknown"] - found["coverage"])
    labels = np.array([sample.label for sample in tested.samples])
    right = tested.output.logits.argmax(1).numpy() == labels
    assert found["precision"] == (pytest.approx(right[given].mean()) if given.any() else None)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_probabilities_of_predictions_are_those_of_explain(small_birds, temperature):
    """Of saturated logits, too: a probability is never 1."""
    logits = torch.tensor([[2.0, 0, 0, 1], [0, 900, 0, 0], [1, 1, 3, 2]])
    answers = Answers(Manifest.load(small_birds))
    batch = SimpleNamespace(keys=["a", "b", "c"], labels=torch.tensor([0, 1, 2]), numbers=[0, 1, 2])
    answers.answer(batch, logits)
    written = list(answers.predictions(temperature))
    expected = torch.softmax(logits.double() / (temperature or 1), 1).amax(1).tolist()
    assert [line["probability"] for line in written] == pytest.approx(expected)
    assert all(0 < line["probability"] < 1 for line in written)
    assert [(line["key"], line["predicted"]) for line in written] == [("a", 0), ("b", 1), ("c", 2)]


def test_logits_that_are_not_finite_end_it_with_the_first_of_them(small_birds):
    answers = Answers(Manifest.load(small_birds))
    batch = SimpleNamespace(keys=["a", "b"], labels=torch.zeros(2), numbers=[0, 1])
    answers.answer(batch, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^b: the model gives logits that are not finite"):
        answers.answer(batch, torch.tensor([[0.0, 1], [0, torch.nan]]))


def test_names_and_kinds_of_parts_are_those_that_people_gave(run, small_birds, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    before = json.loads((run / "metrics.json").read_text())["parts"]
    said = {"1": "crown", "2": {"background": not before[2]["background"]}}
    (copy / "part_names.json").write_text(json.dumps(said))
    result = evaluate(copy, small_birds, "val", device="cpu", settings=SETTINGS)
    assert [part["name"] for part in result["parts"]] == ["part 0", "crown", "part 2", "part 3"]
    flipped = [part["background"] != was["background"] for part, was in zip(result["parts"], before, strict=True)]
    assert flipped == [False, False, True, False]
    assert re.search(r"^ +1 .*  crown$", table(result), re.MULTILINE)
    assert result["selective"] is None  # measured on the images that it was fitted on, it would say nothing
    assert (copy / "confidence.json").read_bytes() == (run / "confidence.json").read_bytes()


def test_every_part_is_pictured(run, result, tested):
    del result
    squares = read_part_pictures(run, K)
    row = Image.open(io.BytesIO(squares))
    assert row.size == (64 * K, 64)
    wins = F.one_hot(tested.output.assign.argmax(1), K).sum((0, 1, 2))
    for k in range(K):
        colors = np.asarray(row.crop((64 * k, 0, 64 * k + 64, 64)).convert("RGB")).reshape(-1, 3)
        assert (np.ptp(colors.astype(int), axis=1) > 12).any() == bool(wins[k])  # something of it is not grey


def test_pictures_of_other_weights_are_none_of_the_run(run, result, tmp_path):
    del result
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert read_part_pictures(copy, K) is not None
    assert read_part_pictures(copy, K + 1) is None
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert read_part_pictures(copy, K) is None


def test_parts_show_what_most_of_them_lies_on(result, run):
    table = np.array([[6, 5, 1, 0], [3, 4, 1, 0], [1, 1, 1, 0]])  # pixels of three true parts that four parts win
    assert shows(table, ("beak", "eye", "tail"), 4) == [["beak"], ["beak", "eye"], ["beak", "eye"], []]
    assert shows(0, (), 2) == [[], []]
    parts = read_parts(run, [False] * K)
    named = [" and ".join(part["true_parts"]) for part in result["parts"]]
    for part, name in zip(parts, named, strict=True):
        assert part.name == (f"part {part.index}" if not name else name if named.count(name) == 1 else part.name)
        assert part.name.startswith(name)


def test_the_table_says_what_was_measured(run, result):
    text = table(result)
    assert "birds, test: 40 images" in text
    for name, key in {
        "Mean class accuracy": "mean_class_accuracy",
        "Landmark error": "landmark_error",
        "Mean-shape error": "mean_shape_error",
        "Pointing-game error": "pointing_error",
        "NMI at landmarks": "nmi",
        "ARI at landmarks": "ari",
        "NMI on part maps": "part_map_nmi",
        "ARI on part maps": "part_map_ari",
    }.items():
        ends = result["intervals"].get(key)
        interval = rf" \[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}\]" if ends else ""
        assert (ends is None) == (key in ("mean_class_accuracy", "mean_shape_error"))
        assert re.search(rf"^ +{name} +{100 * result[key]:.2f} %{interval}$", text, re.MULTILINE), name
    field = text[text.index("The field's protocol") : text.index("[from, to]")].splitlines()[1:-1]
    values = [100 * result["field"][metric.key] for metric in FIELD]
    assert [float(re.search(r"([\d.]+) %", line)[1]) for line in field] == pytest.approx(values, abs=0.005)
    assert [line.endswith("]") for line in field] == [metric.key in result["intervals"]["field"] for metric in FIELD]
    right = sum(line["label"] == line["predicted"] for line in lines(run).values())
    said = rf"{100 * right / 40:.2f} % \({right} of 40 images; chance 25\.00 %\)"
    assert re.search(rf"^ +Accuracy +{said} \[[\d., ]+\]$", text, re.MULTILINE)
    assert f"{result['decomposition_error']:.1e} at most" in text
    assert "ot measured" not in text
    background = any(part["background"] for part in result["parts"])
    assert ("background: surroundings, or parts that hardly count" in text) is background
    (last,) = [line for line in text.splitlines() if re.match(rf" +{K - 1}  ", line)]
    assert re.search(r"^ +Answers given +(none|[\d.]+ %.*) \(target 85 %\)$", text, re.MULTILINE)
    assert last.split()[:2] == [str(K - 1), f"{result['parts'][-1]['occurrence']:.3f}"]


def test_evaluating_again_writes_the_same(run, result, small_birds):
    written = [(run / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")]
    assert json.loads(written[0]) == result
    assert result["weights"] == sha256(run / "model.safetensors")
    assert (result["dataset"], result["split"]) == ("birds", "test")
    assert (
        evaluate(run, small_birds, batch_size=7, device="cpu", settings=SETTINGS) == result
    )  # test is the split by default
    assert [(run / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")] == written


def test_figures_do_not_depend_on_the_size_of_batches(run, result, small_birds, tmp_path):
    """Noise is that of the image: it is the same in a batch of 7 as in one of 40."""
    shutil.copytree(run, tmp_path / "run")
    again = evaluate(tmp_path / "run", small_birds, "test", 40, "cpu", SETTINGS)
    assert again["field"] == pytest.approx(result["field"], rel=1e-5)
    assert 0 < result["field"]["stability"] < 1


@dataclasses.dataclass(frozen=True)
class Bare:
    """Birds without annotations; the species may be told in two attributes."""

    birds: Birds
    attributes: bool = False

    def __len__(self):
        return len(self.birds)

    def source(self, index):
        return self.birds.source(index)

    def __getitem__(self, index):
        full = self.birds[index]
        label = (full.label % 2, full.label // 2) if self.attributes else full.label
        return Sample(full.key, full.jpeg, label, full.width, full.height, full.source)


def test_other_classes_are_refused(run, tmp_path):
    birds = Bare(Birds(BirdsConfig(species=3, size=64), "test", 1))
    names = ("wren", "robin", "jay")
    writer.write(tmp_path / "others", "birds", {"test": birds}, schema=Schema(names), options={})
    with pytest.raises(ValueError, match=rf"^--data: expected the 4 classes of {re.escape(str(run))}, got 3 classes$"):
        evaluate(run, tmp_path / "others", device="cpu")


def test_attributes_are_not_classes_of_the_same_names(run, small_birds, tmp_path):
    data = shutil.copytree(small_birds, tmp_path / "data")
    dataclasses.replace(Manifest.load(data), multi_label=True).save(data)
    with pytest.raises(ValueError, match=r"^--data: expected the 4 classes of .*, got 4 attributes$"):
        evaluate(run, data, device="cpu")


def test_attributes_without_annotations(tmp_path):
    classes = Classes(("odd", "late"), multi_label=True)
    data = tmp_path / "data"
    sources = {split: Bare(Birds(BirdsConfig(species=4, size=64), split, 3), True) for split in ("train", "val")}
    writer.write(data, "bare", sources, schema=Schema(classes.names, multi_label=True), options={})
    run = make_run(tmp_path / "run", data, classes)
    result = evaluate(run, data, device="cpu")
    model, _, _ = load_model(run)
    samples = list(reader.read(data, "val"))
    with torch.no_grad():
        probabilities = torch.sigmoid(model(images(samples)).logits).numpy()
    right = (probabilities > 0.5) == np.array([sample.label for sample in samples])
    assert (result["split"], result["samples"]) == ("val", 12)
    assert result["accuracy"] == pytest.approx(right.mean())
    assert result["decomposition_error"] < 1e-4
    unmeasured = ("landmark_error", "mean_shape_error", "landmark_errors", "pointing_error", "nmi", "part_map_nmi")
    assert all(result[name] is None for name in unmeasured)
    assert set(result["field"].values()) == {None}
    assert set(result["intervals"]) == {"accuracy", "field"}
    assert result["chance"] is None
    (line,) = [line for line in table(result).splitlines() if "easured" in line]
    assert line == (
        "  Not measured without landmarks, boxes or part maps: Landmark error, Mean-shape error, Pointing-game error, "
        "NMI at landmarks, ARI at landmarks, NMI on part maps, ARI on part maps"
    )


def test_a_backbone_of_fixed_size_does_not_see_whole_images(small_birds, tmp_path):
    backbone = BackboneConfig(name="mixer_s16_224", weights="none")
    config = RunConfig(model=dataclasses.replace(CONFIG.model, backbone=backbone))
    classes = Classes(tuple(Manifest.load(small_birds).classes))
    model = RegionGroupingModel(config.model, len(classes.names), classes.multi_label)
    save_config(tmp_path, config, classes)
    save_weights(tmp_path, model)
    message = r"^evaluation.view, .*: expected input, as mixer_s16_224 takes images of one size only, got whole$"
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, small_birds, device="cpu", settings=EvaluationConfig(landmark_view="whole"))


def test_whole_images_are_cut_to_multiples_of_the_stride(run, small_birds, tmp_path):
    """That of the network is 8, and 72 is no multiple of 16: the crop of the same size shows the very same."""
    shutil.copytree(run, tmp_path / "run")
    size = dataclasses.replace(CONFIG.input, test_short_side=72, test_crop=72)
    save_config(tmp_path / "run", dataclasses.replace(CONFIG, input=size), load_model(run)[2])
    whole, crop = (
        evaluate(tmp_path / "run", small_birds, "val", 24, "cpu", EvaluationConfig(view=view, landmark_view=view))
        for view in ("whole", "input")
    )
    assert whole.pop("evaluation") != crop.pop("evaluation")
    assert whole == crop


def test_what_is_not_measured_is_put_in_words():
    result = dict.fromkeys((metric.key for metric in MEASURED), 0.5)
    assert not_measured(result) == []
    assert not_measured(result | {"pointing_error": None}) == ["Not measured without boxes: Pointing-game error"]
    two = result | {"pointing_error": None, "part_map_ari": None}
    assert not_measured(two) == ["Not measured without boxes or part maps: Pointing-game error, ARI on part maps"]
