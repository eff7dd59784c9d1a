"""Masks beside photos: from the files to the batches that evaluation reads."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.datasets.folder import Folder, splits
from pipelines.shards.manifest import Manifest
from pipelines.shards.verify import verify
from rg.cli.main import main

SIZE = (60, 40)  # width, height
CLASSES = ("robin", "wren")


def part_map(rng: np.random.Generator, parts: int) -> np.ndarray:
    """Rectangles of random parts on background, uint8 [height, width]."""
    width, height = SIZE
    levels = np.zeros((height, width), np.uint8)
    for part in range(1, parts + 1):
        y, x = rng.integers(0, (height // 2, width // 2))
        levels[y : y + height // 3, x : x + width // 3] = part
    return levels


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Photos with the parts 1 to 3 in the red channel, in steps of 80, and their masks."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(6):
            levels = part_map(rng, 3)
            pixels = np.stack([80 * levels, levels, levels], axis=2)
            for folder, array in (("images", pixels), ("masks", levels)):
                path = tmp_path / "raw" / folder / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (tmp_path / "raw" / "parts.txt").write_text("head\n wing \n\ntail\n")
    return tmp_path / "raw"


def mask_of(raw: Path, source: str) -> np.ndarray:
    return np.asarray(Image.open(raw / source.replace("images/", "masks/")))


def replace(raw: Path, mask: Image.Image, name: str = "robin/0.png") -> str:
    """Puts another mask in the place of one; returns the source of its photo."""
    mask.save(raw / "masks" / name, "PNG")
    return f"images/{name}"


def read(raw: Path, source: str) -> np.ndarray:
    samples = [Folder(raw, split) for split in splits(raw)]
    index, folder = next((n, f) for f in samples for n in range(len(f)) if f.source(n) == source)
    return folder[index].part_map


@pytest.mark.parametrize("named", [True, False])
def test_levels_are_parts_or_foreground(raw: Path, named: bool) -> None:
    if not named:
        (raw / "parts.txt").unlink()
    folder = Folder(raw, "train")
    assert folder.class_names == CLASSES
    assert folder.part_names == (("head", "wing", "tail") if named else ("foreground",))
    for index in range(len(folder)):
        levels = mask_of(raw, folder.source(index))
        found = folder[index].part_map
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, levels if named else levels > 0)


def test_a_split_of_ones_own(raw: Path) -> None:
    for folder in ("images", "masks"):
        for split in ("train", "val"):
            shutil.copytree(raw / folder, raw.parent / "split" / folder / split)
    val = Folder(raw.parent / "split", "val")
    assert (len(val), val.source(0), val[0].part_map.max()) == (12, "images/val/robin/0.png", 1)


def test_without_masks_nothing_changes(raw: Path) -> None:
    alone = shutil.copytree(raw / "images", raw.parent / "alone")
    folder = Folder(alone, "train")
    assert folder.part_names == ()
    assert folder[0].part_map is None
    (raw / "masks").rename(raw / "other")  # and then the two are classes, as ever
    assert Folder(raw, "train").class_names == ("images", "other")


def test_photos_in_no_class(raw: Path) -> None:
    """They do not make classes of the two folders."""
    shutil.copy(raw / "images/robin/0.png", raw / "images/cover.png")
    with pytest.raises(ValueError, match=rf"^{raw}/images: holds images that are in no class folder, such as cover"):
        Folder(raw, "train")


def test_folders_beside_are_named(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(raw / "masks", raw / "depth")
    assert Folder(raw, "train").class_names == CLASSES
    assert caplog.messages == [f"{raw / 'depth'}: left out, photos are those of {raw / 'images'}"]


def palette(levels: np.ndarray) -> Image.Image:
    image = Image.fromarray(levels).convert("P")
    image.putdata(levels.ravel().tolist())
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    return image


@pytest.mark.parametrize(
    "store",
    [
        palette,
        lambda levels: Image.fromarray(levels.astype(np.uint16)),
        lambda levels: Image.fromarray(np.stack([levels] * 3, axis=2)),
        lambda levels: Image.fromarray(np.stack([levels] * 3 + [np.full_like(levels, 255)], axis=2)),
    ],
)
def test_how_a_mask_may_be_stored(raw: Path, store) -> None:
    levels = mask_of(raw, "images/wren/3.png").copy()
    np.testing.assert_array_equal(read(raw, replace(raw, store(levels))), levels)


def test_two_levels_in_one_bit(raw: Path) -> None:
    levels = mask_of(raw, "images/wren/3.png") > 0
    np.testing.assert_array_equal(read(raw, replace(raw, Image.fromarray(levels))), levels)


@pytest.mark.parametrize(
    "mask, message",
    [
        (Image.new("L", SIZE, 4), r"masks/robin/0\.png: expected levels 0 to 3 as in parts\.txt, got 4$"),
        (Image.new("L", SIZE[::-1]), r"masks/robin/0\.png: expected 60x40 pixels like the upright photo, got 40x60$"),
        (Image.new("RGB", SIZE, (1, 2, 1)), r"masks/robin/0\.png: no mask \(expected grey levels or a palette, got"),
        (Image.new("RGBA", SIZE, (1, 1, 1, 0)), r"masks/robin/0\.png: no mask \(expected grey levels or a palette"),
    ],
)
def test_what_is_no_mask(raw: Path, mask: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(raw, replace(raw, mask))


def test_damaged_masks(raw: Path) -> None:
    path = raw / "masks/robin/0.png"
    content = path.read_bytes()
    for damaged in (b"", b"no PNG", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^masks/robin/0\.png: no mask \("):
            read(raw, "images/robin/0.png")
    Image.new("L", SIZE).save(path, "JPEG")
    with pytest.raises(ValueError, match=r"no mask \(expected a PNG, got JPEG\)"):
        read(raw, "images/robin/0.png")


def test_every_photo_has_a_mask(raw: Path) -> None:
    (raw / "masks/wren/2.png").unlink()
    messages = []
    for split in splits(raw):
        try:
            Folder(raw, split)
        except ValueError as error:
            messages.append(str(error))
    (message,) = messages
    assert "1 of " in message
    assert message.endswith(f"missing is masks/wren/2.png; add them, or give {raw / 'images'} to do without masks")


@pytest.mark.parametrize("text", [b"", b"head\nhead\n", b"\xff\xfe\n", b"\n".join(b"%d" % n for n in range(256))])
def test_wrong_names_of_parts(raw: Path, text: bytes) -> None:
    (raw / "parts.txt").write_bytes(text)
    with pytest.raises(ValueError, match=rf"^{raw}/parts\.txt: expected "):
        Folder(raw, "train")


def test_digest_tells_masks_from_others(raw: Path) -> None:
    before = Folder(raw, "train").digest()
    assert Folder(raw, "train").digest() == before
    source = Folder(raw, "train").source(0)
    replace(raw, Image.new("L", SIZE, 1), source.removeprefix("images/"))
    assert Folder(raw, "train").digest() != before


def test_from_the_masks_to_the_batches(raw: Path, tmp_path: Path) -> None:
    """What the batches hold is what the pixels of the same batches show; training batches are mirrored and cut."""
    out = tmp_path / "shards"
    arguments = ["prepare", "folder", "--raw", str(raw), "--out", str(out), "--jobs", "1", "--val-fraction", "0.5"]
    assert main(arguments) == 0
    assert verify(out) == []
    manifest = Manifest.load(out)
    assert manifest.parts == ("head", "wing", "tail")
    assert manifest.fields[-1] == "parts.png"
    for geometry in (
        Geometry(40, 32),
        Geometry(40, 40, view="stretch"),
        Geometry(40, 0, view="whole", stride=8),
        Geometry(40, 32, training=True, brightness=0),
    ):
        split = "train" if geometry.training else "val"
        loader = Loader(out, split, geometry, 2, annotations=True, decoding=Decoding("pillow", threads=1))
        for _, batch in zip(range(3), loader, strict=False):
            maps = batch.part_maps
            assert maps.dtype == torch.uint8
            assert maps.shape == (2, *batch.images.shape[2:])
            shown = (batch.images[:, 0].float() / 80).round().to(torch.uint8)
            assert (shown == maps).float().mean() > 0.93  # but for edges, which JPEG and resizing blur
            assert set(maps.unique().tolist()) <= {0, 1, 2, 3}


def test_the_short_side_scales_masks_too(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert main(["prepare", "folder", "--raw", str(raw), "--out", str(out), "--jobs", "1", "--short-side", "20"]) == 0
    assert verify(out) == []


def test_unusable_masks_leave_their_photo_out(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    replace(raw, Image.new("L", SIZE, 9), "wren/1.png")
    out = tmp_path / "shards"
    assert main(["prepare", "folder", "--raw", str(raw), "--out", str(out), "--jobs", "1"]) == 0
    assert "1 left out" in capsys.readouterr().out
    (left_out,) = [each for split in Manifest.load(out).splits.values() for each in split.quarantined]
    assert left_out.source == "images/wren/1.png"
    assert left_out.reason == "masks/wren/1.png: expected levels 0 to 3 as in parts.txt, got 9"
