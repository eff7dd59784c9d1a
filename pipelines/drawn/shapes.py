"""Shapes that everything drawn is made of, and its colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RGB = tuple[int, int, int]
Point = tuple[float, float]
COLOURS: dict[str, RGB] = {
    "Scarlet": (208, 50, 44),
    "Amber": (240, 146, 38),
    "Golden": (248, 208, 72),
    "Moss": (124, 146, 62),
    "Jade": (54, 162, 106),
    "Teal": (36, 132, 144),
    "Azure": (72, 156, 226),
    "Indigo": (58, 68, 150),
    "Violet": (138, 88, 182),
    "Rose": (232, 128, 156),
    "Chestnut": (142, 80, 46),
    "Ivory": (244, 236, 216),
    "Slate": (116, 130, 148),
    "Sooty": (52, 50, 60),
}


def smooth(points: Sequence[Point], steps: int = 3) -> np.ndarray:
    """Closed Catmull-Rom curve through the points: float [len(points) * steps, 2]."""
    p1 = np.asarray(points, dtype=float)
    p0, p2, p3 = (np.roll(p1, shift, axis=0) for shift in (1, -1, -2))
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def ellipse(centre: Point, rx: float, ry: float, degrees: float = 0.0, count: int = 16) -> np.ndarray:
    """Outline of an ellipse: float [count, 2]."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return turned(np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1), degrees) + centre


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """The points turned about the origin, clockwise as seen (y points down)."""
    return points @ rotation(degrees).T


def rotation(degrees: float) -> np.ndarray:
    """The matrix [2, 2] of ``turned``."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


def moved(points: np.ndarray | Point | Sequence[Point], x: float, y: float) -> np.ndarray:
    """The points shifted by (x, y)."""
    return np.asarray(points, dtype=float) + np.array((x, y))


def shade(colour: RGB, factor: float) -> RGB:
    """Darker for a factor below one; above one, lighter towards white."""
    red, green, blue = (int(c * factor if factor <= 1 else c + (255 - c) * (factor - 1)) for c in colour)
    return red, green, blue
