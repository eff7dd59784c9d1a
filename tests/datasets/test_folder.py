"""Class folders -> samples: what is found, how it is split, what is refused."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.folder import Folder, splits

LAYOUT = "expected raw/<class>"


def picture(path: Path, value: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 100, 200)).save(path)
    return path


def tree(raw: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            picture(raw / name / f"{number}.png", number)
    return raw


def sources(folder: Folder) -> list[str]:
    return [folder.source(index) for index in range(len(folder))]


def test_sample(tmp_path: Path) -> None:
    tree(tmp_path, {"b": 2, "a": 2})
    picture(tmp_path / "a" / "0.png", 50, size=(30, 20))
    folder = Folder(tmp_path, "train")
    assert folder.class_names == ("a", "b")
    samples = {folder.source(index): folder[index] for index in range(len(folder))}
    samples |= {sample.source: sample for sample in map(Folder(tmp_path, "val").__getitem__, range(2))}
    sample = samples["a/0.png"]
    assert (sample.source, sample.label, sample.width, sample.height) == ("a/0.png", 0, 30, 20)
    assert samples["b/1.png"].label == 1
    assert sample.landmarks is sample.boxes is sample.part_map is sample.super_category is None
    found = np.asarray(Image.open(io.BytesIO(sample.jpeg)))
    assert found.shape == (20, 30, 3)
    assert np.abs(found - np.array([50.0, 100, 200])).max() <= 2  # one colour at quality 95
    assert [folder[index].key for index in range(len(folder))] == ["train-0000000", "train-0000001"]


def test_split_is_stratified_complete_and_repeatable(tmp_path: Path) -> None:
    counts = {"one": 1, "two": 2, "ten": 10, "many": 33}
    tree(tmp_path, counts)
    train, val = sources(Folder(tmp_path, "train")), sources(Folder(tmp_path, "val"))
    everything = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert sorted(train + val) == everything
    in_val = {name: sum(source.startswith(f"{name}/") for source in val) for name in counts}
    assert in_val == {"one": 0, "two": 1, "ten": 2, "many": 7}
    assert sources(Folder(tmp_path, "val")) == val
    assert sources(Folder(tmp_path, "val", seed=1)) != val
    half = sources(Folder(tmp_path, "val", val_fraction=0.9))
    assert sum(source.startswith("ten/") for source in half) == 9
    assert sum(source.startswith("two/") for source in half) == 1


def test_split_of_a_class_does_not_depend_on_the_others(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 20, "b": 20})
    before = {source for source in sources(Folder(tmp_path, "val")) if source.startswith("b/")}
    tree(tmp_path, {"aa": 5})
    assert {source for source in sources(Folder(tmp_path, "val")) if source.startswith("b/")} == before


def test_odd_names_suffixes_and_nesting(tmp_path: Path) -> None:
    names = {
        "Großer Bär/photo 1.final.JPG",
        "Großer Bär/sub folder/x.jpeg",
        "v1.0/a.Png",
        "v1.0/b.webp",
        "v1.0/deep/er/c.BMP",
        "v1.0/d.tif",
        "v1.0/e.TIFF",
    }
    for name in names:
        picture(tmp_path / name)
    for ignored in (".hidden/a.png", "v1.0/.hidden.png", "v1.0/.cache/a.png"):
        picture(tmp_path / ignored)
    (tmp_path / "v1.0" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no image")
    (tmp_path / "v1.0" / "folder.jpg").mkdir()
    folders = [Folder(tmp_path, split) for split in splits(tmp_path)]
    assert {source for folder in folders for source in sources(folder)} == names
    assert folders[0].class_names == ("Großer Bär", "v1.0")
    for folder in folders:
        for index in range(len(folder)):
            assert folder[index].source == folder.source(index)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_name_that_is_no_unicode(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    source = picture(tmp_path / "a" / "x.png").rename(tmp_path / "a" / os.fsdecode(b"caf\xe9.png"))
    folders = [Folder(tmp_path, split) for split in splits(tmp_path)]
    assert source.relative_to(tmp_path).as_posix() in sources(folders[0]) + sources(folders[1])
    assert [len(folder.digest()) for folder in folders] == [64, 64]


@pytest.mark.parametrize(
    ("training", "validation", "testing"),
    [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "Validation", "Test")],
)
def test_own_splits(tmp_path: Path, training: str, validation: str, testing: str) -> None:
    tree(tmp_path / training, {"a": 3, "b": 2, "c": 1})
    tree(tmp_path / validation, {"b": 2})
    tree(tmp_path / testing, {"c": 4})
    assert splits(tmp_path) == ("train", "val", "test")
    assert [len(Folder(tmp_path, split)) for split in splits(tmp_path)] == [6, 2, 4]
    val = Folder(tmp_path, "val")
    assert sources(val) == [f"{validation}/b/0.png", f"{validation}/b/1.png"]
    assert val[0].label == 1
    assert val[0].key == "val-0000000"
    assert Folder(tmp_path, "test").class_names == ("a", "b", "c")


@pytest.mark.parametrize("others", [(), ("Test",)])
def test_validation_is_drawn_from_training_images(tmp_path: Path, others: tuple[str, ...]) -> None:
    tree(tmp_path / "Train", {"a": 10, "b": 20})
    for name in others:
        tree(tmp_path / name, {"a": 3})
    assert splits(tmp_path) == ("train", "val", *(name.lower() for name in others))
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    everything = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("Train/*/*.png"))
    assert sorted(sources(train) + sources(val)) == everything
    assert [sum(source.startswith(f"Train/{name}/") for source in sources(val)) for name in "ab"] == [2, 4]
    assert train.class_names == val.class_names == ("a", "b")
    half = sources(Folder(tmp_path, "val", val_fraction=0.5))
    assert [sum(source.startswith(f"Train/{name}/") for source in half) for name in "ab"] == [5, 10]
    if others:
        assert sources(Folder(tmp_path, "test")) == [f"Test/a/{number}.png" for number in range(3)]


def test_linked_classes_of_a_lone_train_folder(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", {"a": 2, "b": 2})
    (tmp_path / "raw" / "train").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "raw" / "train" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert Folder(tmp_path / "raw", "train").class_names == ("a", "b")


def test_folder_beside_the_splits_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "train", {"a": 2, "b": 2})
    tree(tmp_path / "more", {"a": 1})
    (tmp_path / "notes").mkdir()
    for split in splits(tmp_path):
        assert all(source.startswith("train/") for source in sources(Folder(tmp_path, split)))
    assert caplog.messages == [f"{tmp_path / 'more'}: left out, it is in no split folder"]


@pytest.mark.parametrize("nested", [{}, {"train/old": 2}])
def test_class_called_train_is_no_split(tmp_path: Path, nested: dict[str, int]) -> None:
    tree(tmp_path, {"bus": 4, "train": 4} | nested)
    assert splits(tmp_path) == ("train", "val")
    assert Folder(tmp_path, "train").class_names == ("bus", "train")


def test_digest_tells_which_images_there_are(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for raw in (first, second):
        for name in ("train/a/z.jpg", "train/a b/ü.jpg", "val/a/1.jpg"):
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / name).write_bytes(b"12345")
        (raw / "train/a/gone.jpg").symlink_to("nowhere.jpg")
    content = hashlib.sha256(b"12345").hexdigest()
    lines = f"{content} train/a b/ü.jpg\0unreadable train/a/gone.jpg\0{content} train/a/z.jpg\0"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    os.utime(second / "train/a/z.jpg", ns=(0, 0))
    assert Folder(first, "train").digest() == Folder(second, "train").digest() == expected
    assert Folder(first, "val").digest() != expected
    before = (second / "train/a/z.jpg").stat()
    (second / "train/a/z.jpg").write_bytes(b"12354")
    os.utime(second / "train/a/z.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    edited = Folder(second, "train").digest()
    (second / "train/a/z.jpg").write_bytes(b"12345")
    (second / "train/a/z.jpg").rename(second / "train/a/y.jpg")
    renamed = Folder(second, "train").digest()
    assert len({expected, edited, renamed}) == 3
    assert Folder(first, "val").digest() == Folder(second, "val").digest()


def test_classes_unknown_to_training(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 1, "b": 1})
    tree(tmp_path / "val", {"a": 1, "cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="without training images: cat, dog"):
        Folder(tmp_path, "val")


def test_empty_class_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, {"a": 2, "c": 2})
    (tmp_path / "b").mkdir()
    assert Folder(tmp_path, "train").class_names == ("a", "c")
    assert f"{tmp_path / 'b'}: left out" in caplog.text


def test_wrong_layouts_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no such folder; {LAYOUT}"):
        Folder(tmp_path / "missing", "train")
    with pytest.raises(ValueError, match=f"no such folder; {LAYOUT}"):
        splits(picture(tmp_path / "file.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"at least 2 classes, found 0; {LAYOUT}"):
        Folder(tmp_path / "empty", "train")
    tree(tmp_path / "single", {"a": 3})
    with pytest.raises(ValueError, match=f"at least 2 classes, found 1; {LAYOUT}"):
        Folder(tmp_path / "single", "train")
    tree(tmp_path / "loose", {"a": 1, "b": 1})
    picture(tmp_path / "loose" / "stray.jpg")
    with pytest.raises(ValueError, match=rf"in no class folder, such as stray\.jpg; {LAYOUT}"):
        Folder(tmp_path / "loose", "train")
    tree(tmp_path / "both" / "train", {"a": 1, "b": 1})
    for name in ("val", "valid"):
        tree(tmp_path / "both" / name, {"a": 1})
    with pytest.raises(ValueError, match="both val and valid"):
        splits(tmp_path / "both")
    for name in ("Train", "training"):
        tree(tmp_path / "twice" / name, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="both Train and training"):
        Folder(tmp_path / "twice", "train")
    tree(tmp_path, {"flat/train": 2, "flat/val": 2})
    with pytest.raises(ValueError, match=rf"train: holds images that are in no class folder, such as 0\.png; {LAYOUT}"):
        Folder(tmp_path / "flat", "train")


def test_wrong_arguments(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"split: .* has train, val, got 'dev'"):
        Folder(tmp_path, "dev")
    for fraction in (0, 1, -0.5):
        with pytest.raises(ValueError, match="val_fraction: expected a share between 0 and 1"):
            Folder(tmp_path, "train", val_fraction=fraction)
    with pytest.raises(ValueError, match="no images for the split 'val'"):
        Folder(tmp_path, "val")


def test_unusable_files_are_named(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "0.png").write_text("no image")
    (tmp_path / "b" / "0.png").unlink()
    (tmp_path / "b" / "0.png").symlink_to("nowhere.png")
    folder = Folder(tmp_path, "train")
    with pytest.raises(ValueError, match=r"^a/0\.png: not an image that can be decoded \(unknown format\)$"):
        folder[0]
    with pytest.raises(FileNotFoundError):
        folder[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(PermissionError):
            Folder(tmp_path, "train")
    finally:
        (tmp_path / "a").chmod(0o755)
