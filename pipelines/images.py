"""Any image file -> upright RGB pixels, or the JPEG that a shard stores.

Every image passes through here once, fully decoded, before it is stored: a corrupt file is refused while it still has a
name, because at run time one undecodable JPEG ends a DALI pipeline for good.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipelines.formats import TooLargeError, open_image, reduce
from pipelines.levels import check_deep_color, is_deep_color, is_deep_grey, to_8_bits

MAX_JPEG_SIDE = 65500
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SOS, APP0, FILL = 0xDA, 0xE0, 0xFF
FRAMES = (0xC0, 0xC2)  # baseline, progressive
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def open_rgb(data: bytes | str | os.PathLike | Image.Image) -> Image.Image:
    """Decodes an image to upright 8-bit RGB.

    The EXIF orientation is applied, grey of more than 8 bits is scaled to 0..255 (see ``pipelines.levels``),
    transparency is laid on white, and of several frames the first is taken. A JPEG of more than ``MAX_PIXELS`` pixels
    (of ``pipelines.formats``) is decoded at a half, a quarter or an eighth of its size.

    Args:
        data: The bytes of an image file, its path, or an image that Pillow has opened.

    Raises:
        ValueError: it is no image, is damaged or cut short, has levels of an unknown range, or has too many pixels.
        OSError: the file cannot be read.
    """
    if isinstance(data, bytes):
        return _decode(data)[0].copy()
    if isinstance(data, Image.Image):
        return _upright(_rgb(data), _orientation(data))
    content = Path(data).read_bytes()
    try:
        return _decode(content)[0].copy()
    except ValueError as error:
        raise ValueError(f"{os.fspath(data)}: {error}") from None


def forget() -> None:
    """Drops the image that was decoded last, which is else kept until the next one."""
    _decode.cache_clear()


def to_jpeg(data: bytes) -> tuple[bytes, int, int]:
    """The JPEG to store for an image file, with its width and height in pixels.

    These are the original bytes if they are an upright 8-bit RGB or grey-scale JPEG, baseline or progressive, without
    garbage between its headers; anything else is encoded anew (quality 95, full chroma resolution).

    Raises:
        ValueError: see ``open_rgb``; or a side is longer than a JPEG can be.
    """
    image, storable = _decode(data)
    if not storable:
        if max(image.size) > MAX_JPEG_SIDE:
            raise ValueError(f"not an image that a JPEG can hold ({image.width}x{image.height} pixels)")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
        data = buffer.getvalue()
    return data, image.width, image.height


@functools.lru_cache(maxsize=1)  # what is scaled down while packing has just been decoded to check it
def _decode(data: bytes) -> tuple[Image.Image, bool]:
    """Upright RGB image, and whether ``data`` may be stored as it is."""
    if not data:
        raise ValueError("not an image that can be decoded (the file is empty)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(io.BytesIO(data)) as image:
                size = image.size
                reduce(image)
                rgb = _rgb(image)
                orientation = _orientation(image)
                if image.format == "JPEG" and not has_end(data):
                    raise ValueError("the JPEG has no end")
                whole = image.size == size and orientation == 1
                storable = whole and image.format == "JPEG" and _is_plain_jpeg(image, data)
    except TooLargeError:
        raise
    except UnidentifiedImageError:  # its message holds a memory address
        raise ValueError("not an image that can be decoded (unknown format)") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not an image that can be decoded ({reason})") from None
    return _upright(rgb, orientation), storable


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info = {}  # also says how to turn it, which is no longer true
    return turned


def _orientation(image: Image.Image) -> object:
    """Value of the EXIF orientation tag: 1 without one, None where the EXIF block cannot be read."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


def _rgb(image: Image.Image) -> Image.Image:
    deep_color = is_deep_color(image)  # is known until the pixels are loaded
    image.load()
    if deep_color:
        check_deep_color(image)
    if is_deep_grey(image):
        return to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads this JPEG, which Pillow has decoded, in the same way.

    Pillow skips what lies between two header segments, DALI's decoder fails there. Arithmetic coding and images stored
    as RGB instead of YCbCr are rare enough that hardware decoders do without.
    """
    stored_as_rgb = image.mode == "RGB" and image.info.get("adobe_transform") == 0
    if image.mode not in ("L", "RGB") or stored_as_rgb:
        return False
    return _frame(data) is not None


def has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the first scan of a JPEG.

    Without one the file was cut short, perhaps filled up with zeros, which decoders show as grey without a word.
    """
    *_, (marker, position) = _segments(jpeg) or [(0, 0)]
    return marker != SOS or jpeg.rfind(EOI, position) >= 0


def jpeg_defect(jpeg: bytes, width: int, height: int) -> str:
    """What forbids to hand a stored JPEG to a decoder, as far as its headers tell; empty if nothing does.

    DALI 2.4 does not survive a batch with an image whose headers it cannot read or whose window lies outside: the
    process dies while the other images are being decoded.

    Args:
        jpeg: What ``to_jpeg`` has returned, perhaps damaged since.
        width: Columns that the image should have.
        height: Its rows.
    """
    frame = _frame(jpeg)
    if frame is None:
        return "not a JPEG, or its headers are damaged"
    precision, rows, columns, components = struct.unpack_from(">BHHB", jpeg, frame + 4)
    if (columns, rows) != (width, height):
        return f"the JPEG has {columns}x{rows} pixels, expected {width}x{height}"
    if precision != 8 or components not in (1, 3):
        return f"the JPEG has {components} components of {precision} bits, expected 1 or 3 of 8 bits"
    return "" if has_end(jpeg) else "the JPEG has no end"


def _frame(jpeg: bytes) -> int | None:
    """Position of the frame header of a JPEG; None if its headers are not those that every decoder knows."""
    segments = _segments(jpeg)
    markers = [marker for marker, _ in segments]
    frames = [position for marker, position in segments if marker in FRAMES]
    if not jpeg.startswith(SOI) or markers[-1:] != [SOS] or len(frames) != 1:
        return None
    known = all(marker in (*FRAMES, *TABLES, SOS) or APP0 <= marker < FILL for marker in markers)
    return frames[0] if known else None


def _segments(jpeg: bytes) -> list[tuple[int, int]]:
    """Marker and position of the segments of a JPEG that follow each other, up to the first scan."""
    segments = []
    position = 2
    while jpeg[position : position + 1] == b"\xff" and position + 4 <= len(jpeg):
        segments.append((jpeg[position + 1], position))
        if jpeg[position + 1] == SOS:
            break
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return segments
