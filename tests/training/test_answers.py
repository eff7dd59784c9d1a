"""Training on images with several right answers."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.batches.loader import Loader
from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.shards import reader, writer
from pipelines.shards.manifest import Schema
from tests.batches.test_loader import TEST
from tests.training.test_train import metrics, run

CLASSES = 4


@pytest.fixture(scope="module")
def ambiguous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Birds of which every class is right in training, and the label alone in half of the tests."""
    config = BirdsConfig(species=CLASSES, size=64)
    every = tuple(range(CLASSES))
    sources = {
        name: list(map(split.__getitem__, range(len(split))))
        for name, split in (
            ("train", Birds(config, "train", 4)),
            ("val", Birds(config, "val", 2)),
        )
    }
    sources["train"] = [replace(sample, answers=every) for sample in sources["train"]]
    sources["val"] = [replace(sample, answers=every) if n % 2 else sample for n, sample in enumerate(sources["val"])]
    birds = Birds(config, "train", 4)
    schema = Schema(
        classes=tuple(birds.class_names),
        super_categories=tuple(birds.super_categories),
        landmarks=tuple(birds.landmark_names),
        parts=tuple(birds.part_names),
    )
    folder = tmp_path_factory.mktemp("ambiguous") / "shards"
    writer.write(folder, "birds", sources, schema=schema, options={"made": "by the tests"}, samples_per_shard=20)
    return folder


def test_batches_tell_what_is_right(ambiguous: Path) -> None:
    right = {
        sample.key: [label in (sample.answers or [sample.label]) for label in range(CLASSES)]
        for sample in reader.read(ambiguous, "val")
    }
    for batch in Loader(ambiguous, "val", TEST, 3):
        assert batch.answers is not None
        assert batch.answers.tolist() == [right[key] for key in batch.keys]


def test_nothing_is_wrong_where_every_class_is_right(ambiguous: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(ambiguous, out).returncode == 0
    lines = [line for line in metrics(out) if "classification_loss" in line]
    steps, validations = ([line for line in lines if line["kind"] == kind] for kind in ("train", "validation"))
    assert steps
    assert all(line["accuracy"] >= 0.5 for line in validations)  # of half of the images any class is right
    assert validations
    for line in steps:
        assert line["accuracy"] == 1
        # The logarithm of the sum of four probabilities in float32.
        assert line["classification_loss"] == pytest.approx(0, abs=4e-7)
