"""Image files of every kind -> upright RGB, or a JPEG that DALI decodes."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from pipelines import formats, images


def pixels(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """Smooth colours [height, width, 3], so that JPEG changes them little."""
    y, x = np.mgrid[0:height, 0:width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    return np.stack([127 + 100 * np.sin(x / 11 + y / 17 + phase) for phase in phases], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PHOTO = Image.fromarray(pixels())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_their_pixels(kind: str) -> None:
    image = images.open_rgb(encoded(PHOTO, kind))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    data = encoded(PHOTO, kind, exif=turned(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    upright = images.open_rgb(data)
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(images.open_rgb(upright)), np.asarray(expected))  # and not turned again


def test_orientation_6_is_a_quarter_turn_clockwise() -> None:
    data = encoded(PHOTO, "PNG", exif=turned(6))
    np.testing.assert_array_equal(np.asarray(images.open_rgb(data)), np.rot90(pixels(), k=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    levels = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    found = np.asarray(images.open_rgb(encoded(Image.fromarray(levels), kind)))
    np.testing.assert_array_equal(found, np.repeat(np.round(levels[..., None] / 65535 * 255), 3, axis=-1))


def test_big_endian_sixteen_bit_grey() -> None:
    levels = np.array([[0, 257, 32896, 65535]], ">u2")
    data = encoded(Image.frombytes("I;16B", (4, 1), levels.tobytes()), "TIFF")
    assert np.asarray(images.open_rgb(data))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 51)]
    found = np.asarray(images.open_rgb(encoded(Image.fromarray(rgba), "PNG")))
    assert found[0].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]


def test_transparent_palette_and_grey_with_alpha() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    found = np.asarray(images.open_rgb(encoded(palette, "PNG", transparency=1)))
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    grey = Image.fromarray(np.array([[[80, 255], [80, 0]]], np.uint8), "LA")
    assert np.asarray(images.open_rgb(encoded(grey, "PNG")))[0].tolist() == [[80] * 3, [255] * 3]


def test_cmyk_gives_the_printed_colours() -> None:
    cyan, ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    assert np.abs(np.asarray(images.open_rgb(encoded(cyan))) - np.array([0.0, 255, 255])).max() <= 3
    assert np.asarray(images.open_rgb(encoded(ink))).max() <= 3


def test_first_frame_of_an_animation() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert np.asarray(images.open_rgb(data))[0, 0].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    data, width, height = images.to_jpeg(encoded(Image.new("L", (1, 1), 7), "PNG"))
    assert (width, height) == (1, 1)
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [[[7, 7, 7]]]


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no image", "unknown format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unknown format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),
    "truncated jpeg": (encoded(PHOTO)[:-200], "truncated"),
    "truncated png": (encoded(PHOTO, "PNG")[:-200], "trunc"),
    "jpeg without pixels": (encoded(PHOTO)[:100], ""),
    "float": (encoded(Image.new("F", (3, 3)), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name: str) -> None:
    data, reason = BAD[name]
    for function in (images.open_rgb, images.to_jpeg):
        with pytest.raises(ValueError, match="not an image that can be decoded") as caught:
            function(data)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert " at 0x" not in str(caught.value)  # the message goes into a manifest that is the same every time


def test_message_names_the_path(tmp_path) -> None:
    path = tmp_path / "ünïcode name.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"ünïcode name\.jpg: not an image that can be decoded"):
        images.open_rgb(path)
    with pytest.raises(FileNotFoundError):
        images.open_rgb(tmp_path / "missing.jpg")


def test_more_pixels_than_pillow_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PHOTO, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 // 2 - 1)  # Pillow raises at twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(images.open_rgb(data)), pixels())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images.forget()
    size = (56 // factor, 40 // factor)
    monkeypatch.setattr(formats, "MAX_PIXELS", 40 * 56 // factor**2)
    stored, *stored_size = images.to_jpeg(KEPT["baseline"])
    found = images.open_rgb(KEPT["baseline"])
    assert found.size == tuple(stored_size) == Image.open(io.BytesIO(stored)).size == size
    change = np.asarray(found, float) - np.asarray(PHOTO.resize(size, Image.Resampling.BOX), float)
    assert np.abs(change).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "progressive"])
def test_too_many_pixels_are_refused_with_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = KEPT[kind] if kind in KEPT else encoded(PHOTO, kind)
    images.forget()
    monkeypatch.setattr(formats, "MAX_PIXELS", 40 * 56 - 1)
    with pytest.raises(ValueError, match=r"^expected at most \d+ megapixels, got 56x40; scale it down first$"):
        images.open_rgb(data)


def test_longer_than_a_jpeg_can_be() -> None:
    with pytest.raises(ValueError, match="65501x1"):
        images.to_jpeg(encoded(Image.new("L", (65501, 1)), "PNG"))


KEPT = {
    "baseline": encoded(PHOTO),
    "progressive": encoded(PHOTO, progressive=True),
    "grey": encoded(PHOTO.convert("L")),
    "4:4:4": encoded(PHOTO, subsampling="4:4:4"),
    "upright exif": encoded(PHOTO, exif=turned(1)),
    "restart markers": encoded(PHOTO, restart_marker_blocks=3),
}
CONVERTED = {
    "rotated": encoded(PHOTO, exif=turned(8)),
    "cmyk": encoded(PHOTO.convert("CMYK")),
    "stored as RGB": encoded(PHOTO, keep_rgb=True),
    "png": encoded(PHOTO, "PNG"),
    "garbage between headers": KEPT["baseline"][:20] + b"garbage" + KEPT["baseline"][20:],
}


@pytest.mark.parametrize("name", KEPT)
def test_jpegs_are_kept(name: str) -> None:
    assert images.to_jpeg(KEPT[name]) == (KEPT[name], 56, 40)


@pytest.mark.parametrize("name", CONVERTED)
def test_others_become_upright_rgb_jpegs(name: str) -> None:
    data, width, height = images.to_jpeg(CONVERTED[name])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))
        assert image.getexif().get(0x0112, 1) == 1
        assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)  # sampling factors: 4:4:4
        change = np.asarray(image, float) - np.asarray(images.open_rgb(CONVERTED[name]), float)
    assert np.sqrt(np.mean(change**2)) < 2  # smooth colours at quality 95: about one grey level
    assert images.to_jpeg(data)[0] == data


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = KEPT["upright exif"].replace(b"Exif\0\0II*\0", b"Exif\0\0IIxx").replace(b"Exif\0\0MM\0*", b"Exif\0\0MMxx")
    assert data != KEPT["upright exif"]
    np.testing.assert_array_equal(np.asarray(images.open_rgb(data)), np.asarray(images.open_rgb(KEPT["baseline"])))


def test_dali_decodes_whatever_is_stored() -> None:
    """Damaged files, too, as long as they were not refused: one that DALI refuses would end a training run."""
    dali = pytest.importorskip("nvidia.dali")
    rng = np.random.default_rng(0)
    stored = [images.to_jpeg(data)[0] for data in (KEPT | CONVERTED).values()]
    refused = 0
    for number in range(600):
        data = bytearray(list(KEPT.values())[number % len(KEPT)])
        position = rng.integers(2, len(data) - 20 if number % 2 else 600)  # anywhere, or among the headers
        data[position : position + 16] = rng.bytes(16) if number % 3 else bytes(16)
        try:
            stored.append(images.to_jpeg(bytes(data))[0])
        except ValueError:
            refused += 1
    assert refused > 50
    assert len(stored) > 200

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        jpegs = dali.fn.external_source(source=([np.frombuffer(data, np.uint8)] for data in stored))
        return dali.fn.decoders.image(jpegs, device="cpu", output_type=dali.types.RGB, jpeg_fancy_upsampling=True)

    decode = pipeline()
    for data in stored:
        (batch,) = decode.run()
        np.testing.assert_array_equal(np.asarray(batch[0]), np.asarray(images.open_rgb(data)))


PLAIN = encoded(Image.fromarray(pixels()), quality=90)
FRAME = PLAIN.index(b"\xff\xc0")
DEFECTS = {
    "nothing": (b"", "not a JPEG, or its headers are damaged"),
    "zeros": (bytes(len(PLAIN)), "not a JPEG, or its headers are damaged"),
    "a page": (b"<html>404 Not Found</html>", "not a JPEG, or its headers are damaged"),
    "no frame": (PLAIN.replace(b"\xff\xc0", b"\xff\xfe"), "not a JPEG, or its headers are damaged"),
    "lossless frame": (PLAIN.replace(b"\xff\xc0", b"\xff\xc3"), "not a JPEG, or its headers are damaged"),
    "two frames": (PLAIN[:FRAME] + PLAIN[FRAME : FRAME + 19] + PLAIN[FRAME:], "not a JPEG, or its headers are damaged"),
    "unknown marker": (PLAIN.replace(b"\xff\xdb", b"\xff\xff", 1), "not a JPEG, or its headers are damaged"),
    "another size": (encoded(Image.fromarray(pixels(41))), "the JPEG has 56x41 pixels, expected 56x40"),
    "four components": (
        encoded(Image.fromarray(pixels()).convert("CMYK")),
        "the JPEG has 4 components of 8 bits, expected 1 or 3 of 8 bits",
    ),
    "12 bits": (
        PLAIN[: FRAME + 4] + b"\x0c" + PLAIN[FRAME + 5 :],
        "the JPEG has 3 components of 12 bits, expected 1 or 3 of 8 bits",
    ),
    "cut short": (PLAIN[:-300], "the JPEG has no end"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_dali_would_not_survive_is_found_in_the_headers(name: str) -> None:
    data, defect = DEFECTS[name]
    assert images.jpeg_defect(data, 56, 40) == defect


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": turned(1)}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_is_stored_has_no_defect(mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(pixels()).convert(mode), **options)
    assert images.jpeg_defect(*images.to_jpeg(data)) == ""


def test_random_damage_ends_no_process() -> None:
    """Headers with random bytes, among whole images: what is let through is decoded or refused by DALI."""
    result = subprocess.run([sys.executable, "-c", DAMAGE_AT_RANDOM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    decoded, refused, found = map(int, result.stdout.split())
    assert min(decoded, refused, found) > 10


DAMAGE_AT_RANDOM = """
import numpy as np
from pipelines.batches.decoding import DecodeError, Decoding; from pipelines.batches.decoders import make_decoder
from pipelines.batches.geometry import Geometry
from pipelines.images import jpeg_defect
from tests.pipelines.test_images import PLAIN

