"""Images scaled down on the way into the shards, with everything that is given in pixels."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.datasets.folder import Folder
from pipelines.datasets.resized import Resized
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import read
from pipelines.shards.samples import Sample
from rg.cli.main import main

LANDMARKS = np.array([[40.5, 30.5], [350.25, 60.5], [200.0, 250.0], [12.0, 288.0]], np.float32)
BOX = (100, 60, 300, 180)


@dataclass
class Scene:
    """A white dot at every landmark and a green box that is also part 1, on black."""

    width: int = 400
    height: int = 300
    change: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return 1

    def source(self, index: int) -> str:
        return f"scene {index}"

    def __getitem__(self, index: int) -> Sample:
        image = Image.new("RGB", (self.width, self.height))
        x0, y0, x1, y1 = BOX
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(0, 255, 0))
        pixels = np.asarray(image).copy()
        ys, xs = np.mgrid[: self.height, : self.width] + 0.5
        for x, y in LANDMARKS:
            pixels[(xs - x) ** 2 + (ys - y) ** 2 <= 25] = 255
        part_map = np.zeros((self.height, self.width), np.uint8)
        part_map[y0:y1, x0:x1] = 1
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
        content = {
            "key": "scene-0",
            "jpeg": buffer.getvalue(),
            "label": 0,
            "width": self.width,
            "height": self.height,
            "source": self.source(index),
            "landmarks": LANDMARKS,
            "visibility": np.ones(len(LANDMARKS), bool),
            "boxes": np.array([BOX, (0, 0, self.width, self.height)], np.float32),
            "part_map": part_map,
        }
        return Sample(**content | self.change)


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.jpeg)).convert("RGB")).astype(float)


@pytest.mark.parametrize("short_side", [60, 97, 150, 211, 299])
@pytest.mark.parametrize("size", [(400, 300), (401, 299), (390, 500)])
def test_annotation_stays_on_what_it_means(short_side: int, size: tuple[int, int]) -> None:
    sample = Resized(Scene(*size), short_side, quality=95)[0]
    image = pixels(sample)
    assert image.shape == (sample.height, sample.width, 3)
    assert min(sample.width, sample.height) == short_side
    assert abs(max(sample.width, sample.height) - max(size) * short_side / min(size)) <= 0.5
    ys, xs = np.mgrid[: sample.height, : sample.width] + 0.5
    radius = 5 * short_side / min(size) + 2  # the dot, and as far as its blurred edge may reach
    for x, y in sample.landmarks:
        near = np.hypot(xs - x, ys - y) <= radius
        white = (image[..., 0] * near).clip(0)  # only dots are red
        centre = np.array([(xs * white).sum(), (ys * white).sum()]) / white.sum()
        assert np.hypot(*(centre - (x, y))) < 0.5
    green = (image[..., 1] > 128) & (image[..., 0] < 64)
    x0, y0, x1, y1 = sample.boxes[0]
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert np.abs(np.array(found) - (x0, y0, x1, y1)).max() <= 1
    rows, columns = np.flatnonzero(sample.part_map.any(1)), np.flatnonzero(sample.part_map.any(0))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert np.abs(np.array(found) - (x0, y0, x1, y1)).max() <= 0.5  # where the centre of a pixel is inside
    assert set(np.unique(sample.part_map)) == {0, 1}
    assert sample.boxes[1].tolist() == [0, 0, sample.width, sample.height]


@pytest.mark.parametrize("size", [(400, 300), (390, 512), (301, 300)])
def test_size_is_that_of_torchvision(size: tuple[int, int]) -> None:
    """Which rounds the long side down."""
    transforms = pytest.importorskip("torchvision.transforms")
    scene = Scene(*size)
    expected = transforms.Resize(150)(Image.open(io.BytesIO(scene[0].jpeg)))
    sample = Resized(scene, 150)[0]
    assert sample.width - expected.width in (0, 1)
    assert sample.height - expected.height in (0, 1)


@pytest.mark.parametrize("short_side", [300, 301, 5000])
def test_smaller_images_pass_through(short_side: int) -> None:
    expected = Scene()[0]
    sample = Resized(Scene(), short_side)[0]
    assert sample.jpeg == expected.jpeg
    assert sample.landmarks is LANDMARKS
    assert (sample.width, sample.height) == (400, 300)


def test_what_is_not_in_pixels_stays() -> None:
    bare = {"landmarks": None, "visibility": None, "boxes": None, "part_map": None, "label": 7, "absent": ("tail",)}
    resized = Resized(Scene(change=bare), 50)
    sample = resized[0]
    assert (sample.key, sample.label, sample.source, sample.absent) == ("scene-0", 7, "scene 0", ("tail",))
    assert sample.landmarks is sample.visibility is sample.boxes is sample.part_map is None
    assert resized.source(0) == "scene 0"
    assert len(resized) == 1


def test_quality_decides_about_the_bytes() -> None:
    sizes = [len(Resized(Scene(), 200, quality)[0].jpeg) for quality in (30, 60, 90)]
    assert sizes == sorted(set(sizes))
    assert Resized(Scene(), 200)[0].jpeg == Resized(Scene(), 200, 90)[0].jpeg


def test_errors() -> None:
    with pytest.raises(ValueError, match="short_side: expected at least 1 pixel, got -1"):
        Resized(Scene(), -1)
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"quality: expected 1 to 100, got {quality}"):
            Resized(Scene(), 10, quality)
    with pytest.raises(ValueError, match="not an image that can be decoded"):
        Resized(Scene(change={"jpeg": Scene()[0].jpeg[:1000]}), 10)[0]
    with pytest.raises(ValueError, match="the image is 40x30, expected 400x300"):
        Resized(Scene(change={"jpeg": Resized(Scene(), 30)[0].jpeg}), 10)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(tmp_path: Path, orientation: int) -> None:
    """The red top left corner of the upright photo, wherever the camera has stored it."""
    upright = Image.new("RGB", (120, 80), "blue")
    upright.paste("red", (0, 0, 30, 20))
    stored_with = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of what the tag asks for
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(Image.Transpose(stored_with[orientation])) if orientation > 1 else upright
    for name in "ab":
        (tmp_path / name).mkdir()
        stored.save(tmp_path / name / "x.jpg", quality=95, exif=exif)
    sample = Resized(Folder(tmp_path, "train"), 40)[0]
    assert (sample.width, sample.height) == (60, 40)
    image = pixels(sample)
    assert image[:8, :13, 0].min() > 200
    assert image[12:, :, 0].max() < 60
    assert image[:, 18:, 0].max() < 60
    assert Image.open(io.BytesIO(sample.jpeg)).getexif() == {}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = tmp_path / "raw"
    for name, size in {"a/0": (300, 200), "a/1": (50, 90), "b/0": (100, 300), "b/1": (300, 100)}.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 50).convert("RGB").save(raw / f"{name}.jpg", quality=95)

    def prepare(out: str, *options: str) -> int:
        return main(["prepare", "folder", "--raw", str(raw), "--out", str(tmp_path / out), "--jobs", "1", *options])

    def sizes(out: str) -> dict[str, tuple[int, int]]:
        found = [sample for split in ("train", "val") for sample in read(tmp_path / out, split)]
        assert all(Image.open(io.BytesIO(sample.jpeg)).size == (sample.width, sample.height) for sample in found)
        return {sample.source: (sample.width, sample.height) for sample in found}

    assert prepare("small", "--short-side", "80", "--quality", "70") == 0
    assert sizes("small") == {"a/0.jpg": (120, 80), "a/1.jpg": (50, 90), "b/0.jpg": (80, 240), "b/1.jpg": (240, 80)}
    options = Manifest.load(tmp_path / "small").options
    assert (options["short_side"], options["quality"]) == (80, 70)
    assert main(["verify", str(tmp_path / "small"), "--jobs", "1"]) == 0
    assert prepare("small", "--short-side", "80") == 2
    assert "options.quality 70 instead of 90" in capsys.readouterr().err
    assert prepare("whole") == 0
    stored = {sample.source: sample.jpeg for split in ("train", "val") for sample in read(tmp_path / "whole", split)}
    assert stored == {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.glob("*/*.jpg")}
    assert not {"short_side", "quality"} & set(Manifest.load(tmp_path / "whole").options)
    assert prepare("none", "--short-side", "-5") == 2
    assert prepare("none", "--short-side", "80", "--quality", "0") == 2
    assert not (tmp_path / "none").exists()


def test_every_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "train" / name / f"{number}.jpg").write_bytes(Scene(300 + 10 * number)[0].jpeg)
    opened: list[object] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or original(*args, **options))
    source = Resized(Folder(tmp_path, "train"), 100)
    assert {min(source[index].width, source[index].height) for index in range(len(source))} == {100}
    assert len(opened) == len(source)
