"""The raw layout at full cardinality, in small."""

import json
import math

import numpy as np
import pytest

from benchmarks.tools import long_tail
from pipelines.datasets.inat2017 import SPECIES, TEST_IMAGES, TRAIN_IMAGES, INat2017


@pytest.mark.parametrize("images,ratio", [(TRAIN_IMAGES, 280), (TEST_IMAGES, 14), (6000, 280), (SPECIES, 280)])
def test_a_long_tail_adds_up(images, ratio):
    counts = long_tail.tail(images, SPECIES, ratio)
    assert (counts.sum(), len(counts)) == (images, SPECIES)
    assert (np.diff(counts) <= 0).all()
    weights = [rank ** (-math.log(ratio) / math.log(SPECIES)) for rank in range(1, SPECIES + 1)]
    rarest = 1 + (images - SPECIES) / ratio / math.fsum(weights)
    assert counts[-1] == pytest.approx(rarest, abs=1)
    assert counts[0] == pytest.approx(1 + ratio * (rarest - 1), abs=1)


def test_fewer_images_than_species_are_refused():
    with pytest.raises(ValueError, match=r"^images: expected at least one for each of 5089 species, got 5088$"):
        long_tail.tail(SPECIES - 1, SPECIES, 280)


def test_the_layout_is_that_of_the_data_set(tmp_path, monkeypatch):
    for name, value in (("SPECIES", 30), ("TRAIN_IMAGES", 200), ("TEST_IMAGES", 60)):
        monkeypatch.setattr(long_tail, name, value)
    assert long_tail.build(tmp_path) == 260
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert long_tail.build(tmp_path) == 260  # what is there stays
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")} == before
    train, test = (INat2017(tmp_path, split, allow_partial=True) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names), len(set(train.super_categories))) == (200, 60, 30, 13)
    boxed = [train[number] for number in range(len(train)) if train[number].boxes is not None]
    assert 0 < len(boxed) < 200
    assert all(sample.boxes.min() >= 0 and sample.boxes.max() <= long_tail.SIDE for sample in boxed)
    listed = json.loads((tmp_path / "train2017.json").read_text())
    assert len({image["file_name"] for image in listed["images"]}) == 200
