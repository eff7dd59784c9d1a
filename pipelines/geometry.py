"""How an image becomes the square input of a model: one rule for batches (``pipelines.loader``) and single images.

The window is drawn in pixels of the stored image and then resized to the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square input.

    Attributes:
        short_side: S, the short side of the resized image in pixels.
        crop: C, the side of the square that is cut from it in pixels.
        training: Random window, flip and jitter instead of the central window.
        flip: Probability of a horizontal flip (training only).
        jitter: Largest relative change of brightness, contrast and saturation (training only).
    """

    short_side: int
    crop: int
    training: bool = False
    flip: float = 0.5
    jitter: float = 0.1

    def side(self, short: Any) -> Any:
        """Side of the window: C / S * short, rounded (halves up), at least 1.

        Args:
            short: Short side of the stored image in pixels, an integer (or an integer node of a DALI graph).
        """
        side = (2 * self.crop * short + self.short_side) // (2 * self.short_side)
        return side + (side < 1)


def central_start(extent: Any, side: Any) -> Any:
    """First pixel of the central ``side`` of ``extent`` pixels; of two central ones the later.

    Args:
        extent: Width or height in pixels, an integer (or an integer node of a DALI graph).
        side: Pixels that are kept, of the same kind.
    """
    return (extent - side + 1) // 2
