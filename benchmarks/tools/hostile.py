"""Pictures that strangers may send: some honest but odd, some made to do harm, each with the status of its answer."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from rg.server.uploads import MAX_SCANS

MEGABYTES, MEGAPIXELS = 2, 2  # limits of the server that the statuses are for


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Random pixels, always the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int = 8, color: int = 0, body: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(body)) + _chunk(b"IEND", b"")


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says something else."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    jpeg = encoded(noise(64, 64), progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


def _hidden_scans() -> bytes:
    """As many scans, behind a marker that looks as if it skipped them."""
    jpeg = with_scans(5000)
    first = jpeg.index(b"\xff\xda")
    return jpeg[:first] + b"\xff\x01" + jpeg[first:]


def _frames(form: str, count: int = 300) -> bytes:
    return encoded(noise(40, 30), form, save_all=True, append_images=[noise(40, 30)] * (count - 1))


JPEG = encoded(noise(90, 70))
HOSTILE: dict[str, tuple[bytes, int]] = {  # content, and the status of the answer
    "nothing": (b"", 400),
    "text": (b"not an image", 400),
    "HTML": (b"<!doctype html><script>alert(1)</script>", 400),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 400),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400),
    "zip bomb": (b"PK\x03\x04" + bytes(1000), 400),
    "PNG of 40000x40000": (_png(40000, 40000, 1, 0, bytes(100000)), 413),
    "PNG of 1700x1700": (_png(1700, 1700, 8, 0, bytes(1701 * 1700)), 413),
    "PNG of more pixels than it holds": (_png(100, 100, 8, 0, bytes(10)), 400),
    "PNG with a text bomb": (
        _png(8, 8, body=bytes(72))[:-12] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) + _png(8, 8)[-12:],
        400,
    ),
    "JPEG cut short": (JPEG[: len(JPEG) // 2], 400),
    "JPEG of nothing but its head": (JPEG[:20], 400),
    "JPEG that claims 60000x60000": (_with_size(JPEG, 60000, 60000), 413),
    "JPEG that claims 8x8": (_with_size(JPEG, 8, 8), 200),
    "JPEG of many scans": (with_scans(MAX_SCANS + 1), 413),
    "GIF of 65535x65535": (
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
        413,
    ),
    "TIFF with a wild directory": (b"II*\0\xff\xff\xff\x7f", 400),
    "WebP cut short": (encoded(noise(40, 30), "WEBP")[:200], 400),
    "BMP of a negative width, so a wide one": (
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, -5, 5, 1, 24, 0, 0, 0, 0, 0, 0),
        413,
    ),
    "BMP of run lengths": (
        b"BM"
        + bytes(8)
        + struct.pack("<IIiiHHIIiiII", 62, 40, 1000, 1, 1, 8, 1, 0, 0, 0, 2, 0)
        + b"\0\0\0\0\0\0\0\0\0\2\0\xff",
        400,
    ),
    "JPEG of fill bytes": (b"\xff\xd8" + b"\xff" * 10**6, 400),
    "JPEG of scans behind a marker without a length": (_hidden_scans(), 413),
    "floating-point TIFF": (encoded(noise(9, 9).convert("F"), "TIFF"), 400),
    "larger than allowed": (b"\xff\xd8" + bytes(3 * 10**6), 413),
}
HONEST: dict[str, bytes] = {
    "JPEG": JPEG,
    "progressive JPEG": encoded(noise(90, 70), progressive=True),
    "CMYK JPEG": encoded(noise(90, 70, "CMYK")),
    "JPEG that is HTML, too": JPEG + b"<script>alert(1)</script>",
    "JPEG with a large EXIF block": encoded(noise(90, 70), exif=b"Exif\0\0MM\0*" + bytes(65000)),
    "grey PNG": encoded(noise(90, 70, "L"), "PNG"),
    "16-bit PNG": encoded(Image.fromarray(np.asarray(noise(90, 70, "L")) * np.uint16(257)), "PNG"),
    "transparent PNG": encoded(noise(90, 70, "RGBA"), "PNG"),
    "palette PNG": encoded(noise(90, 70, "P"), "PNG"),
    "PNG of 1x100000": encoded(Image.new("L", (1, 100000)), "PNG"),
    "PNG of 100000x1": encoded(Image.new("L", (100000, 1)), "PNG"),
    "PNG of 1x1": encoded(noise(1, 1), "PNG"),
    "GIF of 300 frames": _frames("GIF"),
    "TIFF of 300 frames": _frames("TIFF"),
    "WebP": encoded(noise(90, 70), "WEBP"),
}
