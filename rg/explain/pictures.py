"""Explanations as pictures, drawn with Pillow: what is laid over the image, beside its contributions."""

from __future__ import annotations

import base64
import io
from typing import IO

from PIL import Image, ImageDraw

from rg.explain.colors import FAINT, INK, LINE, PAPER
from rg.explain.contributions import NOTABLE, bars, signed, stands_out
from rg.explain.facts import MOSTLY, Facts, Size
from rg.explain.lettering import badge, draw_text, hairline, length, shorten
from rg.explain.numbers import percent
from rg.explain.overlays import attribution_overlay, parts_overlay, photo, zoom_overlay

PANEL_HEIGHT, PANEL_MAX_WIDTH, BARS_WIDTH, COLUMN_MIN_WIDTH, MARGIN, GAP, CAPTION = 320, 480, 380, 120, 24, 20, 26
HEAD = MARGIN + 74  # what stands above the captions
BARS_MIN_WIDTH, ROW_HEIGHT, NAME_WIDTH = 260, 24, 96
TITLE, TEXT, VALUE, SMALL = 26, 16, 15, 13  # heights of letters in pixels
ANSWERS = {  # in words
    "label": "",
    "unsure": "unsure",
    "unknown": "no known part fits",
    "none": "learned without labels, names no class",
}


def panel(explanation: Facts, parts: Image.Image | None = None) -> Image.Image:
    """Image, parts, attribution and contributions side by side under the label; without one, image and parts.

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
    if explanation.answer == "none":
        columns = columns[:2]
    if explanation.zoom is not None:
        columns.insert(1, ("zoom", zoom_overlay(explanation, size)))
    if explanation.rival:
        why = shorten(f"why not {explanation.rival.label}", TEXT, BARS_WIDTH)
        columns.append((why, contribution_bars(explanation, versus_rival=True)))
    widths = [max(picture.width, COLUMN_MIN_WIDTH) for _, picture in columns]
    total = 2 * MARGIN + sum(widths) + GAP * (len(columns) - 1)
    out = Image.new("RGB", (total, HEAD + CAPTION + PANEL_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(out)
    draw_text(draw, (MARGIN, MARGIN), shorten(explanation.label or "parts", TITLE, total - 2 * MARGIN), INK, TITLE)
    words = ANSWERS[explanation.answer]
    line = f"{words}: {percent(explanation.probability)}" if words else percent(explanation.probability)
    if explanation.answer == "none":
        line = words
    if len(explanation.top_k) > 1:
        name, probability = explanation.top_k[1]
        line += f", then {name} with {percent(probability)}"
    if explanation.place and explanation.place.label_without != explanation.label:
        line += f"; by the image alone {explanation.place.label_without}"
    if explanation.seen < MOSTLY:
        line += f"; the model saw only {percent(explanation.seen, 0)} of the image"
    draw_text(draw, (MARGIN, MARGIN + 38), shorten(line, TEXT, total - 2 * MARGIN), FAINT, TEXT)
    x = MARGIN
    for (name, picture), column in zip(columns, widths, strict=True):
        draw_text(draw, (x, HEAD), name, FAINT, TEXT)
        left, top = x + (column - picture.width) // 2, HEAD + CAPTION + (PANEL_HEIGHT - picture.height) // 2
        if picture.size == size:  # no bars
            hairline(draw, (left, top), size)
        out.paste(picture, (left, top))
        x += column + GAP
    return out


def panel_size(explanation: Facts) -> Size:
    """Width and height of the pictures in a panel: 320 pixels high, but for wide ones."""
    height, width = explanation.image.shape[:2]
    scale = min(PANEL_HEIGHT / height, PANEL_MAX_WIDTH / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


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
    longest = max(length(row.name, SMALL) for row in rows)
    told = length(explanation.place.name, SMALL) if explanation.place else 0.0
    left, right = 76 + round(max(0.0, min(longest, NAME_WIDTH) - 36, told - 60)), size[0] - 132
    draw_text(draw, (size[0] - 6, ROW_HEIGHT / 2), "attention", FAINT, SMALL, anchor="rm")
    lowest, highest = (limit(0.0, *(row.value for row in rows)) for limit in (min, max))
    scale = (right - left) / max(highest - lowest, NOTABLE)
    zero = left - lowest * scale
    for number, row in enumerate(rows):
        y = (number + 1.5) * ROW_HEIGHT
        if row.color:
            badge(draw, (left - 20, y), 10, row.number, row.color, hollow=row.background)
            draw_text(draw, (left - 34, y), shorten(row.name, SMALL, NAME_WIDTH), FAINT, SMALL, anchor="rm")
        else:
            draw_text(draw, (left - 10, y), row.number, FAINT, SMALL, anchor="rm")
        x0, x1 = sorted((zero, zero + row.value * scale))
        draw.rectangle((x0, y - 7, max(x1, x0 + 1), y + 7), row.color or FAINT)
        draw_text(draw, (size[0] - 66, y), signed(row.value), INK, VALUE, anchor="rm")
        if row.attention is not None:
            draw_text(draw, (size[0] - 6, y), percent(row.attention, 0), FAINT, VALUE, anchor="rm")
    bottom = (len(rows) + 1.5) * ROW_HEIGHT
    draw.line((zero, ROW_HEIGHT, zero, bottom - ROW_HEIGHT / 2), INK)
    draw.line((8, bottom - ROW_HEIGHT / 2, size[0] - 6, bottom - ROW_HEIGHT / 2), LINE)
    draw_text(draw, (left - 10, bottom + 2), "logit", INK, SMALL, anchor="rm")
    draw_text(draw, (size[0] - 66, bottom + 2), signed(sum(row.value for row in rows)), INK, VALUE, anchor="rm")
    return out


def write(picture: Image.Image, file: IO[bytes], kind: str) -> None:
    """Write a picture as ``png`` or ``webp``."""
    picture.save(file, kind.upper(), method=2)  # of WebP: half the time, 5 % more bytes


def data_uri(picture: Image.Image, form: str = "webp", quality: int = 85) -> str:
    """A picture as a data URI, which a page holds in itself.

    Args:
        picture: RGB.
        form: webp, jpeg or png, which has no quality.
        quality: 1 to 100.
    """
    buffer = io.BytesIO()
    picture.save(buffer, form.upper(), quality=quality)
    return bytes_uri(buffer.getvalue(), form)


def bytes_uri(content: bytes, form: str) -> str:
    """The same of a file that has been written already."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
