"""What fits a run, and what does not."""

import hashlib
import re
from pathlib import Path

import pytest

from pipelines.shards.manifest import Schema
from rg.config import BackboneConfig, ModelConfig, RunConfig
from rg.runs.folder import WEIGHTS, Classes, check_weights, has_weights, load_model, read_record, save_config

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
    check_weights(tmp_path, digest, "evaluate")
    (tmp_path / WEIGHTS).write_bytes(b"second")
    assert not has_weights(tmp_path, digest)
    with pytest.raises(ValueError, match=r"trained on since it was measured; run `python -m rg faithful` again$"):
        check_weights(tmp_path, digest, "faithful")


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
