"""What fits a run, and what does not."""

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest
from PIL import Image

from pipelines.files import sha256, write_json
from pipelines.shards.manifest import Schema
from rg.config import BackboneConfig, ModelConfig, RunConfig
from rg.runs.confidence import Confidence, read_confidence
from rg.runs.folder import (
    WEIGHTS,
    Classes,
    check_measured,
    has_weights,
    load_config,
    load_model,
    read_record,
    save_config,
)
from rg.runs.part_names import read_parts, unnamed
from rg.runs.part_pictures import SIDE, read_part_pictures, write_part_pictures

RUN = Path("runs/birds")
CLASSES = Classes(("wren", "robin", "jay"))


def test_the_classes_of_data_are_those_of_its_schema():
    assert Classes.of(Schema(CLASSES.names)) == CLASSES
    assert Classes.of(Schema(CLASSES.names, multi_label=True)) == Classes(CLASSES.names, True)
    CLASSES.check(Classes.of(Schema(CLASSES.names)), "--data", RUN)


@pytest.mark.parametrize(
    "others,got",
    [
        (Classes(CLASSES.names[:2]), "2 classes"),
        (Classes((*CLASSES.names, "owl")), "4 classes"),
        (Classes(CLASSES.names, multi_label=True), "3 attributes"),
        (Classes(("wren", "jay", "robin")), "3 classes, but number 1 is 'jay' instead of 'robin'"),
        (Classes(("wren", "robin", "owl")), "3 classes, but number 2 is 'owl' instead of 'jay'"),
    ],
)
def test_other_classes_are_refused(others, got):
    with pytest.raises(ValueError, match=r"^--data: ") as refusal:
        CLASSES.check(others, "--data", RUN)
    assert str(refusal.value) == f"--data: expected the 3 classes of runs/birds, got {got}"


def test_measurements_are_of_the_weights_of_the_run_or_are_refused(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"first")
    digest = hashlib.sha256(b"first").hexdigest()
    assert has_weights(tmp_path, digest)
    check_measured(tmp_path, {"weights": digest}, "evaluate")
    (tmp_path / WEIGHTS).write_bytes(b"second")
    assert not has_weights(tmp_path, digest)
    with pytest.raises(ValueError, match=r"trained on since it was measured; run `python -m rg faithful` again$"):
        check_measured(tmp_path, {"weights": digest}, "faithful")


@pytest.mark.parametrize("name", ["config.json", "classes.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"[1]", b'{"names": ["a"']
)
def test_files_of_a_run_that_are_something_else(tmp_path, name, content):
    """One line, that names the file."""
    config = RunConfig(ModelConfig(BackboneConfig("test_resnet", "none"), kind="plain"))
    save_config(tmp_path, config, Classes(("a", "b")))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))) as refusal:
        load_model(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_run_without_its_record_is_a_run(tmp_path, caplog):
    assert read_record(tmp_path) == {}
    assert "no run.json" in caplog.text
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json: expected a JSON object, got list"):
        read_record(tmp_path)


@pytest.mark.parametrize("data", [None, [], {"folder": "birds"}])
def test_a_record_without_its_data_is_none(tmp_path, data):
    write_json(tmp_path / "run.json", {"data": data})
    with pytest.raises(ValueError, match=r"run\.json: expected data with the name of a dataset, got "):
        read_record(tmp_path)


def test_classes_are_a_list_of_names(tmp_path):
    save_config(tmp_path, RunConfig(), Classes(("a", "b")))
    write_json(tmp_path / "classes.json", {"names": "birds", "multi_label": False})
    with pytest.raises(ValueError, match=r"classes\.json: expected a list of names under names, got 'birds'"):
        load_config(tmp_path)


def test_pictures_of_parts_that_are_cut_short_name_their_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_json(tmp_path / "metrics.json", {"weights": sha256(tmp_path / "model.safetensors")})
    write_part_pictures(tmp_path, [Image.effect_noise((SIDE, SIDE), 50).convert("RGB")] * 2)
    content = (tmp_path / "part_pictures.webp").read_bytes()
    assert read_part_pictures(tmp_path, 2) == content
    (tmp_path / "part_pictures.webp").write_bytes(content[:-500])
    with pytest.raises(ValueError, match=r"part_pictures\.webp: no picture, or cut short .*evaluate` again"):
        read_part_pictures(tmp_path, 2)


def test_metrics_of_another_program_name_no_parts(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_json(tmp_path / "metrics.json", {"parts": 3})
    assert read_parts(tmp_path, [False]) == unnamed([False])


def test_a_confidence_of_words_names_its_file(tmp_path):
    confidence = Confidence(1.5, 0.8, 0.1, 0.95, 0.01, 0.9, 0.96, 24, "birds", "0")
    write_json(tmp_path / "confidence.json", dataclasses.asdict(confidence) | {"temperature": "0.4"})
    with pytest.raises(ValueError, match=r"confidence\.json: temperature: expected a number, got '0\.4'"):
        read_confidence(tmp_path)
