"""What a folder of folders is taken for, what is said about it, and what is refused."""

import os
import unicodedata
from pathlib import Path

import pytest

from pipelines.datasets.folder import Folder, log_copies, splits
from pipelines.datasets.layout import Layout, class_name, split_folders
from tests.datasets.test_folder import picture, sources, tree


@pytest.mark.parametrize(
    "names",
    [
        {"train": "training_set", "test": "test_set"},
        {"train": "Train", "val": "Valid"},
        {"train": "train2017", "val": "val2017", "test": "test1"},
        {"train": "TRAIN-IMAGES", "val": "validation images"},
        {"train": "01_trainset", "test": "02_testset"},
        {"train": "train_data_set", "val": "val_data_set"},
    ],
)
def test_split_folders_by_other_names(tmp_path: Path, names: dict[str, str]) -> None:
    for name in names.values():
        tree(tmp_path / name, {"cats": 2, "dogs": 2})
    assert {split: folder.name for split, folder in split_folders(tmp_path).items()} == names
    assert Folder(tmp_path, "train").class_names == ("cats", "dogs")
    assert splits(tmp_path) == (("train", "val", "test") if "test" in names else ("train", "val"))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1}, "has test and val, .* but no train folder; expected raw/"),
        ({"val/a": 1, "val/b": 1}, "has val, named like validation or test images, but no train folder"),
        ({"a": 1, "b": 1, "test_set": 1}, "has test_set, named like"),
        ({"train": 1, "test1": 1}, "train: holds images that are in no class folder, such as 0.png"),
        ({"train/a": 1, "train/b": 1, "train2/a": 1, "train2/b": 1}, "has both train and train2"),
        (
            {"seg_train/a": 1, "seg_test/a": 1},
            "seg_test and seg_train may be splits .*; rename them test and train",
        ),
        (
            {"jar/train/a": 1, "jar/test/a": 1, "pill/train/a": 1},
            "jar holds test and train; give .*jar",
        ),
        ({"data/train/a": 1, "data/val/a": 1}, "data holds train and val; give .*data"),
        ({"photos/a": 1, "photos/b": 1}, "at least 2 classes, found 1; give .*photos if its folders are the classes"),
    ],
)
def test_doubtful_layouts_are_refused_with_a_remedy(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    tree(tmp_path, counts)
    with pytest.raises(ValueError, match=message):
        Folder(tmp_path, "train")


@pytest.mark.parametrize("names", [("train station", "test tube"), ("Valencia", "Testudo"), ("train 1", "train 2")])
def test_classes_whose_names_remind_of_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    tree(tmp_path, dict.fromkeys(names, 2))
    assert Folder(tmp_path, "train").class_names == tuple(sorted(names))


def test_what_was_understood_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "training_set", {"cat": 2, "dog": 2, "emu/old": 1})
    tree(tmp_path / "test_set", {"cat": 1})
    (tmp_path / "training_set" / "labels.csv").touch()
    with caplog.at_level("INFO"):
        folders = [Folder(tmp_path, split) for split in splits(tmp_path)]
        folders[0].layout.log()
    assert [len(folder) for folder in folders] == [3, 2, 1]
    assert caplog.messages == [
        f"{tmp_path / 'test_set'}: no images of 2 classes, such as dog",
        f"{tmp_path}: train is training_set, test is test_set; 3 classes, cat to emu",
        f"{tmp_path}: folders below class folders, taken for their class (1): training_set/emu/old",
        f"{tmp_path}: passed over, no images (1): training_set/labels.csv",
    ]


def test_the_same_folders_in_every_class_are_pointed_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, {"fold1/cat": 1, "fold1/dog": 1, "fold2/cat": 1, "fold2/dog": 1})
    assert Folder(tmp_path, "train").class_names == ("fold1", "fold2")
    assert "every class holds the same folders, cat and dog; if these are the classes, put" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
@pytest.mark.parametrize("name", [b"Gr\xfcn", b"two\nlines", b"\x1b[31mred", b" ", "a\u2028b".encode()])
def test_names_that_no_class_can_have(tmp_path: Path, name: bytes) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").rename(tmp_path / os.fsdecode(name))
    with pytest.raises(ValueError, match="is not named by one line of UTF-8 text; rename it") as caught:
        Folder(tmp_path, "train")
    assert repr(name) in str(caught.value)
    str(caught.value).encode()


