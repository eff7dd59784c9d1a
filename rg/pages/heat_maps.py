"""Maps laid over images, and sheets of them side by side, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from rg.attribution.pointing import peaks
from rg.explain.colors import FAINT, INK, LINE, PAPER, WHITE, Color
from rg.explain.facts import Size
from rg.explain.lettering import draw_text, hairline, length, shorten
from rg.explain.overlays import heat_map
from rg.explain.pictures import GAP, MARGIN

SIDE = 224  # of the longer side of a picture, in pixels
BRIGHTEST = 99.5  # percentile of a map that is drawn brightest: a single pixel does not darken all others
FAINTEST = 0.01  # a map that is darker everywhere has no peak worth a ring
TITLE, TEXT, SMALL = 22, 16, 14  # heights of letters in pixels
CAPTION, HEADING, BLANK = 22, 30, (246, 247, 248)


@dataclass(frozen=True)
class Cell:
    """One map of one image.

    Attributes:
        title: Of the method.
        picture: The image under its map; None where the method is not defined.
        why_not: The reason, in words; empty where there is a picture.
    """

    title: str
    picture: Image.Image | None
    why_not: str = ""


@dataclass(frozen=True)
class Strip:
    """The maps of one model, under a heading."""

    heading: str
    cells: Sequence[Cell]


def overlay(image: Image.Image, values: Tensor, neutral: float = 0.0) -> Image.Image:
    """The grey image under a heat map, with a ring around the peak.

    Black up to the neutral value, pale yellow from the 99.5th percentile on, or from twice the neutral value if that is
    more. What speaks against the class is as dark as what says nothing.

    Args:
        image: RGB.
        values: [h, w], any size; up-sampled bicubically, as in the pointing game.
        neutral: The value of a position that speaks neither for nor against the class.
    """
    shape = (image.height, image.width)
    maps = values[None].float()
    up = F.interpolate(maps[:, None], shape, mode="bicubic", align_corners=False)[0, 0].numpy()
    above = np.maximum(up - neutral, 0)
    heat = np.clip(above / max(float(np.percentile(above, BRIGHTEST)), neutral, np.finfo(np.float32).tiny), 0, 1)
    out = heat_map(image, heat)
    if heat.max() > FAINTEST:
        _ring(out, peaks(maps, (image.height, image.width))[0].tolist())
    return out


def sheet(title: str, image: Image.Image, strips: Sequence[Strip]) -> Image.Image:
    """One image beside its maps, a strip for each model; maps of one method stand below each other."""
    width, height = image.size
    methods = list(dict.fromkeys(cell.title for strip in strips for cell in strip.cells))
    step, row = width + GAP, HEADING + CAPTION + height + GAP
    total = 2 * MARGIN + width + len(methods) * step
    out = Image.new("RGB", (total, 2 * MARGIN + HEADING + len(strips) * row - GAP), PAPER)
    draw = ImageDraw.Draw(out)
    draw_text(draw, (MARGIN, MARGIN), shorten(title, TITLE, total - 2 * MARGIN), INK, TITLE)
    top, first = MARGIN + HEADING, MARGIN + step
    draw_text(draw, (MARGIN, top + HEADING), "image", FAINT, SMALL)
    hairline(draw, (MARGIN, top + HEADING + CAPTION), image.size)
    out.paste(image, (MARGIN, top + HEADING + CAPTION))
    for number, strip in enumerate(strips):
        y = top + number * row
        draw_text(draw, (first, y + 4), shorten(strip.heading, TEXT, total - first - MARGIN), INK, TEXT)
        for cell in strip.cells:
            x = first + methods.index(cell.title) * step
            draw_text(draw, (x, y + HEADING), cell.title, FAINT, SMALL)
            picture = cell.picture or _words(f"Not defined: {cell.why_not}.", image.size)
            hairline(draw, (x, y + HEADING + CAPTION), picture.size)
            out.paste(picture, (x, y + HEADING + CAPTION))
    return out


def _words(text: str, size: Size) -> Image.Image:
    """A cell with words instead of a picture."""
    out = Image.new("RGB", size, BLANK)
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=LINE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer, SMALL) > size[0] - 24 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    for number, line in enumerate(lines):
        draw_text(draw, (12, 10 + 19 * number), line, FAINT, SMALL)
    return out


def _ring(picture: Image.Image, center: Sequence[float], color: Color = WHITE) -> None:
    radius = max(4.0, min(picture.size) / 28)
    x, y = center
    draw = ImageDraw.Draw(picture)
    for extra, ink in ((1.0, INK), (0.0, color)):
        draw.ellipse((x - radius - extra, y - radius - extra, x + radius + extra, y + radius + extra), outline=ink)
