"""Words and numbers in pictures, in any script that a font at hand has."""

from __future__ import annotations

import bisect
import itertools
import logging
import unicodedata
from collections.abc import Sequence

from PIL import ImageDraw, ImageFont, features

from rg.explain import fonts
from rg.explain.colors import INK, LINE, PAPER, Color, ink_on

Run = tuple[ImageFont.FreeTypeFont, str]
RIGHT_TO_LEFT = ("R", "AL")  # bidirectional classes of letters
STRONG = ("L", *RIGHT_TO_LEFT)
JOINED = (*RIGHT_TO_LEFT, "NSM")  # also of marks that stand above, below or before their letter

logger = logging.getLogger(__name__)
_reported: set[str] = set()


def runs(text: str, size: float) -> list[Run]:
    """The text as pieces of one font each, from left to right.

    A character that no font has becomes its code point in brackets, and is reported once with what to install.

    Args:
        text: One line.
        size: In pixels.
    """
    text = unicodedata.normalize("NFC", text)
    kinds = [unicodedata.bidirectional(character) for character in text]
    first = next((kind for kind in kinds if kind in STRONG), "L")
    if any(kind in JOINED for kind in kinds) and not features.check("raqm"):
        _report("install FriBiDi (Debian's libfribidi0)", f"nothing here joins the letters of {text!r}")
    if _is_right_to_left(text) and (face := fonts.face_of_all(text)):
        return [(fonts.font(face, size), text)]  # one font, in which all directions are known
    pieces: list[list[str]] = []
    faces: list[fonts.Face] = []
    missing: list[str] = []
    for character, kind in zip(text, kinds, strict=True):
        stays = faces and kind != "L" and fonts.has(faces[-1], ord(character))
        face = faces[-1] if stays else fonts.face_of(character)
        if face is None and _is_silent(character):
            continue
        if face is None or unicodedata.category(character) == "Cc":
            missing.append(character)
            face, character = fonts.main_face(), f"[{ord(character):04X}]"
        if not faces or faces[-1] != face:
            faces.append(face)
            pieces.append([])
        pieces[-1].append(character)
    letters = [character for character in dict.fromkeys(missing) if unicodedata.category(character) not in ("Cc", "Cs")]
    for remedy in dict.fromkeys(map(fonts.remedy, letters)):
        characters = "".join(character for character in letters if fonts.remedy(character) == remedy)
        _report(remedy, f"no font here has {characters!r}, so pictures show code points")
    laid = [(fonts.font(face, size), "".join(piece)) for face, piece in zip(faces, pieces, strict=True)]
    return _from_right_to_left(laid) if first in RIGHT_TO_LEFT else laid


def _from_right_to_left(laid: Sequence[Run]) -> list[Run]:
    """The order from left to right of pieces that are read from right to left, but for neighbours that are not."""
    turned: list[Run] = []
    for right_to_left, neighbours in itertools.groupby(laid, lambda run: _is_right_to_left(run[1])):
        group = list(neighbours)
        turned = (group[::-1] if right_to_left else group) + turned
    return turned


def _is_right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text)


def _is_silent(character: str) -> bool:
    """Whether a character joins its neighbours, or chooses among their shapes."""
    return unicodedata.category(character) == "Cf" or unicodedata.name(character, "").startswith("VARIATION SELECTOR")


def _report(remedy: str, what: str) -> None:
    """Say what is not drawn as it should be, once for every remedy."""
    if remedy not in _reported:
        _reported.add(remedy)
        logger.warning("%s; %s", what, remedy)


def length(text: str, size: float) -> float:
    """Width of a line in pixels."""
    return sum(font.getlength(piece) for font, piece in runs(text, size))


def shorten(text: str, size: float, width: float) -> str:
    """The text on one line, cut with an ellipsis where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if length(text, size) <= width:
        return text
    fits = bisect.bisect_right(range(len(text)), width, key=lambda end: length(text[:end] + "…", size))
    return text[: max(0, fits - 1)].rstrip() + "…"


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ink: Color, size: float, anchor: str = "la"
) -> None:
    """One line of text.

    Args:
        draw: Of the picture.
        place: x and y in pixels of what ``anchor`` says.
        text: The line.
        ink: Its colour.
        size: In pixels.
        anchor: l, m or r: the left end, the middle or the right end; and a or m: the top or the middle of the line.
    """
    x, y = place
    ascent, descent = fonts.font(fonts.main_face(), size).getmetrics()
    baseline = y + (ascent if anchor[1] == "a" else (ascent - descent) / 2)
    x -= {"l": 0, "m": 0.5, "r": 1}[anchor[0]] * length(text, size)
    for font, piece in runs(text, size):
        draw.text((x, baseline), piece, ink, font, anchor="ls")
        x += font.getlength(piece)


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
    draw_text(draw, (x, y), name, ink, radius * (1.35 if len(name) == 1 else 1.1), anchor="mm")


def hairline(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A thin frame around a picture that will be pasted there, so that a white one ends somewhere."""
    (x, y), (width, height) = corner, size
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)
