"""Explanations as pictures: parts, attribution and contributions, drawn with Pillow."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

if TYPE_CHECKING:
    from rg.explanation import Explanation

Color = tuple[int, int, int]
Size = tuple[int, int]

MAX_PARTS = 64
PANEL_HEIGHT, PANEL_MAX_WIDTH, BARS_WIDTH, COLUMN_MIN_WIDTH, MARGIN, GAP, CAPTION = 320, 480, 380, 120, 24, 20, 26
BARS_MIN_WIDTH, ROW_HEIGHT, NAME_WIDTH = 260, 24, 96
PAPER, INK, FAINT, LINE = (255, 255, 255), (28, 32, 38), (104, 112, 122), (214, 219, 225)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
ANSWERS = {"label": "", "unsure": "unsure", "unknown": "no known part fits"}  # in words
NOTABLE = 0.05  # of a logit: a part that adds or takes less does not stand out
# Okabe and Ito, "Color universal design" (2008), without black and yellow, which vanish on dark and light paper.
FIRST_COLORS = ((230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233))
# Dark to warm with lightness that rises evenly (matplotlib's inferno at eight points).
HEAT = ("#000004", "#2d0b59", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac127", "#fcffa4")


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


def palette(count: int) -> list[Color]:
    """Colours (8-bit RGB) that stay apart, also for red-green colour-blind eyes; part k always has colour k.

    Raises:
        ValueError: not 1 to 64 colours.
    """
    if not 1 <= count <= MAX_PARTS:
        raise ValueError(f"count: expected 1 to {MAX_PARTS} colours, got {count}")
    return list(_colors()[:count])


def ink_on(color: Color) -> Color:
    """Black or white, whichever is read more easily on a colour."""
    # White is read more easily than contrast alone says, so it is taken wherever it has a contrast of 3 (WCAG).
    return BLACK if _linear(np.array(color)) @ (0.2126, 0.7152, 0.0722) > 0.29 else WHITE


def signed(value: float) -> str:
    """With its sign and two decimals, or two digits where those would be zeros."""
    text = f"{value or 0:+.2f}"
    return f"{value:+#.2g}" if value and not float(text) else text


def stands_out(explanation: Explanation) -> bool:
    """Whether any part adds or takes a notable share of a logit."""
    return max(abs(part.contribution) for part in explanation.parts) >= NOTABLE


def bars(explanation: Explanation, limit: int, versus_rival: bool = False) -> list[Bar]:
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
    fits = len(by_weight) < limit
    shown, rest = (by_weight, []) if fits else (by_weight[: limit - 2], by_weight[limit - 2 :])
    rows = [
        Bar(
            str(part.index),
            values[part.index],
            part.attention,
            colors[part.index],
            part.background,
            "" if part.name == f"part {part.index}" else part.name,
        )
        for part in sorted(shown, key=lambda part: -values[part.index])
    ]
    if rest:
        total, attention = sum(values[part.index] for part in rest), sum(part.attention for part in rest)
        rows.append(Bar(f"{len(rest)} more", total, attention))
    return [*rows, Bar("constant", explanation.constant - (rival.constant if rival else 0), None)]


def crop_to_window(explanation: Explanation) -> Explanation:
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


def photo(explanation: Explanation, size: Size | None = None) -> Image.Image:
    """The image (at ``size``, width and height in pixels), dark where the model did not see it."""
    height, width = explanation.image.shape[:2]
    size = size or (width, height)
    image = Image.fromarray(explanation.image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    scale = (size[0] / width, size[1] / height) * 2
    x0, y0, x1, y1 = (round(value * factor) for value, factor in zip(explanation.window, scale, strict=True))
    out = image.point(lambda level: level * 0.3)
    out.paste(image.crop((x0, y0, x1, y1)), (x0, y0))
    return out


def parts_overlay(explanation: Explanation, background: bool = False, size: Size | None = None) -> Image.Image:
    """The image with its parts tinted, outlined and numbered.

    Args:
        explanation: Of one image.
        background: Tint background parts, too.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    winners = _winners(explanation, base.size)
    pixels = np.array(base, dtype=np.float32)
    shown = [part for part in explanation.parts if background or not part.background]
    colors = palette(len(explanation.parts))
    tinted = np.zeros(len(colors) + 1, dtype=bool)  # the last is that of pixels without a part, -1
    tinted[[part.index for part in shown]] = True
    tint = np.array([*colors, BLACK], dtype=np.float32)[winners]
    share = np.where(_borders(winners, _line_width(base.size)), np.float32(1.0), np.float32(0.34)) * tinted[winners]
    out = Image.fromarray((pixels + share[..., None] * (tint - pixels)).round().astype(np.uint8))
    draw = ImageDraw.Draw(out)
    scale = base.width / explanation.image.shape[1], base.height / explanation.image.shape[0]
    radius = max(7.0, min(base.size) / 21)
    for part in shown:
        mask = winners == part.index
        if mask.sum() > radius**2:
            anchor = _anchor(mask, (part.center[0] * scale[0], part.center[1] * scale[1]))
            _badge(draw, anchor, radius, str(part.index), colors[part.index])
    return out


