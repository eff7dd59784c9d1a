"""Colours: of parts, which stay apart for all eyes, of heat maps, and of paper and ink."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import ImageColor

Color = tuple[int, int, int]
PAPER, INK, FAINT, LINE = (255, 255, 255), (28, 32, 38), (104, 112, 122), (214, 219, 225)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MAX_PARTS = 64
# Found by exchange, so that the least difference of any two is large: of the first 8, of the first 12, then of all 16.
# fmt: off
FIRST_COLORS = (
    "#e1a500", "#5a00c3", "#ff3c96", "#3cffb4", "#871e4b", "#b4b4ff", "#0f78ff", "#787800",
    "#e1e12d", "#a53c96", "#9687d2", "#69d2c3", "#ff7878", "#b4e1ff", "#692d87", "#0f785a",
)
# fmt: on
# Machado et al., "A physiologically-based model for simulation of color vision deficiency" (2009), on linear light:
# eyes without the cones for long, for middle and for short waves.
COLOR_BLIND = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
# Dark to warm with lightness that rises evenly (matplotlib's inferno at eight points).
HEAT = ("#000004", "#2d0b59", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac127", "#fcffa4")


def palette(count: int) -> list[Color]:
    """Colours (8-bit RGB) that stay apart, also for colour-blind eyes of three kinds; part k always has colour k.

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


@lru_cache(maxsize=1)
def _colors() -> tuple[Color, ...]:
    """The first colours, then always the one that differs most from those before it, to all kinds of eyes."""
    levels = np.arange(30, 250, 20)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *ab = _oklab(_linear(candidates)).T
    candidates = candidates[(lightness > 0.42) & (lightness < 0.89) & (np.hypot(*ab) > 0.06)]
    seen = _seen(candidates)
    chosen = [np.array(ImageColor.getrgb(color)) for color in FIRST_COLORS]
    apart = np.full(len(candidates), np.inf)
    for number in range(MAX_PARTS):
        if number == len(chosen):
            chosen.append(candidates[apart.argmax()])
        apart = np.minimum(apart, np.linalg.norm(seen - _seen(chosen[number])[:, None], axis=-1).min(0))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in chosen)


def _seen(colors: np.ndarray) -> np.ndarray:
    """Colours [..., 3] in a space of even differences, as normal and as colour-blind eyes see them: [4, ..., 3]."""
    linear = _linear(colors)
    blind = [np.clip(linear @ np.array(matrix).T, 0, 1) for matrix in COLOR_BLIND.values()]
    return np.stack([_oklab(light) for light in (linear, *blind)])


def _linear(colors: np.ndarray) -> np.ndarray:
    """8-bit sRGB -> linear light, 0 to 1."""
    scaled = colors / 255
    return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    """Linear light -> Oklab (Ottosson, 2020): lightness, green to red, blue to yellow."""
    cones = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    axes = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return np.cbrt(linear @ cones.T) @ axes.T


def css(color: Color) -> str:
    """Such as #0072b2."""
    return "#{:02x}{:02x}{:02x}".format(*color)
