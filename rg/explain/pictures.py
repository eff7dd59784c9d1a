"""Explanations as pictures: parts, attribution and contributions, drawn with Pillow.

A ``size`` is width and height, as in Pillow; a ``shape`` is height and width, as of arrays and tensors.
"""

from __future__ import annotations

import base64
import bisect
import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

from rg.explain.colors import BLACK, FAINT, HEAT, INK, LINE, PAPER, Color, ink_on, palette
from rg.explain.facts import Facts, scaled

F = TypeVar("F", bound=Facts)
Size = tuple[int, int]  # width and height, as in Pillow

PANEL_HEIGHT, PANEL_MAX_WIDTH, BARS_WIDTH, COLUMN_MIN_WIDTH, MARGIN, GAP, CAPTION = 320, 480, 380, 120, 24, 20, 26
BARS_MIN_WIDTH, ROW_HEIGHT, NAME_WIDTH = 260, 24, 96
ANSWERS = {"label": "", "unsure": "unsure", "unknown": "no known part fits"}  # in words
NOTABLE = 0.05  # of a logit: a part that adds or takes less does not stand out


@dataclass(frozen=True)
class Bar:
    """One row of a chart of contributions.

    Attributes:
        number: Of the part, or what else the row stands for.
        value: What it adds to the logit, or to the difference of two.
        attention: Weight of the part; None for the constant.
        color: Of the part; None for the rest.
        background: Whether it is a background part: surroundings, or one that hardly counts.
        name: What people call the part; empty if they do not.
    """

    number: str
    value: float
    attention: float | None
    color: Color | None = None
    background: bool = False
    name: str = ""


def signed(value: float) -> str:
    """With its sign and two decimals, or two digits where those would be zeros."""
    if value == 0:
        return "+0.00"
    text = f"{value:+.2f}"
    return text if float(text) else f"{value:+#.2g}"


def stands_out(explanation: Facts) -> bool:
    """Whether any part adds or takes a notable share of a logit."""
    return max(abs(part.contribution) for part in explanation.parts) >= NOTABLE


def bars(explanation: Facts, limit: int, versus_rival: bool = False) -> list[Bar]:
    """The contributions in at most ``limit`` rows (3 or more), largest first, the constant last.

    Parts that do not fit, those that matter least, are added up in one row.

    Args:
        explanation: Of one image.
        limit: Rows.
        versus_rival: Contributions to the logit of the label minus those to that of the rival.
    """
    colors = palette(len(explanation.parts))
    rival = explanation.rival if versus_rival else None
    values = [part.contribution - (part.rival_contribution if rival else 0) for part in explanation.parts]
    by_weight = sorted(explanation.parts, key=lambda part: -abs(values[part.index]))
    singles = len(by_weight) if len(by_weight) < limit else limit - 2
    strongest, rest = by_weight[:singles], by_weight[singles:]
    rows = [
        Bar(
            str(part.index),
            values[part.index],
            part.attention,
            colors[part.index],
            part.background,
            "" if part.name == f"part {part.index}" else part.name,
        )
        for part in sorted(strongest, key=lambda part: -values[part.index])
    ]
    if rest:
        total, attention = sum(values[part.index] for part in rest), sum(part.attention for part in rest)
        rows.append(Bar(f"{len(rest)} more", total, attention))
    return [*rows, Bar("constant", explanation.constant - (rival.constant if rival else 0), None)]


def crop_to_window(explanation: F) -> F:
    """The same explanation of nothing but the pixels that the model saw."""
    x0, y0, x1, y1 = (round(value) for value in explanation.window)
    strongest = explanation.parts[0].strongest[y0:y1, x0:x1]
    return replace(
        explanation,
        image=explanation.image[y0:y1, x0:x1],
        attribution=explanation.attribution[y0:y1, x0:x1],
        parts=[
            replace(part, strongest=strongest, center=(part.center[0] - x0, part.center[1] - y0))
            for part in explanation.parts
        ],
        window=(0.0, 0.0, float(x1 - x0), float(y1 - y0)),
        photo_size=None,
    )


