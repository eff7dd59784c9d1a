"""CelebA as it is published -> samples: both settings, which faces are large enough, what is odd, what is refused.

Images of the miniature are known by their number n: 1 to 29 are training images of CelebA, 30 to 39 validation and 40
to 48 test images. Faces are small where 3 divides n. The first five are special and not in MAFL, of whose images 8
divides the test images, and 8 leaves 2 or 5 of the training images.
"""

import io
import logging
import pickle
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import celeba
from pipelines.datasets.celeba import AlignedCelebA, UnalignedCelebA
from pipelines.shards import writer
from pipelines.shards.reader import read as read_shards
from pipelines.shards.samples import Sample
from pipelines.shards.verify import verify
from tests.support import miniature_celeba as miniature

PARTITION = {"train": range(1, 30), "val": range(30, 40), "test": range(40, 49)}
LARGE = {
    "train": [1, 4, 5, 7, 10, 11, 13, 14, 17, 19, 20, 22, 23, 25, 26, 28, 29],
    "fit": [10, 13, 26, 29, 34, 37],
    "test": [8, 16, 32, 40],
}
ANNOTATIONS = {
    AlignedCelebA: (
        "Anno/list_attr_celeba.txt",
        "Anno/list_landmarks_align_celeba.txt",
        "Eval/list_eval_partition.txt",
    ),
    UnalignedCelebA: (
        "Anno/list_attr_celeba.txt",
        "Anno/list_landmarks_celeba.txt",
        "Anno/list_bbox_celeba.txt",
        "Eval/list_eval_partition.txt",
        "MAFL/testing.txt",
    ),
}
EYE, NOSE = (20, 20, 40), (190, 130, 110)  # colours

Faces = type[AlignedCelebA] | type[UnalignedCelebA]
both = pytest.mark.parametrize("setting", [AlignedCelebA, UnalignedCelebA])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    raw = tmp_path_factory.mktemp("celeba")
    miniature.build(raw)
    return raw


