"""How an image becomes the input of a model: one rule for batches (``pipelines.batches.loader``) and single images.

The window is drawn in pixels of the stored image and then resized, so that only the window needs decoding. There are
three views:

    crop      "short side to S, crop C x C" of the paper, up to rounding the window to whole pixels:
              side = round(C / S * short side), origin uniform over all positions (training) or central (testing)
    stretch   the whole image becomes C x C, whatever its shape (aligned faces)
    whole     short side S, both sides cut to multiples of the stride around the centre (testing of networks that take
              images of any size)

A point (x, y) of the stored image is then at ((x - x0) * columns / width, (y - y0) * rows / height) of the output,
mirrored if the image was flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

View = Literal["crop", "stretch", "whole"]


@dataclass(frozen=True)
class Window:
    """What becomes of one image.

    Attributes:
        x0: First column of the window in pixels of the stored image.
        y0: First row.
        width: Columns of the window.
        height: Rows of the window.
        columns: Columns of the output.
        rows: Rows of the output.
        flipped: Whether the output is mirrored.
        brightness: Factor of the pixel values.
    """

    x0: int
    y0: int
    width: int
    height: int
    columns: int
    rows: int
    flipped: bool = False
    brightness: float = 1.0

    def move(self, points: np.ndarray) -> np.ndarray:
        """Points [P, 2] (x, y) of the stored image -> pixels of the output."""
        moved = (points - (self.x0, self.y0)) * (self.columns / self.width, self.rows / self.height)
        if self.flipped:
            moved[:, 0] = self.columns - moved[:, 0]
        return moved

    def move_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [B, 4] of the stored image -> float32 boxes of the output, clipped; those outside are dropped."""
        first, second = self.move(boxes[:, :2]), self.move(boxes[:, 2:])
        moved = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
        moved = moved.clip(0, (self.columns, self.rows) * 2)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])].astype(np.float32)

    def move_part_map(self, part_map: np.ndarray) -> np.ndarray:
        """Part map [H, W] of the stored image -> [rows, columns] of the output, by the nearest pixel."""
        y = self.y0 + ((np.arange(self.rows) + 0.5) * self.height / self.rows).astype(int)
        x = self.x0 + ((np.arange(self.columns) + 0.5) * self.width / self.columns).astype(int)
        moved = part_map[y[:, None], x[None, :]]
        return moved[:, ::-1] if self.flipped else moved


@dataclass(frozen=True)
class Geometry:
    """How an image becomes the input.

    Attributes:
        short_side: S, the short side of the resized image in pixels; without meaning where the view is stretch.
        crop: C, the side of the output in pixels; without meaning where the view is whole.
        view: crop, stretch or whole.
        stride: Pixels per position of the feature map, of which a whole image has a whole number.
        training: Random window, flip and brightness instead of the central window.
        flip: Probability of a horizontal flip (training only).
        brightness: Largest relative change of the brightness (training only).
    """

    short_side: int
    crop: int
    view: View = "crop"
    stride: int = 16
    training: bool = False
    flip: float = 0.5
    brightness: float = 0.1

    def side(self, short: int) -> int:
        """Side of the window of a crop for a short side of the stored image: C / S * short, halves rounded up, at
        least 1.
        """
        return max(1, (2 * self.crop * short + self.short_side) // (2 * self.short_side))

    def central_window(self, width: int, height: int) -> Window:
        """The window for testing."""
        if self.view == "stretch":
            return Window(0, 0, width, height, self.crop, self.crop)
        short = min(width, height)
        if self.view == "crop":
            inner_width, columns = inner_height, rows = self.side(short), self.crop
        else:
            inner_width, columns = self._whole(width, short)
            inner_height, rows = self._whole(height, short)
        x0, y0 = central_start(width, inner_width), central_start(height, inner_height)
        return Window(x0, y0, inner_width, inner_height, columns, rows)

    def _whole(self, extent: int, short: int) -> tuple[int, int]:
        """Pixels that are kept of the width or height of an image, and what they become."""
        outer = max(1, extent * self.short_side // (short * self.stride)) * self.stride
        return min(extent, round(outer * short / self.short_side)), outer

    def window(self, width: int, height: int, uniforms: Sequence[float]) -> Window:
        """The window for training, from four numbers in [0, 1); for testing the central one."""
        window = self.central_window(width, height)
        if not self.training:
            return window
        y, x, flip, brightness = uniforms
        return replace(
            window,
            x0=int(x * (width - window.width + 1)),
            y0=int(y * (height - window.height + 1)),
            flipped=bool(flip < self.flip),
            brightness=1 + self.brightness * (2 * float(brightness) - 1),
        )


def central_start(extent: int, side: int) -> int:
    """First pixel of the central ``side`` of ``extent`` pixels; of two central ones the later."""
    return (extent - side + 1) // 2
