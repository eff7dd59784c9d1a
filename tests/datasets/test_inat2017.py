"""iNaturalist 2017 -> samples: what the annotations say, what is refused, and that boxes stay where objects are."""

import colorsys
import io
import json
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import inat2017
from pipelines.datasets.inat2017 import ARCHIVES, INat2017
from pipelines.shards.reader import read
from pipelines.shards.samples import Sample
from pipelines.shards.verify import verify
from pipelines.shards.writer import write
from tests.support.miniature_inat2017 import WITHOUT_BOXES, add_locations, archive, build

ROTATED_RIGHT, UPSIDE_DOWN = 6, 3  # values of the EXIF orientation


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; not to be changed."""
    folder = tmp_path_factory.mktemp("inat2017")
    build(folder)
    return folder


@pytest.fixture
def raw(tree: Path, tmp_path: Path) -> Path:
    """A copy of the miniature."""
    return shutil.copytree(tree, tmp_path / "raw")


def load(raw: Path, split: str, **arguments: float) -> INat2017:
    return INat2017(raw, split, allow_partial=True, **arguments)


def samples(source: INat2017) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def sources(source: INat2017) -> list[str]:
    return [source.source(index) for index in range(len(source))]


def parse(raw: Path, name: str) -> dict:
    return json.loads((raw / name).read_text())


def edit(raw: Path, name: str, change: Callable[[dict], object]) -> None:
    content = parse(raw, name)
    change(content)
    (raw / name).write_text(json.dumps(content))


def image_with(raw: Path, boxes: int, sized: bool = True) -> dict:
    """The first training image with a number of boxes (with an area) whose size is stated, or not."""
    content = parse(raw, "train_2017_bboxes.json")
    counts = Counter(box["image_id"] for box in content["annotations"] if box["bbox"][2])
    images = sorted(parse(raw, "train2017.json")["images"], key=lambda image: image["id"])
    return next(image for image in images if counts[image["id"]] == boxes and ("width" in image) == sized)


def sample_of(source: INat2017, file: str) -> Sample:
    return source[sources(source).index(file)]


def coloured(jpeg: bytes) -> np.ndarray:
    """Where the objects are, bool [height, width]: the background is grey."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 90


# --------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(("split", "official"), [("train", "train"), ("test", "val")])
def test_samples_are_what_the_annotations_say(tree: Path, split: str, official: str) -> None:
    content = parse(tree, f"{official}2017.json")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    category_of = {annotation["image_id"]: annotation["category_id"] for annotation in content["annotations"]}
    source = load(tree, split)
    assert source.class_names == tuple(category["name"] for category in categories)
    assert source.super_categories == tuple(category["supercategory"] for category in categories)
    assert len(source) == len(content["images"]) == {"train": 64, "test": 32}[split]
    found = {sample.source: sample for sample in samples(source)}
    assert set(found) == {image["file_name"] for image in content["images"]}
    for image in content["images"]:
        sample = found[image["file_name"]]
        assert sample.key == f"inat-{image['id']:07d}"
        assert sample.label == label_of[category_of[image["id"]]]
        assert sample.source.split("/")[1:3] == [sample.super_category, source.class_names[sample.label]]
        assert (sample.width, sample.height) == Image.open(tree / sample.source).size
        assert sample.jpeg == (tree / sample.source).read_bytes()
    assert sources(source) == [sample.source for sample in samples(source)]


def test_the_miniature_is_as_awkward_as_the_real_one(tree: Path) -> None:
    content = parse(tree, "train2017.json")
    ids = [category["id"] for category in content["categories"]]
    assert ids != sorted(ids)
    assert min(ids) > 0
    assert max(ids) - min(ids) >= len(ids)
    images = [image["id"] for image in content["images"]]
    assert images != sorted(images)
    assert images != [annotation["image_id"] for annotation in content["annotations"]]
    names = [category["name"] for category in content["categories"]]
    assert not all(map(str.isascii, names))
    assert {"-", "."} <= set("".join(names))
    assert len({name.split()[0] for name in names}) < len(names)  # a genus of two species
    assert image_with(tree, 2)
    assert image_with(tree, 1, sized=False)


