"""FunnyBirds as it is published -> samples, and its test images without some of their parts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import funnybirds
from pipelines.datasets.funnybirds import FunnyBirds
from pipelines.datasets.interventions import Interventions
from pipelines.shards.manifest import Manifest
from rg.cli.main import main
from tests.support import miniature_funnybirds as miniature


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder, to be read only."""
    raw = tmp_path_factory.mktemp("funnybirds")
    miniature.build(raw)
    return raw


@pytest.fixture
def raw(published, tmp_path):
    return shutil.copytree(published, tmp_path / "raw")


def load(raw, split, **arguments):
    return FunnyBirds(raw, split, allow_partial=True, **arguments)


def picture(raw, *path):
    return np.asarray(Image.open(raw.joinpath("FunnyBirds", *path)).convert("RGB"))


def test_samples_are_the_images_and_their_masks(published):
    seen = set()
    for split, count in (("train", 18), ("test", 6)):
        source = load(published, split)
        assert len(source) == count
        assert source.part_names == tuple(miniature.LOOKS)
        entries = json.loads((published / f"FunnyBirds/dataset_{split}.json").read_text())
        for index in range(count):
            sample = source[index]
            number = int(sample.key.removeprefix(f"funnybirds-{split}-"))
            assert sample.label == entries[number]["class_idx"]
            assert sample.source == f"{split}/{sample.label}/{number:06d}.png"
            pixels = np.asarray(Image.open(published / "FunnyBirds" / sample.source).convert("RGB")).astype(int)
            assert sample.part_map.shape == pixels.shape[:2]
            colours = picture(published, f"{split}_part_map", str(sample.label), f"{number:06d}.png")
            for p, name in enumerate(source.part_names, 1):
                expected = sum((colours == colour).all(2) for colour in miniature.COLOURS[name]).astype(bool)
                np.testing.assert_array_equal(sample.part_map == p, expected)
                assert (name in sample.absent) == (not expected.any())
            seen.add(sample.key)
    assert len(seen) == 24


def test_all_species_are_right_that_look_alike_in_what_is_left(published):
    looks = [entry["parts"] for entry in json.loads((published / "FunnyBirds/classes.json").read_text())]
    several = 0
    for split in ("train", "test"):
        source = load(published, split)
        for sample in map(source.__getitem__, range(len(source))):
            left = set(miniature.LOOKS) - {*sample.absent}
            pictures = [miniature.draw(own, left, {})[0].tobytes() for own in looks]
            alike = {label for label, picture in enumerate(pictures) if picture == pictures[sample.label]}
            assert alike == set(sample.answers or [sample.label])
            several += len(alike) > 1
    assert several > 2


def test_validation_images_are_held_out_of_training(published):
    train, val = (load(published, split, val_fraction=0.4) for split in ("train", "val"))
    keys = [{source[index].key for index in range(len(source))} for source in (train, val)]
    assert (len(keys[0]), len(keys[1])) == (12, 6)
    assert not keys[0] & keys[1]


def test_the_published_numbers_are_asked_for(published):
    assert (funnybirds.COUNTS["classes"], funnybirds.COUNTS["parts"]) == (50, 5)
    with pytest.raises(ValueError, match="classes: expected 50, found 6; --allow-partial"):
        FunnyBirds(published, "train")


def test_an_image_without_parts_is_what_was_rendered(published):
    """But for pixels that do not change, which are those of the JPEG."""
    interventions, source = Interventions(published), load(published, "test")
    assert list(interventions.class_parts[2]) == list(miniature.LOOKS)
    for index in (0, 4):
        scene = interventions.scene(source[index])
        below = ("test_interventions", str(scene.label), f"{index:06d}")
        whole = picture(published, source.source(index))
        for hidden, name in (
            ({"beak"}, "body_eye_foot_tail_wing.png"),
            ({"eye", "wing", "tail"}, "body_beak_foot.png"),
            (set(miniature.LOOKS), "body_.png"),
            ({"background 2"}, "background_interventions/2.png"),
        ):
            rendered, found = picture(published, *below, name), scene.without(hidden)
            changed = (rendered != whole).any(2)
            assert changed.any()
            np.testing.assert_array_equal(found[changed], rendered[changed])
            np.testing.assert_array_equal(found[~changed], scene.pixels[~changed])
        np.testing.assert_array_equal(scene.without([]), scene.pixels)
        assert list(scene.things) == [f"background {thing}" for thing in range(miniature.THINGS)]
        assert not scene.things["background 0"].any()
        gone = (picture(published, *below, "background_interventions/2.png") != whole).any(2)
        np.testing.assert_array_equal(scene.things["background 2"] & gone, scene.things["background 2"])
        np.testing.assert_array_equal(scene.parts["tail"], source[index].part_map == 4)


def test_what_was_not_rendered_is_refused(published):
    interventions, source = Interventions(published), load(published, "test")
    scene = interventions.scene(source[1])
    for hidden in (["antlers"], ["beak", "background 1"], ["background 1", "background 2"], ["background 9"]):
        with pytest.raises(ValueError, match="hidden: expected parts, or one thing in the background"):
            scene.without(hidden)
    with pytest.raises(ValueError, match="funnybirds-train-000000: expected a test image"):
        interventions.scene(load(published, "train")[0])


def test_damaged_files_are_named(raw):
    folder = raw / "FunnyBirds"
    next((folder / "test_interventions/0/000000").glob("body_beak.png")).write_bytes(b"no image")
    scene = Interventions(raw).scene(load(raw, "test")[0])
    with pytest.raises(ValueError, match=r"body_beak\.png: not an image"):
        scene.without({"eye", "foot", "tail", "wing"})
    (folder / "test_part_map/0/000000.png").unlink()
    with pytest.raises(ValueError, match=r"test_part_map/0/000000\.png: expected the masks"):
        load(raw, "test")[0]
    shutil.rmtree(folder / "test_interventions")
    with pytest.raises(ValueError, match="test_interventions is missing"):
        Interventions(raw)


@pytest.mark.parametrize(
    "name,content,problem",
    [
        ("classes.json", [], "expected"),
        ("classes.json", [{"class_idx": 1, "parts": dict.fromkeys(miniature.LOOKS, 0)}], "expected class 0"),
        (
            "classes.json",
            [{"class_idx": n, "parts": dict.fromkeys(miniature.LOOKS, 0)} for n in (0, 1)],
            "looks like class 0",
        ),
        ("classes.json", {"a": 1}, "expected a JSON list"),
        ("parts.json", {"horn": []}, "expected parts of beak"),
        ("dataset_test.json", [{"class_idx": 99}], "expected class_idx 0 to 5, got 99"),
        ("dataset_test.json", ["text"], "expected class_idx"),
    ],
)
def test_malformed_lists_are_named(raw, name, content, problem):
    (raw / "FunnyBirds" / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        load(raw, "test")


def test_the_command_writes_shards(published, tmp_path):
    words = ["prepare", "funnybirds", "--raw", str(published), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(words) == 2
    assert main([*words, "--allow-partial"]) == 0
    manifest = Manifest.load(Path(tmp_path / "out"))
    assert manifest.parts == tuple(miniature.LOOKS)
    assert manifest.classes[0] == "species 00"
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 18, "test": 6}