random = np.random.default_rng(0)
window = Geometry(24, 16).window(56, 40, ())
decoded = refused = found = 0
decoder = make_decoder(Decoding(threads=2, prefetch=1), 20)
for _ in range(300):
    data = bytearray(PLAIN)
    for position in random.integers(650, size=random.integers(1, 4)):
        data[position] = random.integers(256)
    if jpeg_defect(bytes(data), 56, 40):
        found += 1
        continue
    jpegs = [PLAIN] * 20
    jpegs[random.integers(20)] = bytes(data)
    try:
        decoder.submit(jpegs, [window] * 20)
        decoder.result()
        decoded += 1
    except DecodeError:
        refused += 1
        decoder = make_decoder(Decoding(threads=2, prefetch=1), 20)
print(decoded, refused, found)
"""


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif() -> None:
    image = images.open_rgb(encoded(PHOTO, "AVIF", quality=95, exif=turned(6)))
    assert np.abs(np.asarray(image, float) - np.rot90(pixels(), k=-1)).mean() < 3


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(PHOTO).save(buffer, quality=95, exif=turned(6).tobytes())
    image = images.open_rgb(buffer.getvalue())
    assert np.abs(np.asarray(image, float) - np.rot90(pixels(), k=-1)).mean() < 3
    with pytest.raises(ValueError, match="not an image that can be decoded"):
        images.open_rgb(buffer.getvalue()[:-100])


def test_heic_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"HEIC needs pillow-heif; pip install 'region-grouping\[heic\]'"):
        images.open_rgb(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100))


UNREAD = {
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n" + bytes(50), "JPEG 2000 is not read; convert it to JPEG or PNG"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "JPEG XL is not read; convert it"),
    "camera raw": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "camera raw is not read; convert it"),
    "thumbnail of a camera raw": (
        encoded(PHOTO, "TIFF", tiffinfo={254: 1}),
        "only a thumbnail can be read; convert it",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_images_of_formats_that_are_not_read(name: str) -> None:
    data, reason = UNREAD[name]
    with pytest.raises(ValueError, match=reason):
        images.open_rgb(data)