def test_species_can_be_told_by_colour(tree: Path) -> None:
    def hues(split: str) -> tuple[np.ndarray, np.ndarray]:
        found = samples(load(tree, split))
        pixels = [np.asarray(Image.open(io.BytesIO(sample.jpeg)))[coloured(sample.jpeg)] for sample in found]
        hue = [colorsys.rgb_to_hsv(*np.median(values, axis=0) / 255)[0] for values in pixels]
        return np.array(hue), np.array([sample.label for sample in found])

    (known, labels), (hue, expected) = hues("train"), hues("test")
    distance = np.abs(hue[:, None] - known)
    assert np.array_equal(labels[np.minimum(distance, 1 - distance).argmin(axis=1)], expected)


# ---------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_lie_around_the_objects(tree: Path, split: str) -> None:
    counts: Counter[int] = Counter()
    for sample in samples(load(tree, split)):
        if sample.boxes is None:
            continue
        counts[len(sample.boxes)] += 1
        assert sample.boxes.dtype == np.float32
        rest = coloured(sample.jpeg)
        for box in sample.boxes.astype(int).tolist():
            inside = rest[box[1] : box[3], box[0] : box[2]]
            rows, columns = np.nonzero(inside)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # the chroma of a JPEG is coarse, and the tip of a triangle is thin
            assert np.allclose(extent, [0, 0, box[2] - box[0], box[3] - box[1]], atol=4)
            inside[:] = False
            rest[max(0, box[1] - 2) : box[3] + 2, max(0, box[0] - 2) : box[2] + 2] = False
        assert not rest.any()
    assert counts == ({1: 36, 2: 6} if split == "train" else {1: 18})


def test_boxes_are_where_the_annotations_have_them(tree: Path) -> None:
    content = parse(tree, "train_2017_bboxes.json")
    file_of = {image["id"]: image["file_name"] for image in content["images"]}
    expected: dict[str, list] = {}
    for box in content["annotations"]:
        x, y, w, h = box["bbox"]
        if w and h:
            expected.setdefault(file_of[box["image_id"]], []).append([max(x, 0), y, x + w, y + h])
    found = samples(load(tree, "train"))
    assert {sample.source: sample.boxes.tolist() for sample in found if sample.boxes is not None} == expected
    assert all(sample.boxes is None for sample in found if sample.super_category == WITHOUT_BOXES)
    assert any(sample.boxes is None for sample in found if sample.super_category != WITHOUT_BOXES)


