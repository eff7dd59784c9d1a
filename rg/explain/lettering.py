"""Words and numbers in pictures."""

from __future__ import annotations

import bisect
from functools import lru_cache

from PIL import ImageDraw, ImageFont

from rg.explain.colors import INK, LINE, PAPER, Color, ink_on

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=64)
def font(size: float) -> Font:
    """The font of all pictures; the size is in pixels."""
    return ImageFont.load_default(size)


def shorten(text: str, font: Font, width: float) -> str:
    """The text on one line, cut with an ellipsis where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    fits = bisect.bisect_right(range(len(text)), width, key=lambda length: font.getlength(text[:length] + "…"))
    return text[: max(0, fits - 1)].rstrip() + "…"


def badge(
    draw: ImageDraw.ImageDraw,
    center: tuple[float, float],
    radius: float,
    name: str,
    color: Color,
    hollow: bool = False,
) -> None:
    """A disc with the number of a part, moved inside the picture where it would stick out."""
    x, y = (max(min(value, length - radius), radius) for value, length in zip(center, draw.im.size, strict=True))
    fill, line, ink = (PAPER, color, INK) if hollow else (color, PAPER, ink_on(color))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, line, width=max(1, round(radius / 6)))
    draw.text((x, y), name, ink, font(radius * (1.35 if len(name) == 1 else 1.1)), anchor="mm")


def hairline(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A thin frame around a picture that will be pasted there, so that a white one ends somewhere."""
    (x, y), (width, height) = corner, size
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)
