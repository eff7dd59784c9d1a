"""Grey levels of more than 8 bits: scaled as the file says, or refused; never black without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pipelines import images

GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)  # what every image here shows, in 8 bits
S_MIN, S_MAX, SHORT, DOUBLE = 340, 341, 3, 12


def encoded(levels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, kind, **options)
    return buffer.getvalue()


def stating(kind: int, low: float, high: float) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((S_MIN, low), (S_MAX, high)):
        tags.tagtype[tag] = kind
        tags[tag] = value
    return tags


def tiff(bits: int, photometric: int, data: bytes) -> bytes:
    """A grey TIFF of 16x16 pixels in one strip."""
    values = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 16, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + data


def png(levels: np.ndarray, color_type: int) -> bytes:
    """A PNG of 16 bits; levels [16, 16, channels]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, color_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed(levels: np.ndarray) -> bytes:
    """12 bits each, without gaps."""
    bits = "".join(f"{level:012b}" for level in levels.ravel())
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def in_color(levels: np.ndarray, alpha: bool = False) -> np.ndarray:
    opaque = [np.full_like(levels, 65535)] * alpha
    return np.stack([levels] * 3 + opaque, axis=-1)


STATED = {
    "16 bit PNG": encoded(GREY * 257, "PNG"),
    "16 bit TIFF": encoded(GREY * 257, "TIFF"),
    "16 bit in 32": encoded(GREY.astype(np.int32) * 257, "TIFF"),
    "12 bit in 16, stated": encoded(GREY * 16, "TIFF", tiffinfo=stating(SHORT, 0, 255 * 16)),
    "8 bit in 32, stated": encoded(GREY.astype(np.int32), "TIFF", tiffinfo=stating(SHORT, 0, 255)),
    "float, stated": encoded(GREY.astype(np.float32) / 255 - 1, "TIFF", tiffinfo=stating(DOUBLE, -1, 0)),
    "12 bits per sample": tiff(12, 1, packed(np.round(GREY / 255 * 4095).astype(int))),
    "white is zero, 16 bit": tiff(16, 0, (65535 - GREY * 257).astype("<u2").tobytes()),
    "white is zero, 8 bit": tiff(8, 0, (255 - GREY).astype(np.uint8).tobytes()),
    "PPM with its white level": b"P5 16 16 4080\n" + (GREY * 16).astype(">u2").tobytes(),
    "16 bit colours": png(in_color(GREY * 257), 2),
    "16 bit colours and alpha": png(in_color(GREY * 257, alpha=True), 6),
}
UNKNOWN = {
    "12 bit in 16, PNG": (encoded(GREY * 16, "PNG"), "12-bit"),
    "12 bit in 16, TIFF": (encoded(GREY * 16, "TIFF"), "12-bit"),
    "8 bit in 16": (encoded(GREY, "PNG"), "8-bit"),
    "8 bit in 32": (encoded(GREY.astype(np.int32), "TIFF"), "8-bit"),
    "12 bit in 16, white is zero": (tiff(16, 0, (GREY * 16).astype("<u2").tobytes()), "12-bit"),
    "12 bit colours in 16": (png(in_color(GREY * 16), 2), "12-bit"),
    "12 bit colours in 16 and alpha": (png(in_color(GREY * 16, alpha=True), 6), "12-bit"),
    "12 bit grey in PPM of 16": (b"P5 16 16 65535\n" + (GREY * 16).astype(">u2").tobytes(), "12-bit"),
    "12 bit colours in PPM of 16": (b"P6 16 16 65535\n" + in_color(GREY * 15).astype(">u2").tobytes(), "of 65535"),
    "32 bit": (encoded(GREY.astype(np.int32) << 20, "TIFF"), "grey levels from 0 to 267386880, expected 0 to 65535"),
    "float": (encoded(GREY.astype(np.float32), "TIFF"), "no known range"),
    "outside of what is stated": (encoded(GREY * 257, "TIFF", tiffinfo=stating(SHORT, 0, 255)), "states 0 to 255"),
    "not a number": (
        encoded(np.full((4, 4), np.nan, np.float32), "TIFF", tiffinfo=stating(DOUBLE, 0, 1)),
        "grey levels from nan",
    ),
}


@pytest.mark.parametrize("name", STATED)
def test_levels_of_a_known_range_become_those_of_8_bits(name: str) -> None:
    found = np.asarray(images.open_rgb(STATED[name]))
    np.testing.assert_array_equal(found, in_color(GREY))


@pytest.mark.parametrize("name", UNKNOWN)
def test_levels_of_an_unknown_range_are_refused(name: str) -> None:
    data, reason = UNKNOWN[name]
    with pytest.raises(ValueError, match=reason):
        images.open_rgb(data)


@pytest.mark.parametrize("levels", [GREY * 16, GREY, GREY.astype(np.int32)])
def test_images_that_pillow_has_opened_are_refused_alike(levels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scale them to the full range"):
        images.open_rgb(Image.fromarray(levels))


def test_levels_of_14_bits_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert np.asarray(images.open_rgb(encoded(GREY * 64, "TIFF"))).max() == 64
    assert "levels of at most 16320 of 65535, perhaps of 14-bit data: scale them" in caplog.text


def test_a_transparent_level_of_16_bits_is_white() -> None:
    data = encoded(GREY * 257, "PNG")
    header = data.index(b"IHDR") + 17 + 4  # the chunk of the transparent level follows
    chunk = b"tRNS" + struct.pack(">H", 7 * 257)
    data = data[:header] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[header:]
    found = np.asarray(images.open_rgb(data))[..., 0]
    np.testing.assert_array_equal(found, np.where(GREY == 7, 255, GREY))