@pytest.fixture
def raw(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "raw")


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature counts as the whole data set."""
    monkeypatch.setattr(celeba, "PARTITION", {split: len(numbers) for split, numbers in PARTITION.items()})
    monkeypatch.setattr(celeba, "LARGE_FACES", {split: len(numbers) for split, numbers in LARGE.items()})


def read(setting: Faces, raw: Path, split: str, **arguments: object) -> AlignedCelebA | UnalignedCelebA:
    return setting(raw, split, **{"allow_partial": True, **arguments})


def samples(source: AlignedCelebA | UnalignedCelebA) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def fields(source: AlignedCelebA | UnalignedCelebA) -> list[dict[str, bytes]]:
    return [writer.samples.encode(sample) for sample in samples(source)]


def numbers(source: AlignedCelebA | UnalignedCelebA) -> list[int]:
    return [int(Path(source.source(index)).stem) for index in range(len(source))]


def table(raw: Path, name: str) -> dict[int, list[int]]:
    """Number of an image -> the columns of an annotation file."""
    rows = re.findall(r"^(\d{6})\.jpg(.*)$", (raw / name).read_text(), re.MULTILINE)
    return {int(image): [int(word) for word in words.split()] for image, words in rows}


def edit(raw: Path, name: str, line: int, text: str | None) -> None:
    """Replaces a line of a file, counted from 1; without a text removes it."""
    path = raw / name
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("".join(f"{line}\n" for line in lines))


def box(raw: Path, number: int, *values: int) -> None:
    """Publishes another box of an image."""
    edit(raw, "Anno/list_bbox_celeba.txt", number + 2, f"{number:06d}.jpg {' '.join(map(str, values))}")


# ---------------------------------------------------------------------------------------------------------- the samples


@pytest.mark.parametrize("split", AlignedCelebA.SPLITS)
def test_aligned_samples_are_what_the_files_say(published: Path, split: str) -> None:
    attributes = table(published, "Anno/list_attr_celeba.txt")
    points = table(published, "Anno/list_landmarks_align_celeba.txt")
    source = read(AlignedCelebA, published, split)
    assert numbers(source) == list(PARTITION[split])
    for number, sample in zip(PARTITION[split], samples(source), strict=True):
        assert sample.key == f"celeba-{number:06d}"
        assert sample.source == f"Img/img_align_celeba/{number:06d}.jpg"
        assert sample.jpeg == (published / sample.source).read_bytes()
        assert (sample.width, sample.height) == (178, 218)
        assert set(attributes[number]) == {-1, 1}
        assert sample.label == tuple(int(value > 0) for value in attributes[number])
        np.testing.assert_array_equal(sample.landmarks.ravel(), [value + 0.5 for value in points[number]])
        assert sample.landmarks.dtype == np.float32
        assert sample.visibility.tolist() == [True] * 5
        assert sample.boxes is sample.part_map is sample.super_category is sample.absent is None


@pytest.mark.parametrize("split", UnalignedCelebA.splits())
def test_unaligned_samples_are_what_the_files_say(published: Path, split: str) -> None:
    attributes = table(published, "Anno/list_attr_celeba.txt")
    points = table(published, "Anno/list_landmarks_celeba.txt")
    boxes = table(published, "Anno/list_bbox_celeba.txt")
    source = read(UnalignedCelebA, published, split)
    assert numbers(source) == LARGE[split]
    for number, sample in zip(LARGE[split], samples(source), strict=True):
        width, height = Image.open(published / f"Img/img_celeba/{number:06d}.jpg").size
        x, y, w, h = boxes[number]
        assert sample.key == {"fit": "celeba-fit-"}.get(split, "celeba-") + f"{number:06d}"
        assert sample.source == f"Img/img_celeba/{number:06d}.jpg"
        assert sample.jpeg == (published / sample.source).read_bytes()
        assert (sample.width, sample.height) == (width, height)
        assert sample.label == tuple(int(value > 0) for value in attributes[number])
        np.testing.assert_array_equal(sample.landmarks.ravel(), [value + 0.5 for value in points[number]])
        np.testing.assert_array_equal(sample.boxes, [[max(0, x), max(0, y), min(width, x + w), min(height, y + h)]])
        columns, rows = points[number][::2], points[number][1::2]
        inside = [x in range(width) and y in range(height) for x, y in zip(columns, rows, strict=True)]
        assert sample.visibility.tolist() == inside
        assert all(inside) == (number not in (4, 5))
        assert sample.part_map is sample.super_category is sample.absent is None


@both
def test_landmarks_lie_on_the_drawn_parts(published: Path, setting: Faces) -> None:
    """The annotation belongs to the images of its setting: faces stand elsewhere in those of the other."""
    seen = 0
    for sample in samples(read(setting, published, "train")) + samples(read(setting, published, "test")):
        pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg))).astype(int)
        assert sample.landmarks[0, 0] < sample.landmarks[1, 0]  # left and right as in the image
        for (x, y), visible, colour in zip(sample.landmarks, sample.visibility, (EYE, EYE, NOSE), strict=False):
            if visible:
                assert np.abs(pixels[int(y), int(x)] - colour).max() < 40
                seen += 1
    assert seen > 60


def test_attributes_are_those_of_the_drawn_faces(published: Path) -> None:
    """A hat is blue and the only thing that is, above the face."""
    source = read(AlignedCelebA, published, "train")
    hat = source.class_names.index("Wearing Hat")
    found = [sample.label[hat] for sample in samples(source)]
    for sample in samples(source):
        pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg))).astype(int)
        blue = (np.abs(pixels - (40, 60, 190)).max(axis=2) < 30).sum()
        assert sample.label[hat] == (blue > 2000)
    assert 0 < sum(found) < len(found)


@both
def test_names(published: Path, setting: Faces) -> None:
    source = read(setting, published, "test")
    assert len(source.class_names) == 40
    assert source.class_names[:2] == ("5 o Clock Shadow", "Arched Eyebrows")
    assert source.class_names[20] == "Male"
    assert source.class_names[-1] == "Young"
    assert source.landmark_names == ("left eye", "right eye", "nose", "left mouth", "right mouth")
    schema = source.schema
    assert (schema.classes, schema.landmarks) == (source.class_names, source.landmark_names)
    assert schema.multi_label
    assert schema.super_categories == schema.parts == schema.absence == ()
    assert [schema.violations(sample) for sample in samples(source)] == [[]] * len(source)


def test_boxes_and_landmarks_outside_of_the_image(published: Path) -> None:
    found = {Path(sample.source).name: sample for sample in samples(read(UnalignedCelebA, published, "train"))}
    assert found[miniature.EXACT_BOX].boxes.tolist() == [[40, 20, 100, 110]]
    assert found[miniature.OUTER_BOX].boxes.tolist() == [[100, 10, 150, 90]]
    assert found[miniature.OUTER_BOX].visibility.tolist() == [True, False, True, True, False]
    sample = found[miniature.OUTER_POINT]
    assert sample.boxes.tolist() == [[0, 5, 70, 125]]
    assert sample.landmarks[0, 0] < 0  # keeps its position
    assert not sample.visibility[0]
    assert miniature.SMALL_BOX not in found
    assert miniature.EMPTY_BOX not in found


def test_the_last_pixels_of_the_image_are_visible(raw: Path) -> None:
    """Image 1 has 150x120 pixels, counted from 0."""
    for (x, y), visible in {
        (149, 119): True,
        (150, 119): False,
        (149, 120): False,
        (0, 0): True,
        (-1, 0): False,
    }.items():
        edit(raw, "Anno/list_landmarks_celeba.txt", 3, f"000001.jpg {x} {y} 5 5 6 6 7 7 8 8")
        sample = read(UnalignedCelebA, raw, "train")[0]
        assert sample.key == "celeba-000001"
        assert sample.landmarks[0].tolist() == [x + 0.5, y + 0.5]
        assert sample.visibility.tolist() == [visible, True, True, True, True]


@pytest.mark.parametrize(
    "size, values, large",
    [
        ((150, 120), (40, 20, 60, 90), True),  # 5400 of 18000
        ((150, 120), (40, 20, 60, 89), False),
        ((150, 120), (0, 0, 5400, 1), True),  # as published, even beyond the image
        ((150, 120), (0, 0, 5399, 1), False),
        ((101, 97), (0, 0, 2939, 1), False),  # 2939.1 would be 30 %
        ((101, 97), (0, 0, 60, 49), True),  # 2940
        ((10, 1), (0, 0, 3, 1), True),
        ((150, 120), (140, 110, 60, 90), True),  # mostly outside
        ((150, 120), (40, 20, 0, 90), False),
        ((150, 120), (40, 20, 60, 0), False),
        ((150, 120), (120, 110, -90, -90), False),  # no size, although the product is 45 %
    ],
)
def test_a_face_is_large_from_exactly_30_percent_on(
    raw: Path, size: tuple[int, int], values: tuple[int, ...], large: bool
) -> None:
    Image.new("RGB", size).save(raw / "Img/img_celeba/000007.jpg")
    box(raw, 7, *values)
    assert numbers(read(UnalignedCelebA, raw, "train")) == [n for n in LARGE["train"] if n != 7 or large]


# ----------------------------------------------------------------------------------------------------------- the splits


def test_mafl_decides_about_fit_and_test(raw: Path) -> None:
    (raw / "MAFL/training.txt").write_text("000004.jpg\n000007.jpg\n000003.jpg\n000044.jpg")
    (raw / "MAFL/testing.txt").write_text("000041.jpg\n000011.jpg\n000034.jpg\n")
    assert numbers(read(UnalignedCelebA, raw, "fit")) == [4, 7, 44]
    assert numbers(read(UnalignedCelebA, raw, "test")) == [11, 34, 41]
    train = numbers(read(UnalignedCelebA, raw, "train"))
    assert train == sorted({*LARGE["train"], 8, 16} - {11})  # training images of MAFL stay


def test_validation_is_drawn_from_training_images_that_are_not_fitted_to(published: Path) -> None:
    assert UnalignedCelebA.splits(0) == UnalignedCelebA.splits() == ("train", "fit", "test")
    assert UnalignedCelebA.splits(0.3) == ("train", "val", "fit", "test")
    found = {
        split: numbers(read(UnalignedCelebA, published, split, val_fraction=0.3))
        for split in UnalignedCelebA.splits(0.3)
    }
    assert (found["fit"], found["test"]) == (LARGE["fit"], LARGE["test"])
    assert sorted(found["train"] + found["val"]) == LARGE["train"]
    free = sorted(set(LARGE["train"]) - set(LARGE["fit"]))
    assert len(free) == 13
    assert found["val"] == sorted(random.Random("0").sample(free, 13)[:4])  # 0.3 of 13
    drawn = {tuple(numbers(read(UnalignedCelebA, published, "val", seed=seed, val_fraction=0.3))) for seed in range(5)}
    assert len(drawn) > 1
    val = read(UnalignedCelebA, published, "val", val_fraction=0.3)
    official = {sample.key: sample for sample in samples(read(UnalignedCelebA, published, "train"))}
    for sample, encoded in zip(samples(val), fields(val), strict=True):
        assert writer.samples.encode(official[sample.key]) == encoded


def test_keys_are_unique_over_all_splits(published: Path) -> None:
    for setting, splits, arguments in (
        (AlignedCelebA, AlignedCelebA.SPLITS, {}),
        (UnalignedCelebA, UnalignedCelebA.splits(0.3), {"val_fraction": 0.3}),
    ):
        keys = [sample.key for split in splits for sample in samples(read(setting, published, split, **arguments))]
        assert len(set(keys)) == len(keys) > 20


def test_wrong_arguments(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^split: expected train, val, test, got 'fit'$"):
        AlignedCelebA(published, "fit")
    with pytest.raises(ValueError, match=r"^split: expected train, fit, test, got 'val'$"):
        UnalignedCelebA(published, "val")
    with pytest.raises(ValueError, match=r"^split: expected train, val, fit, test, got 'dev'$"):
        UnalignedCelebA(published, "dev", val_fraction=0.1)
    for fraction in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match=r"^val_fraction: expected a share of at least 0 and below 1, got "):
            UnalignedCelebA(published, "train", val_fraction=fraction)
    for setting in (AlignedCelebA, UnalignedCelebA):
        with pytest.raises(ValueError, match=r"missing: no such folder$"):
            setting(tmp_path / "missing", "train")


# --------------------------------------------------------------------------------------------------------- completeness


def test_another_number_of_images_is_refused(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    partition = published / "Eval/list_eval_partition.txt"
    expected = {"train": (162770, 29), "val": (19867, 10), "test": (19962, 9)}
    for split, (number, found) in expected.items():
        with pytest.raises(
            ValueError, match=f"^{partition}: {split} images: expected {number}, found {found}; --allow"
        ):
            AlignedCelebA(published, split)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert len(AlignedCelebA(published, "train", allow_partial=True)) == 29
    assert caplog.messages == [f"{partition}: train images: found 29, the published number is 162770"]


def test_another_number_of_large_faces_is_refused(
    published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(celeba, "PARTITION", {"train": 29, "val": 10, "test": 9})
    folder = published / "Img/img_celeba"
    for split, (number, found) in {"train": (45609, 17), "fit": (5379, 6), "test": (283, 4)}.items():
        what = f"{folder}: {split} images with a face on 30 % of them"
        with pytest.raises(ValueError, match=f"^{what}: expected {number}, found {found}; --allow-partial"):
            UnalignedCelebA(published, split)
        caplog.clear()
        assert len(UnalignedCelebA(published, split, allow_partial=True)) == found
        assert f"{what}: found {found}, the published number is {number}" in caplog.messages


@pytest.mark.usefixtures("complete")
def test_the_whole_data_set_needs_no_permission(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, members in PARTITION.items():
        assert len(AlignedCelebA(published, split)) == len(members)
    for split, members in LARGE.items():
        assert len(UnalignedCelebA(published, split)) == len(members)
    assert len(UnalignedCelebA(published, "val", val_fraction=0.3)) == 4
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("complete")
@both
def test_missing_images(raw: Path, setting: Faces, caplog: pytest.LogCaptureFixture) -> None:
    before = numbers(setting(raw, "train"))
    folder = raw / ("Img/img_align_celeba" if setting is AlignedCelebA else "Img/img_celeba")
    for number in (11, 12, 20):
        (folder / f"{number:06d}.jpg").unlink()
    of = 29 if setting is AlignedCelebA else 26  # 3 of MAFL's test images are training images
    message = f"{folder}: 3 of {of} images are missing, the first is 000011.jpg"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}; --allow-partial prepares what is there$"):
        setting(raw, "train")
    assert len(setting(raw, "test")) > 0
    assert numbers(setting(raw, "train", allow_partial=True)) == [n for n in before if n not in (11, 12, 20)]
    assert message in caplog.messages
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=f"^{folder}: no images for the split 'test'$"):
        setting(raw, "test", allow_partial=True)


@both
def test_missing_annotation(raw: Path, setting: Faces) -> None:
    for name in ANNOTATIONS[setting]:
        content = (raw / name).read_bytes()
        (raw / name).unlink()
        with pytest.raises(ValueError, match=rf"^{raw}: [^\n]*{name} or [^\n]* is missing$"):
            read(setting, raw, "train")
        (raw / name).write_bytes(content)
    (raw / "MAFL/training.txt").unlink()
    if setting is UnalignedCelebA:
        with pytest.raises(ValueError, match=rf"^{raw}: MAFL/training.txt or [^\n]* or training.txt is missing$"):
            read(setting, raw, "fit")
    else:
        assert len(read(setting, raw, "train")) == 29


def test_missing_folders_of_images(raw: Path) -> None:
    shutil.rmtree(raw / "Img")
    with pytest.raises(ValueError, match=f"^{raw}: Img/img_align_celeba or img_align_celeba is missing$"):
        read(AlignedCelebA, raw, "train")
    with pytest.raises(ValueError, match=rf"^{raw}: Img/img_celeba or [^\n]*img_celeba is missing$"):
        read(UnalignedCelebA, raw, "train")


def test_archive_is_the_same_as_the_folder(published: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    miniature.archive(raw)
    archive = raw / "Img/img_align_celeba.zip"
    assert not (raw / "Img/img_align_celeba").exists()
    caplog.set_level(logging.INFO, "pipelines.datasets.published")
    for split in AlignedCelebA.SPLITS:
        ours, theirs = read(AlignedCelebA, raw, split), read(AlignedCelebA, published, split)
        assert fields(ours) == fields(theirs)
        assert ours.digest() == theirs.digest()
    assert [text for text in caplog.messages if "extracting" in text] == [f"{archive}: extracting, once"]
    archive.unlink()
    assert len(read(AlignedCelebA, raw, "train")) == 29


@pytest.mark.parametrize("part", [0.5, 0.0])
def test_damaged_archive(raw: Path, part: float) -> None:
    miniature.archive(raw)
    archive = raw / "Img/img_align_celeba.zip"
    content = archive.read_bytes()
    archive.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=rf"^{archive}: cannot be extracted \([^\n]*\)$"):
        read(AlignedCelebA, raw, "train")
    assert sorted(path.name for path in (raw / "Img").iterdir()) == ["img_align_celeba.zip", "img_celeba"]


def test_archive_with_a_damaged_image(raw: Path) -> None:
    miniature.archive(raw)
    archive = raw / "Img/img_align_celeba.zip"
    content = bytearray(archive.read_bytes())
    content[5000] ^= 0xFF  # in the first images, which are stored as they are
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{archive}: cannot be extracted \(Bad CRC-32[^\n]*\)$"):
        read(AlignedCelebA, raw, "train")


@pytest.mark.parametrize("place", ["Img", "Img/img_celeba.7z", "", "img_celeba.7z"])
def test_an_archive_that_python_cannot_extract_is_named(raw: Path, place: str) -> None:
    shutil.move(raw / "Img/img_celeba", raw / "elsewhere")
    (raw / place).mkdir(exist_ok=True)
    for part in ("002", "001"):
        (raw / place / f"img_celeba.7z.{part}").write_bytes(b"7z")
    archive = raw / place / "img_celeba.7z.001"
    with pytest.raises(ValueError, match=f"^{archive}: extract it where it lies, with `7z x img_celeba.7z.001`$"):
        read(UnalignedCelebA, raw, "train")
    shutil.move(raw / "elsewhere", raw / place / "img_celeba")
    assert numbers(read(UnalignedCelebA, raw, "train")) == LARGE["train"]


def test_all_files_in_one_folder(published: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    miniature.build(flat, flat=True)
    assert {"img_celeba", "list_bbox_celeba.txt", "training.txt"} < {path.name for path in flat.iterdir()}
    for setting, split in ((AlignedCelebA, "val"), (UnalignedCelebA, "train"), (UnalignedCelebA, "fit")):
        for ours, theirs in zip(
            samples(read(setting, flat, split)), samples(read(setting, published, split)), strict=True
        ):
            assert (ours.key, ours.label, ours.jpeg) == (theirs.key, theirs.label, theirs.jpeg)
            np.testing.assert_array_equal(ours.landmarks, theirs.landmarks)
            assert ours.source == theirs.source.removeprefix("Img/")
    miniature.archive(flat)
    assert len(read(AlignedCelebA, flat, "test")) == 9
    assert (flat / "img_align_celeba/000048.jpg").exists()


@pytest.mark.parametrize("split", AlignedCelebA.SPLITS)
def test_the_copy_on_kaggle_is_the_same(published: Path, raw: Path, split: str) -> None:
    miniature.as_on_kaggle(raw)
    expected = [replace(sample, source="") for sample in samples(read(AlignedCelebA, published, split))]
    found = samples(read(AlignedCelebA, raw, split))
    assert found[0].source.startswith("img_align_celeba/img_align_celeba/000")
    assert [writer.samples.encode(replace(sample, source="")) for sample in found] == [
        writer.samples.encode(sample) for sample in expected
    ]


def test_a_damaged_copy_of_kaggle_is_refused(raw: Path) -> None:
    miniature.as_on_kaggle(raw)
    with pytest.raises(ValueError, match=r"list_eval_partition\.csv: train images: expected 162770, found 29"):
        AlignedCelebA(raw, "train")
    edit(raw, "list_attr_celeba.csv", 3, "000002.jpg,1,-1")
    with pytest.raises(ValueError, match=r"list_attr_celeba\.csv: line 3: expected an image and 40 integers"):
        read(AlignedCelebA, raw, "train")
    edit(raw, "list_attr_celeba.csv", 1, "image_id,Smiling")
    with pytest.raises(ValueError, match=r"list_attr_celeba\.csv: line 1: expected the names of 40 columns, got 1"):
        read(AlignedCelebA, raw, "train")


# -------------------------------------------------------------------------------------------------------- odd and wrong


@both
def test_spaces_and_empty_lines_mean_nothing(published: Path, raw: Path, setting: Faces) -> None:
    rng = random.Random(0)
    for name in (*ANNOTATIONS[setting], "MAFL/training.txt"):
        lines = [
            rng.choice(["", "  "])
            + re.sub(" +", lambda _: rng.choice([" ", "   ", "\t"]), line)
            + rng.choice(["", " "])
            for line in (raw / name).read_text().splitlines()
        ]
        (raw / name).write_bytes("\r\n".join([*lines, "", "  ", ""]).encode())
    for split in ("train", "test"):
        assert fields(read(setting, raw, split)) == fields(read(setting, published, split))
    if setting is UnalignedCelebA:
        assert fields(read(setting, raw, "fit")) == fields(read(setting, published, "fit"))


@both
def test_order_of_the_lines_does_not_matter(published: Path, raw: Path, setting: Faces) -> None:
    for name in ANNOTATIONS[setting]:
        lines = (raw / name).read_text().splitlines()
        head = 2 if name.startswith("Anno") else 0
        (raw / name).write_text("\n".join([*lines[:head], *reversed(lines[head:])]))
    assert fields(read(setting, raw, "train")) == fields(read(setting, published, "train"))


ATTRIBUTES, LANDMARKS = "Anno/list_attr_celeba.txt", "Anno/list_landmarks_celeba.txt"
BOXES, PARTS = "Anno/list_bbox_celeba.txt", "Eval/list_eval_partition.txt"


@pytest.mark.parametrize(
    "name, line, text, expected",
    [
        (ATTRIBUTES, 1, "many", "the number of images, got 'many'"),
        (ATTRIBUTES, 1, "", "the number of images, got ''"),
        (ATTRIBUTES, 2, "Male Young", "the names of 40 columns, got 2"),
        (ATTRIBUTES, 5, "000003.jpg" + " 1" * 39, "an image and 40 integers in"),
        (ATTRIBUTES, 5, "000003.jpg" + " 1" * 39 + " 0", "an image and 40 integers in"),
        (LANDMARKS, 2, "lefteye_x lefteye_y", "the names of 10 columns, got 2"),
        (LANDMARKS, 4, "000002.jpg 1 2 3 4 5 6 7 8 9 10 11", "an image and 10 integers in"),
        (LANDMARKS, 4, "000002.jpg 1 2 3 4 5 6 7 8 9 ten", "an image and 10 integers in"),
        (LANDMARKS, 4, "000002.jpg 1 2 3 4 5 6 7 8 9 10.5", "an image and 10 integers in"),
        (LANDMARKS, 4, "000002.jpg 1 2 3 4 5 6 7 8 9 1000000", "an image and 10 integers in"),
        (BOXES, 2, "image_id x_1 y_1 width", "the names of 4 columns, got 3"),
        (BOXES, 50, "000048 1 2 3 4", "an image and 4 integers in"),
        (BOXES, 50, "../048.jpg 1 2 3 4", "an image and 4 integers in"),
        (BOXES, 50, "000048.jpg 1 2 3 nan", "an image and 4 integers in"),
        (PARTS, 7, "000007.jpg 3", "an image and 1 integers in"),
        (PARTS, 7, "000007.jpg", "an image and 1 integers in"),
        ("MAFL/testing.txt", 2, "000016.jpg 1", "an image, got '000016.jpg 1'"),
        ("MAFL/testing.txt", 2, "sixteen", "an image, got 'sixteen'"),
    ],
)
def test_malformed_line(raw: Path, name: str, line: int, text: str, expected: str) -> None:
    edit(raw, name, line, text)
    with pytest.raises(ValueError, match=rf"^{raw / name}: line {line}: expected {re.escape(expected)}[^\n]*$"):
        read(UnalignedCelebA, raw, "train")


def test_empty_files(raw: Path) -> None:
    (raw / ATTRIBUTES).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{raw / ATTRIBUTES}: line 1: expected the number of images, got ''$"):
        read(AlignedCelebA, raw, "train")
    (raw / PARTS).write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{raw / PARTS}: train images: expected 162770, found 0; --allow-partial"):
        AlignedCelebA(raw, "train")
    with pytest.raises(ValueError, match=f"^{raw}/Img/img_align_celeba: no images for the split 'train'$"):
        read(AlignedCelebA, raw, "train")


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize("name", [ATTRIBUTES, LANDMARKS, BOXES])
def test_a_file_holds_what_it_announces(raw: Path, name: str) -> None:
    edit(raw, name, 1, "50")
    with pytest.raises(ValueError, match=f"^{raw / name}: images: expected 50, found 48; --allow-partial"):
        UnalignedCelebA(raw, "train")
    assert len(read(UnalignedCelebA, raw, "train")) == 17
    edit(raw, name, 1, "48")
    edit(raw, name, 2 + 11, None)
    with pytest.raises(ValueError, match=f"^{raw / name}: images: expected 48, found 47; --allow-partial"):
        UnalignedCelebA(raw, "train")
    with pytest.raises(ValueError, match=rf"^{raw / name}: 000011\.jpg is missing$"):
        read(UnalignedCelebA, raw, "train")
    assert len(read(UnalignedCelebA, raw, "test")) == 4


def test_a_repeated_line_may_not_contradict_the_first(raw: Path) -> None:
    path = raw / BOXES
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[6]]))
    assert len(read(UnalignedCelebA, raw, "train")) == 17
    path.write_text("\n".join([*lines, "000005.jpg 1 2 3 4"]))
    with pytest.raises(ValueError, match=rf"^{path}: line 51: 000005\.jpg is listed twice, with different numbers$"):
        read(UnalignedCelebA, raw, "train")


def test_unusable_aligned_images_are_named(raw: Path) -> None:
    source = read(AlignedCelebA, raw, "train")
    Image.new("RGB", (218, 178)).save(raw / source.source(0))
    (raw / source.source(1)).write_bytes(b"no image")
    (raw / source.source(2)).unlink()
    with pytest.raises(ValueError, match=rf"^{source.source(0)}: expected 178x218 pixels, got 218x178$"):
        source[0]
    with pytest.raises(ValueError, match=rf"^{source.source(1)}: not an image that can be decoded"):
        source[1]
    with pytest.raises(FileNotFoundError):
        source[2]


def test_unaligned_image_without_a_size_is_left_out(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = raw / "Img/img_celeba/000007.jpg"
    broken.write_bytes(b"no image")
    assert numbers(read(UnalignedCelebA, raw, "train")) == LARGE["train"][:3] + LARGE["train"][4:]
    assert any(text.startswith(f"{broken}: left out, its size cannot be read") for text in caplog.messages)


def test_unusable_unaligned_images_are_named(raw: Path) -> None:
    box(raw, 1, 150, 20, 60, 90)  # right of the image
    cut = raw / "Img/img_celeba/000004.jpg"
    cut.write_bytes(cut.read_bytes()[:-600])
    source = read(UnalignedCelebA, raw, "train")
    with pytest.raises(ValueError, match=rf"^{source.source(0)}: box \[150.0, .*\] is not in the 150x120 image$"):
        source[0]
    with pytest.raises(ValueError, match=rf"^{source.source(1)}: not an image that can be decoded"):
        source[1]
    assert source[2].key == "celeba-000005"


# ----------------------------------------------------------------------------------------------------- on to the shards


@both
def test_digest_tells_raw_files_from_others(published: Path, raw: Path, setting: Faces) -> None:
    before = read(setting, raw, "train").digest()
    assert before == read(setting, published, "train").digest()
    found = {before, read(setting, raw, "test").digest()}
    for name in ANNOTATIONS[setting]:
        content = (raw / name).read_bytes()
        (raw / name).write_bytes(content + b"\n")
        found.add(read(setting, raw, "train").digest())
        (raw / name).write_bytes(content)
    assert read(setting, raw, "train").digest() == before
    with (raw / read(setting, raw, "train").source(0)).open("ab") as file:
        file.write(b"\0")
    found.add(read(setting, raw, "train").digest())
    assert len(found) == 3 + len(ANNOTATIONS[setting])


@both
def test_pickled_source_is_small_and_the_same(published: Path, setting: Faces) -> None:
    source = read(setting, published, "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 4000 + 200 * len(source)
    assert fields(pickle.loads(pickled)) == fields(source)


@both
def test_shards(published: Path, tmp_path: Path, setting: Faces) -> None:
    attributes = table(published, ATTRIBUTES)
    if setting is AlignedCelebA:
        members = {split: list(PARTITION[split]) for split in AlignedCelebA.SPLITS}
        sources = {split: read(setting, published, split) for split in members}
    else:
        members = LARGE
        sources = {split: read(setting, published, split) for split in UnalignedCelebA.splits()}
    options = {"files": {split: source.digest() for split, source in sources.items()}}
    schema = sources["train"].schema
    out = tmp_path / "shards"
    manifest = writer.write(out, "celeba", sources, schema=schema, options=options, samples_per_shard=7)
    assert verify(out) == []
    assert manifest.multi_label
    assert list(manifest.splits) == list(members)
    for split, content in manifest.splits.items():
        assert not content.quarantined
        assert content.samples == len(members[split])
        counts = np.sum([np.array(attributes[number]) == 1 for number in members[split]], axis=0)
        assert content.class_counts == tuple(counts.tolist())
        expected = {sample.key: sample for sample in samples(sources[split])}
        stored = list(read_shards(out, split))
        assert {sample.key for sample in stored} == set(expected)
        for sample in stored:
            raw_sample = expected[sample.key]
            assert (sample.label, sample.jpeg, sample.source) == (raw_sample.label, raw_sample.jpeg, raw_sample.source)
            np.testing.assert_array_equal(sample.landmarks, raw_sample.landmarks)
            np.testing.assert_array_equal(sample.visibility, raw_sample.visibility)
            assert (sample.boxes is None) == (setting is AlignedCelebA)
            assert sample.boxes is None or np.array_equal(sample.boxes, raw_sample.boxes)
