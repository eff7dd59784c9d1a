"""PartImageNet -> samples: that masks lie where the parts are, what counts, which images are for testing."""

import contextlib
import io
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")

from pipelines.datasets.partimagenet import PartImageNet
from pipelines.datasets.published import splits
from pipelines.shards.manifest import Manifest
from pipelines.shards.samples import Sample
from pipelines.shards.verify import verify
from rg.cli.main import main
from tests.support import miniature_partimagenet as miniature

IMAGES = 8
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools 2.0.11


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder, to be read only, and the part maps."""
    raw = tmp_path_factory.mktemp("partimagenet")
    return raw, miniature.build(raw, IMAGES)


@pytest.fixture
def raw(built: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    return shutil.copytree(built[0], tmp_path / "raw")


def load(raw: Path, split: str, **arguments: object) -> PartImageNet:
    return PartImageNet(raw, split, allow_partial=True, **arguments)


def samples(source: PartImageNet) -> list[Sample]:
    """Those that show a part."""
    found = []
    for index in range(len(source)):
        with contextlib.suppress(ValueError):
            found.append(source[index])
    return found


def edit(raw: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((raw / "train.json").read_text())
    change(content)
    (raw / "train.json").write_text(json.dumps(content))


def test_masks_are_the_parts_of_the_picture(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    raw, truth = built
    seen = set()
    for sample in samples(load(raw, "train")) + samples(load(raw, "test")):
        name = Path(sample.source).name
        np.testing.assert_array_equal(sample.part_map, truth[name])
        pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg))) > 127
        shown = pixels @ np.array([1, 2, 4])
        assert (shown == sample.part_map).mean() > 0.98  # JPEG blurs edges
        y, x = np.nonzero(sample.part_map)
        assert sample.boxes.tolist() == [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
        assert sample.key == f"partimagenet-{name.removesuffix('.JPEG')}"
        assert sample.super_category == miniature.SYNSETS[name[:9]]
        seen.add(name)
    assert len(seen) == len(truth) - 1
    (left_out,) = set(truth) - seen
    assert not truth[left_out].any()


def test_splits(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    raw, truth = built
    listed = [line.split("\t") for line in (raw / miniature.SPLIT).read_text().splitlines()]
    for split in ("train", "test"):
        source = load(raw, split)
        names = [Path(source.source(index)).name for index in range(len(source))]
        assert sorted(names) == sorted(line[4] for line in listed if line[1] == str(int(split == "test")))
    train, val, test = (load(raw, split, val_fraction=0.3) for split in splits(0.3))
    assert (len(train), len(val), len(test)) == (16, 8, 8)
    assert sorted(sample.label for sample in samples(test)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(truth) == 32
    with pytest.raises(ValueError, match=r"^split: expected train, test, got 'val'$"):
        load(raw, "val")


def test_names(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    described = dict(zip(miniature.SYNSETS, ("tench, Tinca tinca", "crane", "crane, a bird", "snowplow"), strict=True))
    source = load(built[0], "train", describe=described.__getitem__)
    assert source.class_names == ("tench", "crane (n02009229)", "crane (n02012849)", "snowplow")
    assert load(built[0], "test").class_names == tuple(miniature.SYNSETS)
    assert source.super_categories == tuple(miniature.SYNSETS.values())
    assert source.schema.parts == miniature.PARTS


def test_published_numbers(built: tuple[Path, dict[str, np.ndarray]], caplog: pytest.LogCaptureFixture) -> None:
    path = built[0] / "train.json"
    caplog.set_level(logging.WARNING)
    with pytest.raises(ValueError, match=rf"^{path}: images: expected 16540, found 32; --allow-partial"):
        PartImageNet(built[0], "train")
    load(built[0], "train")
    assert caplog.messages == [
        f"{path}: images: found 32, the published number is 16540",
        f"{path}: classes: found 4, the published number is 109",
        f"{path}: parts: found 7, the published number is 40",
        f"{path}: super-categories: found 3, the published number is 11",
    ]


def test_other_folders(raw: Path) -> None:
    before = [sample.key for sample in samples(load(raw, "test"))]
    (raw / "annotations").mkdir()
    (raw / "train.json").rename(raw / "annotations/train.json")
    (raw / "images/train").mkdir(parents=True)
    for path in (raw / "train").glob("*/*"):
        path.rename(raw / "images/train" / path.name)
    shutil.rmtree(raw / "train")
    flat = load(raw, "test")
    assert [sample.key for sample in samples(flat)] == before
    assert flat.source(0).count("/") == 2


def test_missing_files(raw: Path) -> None:
    gone = load(raw, "train").source(0)
    (raw / gone).unlink()
    assert len(load(raw, "train")) == 23
    (raw / miniature.SPLIT).unlink()
    with pytest.raises(ValueError, match=rf"^{raw}/{miniature.SPLIT} is missing; it says which .* github\.com"):
        load(raw, "train")
    (raw / "train.json").unlink()
    with pytest.raises(ValueError, match=r"train\.json or annotations/train\.json .* is missing$"):
        load(raw, "train")


def first(content: dict) -> dict:
    """The first annotation that counts."""
    return next(entry for entry in content["annotations"] if entry["area"] and not entry["iscrowd"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: first(content).update(image_id=99), r"annotations\[\d+\]: image 99 is not listed"),
        (lambda content: first(content).update(category_id=99), r"annotations\[\d+\]: category 99 is not listed"),
        (lambda content: first(content).update(segmentation=[]), "expected polygons or run lengths, got"),
        (lambda content: first(content).update(segmentation=[[1, 2, 3]]), "expected a polygon x, y, x, y, ..., got"),
        (lambda content: first(content).update(segmentation=[["a"] * 6]), "expected a polygon x, y, x, y, ..., got"),
        (lambda content: first(content).update(segmentation=[[1, 2, 3, 4]], bbox=None), "expected bbox x, y, width"),
        (lambda content: content["images"][0].update(file_name="a.jpg"), "expected <synset>_<number>.JPEG, got"),
        (lambda content: content["images"].append(content["images"][0]), "expected distinct image ids, got"),
        (lambda content: content["categories"].append(content["categories"][0]), "categories of distinct ids, got 8"),
        (lambda content: content.pop("annotations"), "annotations is missing or no list"),
        (lambda content: content["images"][0].pop("width"), r"images\[0\]: expected width \(int\), got none"),
    ],
)
def test_malformed_annotations(raw: Path, change: Callable[[dict], object], message: str) -> None:
    edit(raw, change)
    with pytest.raises(ValueError, match=message):
        load(raw, "train")


def test_wrong_lists_of_test_images(raw: Path) -> None:
    path = raw / miniature.SPLIT
    content = path.read_text()
    path.write_text("0\t2\t1\tn01440764\tn01440764_1.JPEG\n" + content)
    with pytest.raises(ValueError, match=rf"^{path}: line 1: expected image_id is_test label synset file, got '0\\t2"):
        load(raw, "train")
    path.write_text(content.partition("\n")[2])
    with pytest.raises(ValueError, match=rf"^{path}: image n\d+_\d+\.JPEG is not listed$"):
        load(raw, "train")


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [3, 3], "counts": [4, 5]}, "a mask has 3x3 pixels, expected"),
        ({"size": [3, 3], "counts": None}, r"a mask cannot be drawn \("),
    ],
)
def test_masks_that_cannot_be_drawn(raw: Path, segmentation: dict, message: str) -> None:
    def damage(content: dict) -> None:
        for entry in content["annotations"]:
            entry["segmentation"] = segmentation

    edit(raw, damage)
    source = load(raw, "train")
    with pytest.raises(ValueError, match=rf"^{source.source(8)}: {message}"):
        source[8]


def test_an_image_of_another_size(raw: Path) -> None:
    source = load(raw, "train")
    path = raw / source.source(9)
    Image.new("RGB", (20, 10)).save(path)
    with pytest.raises(ValueError, match=rf"^{source.source(9)}: has 20x10 pixels, its masks \d+x\d+$"):
        source[9]


def test_without_pycocotools(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"^PartImageNet needs pycocotools; pip install 'region-grouping\[coco\]'$"):
        load(raw, "train")


def test_pickled_source_is_the_same(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    source = load(built[0], "test")
    again = pickle.loads(pickle.dumps(source))
    assert [sample.part_map.tobytes() for sample in samples(again)] == [
        sample.part_map.tobytes() for sample in samples(source)
    ]
    assert again.digest() == source.digest() != load(built[0], "train").digest()


def test_packed(built: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare = ["prepare", "partimagenet", "--raw", str(built[0]), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(prepare) == 2
    assert "--allow-partial" in capsys.readouterr().err
    assert main([*prepare, "--allow-partial"]) == 0
    assert verify(tmp_path / "out") == []
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.classes == miniature.NAMES
    assert manifest.parts == miniature.PARTS
    assert {split: content.samples for split, content in manifest.splits.items()} == {"train": 23, "test": 8}
    (left_out,) = manifest.split("train").quarantined
    assert left_out.reason == "no part is annotated"