COMPOSED = "Grünspecht"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize("pair", [(COMPOSED, DECOMPOSED), ("wren", "wren "), ("wren", "Wren"), ("straße", "STRASSE")])
def test_names_that_look_alike(tmp_path: Path, pair: tuple[str, str]) -> None:
    tree(tmp_path, dict.fromkeys(pair, 1) | {"other": 1})
    with pytest.raises(ValueError, match="differ by case, by spaces around, or by how letters are composed") as caught:
        Folder(tmp_path, "train")
    assert all(ascii(name) in str(caught.value) for name in pair)


def test_one_class_in_two_splits_by_names_that_are_written_differently(tmp_path: Path) -> None:
    tree(tmp_path / "train", {DECOMPOSED: 2, "wren ": 2})
    tree(tmp_path / "val", {COMPOSED: 2, " wren": 2})
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert train.class_names == val.class_names == (COMPOSED, "wren") == tuple(map(class_name, (DECOMPOSED, "wren ")))
    for folder in (train, val):
        assert [folder[index].label for index in range(4)] == [0, 0, 1, 1]


def test_a_class_of_another_case_in_validation(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"cat": 1, "dog": 1})
    tree(tmp_path / "val", {"Cat": 1})
    with pytest.raises(ValueError, match="without training images: Cat; Cat is cat there, rename one"):
        Folder(tmp_path, "val")


@pytest.mark.parametrize(
    "name", ["a:b", "con", "trailing.", "<b>&amp;", 'quo"te', "100%", "a,b", "-dash", "日本", "🐦"]
)
def test_other_names_are_classes(tmp_path: Path, name: str) -> None:
    tree(tmp_path, {name: 1, "other": 1})
    assert set(Layout.read(tmp_path).files["train"]) == {name, "other"}


def test_litter_is_no_class(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 1, "b": 1, "@eaDir": 2, "__MACOSX/a": 2, "$RECYCLE.BIN": 1, "a/@eaDir/0.png": 1})
    assert Folder(tmp_path, "train").class_names == ("a", "b")
    assert sources(Folder(tmp_path, "train")) == ["a/0.png", "b/0.png"]


def test_classes_without_a_usable_training_image(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 2, "b": 2, "c": 3})
    tree(tmp_path / "val", {"a": 1, "b": 1, "c": 1})
    for number in (0, 1):
        (tmp_path / "train" / "b" / f"{number}.png").write_text("no image")
    (tmp_path / "train" / "c" / "0.png").write_text("no image")
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    reason = "train/b/0.png: not an image that can be decoded (unknown format)"
    assert train.unusable_classes() == {"b": reason}
    train, val = train.without({"b"}), val.without({"b"})
    assert train.class_names == val.class_names == ("a", "c")
    assert sources(val) == ["val/a/0.png", "val/c/0.png"]
    assert [val[index].label for index in range(2)] == [0, 1]
    assert len(train) == 5
    with pytest.raises(ValueError, match="usable images of at least 2 classes, found 1"):
        train.without({"a"})


def test_copies_are_told_by_their_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path / "train", {"a": 3, "b": 0})
    picture(tmp_path / "train" / "b" / "new.png", 70)
    picture(tmp_path / "train" / "b" / "copy.png", 1)  # as train/a/1.png
    for number, value in enumerate((0, 70, 90)):
        picture(tmp_path / "val" / "a" / f"renamed{number}.png", value)
    (tmp_path / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "val" / "a" / "gone.png").symlink_to("nowhere.png")
    folders = {split: Folder(tmp_path, split) for split in splits(tmp_path)}
    caplog.clear()
    log_copies(folders)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}: training images that lie in another class, too: 1, such as train/b/copy.png and train/a/1.png",
        f"{tmp_path}: val images that are copies of training images: 2 of 4, such as val/a/renamed0.png of "
        "train/a/0.png; the model has seen them, so they do not test it: remove the copies",
    ]
