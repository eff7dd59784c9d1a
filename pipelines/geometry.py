"""How an image becomes the square input of a model: one rule for batches (``pipelines.loader``) and single images.

The window is drawn in pixels of the stored image and then resized to the crop, so that only the window needs decoding.
This is the paper's "short side to S, crop C x C" up to rounding the window to whole pixels:

    side = round(C / S * short side),   origin = uniform over all positions (training) or the central one (testing)

A point (x, y) of the stored image is then at ((x - x0) * C / side, (y - y0) * C / side) of the output, mirrored if the
image was flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """What becomes of one image.

    Attributes:
        x0: First column of the window in pixels of the stored image.
        y0: First row.
        side: Columns and rows of the window.
        flipped: Whether the output is mirrored.
        brightness: Factor of the pixel values.
    """

    x0: int
    y0: int
    side: int
    flipped: bool = False
    brightness: float = 1.0


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square input.

    Attributes:
        short_side: S, the short side of the resized image in pixels.
        crop: C, the side of the square that is cut from it in pixels.
        training: Random window, flip and brightness instead of the central window.
        flip: Probability of a horizontal flip (training only).
        brightness: Largest relative change of the brightness (training only).
    """

    short_side: int
    crop: int
    training: bool = False
    flip: float = 0.5
    brightness: float = 0.1

    def side(self, short: int) -> int:
        """Side of the window for a short side of the stored image: C / S * short, halves rounded up, at least 1."""
        return max(1, (2 * self.crop * short + self.short_side) // (2 * self.short_side))

    def central_window(self, width: int, height: int) -> Window:
        """The window in the centre of an image."""
        side = self.side(min(width, height))
        return Window(central_start(width, side), central_start(height, side), side)

    def window(self, width: int, height: int, uniforms: Sequence[float]) -> Window:
        """The window for training, from four numbers in [0, 1); for testing the central one."""
        if not self.training:
            return self.central_window(width, height)
        side = self.side(min(width, height))
        y, x, flip, brightness = uniforms
        return Window(
            x0=int(x * (width - side + 1)),
            y0=int(y * (height - side + 1)),
            side=side,
            flipped=bool(flip < self.flip),
            brightness=1 + self.brightness * (2 * float(brightness) - 1),
        )

    def move(self, points: np.ndarray, window: Window) -> np.ndarray:
        """Points [P, 2] (x, y) of the stored image -> pixels of the output."""
        moved = (points - (window.x0, window.y0)) * (self.crop / window.side)
        if window.flipped:
            moved[:, 0] = self.crop - moved[:, 0]
        return moved

    def move_boxes(self, boxes: np.ndarray, window: Window) -> np.ndarray:
        """Boxes [B, 4] of the stored image -> float32 boxes of the output, clipped; those outside are dropped."""
        first, second = self.move(boxes[:, :2], window), self.move(boxes[:, 2:], window)
        moved = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1).clip(0, self.crop)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])].astype(np.float32)

    def move_part_map(self, part_map: np.ndarray, window: Window) -> np.ndarray:
        """Part map [H, W] of the stored image -> [C, C] of the output, by the nearest pixel."""
        nearest = ((np.arange(self.crop) + 0.5) * window.side / self.crop).astype(int)
        moved = part_map[window.y0 + nearest[:, None], window.x0 + nearest[None, :]]
        return moved[:, ::-1] if window.flipped else moved


def central_start(extent: int, side: int) -> int:
    """First pixel of the central ``side`` of ``extent`` pixels; of two central ones the later."""
    return (extent - side + 1) // 2
