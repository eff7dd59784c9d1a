"""NABirds as it is published -> samples: what differs from CUB-200-2011, whose tests are of the layout of both."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import nabirds
from pipelines.datasets.nabirds import NABirds
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import read
from pipelines.shards.verify import verify
from rg.cli.main import main
from tests.support import miniature_nabirds as miniature

IMAGES = 6


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    raw = tmp_path_factory.mktemp("nabirds")
    miniature.build(raw, IMAGES)
    return raw


@pytest.fixture
def raw(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "raw")


def lines(raw: Path, name: str) -> dict[str, list[str]]:
    """First word of every line -> the others; spaces belong to the second."""
    text = (raw / "nabirds" / name).read_text()
    return {first: rest.split() for first, _, rest in (line.partition(" ") for line in text.splitlines())}


def test_samples_are_what_the_files_say(published: Path) -> None:
    label, training = lines(published, "image_class_labels.txt"), lines(published, "train_test_split.txt")
    file, box, size = (lines(published, name) for name in ("images.txt", "bounding_boxes.txt", "sizes.txt"))
    location: dict[str, list[list[float]]] = {}
    for line in (published / "nabirds/parts/part_locs.txt").read_text().splitlines():
        image, *numbers = line.split()
        location.setdefault(image, []).append(list(map(float, numbers)))
    seen = 0
    for split in ("train", "test"):
        source = NABirds(published, split, allow_partial=True)
        assert source.class_names == tuple(miniature.GROUPS)
        assert source.super_categories == tuple(miniature.GROUPS.values())
        assert source.landmark_names == tuple(miniature.PARTS)
        for index in range(len(source)):
            sample = source[index]
            image = sample.key.removeprefix("nabirds-")
            name = miniature.CLASSES[int(label[image][0])][0]
            assert source.class_names[sample.label] == name
            assert sample.super_category == miniature.GROUPS[name]
            assert training[image] == [str(int(split == "train"))]
            assert sample.source == f"images/{file[image][0]}" == source.source(index)
            assert [str(sample.width), str(sample.height)] == size[image]
            x, y, width, height = map(float, box[image])
            assert sample.boxes.tolist() == [[x, y, x + width, y + height]]
            parts = np.array(location[image])
            np.testing.assert_array_equal(sample.landmarks, parts[:, 1:3] + 0.5)
            np.testing.assert_array_equal(sample.visibility, parts[:, 3] == 1)
            seen += 1
    assert seen == len(label) == len(miniature.GROUPS) * IMAGES


def test_published_numbers(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published / "nabirds"
    with pytest.raises(ValueError, match=rf"^{folder}: images: expected 48562, found 24; --allow-partial"):
        NABirds(published, "train")
    NABirds(published, "train", allow_partial=True)
    assert caplog.messages == [
        f"{folder}: images: found 24, the published number is 48562",
        f"{folder}: classes: found 10, the published number is 1011",
        f"{folder}: visual categories: found 4, the published number is 555",
        f"{folder}: training images: found 12, the published number is 23929",
        f"{folder}: test images: found 12, the published number is 24633",
    ]
    assert nabirds.COUNTS["training images"] + nabirds.COUNTS["test images"] == nabirds.COUNTS["images"]


def test_archive_is_the_same_as_the_folder(published: Path, raw: Path) -> None:
    miniature.archive(raw)
    for split in ("train", "test"):
        one, other = (NABirds(path, split, allow_partial=True) for path in (published, raw))
        assert one.digest() == other.digest()
        assert one.schema == other.schema


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace("817 32\n", ""), "expected one class without a parent, got 2"),
        (lambda text: text.replace("32 2\n", "32 817\n"), "class 32 is above itself"),
        (lambda text: text + "555 32\n", r"class 555 is not in classes\.txt"),
        (lambda text: text.replace("817 32\n", "817 33\n"), r"class 33 is not in classes\.txt"),
        (lambda text: text + "817 31\n", "817 is listed twice"),
        (lambda text: text + "817\n", "line 10: expected class parent, got '817'"),
    ],
)
def test_no_tree(raw: Path, change, message: str) -> None:
    path = raw / "nabirds/hierarchy.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"^{path}: {message}$"):
        NABirds(raw, "train", allow_partial=True)


def test_ids_that_are_no_names(raw: Path) -> None:
    path = raw / "nabirds/images.txt"
    path.write_text("../x 0817/a.jpg\n" + path.read_text())
    with pytest.raises(ValueError, match=rf"^{path}: line 1: expected image file, got '\.\./x 0817/a\.jpg'$"):
        NABirds(raw, "train", allow_partial=True)


def test_packed(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare = ["prepare", "nabirds", "--raw", str(published), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(prepare) == 2
    assert "--allow-partial" in capsys.readouterr().err
    assert main([*prepare, "--allow-partial", "--val-fraction", "0.34"]) == 0
    assert verify(tmp_path / "out") == []
    manifest = Manifest.load(tmp_path / "out")
    assert {split: content.samples for split, content in manifest.splits.items()} == {"train": 8, "val": 4, "test": 12}
    assert manifest.super_categories == tuple(miniature.GROUPS.values())
    assert {sample.super_category for sample in read(tmp_path / "out", "test")} == set(miniature.GROUPS.values())
