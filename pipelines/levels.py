"""Grey levels of more than 8 bits, and which of them are black and white.

A TIFF may say so itself: by 12 bits per sample, or by the tags SMinSampleValue and SMaxSampleValue. Levels of 16 and 32
bits without that go from 0 to 65535. If none is above 4095 they are refused: they are more likely data of 8 to 12 bits,
which would be nearly black, than a dark photo. If none is above 16383, perhaps of 14 bits, a warning is logged.
"""

from __future__ import annotations

import logging

import numpy as np
from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
S_MIN, S_MAX = 340, 341  # SMinSampleValue, SMaxSampleValue
WHITE_IS_ZERO = 0  # value of PHOTOMETRIC
WHITE = 65535
BLACK, DARK = 1 << 12, 1 << 14  # brighter levels are expected where nothing states the range
REMEDY = "scale them to the full range of 16 or of 8 bits"

logger = logging.getLogger(__name__)


def is_deep_grey(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_deep_color(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has colours of 16 bits, of which Pillow keeps the upper 8."""
    decoders = [str(tile[3]) for tile in getattr(image, "tile", ())]  # of PPM with the white level, else with the bits
    return image.mode in ("RGB", "RGBA") and any(";16" in text or str(WHITE) in text for text in decoders)


def to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits scaled to mode L; what it calls transparent becomes white.

    Raises:
        ValueError: its range is neither stated nor obvious, or it has levels outside of the range.
    """
    levels = np.asarray(image)
    stated = _stated_range(image)
    low, high = stated or (0.0, float(WHITE))
    darkest, brightest = levels.min(), levels.max()
    if stated is None:
        if image.mode == "F":
            raise ValueError(
                "floating-point pixels have no known range; state it in the tags SMinSampleValue and SMaxSampleValue"
            )
        if darkest < 0 or brightest > WHITE:
            raise ValueError(f"grey levels from {darkest} to {brightest}, expected 0 to {WHITE}; {REMEDY}")
        _check_brightness(int(brightest), f"{REMEDY}, or state their range in the TIFF tag SMaxSampleValue")
    elif not (np.isfinite(levels).all() and low <= darkest and brightest <= high):
        raise ValueError(f"grey levels from {darkest} to {brightest}, the file states {low:g} to {high:g}")
    scaled = np.subtract(levels, low, dtype=float)
    scaled *= 255 / (high - low)
    grey = np.rint(scaled, out=scaled).astype(np.uint8)
    if _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey = np.where(levels == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)


def check_deep_color(image: Image.Image) -> None:
    """Checks the upper 8 bits of an image for which ``is_deep_color`` held.

    Raises:
        ValueError: it is nearly black.
    """
    brightest = int(np.asarray(image)[..., :3].max())
    _check_brightness(((brightest + 1) << 8) - 1, REMEDY)


def _check_brightness(brightest: int, remedy: str) -> None:
    if brightest >= DARK:
        return
    doubt = f"levels of at most {brightest} of {WHITE}, perhaps of {brightest.bit_length()}-bit data: {remedy}"
    if brightest < BLACK:
        raise ValueError(doubt)
    logger.warning("an image is dark, with %s", doubt)


def _stated_range(image: Image.Image) -> tuple[float, float] | None:
    """Levels of black and white as the file states them."""
    tags = _tags(image)
    if S_MAX in tags:
        low, high = (float(np.min(tags.get(tag, 0))) for tag in (S_MIN, S_MAX))
        if low < high:
            return low, high
    (bits, *_) = tags.get(BITS_PER_SAMPLE, (16,))
    return None if bits in (16, 32) else (0.0, 2.0**bits - 1)


def _tags(image: Image.Image) -> dict:
    return dict(getattr(image, "tag_v2", {}))