def photo(explanation: Facts, size: Size | None = None) -> Image.Image:
    """The image (at ``size``, width and height in pixels), dark where the model did not see it."""
    height, width = explanation.image.shape[:2]
    size = size or (width, height)
    image = Image.fromarray(explanation.image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    x0, y0, x1, y1 = (round(value) for value in scaled(explanation.window, size[0] / width, size[1] / height))
    out = image.point(lambda level: level * 0.3)
    out.paste(image.crop((x0, y0, x1, y1)), (x0, y0))
    return out


def parts_overlay(explanation: Facts, background: bool = False, size: Size | None = None) -> Image.Image:
    """The image with its parts tinted, outlined and numbered.

    Args:
        explanation: Of one image.
        background: Tint background parts, too.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    winners = _winners(explanation, base.size)
    pixels = np.array(base, dtype=np.float32)
    visible = [part for part in explanation.parts if background or not part.background]
    colors = palette(len(explanation.parts))
    tinted = np.zeros(len(colors) + 1, dtype=bool)  # the last is that of pixels without a part, -1
    tinted[[part.index for part in visible]] = True
    tint = np.array([*colors, BLACK], dtype=np.float32)[winners]
    share = np.where(_borders(winners, _line_width(base.size)), np.float32(1.0), np.float32(0.34)) * tinted[winners]
    out = Image.fromarray((pixels + share[..., None] * (tint - pixels)).round().astype(np.uint8))
    draw = ImageDraw.Draw(out)
    height, width = explanation.image.shape[:2]
    x_scale, y_scale = base.width / width, base.height / height
    radius = max(7.0, min(base.size) / 21)
    for part in visible:
        mask = winners == part.index
        if mask.sum() > radius**2:
            anchor = _anchor(mask, (part.center[0] * x_scale, part.center[1] * y_scale))
            _badge(draw, anchor, radius, str(part.index), colors[part.index])
    return out


def spotlight(explanation: Facts, part: int, size: Size | None = None) -> Image.Image:
    """The image with one part as it is, outlined in its colour, and the rest grey and dark.

    Args:
        explanation: Of one image.
        part: Index of the part.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    mask = _winners(explanation, base.size) == part
    pixels = np.array(base)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None] * 0.38 + 10
    out = np.where(mask[..., None], pixels, grey.astype(np.uint8))
    out[_borders(mask, _line_width(base.size)) & ~mask] = palette(len(explanation.parts))[part]
    return Image.fromarray(out)