def test_boxes_are_clipped_and_empty_ones_counted(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    sized, sizeless = image_with(raw, 1), image_with(raw, 1, sized=False)
    width, height = Image.open(raw / sizeless["file_name"]).size
    wrong = [[-50, 5, 50, 5], [5, 5, -3, 9], [1e4, 5, 9, 9], [5, 1e4, 9, 9], [5, 5, float("nan"), 9], [5, 5, 5, 0]]

    def change(content: dict) -> None:
        unwanted = {sized["id"], sizeless["id"]}
        boxes = [box for box in content["annotations"] if box["image_id"] not in unwanted and box["bbox"][2]]
        boxes += [{"image_id": sized["id"], "bbox": bbox} for bbox in wrong]
        boxes += [{"image_id": sizeless["id"], "bbox": bbox} for bbox in [*wrong, [-4, 3.5, 1e4, 1e4]]]
        content["annotations"] = boxes

    edit(raw, "train_2017_bboxes.json", change)
    with caplog.at_level(logging.INFO, "pipelines.datasets.inat2017"):
        train = load(raw, "train")
    # of the image without a stated size, it takes the file to know what lies outside
    assert caplog.messages[-1].endswith(
        "train_2017_bboxes.json: left out 10 boxes of train without area in their image"
    )
    assert sample_of(train, sized["file_name"]).boxes is None
    assert sample_of(train, sizeless["file_name"]).boxes.tolist() == [[0, 3.5, width, height]]


def test_no_line_about_empty_boxes_where_there_are_none(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipelines.datasets.inat2017"):
        load(tree, "test")
        assert "left out" not in caplog.text
        load(tree, "train")
        assert "left out 6 boxes of train" in caplog.text


def test_without_a_box_file(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(raw, "train").digest()
    (raw / "train_2017_bboxes.json").unlink()
    train = load(raw, "train")
    path = raw / "train_2017_bboxes.json"
    assert f"{path} is missing; without boxes the pointing game cannot be measured" in caplog.messages
    assert all(sample.boxes is None for sample in samples(train))
    assert train.digest() != before
    assert any(sample.boxes is not None for sample in samples(load(raw, "test")))


def test_ids_of_the_box_file_may_be_its_own(raw: Path) -> None:
    before = {sample.key: sample.boxes for sample in samples(load(raw, "train"))}

    def renumber(content: dict) -> None:
        for image in content["images"]:
            image["id"] = 999 - image["id"]
        for box in content["annotations"]:
            box["image_id"] = 999 - box["image_id"]

    edit(raw, "train_2017_bboxes.json", renumber)
    for sample in samples(load(raw, "train")):
        assert np.array_equal(sample.boxes, before[sample.key])


def test_boxes_of_unlisted_images(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch)
    edit(raw, "train_2017_bboxes.json", lambda content: content["images"][0].update(file_name="a/b.jpg"))
    owner = parse(raw, "train_2017_bboxes.json")["images"][0]["id"]
    with pytest.raises(ValueError, match=r"bboxes\.json: 1 images are not in train2017\.json, the first is a/b\.jpg"):
        INat2017(raw, "train")
    found = {sample.key: sample.boxes for sample in samples(load(raw, "train"))}
    assert found[f"inat-{owner:07d}"] is None


# --------------------------------------------------------------------------------------------------- sizes and rotation


def rotate(path: Path, orientation: int) -> None:
    """Stores the same upright image turned, with the EXIF orientation that undoes it."""
    image = Image.open(path)
    turned = image.transpose(Image.Transpose.ROTATE_90 if orientation == ROTATED_RIGHT else Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(path, quality=90, exif=exif)


def state(raw: Path, image: dict, **size: int | None) -> None:
    """Changes the stated size of an image; None removes it."""

    def change(content: dict) -> None:
        entry = next(entry for entry in content["images"] if entry["id"] == image["id"])
        entry.update(size)
        for name in [name for name, value in entry.items() if value is None]:
            del entry[name]

    edit(raw, "train2017.json", change)


@pytest.mark.parametrize(
    ("orientation", "stated", "boxes", "reason"),
    [
        (ROTATED_RIGHT, "upright", 1, None),
        (ROTATED_RIGHT, "stored", 1, r"has \d+x\d+ pixels upright, its boxes refer to \d+x\d+"),
        (ROTATED_RIGHT, "none", 1, "was turned upright, and its boxes may refer to the image before that"),
        (UPSIDE_DOWN, "upright", 1, "was turned upright, and its boxes may refer to the image before that"),
        (UPSIDE_DOWN, "none", 1, "was turned upright, and its boxes may refer to the image before that"),
        (ROTATED_RIGHT, "upright", 0, None),
        (ROTATED_RIGHT, "stored", 0, None),
        (ROTATED_RIGHT, "none", 0, None),
        (UPSIDE_DOWN, "upright", 0, None),
    ],
)
def test_rotated_images(raw: Path, orientation: int, stated: str, boxes: int, reason: str | None) -> None:
    image = image_with(raw, boxes)
    before = sample_of(load(raw, "train"), image["file_name"])
    assert before.width != before.height
    rotate(raw / image["file_name"], orientation)
    if stated == "stored":
        state(raw, image, width=before.height, height=before.width)
    elif stated == "none":
        state(raw, image, width=None)
    train = load(raw, "train")
    if reason:
        with pytest.raises(ValueError, match=rf"^{image['file_name']}: {reason}$"):
            sample_of(train, image["file_name"])
        return
    sample = sample_of(train, image["file_name"])
    assert (sample.width, sample.height) == (before.width, before.height)
    assert np.array_equal(sample.boxes, before.boxes)
    assert np.mean(coloured(sample.jpeg) != coloured(before.jpeg)) < 0.03  # encoded once more


def test_a_square_tells_nothing_about_its_rotation(raw: Path) -> None:
    image = image_with(raw, 1)
    path = raw / image["file_name"]
    Image.open(path).resize((100, 100)).save(path)
    state(raw, image, width=100, height=100)
    assert sample_of(load(raw, "train"), image["file_name"]).width == 100
    rotate(path, ROTATED_RIGHT)
    with pytest.raises(ValueError, match="was turned upright"):
        sample_of(load(raw, "train"), image["file_name"])


@pytest.mark.parametrize("boxes", [0, 1])
def test_file_of_another_size_is_refused(raw: Path, boxes: int) -> None:
    image = image_with(raw, boxes)
    path = raw / image["file_name"]
    Image.open(path).resize((77, 66)).save(path)
    reason = f"has 77x66 pixels, the annotations state {image['width']}x{image['height']}"
    with pytest.raises(ValueError, match=f"^{image['file_name']}: {reason}$"):
        sample_of(load(raw, "train"), image["file_name"])
    state(raw, image, height=None)
    assert sample_of(load(raw, "train"), image["file_name"]).width == 77


def test_damaged_exif_turns_nothing(raw: Path) -> None:
    image = image_with(raw, 1)
    path = raw / image["file_name"]
    content = path.read_bytes()
    block = b"Exif\0\0no TIFF"
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:])
    assert len(sample_of(load(raw, "train"), image["file_name"]).boxes) == 1


# --------------------------------------------------------------------------------------------------------- completeness


def publish(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
    """Makes the numbers of the miniature the published ones, except for some."""
    for name, number in (
        {"TRAIN_IMAGES": 64, "TEST_IMAGES": 32, "SPECIES": 8, "SUPER_CATEGORIES": 4} | numbers
    ).items():
        assert hasattr(inat2017, name)
        monkeypatch.setattr(inat2017, name, number)


def test_published_numbers_are_checked(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {"train": ("TRAIN_IMAGES", 579184, 64), "test": ("TEST_IMAGES", 95986, 32)}
    for split, (_, published, found) in expected.items():
        with pytest.raises(ValueError, match=f"17.json: images: expected {published}, found {found}; --allow-partial"):
            INat2017(tree, split)
    for name, what in (("SPECIES", "species"), ("SUPER_CATEGORIES", "super-categories")):
        publish(monkeypatch, **{name: 3})
        with pytest.raises(ValueError, match=rf"2017\.json: {what}: expected 3, found"):
            INat2017(tree, "train")
        assert len(load(tree, "train")) == 64
        assert f"{what}: found" in caplog.text
    publish(monkeypatch)
    caplog.clear()
    assert [len(INat2017(tree, split)) for split in expected] == [64, 32]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_missing_files(raw: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    publish(monkeypatch)
    before = load(raw, "train", val_fraction=0.25)
    every = sorted(sources(load(raw, "train")))
    folders = sorted({Path(source).parent.as_posix() for source in every})
    gone = [source for source in every if source.startswith(f"{folders[0]}/")] + every[-2:]
    shutil.rmtree(raw / folders[0])
    for source in every[-2:]:
        (raw / source).unlink()
    first = f"{raw}: {len(gone)} of 64 images are missing, the first is {gone[0]}"
    with pytest.raises(ValueError, match=f"^{first}; --allow-partial prepares what is there$"):
        INat2017(raw, "train")
    train = load(raw, "train")
    assert sorted(sources(train)) == sorted(set(every) - set(gone))
    assert first in caplog.messages
    assert train.class_names == before.class_names
    for sample in samples(train):
        assert sample.super_category == train.super_categories[sample.label]
        assert sample.source.split("/")[2] == train.class_names[sample.label]
    partial = load(raw, "train", val_fraction=0.25)
    assert sources(partial) == [source for source in sources(before) if source not in gone]
    shutil.rmtree(raw / "train_val_images")
    with pytest.raises(ValueError, match="no images for the split 'train'"):
        load(raw, "train")


def test_archives_hold_the_same(raw: Path, tmp_path: Path) -> None:
    add_locations(raw)
    tree = shutil.copytree(raw, tmp_path / "unpacked")
    archive(raw)
    assert sorted(path.name for path in raw.iterdir()) == sorted(ARCHIVES)
    for split in ("test", "train"):
        expected, found = load(tree, split), load(raw, split)
        assert found.class_names == expected.class_names
        assert found.digest() == expected.digest()
        for ours, theirs in zip(samples(found), samples(expected), strict=True):
            assert (ours.key, ours.jpeg, ours.label, ours.source) == (
                theirs.key,
                theirs.jpeg,
                theirs.label,
                theirs.source,
            )
            assert np.array_equal(ours.boxes, theirs.boxes)
            assert ours.place == theirs.place
    (raw / "val2017.json").unlink()  # one of two files of an archive
    assert load(raw, "test").digest() == load(tree, "test").digest()
    for name in ARCHIVES:
        (raw / name).unlink()
    (raw / "train2017.json").unlink()
    with pytest.raises(ValueError, match=rf"^{raw}: train2017\.json is missing$"):
        load(raw, "train")


def test_digest_tells_raw_files_from_others(raw: Path, tree: Path) -> None:
    expected = load(tree, "train").digest()
    assert load(raw, "train").digest() == expected
    assert load(raw, "test").digest() != expected
    state(raw, image_with(raw, 1), license=7)
    restated = load(raw, "train").digest()
    with (raw / load(raw, "train").source(0)).open("ab") as file:
        file.write(b"more")
    assert len({expected, restated, load(raw, "train").digest()}) == 3


# ----------------------------------------------------------------------------------------------------------- validation


def test_validation_share_is_stratified_complete_and_repeatable(tree: Path) -> None:
    everything = sources(load(tree, "train"))
    train, val = load(tree, "train", val_fraction=0.25), load(tree, "val", val_fraction=0.25)
    assert sorted(sources(train) + sources(val)) == sorted(everything)
    assert Counter(sample.label for sample in samples(val)) == dict.fromkeys(range(8), 2)
    assert Counter(sample.label for sample in samples(train)) == dict.fromkeys(range(8), 6)
    assert train.class_names == val.class_names
    keys = [sample.key for source in (train, val, load(tree, "test")) for sample in samples(source)]
    assert len(set(keys)) == len(keys) == 96
    assert sources(load(tree, "val", val_fraction=0.25)) == sources(val)
    assert sources(load(tree, "val", val_fraction=0.25, seed=1)) != sources(val)
    assert sources(load(tree, "test", val_fraction=0.25)) == sources(load(tree, "test"))
    boxes = {sample.key: sample.boxes for sample in samples(load(tree, "train"))}
    for sample in samples(train) + samples(val):
        assert np.array_equal(sample.boxes, boxes[sample.key])


def test_validation_share_depends_on_no_order_and_no_other_species(raw: Path) -> None:
    val = load(raw, "val", val_fraction=0.25)
    last = max(category["id"] for category in parse(raw, "train2017.json")["categories"])

    def change(content: dict) -> None:
        of_last = {entry["image_id"] for entry in content["annotations"] if entry["category_id"] == last}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in of_last]
        content["images"] = [entry for entry in content["images"][::-1] if entry["id"] not in of_last]
        content["categories"] = [entry for entry in content["categories"] if entry["id"] != last]

    edit(raw, "train2017.json", change)
    expected = [source for source in sources(val) if source.split("/")[2] != val.class_names[-1]]
    assert sources(load(raw, "val", val_fraction=0.25)) == expected


def test_wrong_arguments(tree: Path, tmp_path: Path) -> None:
    for split, fraction, known in (("val", 0, "train, test"), ("dev", 0.1, "train, val, test")):
        with pytest.raises(ValueError, match=rf"^split: expected {known}, got '{split}'$"):
            load(tree, split, val_fraction=fraction)
    for fraction in (1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="val_fraction: expected a share of at least 0 and below 1, got"):
            load(tree, "train", val_fraction=fraction)
    with pytest.raises(ValueError, match="no such folder"):
        load(tmp_path / "missing", "train")
    with pytest.raises(IndexError):
        load(tree, "train")[64]


# ------------------------------------------------------------------------------------------------------------ malformed


def first(table: str, **values: object) -> Callable[[dict], object]:
    """Changes the first entry of a table; None removes a value."""

    def change(content: dict) -> None:
        content[table][0].update(values)
        for name in [name for name, value in values.items() if value is None]:
            del content[table][0][name]

    return change


def twice(table: str, *names: str) -> Callable[[dict], object]:
    """Gives the second entry of a table values of the first."""
    return lambda content: content[table][1].update({name: content[table][0][name] for name in names})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train2017.json", lambda content: content.pop("images"), "images is missing or no list"),
        ("train2017.json", lambda content: content.pop("annotations"), "annotations is missing or no list"),
        ("train2017.json", lambda content: content.update(categories={}), "categories is missing or no list"),
        (
            "train2017.json",
            lambda content: content["images"].append("x"),
            r"images\[64\]: expected id \(int\), got none",
        ),
        ("train2017.json", first("images", file_name=None), r"images\[0\]: expected file_name \(str\), got none"),
        ("train2017.json", first("images", id="12"), r"images\[0\]: expected id \(int\), got '12'"),
        ("train2017.json", first("images", id=-1), r"images\[0\]: expected id \(int\), got -1"),
        ("train2017.json", first("images", width=True), r"images\[0\]: expected width \(int\), got True"),
        ("train2017.json", first("images", file_name="../a.jpg"), r"file_name: expected a path below .*, got '\.\./a"),
        ("train2017.json", first("images", file_name="/a.jpg"), "file_name: expected a path below .*, got '/a.jpg'"),
        ("train2017.json", first("categories", supercategory=None), r"categories\[0\]: expected supercategory \(str\)"),
        ("train2017.json", first("categories", name=None), r"categories\[0\]: expected name \(str\), got none"),
        ("train2017.json", first("annotations", category_id=None), r"annotations\[0\]: expected category_id \(int\)"),
        ("train2017.json", first("annotations", category_id=0), "categories lacks the category 0 of an annotation"),
        ("train2017.json", first("annotations", image_id=9999), r"expected one annotation of the image \d+, got 0"),
        ("train2017.json", lambda content: content["annotations"].append(content["annotations"][0]), r"\d+, got 2"),
        ("train2017.json", twice("images", "id"), r"expected distinct image ids, got \d+ twice"),
        ("train2017.json", twice("images", "file_name"), "expected distinct file names, got 'train_val_.*' twice"),
        ("train2017.json", twice("categories", "id"), r"expected distinct category ids, got \d+ twice"),
        ("train2017.json", lambda content: content["categories"].clear(), "expected at least 2 categories, got 0"),
        ("train_2017_bboxes.json", lambda content: content.pop("images"), "images is missing or no list"),
        ("train_2017_bboxes.json", first("annotations", bbox=None), r"annotations\[0\]: expected bbox \(list\)"),
        ("train_2017_bboxes.json", first("annotations", bbox=[1, 2, 3]), r"bbox: expected 4 numbers, got \[1, 2, 3\]"),
        ("train_2017_bboxes.json", first("annotations", bbox=[1, 2, 3, "4"]), "bbox: expected 4 numbers, got"),
        ("train_2017_bboxes.json", first("annotations", image_id=9999), "images lacks the image 9999 of a box"),
    ],
)
def test_malformed_annotations_are_named(raw: Path, name: str, change: Callable, message: str) -> None:
    edit(raw, name, change)
    with pytest.raises(ValueError, match=rf"^{raw / name}: .*{message}[^\n]*$"):
        load(raw, "train")


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe\xfa", b"[" * 100_000])
def test_what_is_no_json_is_named(raw: Path, content: bytes) -> None:
    (raw / "train2017.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{raw}/train2017\.json: cannot be read as JSON \([^\n]*\)$"):
        load(raw, "train")
    (raw / "train2017.json").write_text("[]")
    with pytest.raises(ValueError, match=rf"^{raw}/train2017\.json: expected a JSON object, got a list$"):
        load(raw, "train")


# -------------------------------------------------------------------------------------------------------------- packing


def test_shards(raw: Path, tmp_path: Path) -> None:
    splits = {split: load(raw, split, val_fraction=0.25) for split in ("train", "val", "test")}
    schema = splits["train"].schema
    for source in splits.values():
        assert [violation for sample in samples(source) for violation in schema.violations(sample)] == []
    damaged = splits["train"].source(3)
    (raw / damaged).write_bytes((raw / damaged).read_bytes()[:300])
    out = tmp_path / "shards"
    manifest = write(out, "inat2017", splits, schema=schema, options={}, samples_per_shard=20, jobs=2)
    assert verify(out) == []
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 47, "val": 16, "test": 32}
    (quarantined,) = manifest.splits["train"].quarantined
    assert quarantined.source == damaged
    expected = {sample.key: sample for sample in samples(splits["test"])}
    for sample in read(out, "test"):
        assert sample.super_category == expected[sample.key].super_category
        assert np.array_equal(sample.boxes, expected[sample.key].boxes)


def test_a_copy_for_another_process_is_the_same(tree: Path) -> None:
    train = load(tree, "train")
    copy = pickle.loads(pickle.dumps(train))
    assert sources(copy) == sources(train)
    assert copy[-1].key == train[63].key
    for index in (0, 40, 63, -1):
        assert (copy[index].key, copy[index].jpeg) == (train[index].key, train[index].jpeg)
        assert np.array_equal(copy[index].boxes, train[index].boxes)


# ------------------------------------------------------------------------------------------------------------ locations


def test_locations_are_those_of_the_images(raw: Path) -> None:
    before = load(raw, "train").digest()
    entries = add_locations(raw)
    unknown = 0
    for split in ("train", "test"):
        source = load(raw, split)
        assert source.schema.locations
        for sample in samples(source):
            entry = entries[int(sample.key.removeprefix("inat-"))]
            if entry["lat"] is None and entry["date"] is None:
                assert sample.place is None
                unknown += 1
                continue
            assert (sample.place.latitude, sample.place.longitude) == (entry["lat"], entry["lon"])
            day = entry["date"] and date.fromisoformat(entry["date"]).timetuple().tm_yday
            assert sample.place.day == day
    assert unknown
    assert load(raw, "train").digest() != before


def test_without_locations(tree: Path) -> None:
    train = load(tree, "train")
    assert not train.schema.locations
    assert train[0].place is None


def test_locations_of_one_split_alone(raw: Path) -> None:
    add_locations(raw)
    (raw / "train2017_locations.json").unlink()
    train = load(raw, "train")
    assert train.schema.locations
    assert all(sample.place is None for sample in samples(train))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lat": 91.0}, "latitude: expected -90 to 90 degrees, got 91"),
        ({"date": "May 2016"}, "date: expected YYYY-MM-DD, got 'May 2016'"),
        ({"lon": None}, "latitude, longitude: expected both or neither, got one"),
    ],
)
def test_locations_that_cannot_be(
    raw: Path, change: dict, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(monkeypatch)
    add_locations(raw)
    path = raw / "train2017_locations.json"
    entries = json.loads(path.read_text())
    bad = next(entry for entry in entries if entry["lat"] is not None)
    bad |= change
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=rf"train2017_locations\.json: the image {bad['id']}: {message}"):
        INat2017(raw, "train")
    found = {sample.key: sample.place for sample in samples(load(raw, "train"))}
    assert found[f"inat-{bad['id']:07d}"] is None
    assert "left 1 images without a place" in caplog.text


def test_a_file_of_locations_that_is_none(raw: Path) -> None:
    (raw / "train2017_locations.json").write_text('{"id": 1}')
    with pytest.raises(ValueError, match="expected a JSON list, got a dict"):
        load(raw, "train")
    (raw / "train2017_locations.json").write_text('[{"id": "1"}]')
    with pytest.raises(ValueError, match="expected a list of objects with an id"):
        load(raw, "train")
