"""Which format a file has, told by its first bytes, and opening it up to its pixels."""

from __future__ import annotations

import importlib.util
import re
from typing import IO

from PIL import Image, UnidentifiedImageError, features

# What Pillow decodes by itself, and HEIF by pillow-heif. Others (EPS, WMF) would start external programs on files that
# nobody has looked at.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = (1 << 29) // 3  # of one image: 512 MiB, which Pillow and DALI decode
HEAD = 32  # bytes that tell the format
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "camera raw": rb"II\*\0....CR|IIU\0|IIR[OS]|FUJIFILMCCD-RAW|....ftypcrx ",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftypavi[fs]",
    "HEIF": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s+[#\d]",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "Photoshop": rb"8BPS\0",
}
PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in SIGNATURES.items()}
NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF
REDUCED = 1  # bit of NewSubfileType


class TooLargeError(ValueError):
    """An image has more pixels than ``MAX_PIXELS``."""


def readable_formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that are read here: HEIF needs pillow-heif, AVIF a Pillow that was built with it."""
    missing = set()
    if not importlib.util.find_spec("pillow_heif"):
        missing.add("HEIF")
    if not features.check("avif"):
        missing.add("AVIF")
    return tuple(name for name in FORMATS if name not in missing)


def image_format(head: bytes) -> str:
    """Name of the format of a file that begins so: one of ``FORMATS``, that of an image which is not read, or empty.

    Args:
        head: The first ``HEAD`` bytes, fewer if the file is shorter.
    """
    return next((name for name, pattern in PATTERNS.items() if pattern.match(head)), "")


def open_image(file: IO[bytes]) -> Image.Image:
    """Opens an image without decoding it: format, mode and size are known then, its pixels with ``load``.

    It may have any number of pixels, unlike with ``PIL.Image.open``; see ``reduce``.

    Args:
        file: At its beginning.

    Raises:
        UnidentifiedImageError: it is no image.
        ValueError: it is an image of a format that is not read, or a thumbnail; the message says what to do.
        Exception: nearly anything, from Pillow, where the file is damaged.
    """
    name = image_format(file.read(HEAD))
    file.seek(0)
    if name and name not in FORMATS:
        raise ValueError(f"{name} is not read; convert it to JPEG or PNG")
    image = _open_heif(file) if name == "HEIF" else _open(file, name)
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) & REDUCED:
        raise ValueError("camera raw, of which only a thumbnail can be read; convert it to JPEG or PNG")
    return image


def reduce(image: Image.Image) -> None:
    """Has an image that is not loaded yet decoded with at most ``MAX_PIXELS`` pixels: 1/2, 1/4 or 1/8 of each side.

    Only baseline JPEGs can be; progressive ones take the memory of all pixels.

    Raises:
        TooLargeError: it has more pixels.
    """
    size = image.size
    factor = next((factor for factor in (1, 2, 4, 8) if size[0] * size[1] <= MAX_PIXELS * factor**2), 0)
    if factor > 1 and image.format == "JPEG" and not image.info.get("progressive"):
        image.draft(None, (size[0] // factor, size[1] // factor))
    if image.width * image.height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise TooLargeError(f"expected at most {limit}, got {size[0]}x{size[1]}; scale it down first")


def _open(file: IO[bytes], name: str) -> Image.Image:
    if name == "AVIF" and not features.check("avif"):
        raise ValueError("AVIF needs Pillow 11.3; update Pillow, or convert it to JPEG or PNG")
    if not name:
        raise UnidentifiedImageError
    try:
        return Image.open(file, formats=[name])
    except Image.DecompressionBombError:
        file.seek(0)
        factory, _ = Image.OPEN[name]
        return factory(file, "")


def _open_heif(file: IO[bytes]) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ValueError("HEIC needs pillow-heif; pip install 'region-grouping[heic]'") from None
    return HeifImageFile(file)