def spotlight(explanation: Explanation, part: int, size: Size | None = None) -> Image.Image:
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


def attribution_overlay(explanation: Explanation, size: Size | None = None) -> Image.Image:
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
    explanation: Explanation, size: Size = (BARS_WIDTH, PANEL_HEIGHT), versus_rival: bool = False
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


def panel_size(explanation: Explanation) -> Size:
    """Width and height of the pictures in a panel: 320 pixels high, but for wide ones."""
    height, width = explanation.image.shape[:2]
    scale = min(PANEL_HEIGHT / height, PANEL_MAX_WIDTH / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def panel(explanation: Explanation, parts: Image.Image | None = None) -> Image.Image:
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


def _winners(explanation: Explanation, size: Size) -> np.ndarray:
    """Index of the part at every pixel of a picture of that size [h, w], -1 where there is none."""
    strongest = explanation.parts[0].strongest
    found = np.flatnonzero(np.bincount(strongest[strongest >= 0], minlength=1))
    # Shares of a pixel in 8 bits: enough to tell which is largest.
    masks = np.stack([np.asarray(_resize((strongest == index).astype(np.uint8) * 255, size)) for index in found])
    return np.where(masks.sum(0, dtype=np.int32) >= 128, found[masks.argmax(0)], -1)


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


@lru_cache(maxsize=1)
def _colors() -> tuple[Color, ...]:
    """The first colours, then always the one that differs most from those before it, to normal or colour-blind eyes."""
    levels = np.arange(30, 250, 20)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *ab = _oklab(_linear(candidates)).T
    candidates = candidates[(lightness > 0.5) & (lightness < 0.82) & (np.hypot(*ab) > 0.07)]
    seen = _seen(candidates)
    chosen = [np.array(color) for color in FIRST_COLORS]
    apart = np.full(len(candidates), np.inf)
    for number in range(MAX_PARTS):
        if number == len(chosen):
            chosen.append(candidates[apart.argmax()])
        apart = np.minimum(apart, np.linalg.norm(seen - _seen(chosen[number])[:, None], axis=-1).min(0))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in chosen)


def _seen(colors: np.ndarray) -> np.ndarray:
    """Colours [..., 3] in a space of even differences, as normal and as green-blind eyes see them: [2, ..., 3]."""
    linear = _linear(colors)
    # Machado et al., "A physiologically-based model for simulation of color vision deficiency" (2009), deuteranopia.
    green_blind = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    return np.stack([_oklab(linear), _oklab(np.clip(linear @ green_blind.T, 0, 1))])


def _linear(colors: np.ndarray) -> np.ndarray:
    """8-bit sRGB -> linear light, 0 to 1."""
    scaled = colors / 255
    return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    """Linear light -> Oklab (Ottosson, 2020): lightness, green to red, blue to yellow."""
    cones = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    axes = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return np.cbrt(linear @ cones.T) @ axes.T
