"""The pointing game: whether the peak of an attribution map lies on the object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def peaks(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    """Position of the largest value of an attribution map after bicubic up-sampling.

    Bilinear interpolation can have its maximum nowhere but at the centre of a position of the map, up to half a stride
    from the peak between positions; on an 8 x 8 map that alone misses tight boxes.

    Args:
        attribution: [N, h, w].
        size: Height and width of the image.

    Returns:
        [N, 2]: x, y, the centre of the peak pixel.
    """
    width = size[1]
    up = F.interpolate(attribution[:, None].float(), size, mode="bicubic", align_corners=False)
    index = up.flatten(1).argmax(1)
    return torch.stack([index % width, index // width], dim=1) + 0.5


def pointing_game(attribution: Tensor, boxes: Sequence[np.ndarray], size: tuple[int, int]) -> list[bool | None]:
    """The pointing game: whether the peak of a map lies on the object.

    Args:
        attribution: [N, h, w].
        boxes: Of every image its boxes [B, 4], x0, y0, x1, y1 in pixels.
        size: Height and width of the images.

    Returns:
        For every image whether the peak lies in one of its boxes; None where it has none.
    """
    points = peaks(attribution, size).cpu().numpy()
    return [in_any_box(point, own) if len(own) else None for point, own in zip(points, boxes, strict=True)]


def in_any_box(point: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether (x, y) lies in one of the boxes [B, 4]."""
    x, y = point
    return bool(((boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])).any())
