"""The images that the loader's benchmarks read."""

import pytest
from PIL import Image

from benchmarks.tools import image_set
from pipelines.shards import reader

FILES = 16


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def images(parent):
    return image_set.image_set(parent, FILES)


def test_images_are_photos_in_size(images):
    paths = sorted((images / "raw" / "train").glob("*/*.jpg"))
    assert len(paths) == FILES
    assert len({path.parent for path in paths}) == image_set.CLASSES
    for path in paths:
        assert 40_000 <= path.stat().st_size <= 110_000
        assert Image.open(path).size in image_set.SIZES


def test_shards_hold_the_same_images(images):
    raw = {path.relative_to(images / "raw").as_posix(): path for path in (images / "raw" / "train").glob("*/*.jpg")}
    samples = list(reader.read(images / "shards", "train"))
    assert {sample.source for sample in samples} == set(raw)
    for sample in samples:
        assert sample.jpeg == raw[sample.source].read_bytes()
        assert raw[sample.source].parent.name == f"class_{sample.label}"


def test_images_are_made_once_and_are_the_same_for_all(parent, images, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*")}
    assert image_set.image_set(parent, FILES) == images
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*")} == before
    again = image_set.image_set(tmp_path, FILES)
    files = [path.relative_to(images) for path in before if path.is_file()]
    assert all((again / path).read_bytes() == (images / path).read_bytes() for path in files)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(image_set, "draw", lambda _: b"drawn")
    monkeypatch.setattr(image_set, "pack", fail)
    with pytest.raises(OSError, match="disk full"):
        image_set.image_set(tmp_path, FILES)
    assert list(tmp_path.iterdir()) == []
