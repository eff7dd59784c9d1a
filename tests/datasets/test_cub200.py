"""CUB-200-2011 as it is published -> samples: what the files say, which splits there are, what is refused."""

import csv
import io
import logging
import pickle
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import cub200
from pipelines.datasets.cub200 import Cub200
from pipelines.datasets.published import splits
from pipelines.shards import writer
from pipelines.shards.samples import Sample
from pipelines.shards.verify import verify
from tests.support import miniature_cub200 as miniature

CLASSES, IMAGES = 4, 6  # of the miniature, half of the images for training


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    raw = tmp_path_factory.mktemp("cub200")
    miniature.build(raw, CLASSES, IMAGES)
    return raw


@pytest.fixture
def raw(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "raw")


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature counts as the whole data set."""
    counts = (CLASSES * IMAGES, CLASSES, 15, CLASSES * IMAGES // 2, CLASSES * IMAGES // 2)
    monkeypatch.setattr(cub200, "COUNTS", dict(zip(cub200.COUNTS, counts, strict=True)))


def read(raw: Path, split: str, **arguments: object) -> Cub200:
    return Cub200(raw, split, **{"allow_partial": True, **arguments})


def samples(source: Cub200) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def keys(source: Cub200) -> set[str]:
    return {sample.key for sample in samples(source)}


def fields(source: Cub200) -> list[dict[str, bytes]]:
    return [writer.samples.encode(sample) for sample in samples(source)]


def edit(raw: Path, name: str, line: int, text: str | None) -> None:
    """Replaces a line of an annotation file, counted from 1; without a text removes it."""
    path = raw / "CUB_200_2011" / name
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("".join(f"{line}\n" for line in lines))


def add(raw: Path, name: str, text: str) -> None:
    with (raw / "CUB_200_2011" / name).open("a") as file:
        file.write(f"{text}\n")


def image_paths(raw: Path) -> list[Path]:
    """In the order of images.txt."""
    with (raw / "CUB_200_2011/images.txt").open(newline="") as file:
        return [raw / "CUB_200_2011/images" / path for _, path in csv.reader(file, delimiter=" ")]


def test_samples_are_what_the_files_say(published: Path) -> None:
    folder = published / "CUB_200_2011"
    label = dict(np.loadtxt(folder / "image_class_labels.txt", dtype=int).tolist())
    training = dict(np.loadtxt(folder / "train_test_split.txt", dtype=int).tolist())
    box = {int(row[0]): row[1:] for row in np.loadtxt(folder / "bounding_boxes.txt")}
    location = np.loadtxt(folder / "parts/part_locs.txt")
    assert sum(training.values()) == len(training) // 2 > 0
    for split in splits(0):
        found = {sample.key: sample for sample in samples(read(published, split))}
        assert list(found) == [f"cub-{number:05d}" for number in label if training[number] == (split == "train")]
        for number, path in enumerate(image_paths(published), 1):
            if training[number] != (split == "train"):
                continue
            sample = found[f"cub-{number:05d}"]
            width, height = Image.open(path).size
            x, y, *extent = box[number]
            rows = location[location[:, 0] == number]
            assert rows[:, 1].tolist() == list(range(1, 16))
            inside = (rows[:, 2] < width) & (rows[:, 3] < height)
            assert sample.source == path.relative_to(folder).as_posix()
            assert sample.jpeg == path.read_bytes()
            assert (sample.width, sample.height, sample.label) == (width, height, label[number] - 1)
            np.testing.assert_array_equal(sample.landmarks, rows[:, 2:4] + 0.5)
            np.testing.assert_array_equal(sample.visibility, (rows[:, 4] == 1) & inside)
            x1, y1 = min(width, x + extent[0]), min(height, y + extent[1])
            np.testing.assert_array_equal(sample.boxes, [[x, y, x1, y1]])
            assert sample.part_map is sample.super_category is sample.absent is None


def test_names(published: Path) -> None:
    source = read(published, "train")
    assert source.class_names == ("Black footed Albatross", "Brewer Blackbird", "Bobolink", "Chuck will Widow")
    assert source.landmark_names[:2] == ("back", "beak")
    assert source.landmark_names[6:9] == ("left eye", "left leg", "left wing")
    assert source.schema.classes == source.class_names
    assert source.schema.landmarks == source.landmark_names
    for index in range(len(source)):
        assert source.source(index) == source[index].source
        folder = source.source(index).split("/")[1]
        assert folder.partition(".")[2].replace("_", " ") == source.class_names[source[index].label]


def test_landmarks_lie_in_the_blobs_of_the_picture(published: Path) -> None:
    seen = Counter[int]()
    for sample in samples(read(published, "train")) + samples(read(published, "test")):
        image = Image.open(io.BytesIO(sample.jpeg))
        if image.mode == "L":
            continue
        pixels = np.asarray(image).astype(float)
        for part in np.flatnonzero(sample.visibility):
            blob = np.abs(pixels - miniature.colour(part)).max(axis=2) < 40
            y, x = np.nonzero(blob)
            assert len(x) >= 16
            assert np.abs(np.array([x.mean(), y.mean()]) + 0.5 - sample.landmarks[part]).max() < 0.3
            x0, y0, x1, y1 = sample.boxes[0]
            assert x0 <= x.min() < x.max() < x1
            assert y0 <= y.min() < y.max() < y1
            seen[part] += 1
    assert set(seen) == set(range(15))


def test_what_is_odd_is_in_the_samples(published: Path) -> None:
    everything = samples(read(published, "train")) + samples(read(published, "test"))
    modes = Counter(Image.open(io.BytesIO(sample.jpeg)).mode for sample in everything)
    assert modes == {"RGB": CLASSES * IMAGES - 1, "L": 1}
    outlying = [sample for sample in everything if (sample.landmarks > (sample.width, sample.height)).any()]
    assert len(outlying) == 1
    tail = list(miniature.PARTS).index("tail")
    assert outlying[0].landmarks[tail, 0] == outlying[0].width + 1.5
    assert not outlying[0].visibility[tail]
    assert outlying[0].boxes[0, 2] == outlying[0].width
    hidden = [sample for sample in everything if not sample.visibility.all()]
    assert len(hidden) > len(outlying)


def test_validation_is_drawn_from_the_training_images(published: Path) -> None:
    assert splits(0) == ("train", "test")
    assert splits(0.3) == ("train", "val", "test")
    official = read(published, "train")
    train, val, test = (read(published, split, val_fraction=0.34) for split in splits(0.34))
    assert keys(train) | keys(val) == keys(official)
    assert not keys(train) & keys(val)
    assert keys(test) == keys(read(published, "test"))
    assert Counter(sample.label for sample in samples(val)) == dict.fromkeys(range(CLASSES), 1)
    assert Counter(sample.label for sample in samples(train)) == dict.fromkeys(range(CLASSES), IMAGES // 2 - 1)
    for label, name in enumerate(official.class_names):
        of_class = [sample.key for sample in samples(official) if sample.label == label]
        drawn = random.Random(f"0/{name}").sample(of_class, len(of_class))
        assert [sample.key for sample in samples(val) if sample.label == label] == drawn[:1]
    assert len({frozenset(keys(read(published, "val", seed=seed, val_fraction=0.34))) for seed in range(5)}) > 1


@pytest.mark.usefixtures("complete")
def test_validation_of_a_class_does_not_depend_on_the_others(raw: Path) -> None:
    before = {sample.key for sample in samples(read(raw, "val", val_fraction=0.34)) if sample.label == 0}
    training = {sample.source for sample in samples(read(raw, "train")) if sample.label == 1}
    for source in training:
        (raw / "CUB_200_2011" / source).unlink()
    after = read(raw, "val", val_fraction=0.34)
    assert {sample.key for sample in samples(after) if sample.label == 0} == before
    assert {sample.label for sample in samples(after)} == {0, 2, 3}
    assert len(after.class_names) == CLASSES


def test_wrong_arguments(published: Path) -> None:
    with pytest.raises(ValueError, match=r"^split: expected train, test, got 'val'$"):
        Cub200(published, "val")
    with pytest.raises(ValueError, match=r"^split: expected train, val, test, got 'dev'$"):
        Cub200(published, "dev", val_fraction=0.1)
    for fraction in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match=r"^val_fraction: expected a share"):
            Cub200(published, "train", val_fraction=fraction)


def test_another_number_of_images_is_refused(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published / "CUB_200_2011"
    for split in splits(0):
        with pytest.raises(ValueError, match=rf"^{folder}: images: expected 11788, found 24; --allow-partial"):
            Cub200(published, split)
    assert len(Cub200(published, "train", allow_partial=True)) == CLASSES * IMAGES // 2
    assert caplog.messages == [
        f"{folder}: images: found 24, the published number is 11788",
        f"{folder}: classes: found 4, the published number is 200",
        f"{folder}: training images: found 12, the published number is 5994",
        f"{folder}: test images: found 12, the published number is 5794",
    ]


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    "name, line, text, message",
    [
        ("train_test_split.txt", 1, "1 {}", "training images: expected 12, found 1[13]"),
        ("classes.txt", 5, "5 005.Crested_Auklet", "classes: expected 4, found 5"),
        ("parts/parts.txt", 16, "16 toe", "parts: expected 15, found 16"),
    ],
)
def test_published_numbers(raw: Path, name: str, line: int, text: str, message: str) -> None:
    assert len(Cub200(raw, "train")) == len(Cub200(raw, "test")) == CLASSES * IMAGES // 2
    was = (raw / "CUB_200_2011/train_test_split.txt").read_text().split()[1]
    edit(raw, name, line, text.format(1 - int(was)))
    with pytest.raises(ValueError, match=message):
        Cub200(raw, "train")


@pytest.mark.usefixtures("complete")
def test_missing_images(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {split: [Cub200(raw, split).source(index) for index in range(12)] for split in splits(0)}
    gone = [before["train"][index] for index in (2, 3, 7)]
    for source in gone:
        (raw / "CUB_200_2011" / source).unlink()
    message = f"{raw / 'CUB_200_2011'}: 3 of 12 images are missing, the first is {gone[0]}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}; --allow-partial prepares what is there$"):
        Cub200(raw, "train")
    assert len(Cub200(raw, "test")) == 12
    left = Cub200(raw, "train", allow_partial=True)
    assert caplog.messages == [message]
    assert [left.source(index) for index in range(len(left))] == [s for s in before["train"] if s not in gone]
    for sample in samples(left):
        assert sample.key == f"cub-{[p.name for p in image_paths(raw)].index(Path(sample.source).name) + 1:05d}"
    shutil.rmtree(raw / "CUB_200_2011/images")
    with pytest.raises(ValueError, match="no images for the split 'test'"):
        Cub200(raw, "test", allow_partial=True)


def test_archive_is_the_same_as_the_folder(published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(published, packed)
    miniature.archive(packed)
    caplog.set_level(logging.INFO, "pipelines.datasets.published")
    assert [path.name for path in packed.iterdir()] == [miniature.ARCHIVE]
    for split in splits(0.3):
        ways = [
            read(packed, split, val_fraction=0.3),
            read(packed / "CUB_200_2011", split, val_fraction=0.3),
            read(published, split, val_fraction=0.3),
        ]
        assert fields(ways[0]) == fields(ways[1]) == fields(ways[2])
        assert ways[0].digest() == ways[1].digest() == ways[2].digest()
    assert [message for message in caplog.messages if "extracting" in message] == [
        f"{packed / miniature.ARCHIVE}: extracting, once"
    ]
    assert sorted(path.name for path in packed.iterdir()) == ["CUB_200_2011", miniature.ARCHIVE, "attributes.txt"]
    (packed / miniature.ARCHIVE).unlink()
    assert len(read(packed, "train")) == 12


def test_damaged_archive(raw: Path) -> None:
    miniature.archive(raw)
    archive = raw / miniature.ARCHIVE
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"^{archive}: cannot be extracted \("):
        read(raw, "train")
    assert list(raw.iterdir()) == [archive]


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing: no such folder$"):
        read(tmp_path / "missing", "train")
    with pytest.raises(ValueError, match=r"images\.txt or CUB_200_2011/images\.txt is missing$"):
        read(tmp_path, "train")


@pytest.mark.parametrize("name", list(cub200.COLUMNS))
def test_missing_file(raw: Path, name: str) -> None:
    (raw / "CUB_200_2011" / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}.* is missing$"):
        read(raw, "train")


@pytest.mark.parametrize(
    "name, line, text, expected",
    [
        ("images.txt", 3, "3", "image file"),
        ("images.txt", 1, "one 001.Bobolink/a.jpg", "image file"),
        ("classes.txt", 2, "", "class name"),
        ("image_class_labels.txt", 4, "4 1 1", "image class"),
        ("image_class_labels.txt", 4, "4 1.5", "image class"),
        ("train_test_split.txt", 2, "2 2", "image training"),
        ("bounding_boxes.txt", 24, "24 60.0 27.0 325.0", "image x y width height"),
        ("bounding_boxes.txt", 1, "1 60.0 27.0 325.0 nan", "image x y width height"),
        ("bounding_boxes.txt", 1, "1 60.0 27.0 325.0 304.0 1", "image x y width height"),
        ("parts/parts.txt", 15, "fifteen throat", "part name"),
        ("parts/part_locs.txt", 77, "6 2 1,5 2.0 1", "image part x y visible"),
        ("parts/part_locs.txt", 360, "24 15 1.5 2.0 yes", "image part x y visible"),
    ],
)
def test_malformed_line(raw: Path, name: str, line: int, text: str, expected: str) -> None:
    edit(raw, name, line, text)
    path = raw / "CUB_200_2011" / name
    with pytest.raises(ValueError, match=rf"^{path}: line {line}: expected {expected}, got '{text}'$"):
        read(raw, "train")


@pytest.mark.parametrize(
    "name, text",
    [
        ("image_class_labels.txt", "25 1"),
        ("train_test_split.txt", "25 1"),
        ("bounding_boxes.txt", "25 1.0 1.0 5.0 5.0"),
        ("parts/part_locs.txt", "25 1 1.0 1.0 1"),
    ],
)
def test_annotation_and_images_belong_together(raw: Path, name: str, text: str) -> None:
    path = raw / "CUB_200_2011" / name
    lines = "15 lines" if name == "parts/part_locs.txt" else "one line"
    first = path.read_text().splitlines()[0]
    edit(raw, name, 1, None)
    with pytest.raises(ValueError, match=rf"^{path}: image 1: expected {lines}$"):
        read(raw, "test")
    add(raw, name, first)
    read(raw, "test")
    add(raw, name, first)
    with pytest.raises(ValueError, match=rf"^{path}: image 1: expected {lines}$"):
        read(raw, "test")
    edit(raw, name, len(path.read_text().splitlines()), text)
    with pytest.raises(ValueError, match=rf"^{path}: image 25 is not in images\.txt$"):
        read(raw, "test")


def test_order_of_the_lines_does_not_matter(published: Path, raw: Path) -> None:
    for name in cub200.COLUMNS:
        path = raw / "CUB_200_2011" / name
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    for split in splits(0.3):
        same, other = read(published, split, val_fraction=0.3), read(raw, split, val_fraction=0.3)
        assert fields(same) == fields(other)
        assert same.schema == other.schema


def test_contradictions_are_refused(raw: Path) -> None:
    folder = raw / "CUB_200_2011"
    edit(raw, "parts/part_locs.txt", 17, "2 1 5.0 5.0 1")
    with pytest.raises(ValueError, match=r"part_locs\.txt: image 2: expected every part of parts/parts\.txt once$"):
        read(raw, "train")
    edit(raw, "image_class_labels.txt", 9, "9 5")
    with pytest.raises(ValueError, match=rf"^{folder}/image_class_labels\.txt: image 9: expected a class of classes"):
        read(raw, "train")
    add(raw, "classes.txt", "2 002.Brewer_Blackbird")
    with pytest.raises(ValueError, match=rf"^{folder}/classes\.txt: 2 is listed twice$"):
        read(raw, "train")


def test_unusable_samples_are_named(raw: Path) -> None:
    whole = read(raw, "train")
    sample = whole[0]
    number = int(sample.key.removeprefix("cub-"))
    edit(raw, "bounding_boxes.txt", number, f"{number} {sample.width}.0 1.0 5.0 5.0")
    source = read(raw, "train")
    with pytest.raises(ValueError, match=rf"^{sample.source}: box \[.*\] is not in the {sample.width}x{sample.height}"):
        source[0]
    (raw / "CUB_200_2011" / source.source(1)).write_bytes(b"no image")
    (raw / "CUB_200_2011" / source.source(2)).unlink()
    with pytest.raises(ValueError, match=rf"^{source.source(1)}: not an image that can be decoded"):
        source[1]
    with pytest.raises(FileNotFoundError):
        source[2]


def test_digest_tells_raw_files_from_others(raw: Path) -> None:
    before = read(raw, "train").digest()
    assert before != read(raw, "test").digest()
    path = raw / "CUB_200_2011/parts/part_locs.txt"
    content = path.read_text()
    path.write_text(content.replace("1 1 ", "1 01 ", 1))
    annotated = read(raw, "train").digest()
    path.write_text(content)
    assert read(raw, "train").digest() == before
    image = raw / "CUB_200_2011" / read(raw, "train").source(0)
    image.write_bytes(image.read_bytes() + b"\0")
    assert len({before, annotated, read(raw, "train").digest()}) == 3


def test_pickled_source_is_small_and_the_same(published: Path) -> None:
    source = read(published, "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000 + 300 * len(source)
    assert fields(pickle.loads(pickled)) == fields(source)


def test_packed(published: Path, tmp_path: Path) -> None:
    sources = {split: read(published, split, val_fraction=0.34) for split in splits(0.34)}
    schema = sources["train"].schema
    for source in sources.values():
        assert [schema.violations(sample) for sample in samples(source)] == [[]] * len(source)
    out = tmp_path / "shards"
    manifest = writer.write(
        out, "cub200", sources, schema=schema, options={"files": sources["train"].digest()}, samples_per_shard=5
    )
    assert verify(out) == []
    assert {split: content.samples for split, content in manifest.splits.items()} == {"train": 8, "val": 4, "test": 12}
    assert not any(content.quarantined for content in manifest.splits.values())
    assert manifest.landmarks == tuple(miniature.PARTS)