def attribution_overlay(explanation: Facts, size: Size | None = None) -> Image.Image:
    """The grey image under a heat map of the attribution.

    Black up to an even share among the K parts (1/K), pale yellow for the largest value in the image, or for twice an
    even share if that is more: attention that prefers nothing is dark everywhere.

    Args:
        explanation: Of one image.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    even_shares = np.asarray(_resize(explanation.attribution, base.size)) * len(explanation.parts)
    heat = np.clip((even_shares - 1) / (max(float(even_shares.max()), 2.0) - 1), 0, 1)
    stops, channels = np.linspace(0, 1, len(HEAT)), np.array([ImageColor.getrgb(stop) for stop in HEAT]).T
    colors = np.stack([np.interp(heat, stops, channel) for channel in channels], axis=-1)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None]
    share = 0.35 + 0.3 * heat[..., None]
    return Image.fromarray(np.round(share * colors + (1 - share) * grey).astype(np.uint8))


def contribution_bars(
    explanation: Facts, size: Size = (BARS_WIDTH, PANEL_HEIGHT), versus_rival: bool = False
) -> Image.Image:
    """What every part adds to the logit as horizontal bars, positive to the right.

    Args:
        explanation: Of one image.
        size: Width and height of the picture in pixels; as many parts are shown one by one as have room.
        versus_rival: To the logit of the label minus that of the rival.

    Raises:
        ValueError: a picture too small to be read.
    """
    if size[0] < BARS_MIN_WIDTH or size[1] < 5 * ROW_HEIGHT:
        raise ValueError(
            f"size: expected at least {BARS_MIN_WIDTH} x {5 * ROW_HEIGHT} pixels, got {size[0]} x {size[1]}"
        )
    out = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(out)
    rows = bars(explanation, max(3, size[1] // ROW_HEIGHT - 2), versus_rival)
    small, text = _font(13), _font(15)
    longest = max(small.getlength(row.name) for row in rows)
    left, right = 76 + round(max(0.0, min(longest, NAME_WIDTH) - 36)), size[0] - 132
    draw.text((size[0] - 6, ROW_HEIGHT / 2), "attention", FAINT, small, anchor="rm")
    lowest, highest = (limit(0.0, *(row.value for row in rows)) for limit in (min, max))
    scale = (right - left) / max(highest - lowest, NOTABLE)
    zero = left - lowest * scale
    for number, row in enumerate(rows):
        y = (number + 1.5) * ROW_HEIGHT
        if row.color:
            _badge(draw, (left - 20, y), 10, row.number, row.color, hollow=row.background)
            draw.text((left - 34, y), shorten(row.name, small, NAME_WIDTH), FAINT, small, anchor="rm")
        else:
            draw.text((left - 10, y), row.number, FAINT, small, anchor="rm")
        x0, x1 = sorted((zero, zero + row.value * scale))
        draw.rectangle((x0, y - 7, max(x1, x0 + 1), y + 7), row.color or FAINT)
        draw.text((size[0] - 66, y), signed(row.value), INK, text, anchor="rm")
        if row.attention is not None:
            draw.text((size[0] - 6, y), f"{row.attention:.0%}", FAINT, text, anchor="rm")
    bottom = (len(rows) + 1.5) * ROW_HEIGHT
    draw.line((zero, ROW_HEIGHT, zero, bottom - ROW_HEIGHT / 2), INK)
    draw.line((8, bottom - ROW_HEIGHT / 2, size[0] - 6, bottom - ROW_HEIGHT / 2), LINE)
    draw.text((left - 10, bottom + 2), "logit", INK, small, anchor="rm")
    draw.text((size[0] - 66, bottom + 2), signed(sum(row.value for row in rows)), INK, text, anchor="rm")
    return out


def panel_size(explanation: Facts) -> Size:
    """Width and height of the pictures in a panel: 320 pixels high, but for wide ones."""
    height, width = explanation.image.shape[:2]
    scale = min(PANEL_HEIGHT / height, PANEL_MAX_WIDTH / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def panel(explanation: Facts, parts: Image.Image | None = None) -> Image.Image:
    """Image, parts, attribution and contributions side by side under the label.

    The last column says why it is the label and not the rival, where there is one.

    Args:
        explanation: Of one image.
        parts: What ``parts_overlay`` draws at ``panel_size``, where it has been drawn already.
    """
    size = panel_size(explanation)
    contributions = "contributions to the logit" + ("" if stands_out(explanation) else ": none stands out")
    columns = [
        ("image", photo(explanation, size)),
        ("parts", parts or parts_overlay(explanation, size=size)),
        ("attribution", attribution_overlay(explanation, size=size)),
        (contributions, contribution_bars(explanation)),
    ]
    title, text = _font(26), _font(16)
    if explanation.rival:
        why = shorten(f"why not {explanation.rival.label}", text, BARS_WIDTH)
        columns.append((why, contribution_bars(explanation, versus_rival=True)))
    widths = [max(picture.width, COLUMN_MIN_WIDTH) for _, picture in columns]
    head = MARGIN + 74
    total = 2 * MARGIN + sum(widths) + GAP * (len(columns) - 1)
    out = Image.new("RGB", (total, head + CAPTION + PANEL_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(out)
    draw.text((MARGIN, MARGIN), shorten(explanation.label, title, total - 2 * MARGIN), INK, title)
    words = ANSWERS[explanation.answer]
    line = f"{words}: {explanation.probability:.1%}" if words else f"{explanation.probability:.1%}"
    if len(explanation.top_k) > 1:
        name, probability = explanation.top_k[1]
        line += f", then {name} with {probability:.1%}"
    draw.text((MARGIN, MARGIN + 38), shorten(line, text, total - 2 * MARGIN), FAINT, text)
    x = MARGIN
    for (name, picture), column in zip(columns, widths, strict=True):
        draw.text((x, head), name, FAINT, text)
        out.paste(picture, (x + (column - picture.width) // 2, head + CAPTION + (PANEL_HEIGHT - picture.height) // 2))
        x += column + GAP
    return out


def write(picture: Image.Image, file: IO[bytes], kind: str) -> None:
    """Write a picture as ``png`` or ``webp``."""
    picture.save(file, kind.upper(), method=2)  # of WebP: half the time, 5 % more bytes


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text on one line, cut with an ellipsis where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    fits = bisect.bisect_right(range(len(text)), width, key=lambda length: font.getlength(text[:length] + "…"))
    return text[: max(0, fits - 1)].rstrip() + "…"


def _winners(explanation: Facts, size: Size) -> np.ndarray:
    """Index of the part at every pixel of a picture of that size [h, w], -1 where there is none."""
    strongest = explanation.parts[0].strongest
    parts = np.flatnonzero(np.bincount(strongest[strongest >= 0], minlength=1))
    # Shares of a pixel in 8 bits: enough to tell which is largest.
    masks = np.stack([np.asarray(_resize((strongest == index).astype(np.uint8) * 255, size)) for index in parts])
    return np.where(masks.sum(0, dtype=np.int32) >= 128, parts[masks.argmax(0)], -1)


def _resize(values: np.ndarray, size: Size) -> Image.Image:
    """Numbers [H, W], float32 or uint8, as a picture of them; far larger ones are thinned out first."""
    step = max(1, min(values.shape[0] // (4 * size[1]), values.shape[1] // (4 * size[0])))
    return Image.fromarray(values[::step, ::step]).resize(size, Image.Resampling.BILINEAR)


@lru_cache(maxsize=64)
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _line_width(size: Size) -> int:
    return max(1, round(min(size) / 110))


def _borders(winners: np.ndarray, width: int) -> np.ndarray:
    """Pixels with another part, or none, at most ``width`` columns and rows away."""
    around = 2 * width + 1
    lowest, highest = ndimage.minimum_filter(winners, around), ndimage.maximum_filter(winners, around)
    return np.asarray(lowest != highest)


def _anchor(mask: np.ndarray, center: tuple[float, float]) -> tuple[float, float]:
    """Where to number a part: its centre, or where its mask is thickest if that lies outside the mask."""
    x, y = (min(max(int(value), 0), length - 1) for value, length in zip(center, mask.shape[::-1], strict=True))
    if mask[y, x]:
        return center
    step = max(1, max(mask.shape) // 100)
    if not mask[::step, ::step].any():
        step = 1
    # What lies outside of the picture is outside of the mask, so that the number keeps away from the edge.
    thickness = ndimage.distance_transform_edt(np.pad(mask[::step, ::step], 1))[1:-1, 1:-1]
    y, x = (step * int(index) for index in np.unravel_index(thickness.argmax(), thickness.shape))
    return float(x), float(y)


def _badge(
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
    draw.text((x, y), name, ink, _font(radius * (1.35 if len(name) == 1 else 1.1)), anchor="mm")


def data_uri(picture: Image.Image, form: str = "webp", quality: int = 85) -> str:
    """A picture as part of a page.

    Args:
        picture: RGB.
        form: webp, jpeg or png, which has no quality.
        quality: 1 to 100.
    """
    buffer = io.BytesIO()
    picture.save(buffer, form.upper(), quality=quality)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
