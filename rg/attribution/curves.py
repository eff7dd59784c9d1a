"""Deletion and insertion curves: what becomes of a probability when pixels go, or come, in the order of a map.

The protocol of RISE (Petsiuk et al., 2018). Deletion paints the pixels of the image grey, the most important first; a
faithful map makes the probability of the class fall early. Insertion starts from the blurred image and gives it its
pixels back, the most important first; a faithful map makes the probability rise early. Both are measured by the area
below the curve.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur


class Curves:
    """Curves of some images, for any number of maps.

    Args:
        probability: Images float [M, 3, H, W] in 0..255 and classes int64 [M] -> the probability of those [M].
        images: uint8 [N, 3, H, W].
        classes: int64 [N], the classes that were predicted.
        grey: The colour of deleted pixels, [3] in 0..255.
        blur: Standard deviation of the Gaussian blur, in pixels.
        steps: In how many steps all pixels go; each changes as many.
        seed: Of the order of pixels that a map does not tell apart.

    Attributes:
        ends: Probability of every ``image``, of the ``grey`` one and of the ``blurred`` one, in which the curves begin
            and end: float64 [N] each.

    Raises:
        ValueError: less than one step.
    """

    def __init__(
        self,
        probability: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        classes: Tensor,
        grey: Tensor,
        blur: float,
        steps: int,
        seed: int,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        self._probability, self._classes, self._steps = probability, classes, steps
        self._image = images.float()
        self._grey = grey.to(self._image).view(1, 3, 1, 1).expand_as(self._image)
        self._blurred = gaussian_blur(self._image, [2 * int(np.ceil(3 * blur)) + 1] * 2, [blur] * 2)
        pixels = images.shape[2] * images.shape[3]
        self._shuffled = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed)).to(images.device)
        self.ends = {
            name: probability(ends, classes).double().cpu().numpy()
            for name, ends in (("image", self._image), ("grey", self._grey), ("blurred", self._blurred))
        }

    def deletion(self, maps: Tensor) -> np.ndarray:
        """Probability while the pixels turn grey: float64 [N, steps + 1], for maps [N, h, w] of any size."""
        return self._curve(maps, self._image, self._grey, "image", "grey")

    def insertion(self, maps: Tensor) -> np.ndarray:
        """Probability while the blurred image gets its pixels back: float64 [N, steps + 1]."""
        return self._curve(maps, self._blurred, self._image, "blurred", "image")

    def _curve(self, maps: Tensor, before: Tensor, after: Tensor, first: str, last: str) -> np.ndarray:
        rank = self.ranks(maps)
        pixels = rank[0].numel()
        points = [self.ends[first]]
        for step in range(1, self._steps):
            mixed = torch.where(rank[:, None] < round(step / self._steps * pixels), after, before)
            points.append(self._probability(mixed, self._classes).double().cpu().numpy())
        return np.stack([*points, self.ends[last]], axis=1)

    def ranks(self, maps: Tensor) -> Tensor:
        """Place of every pixel in the order of the up-sampled map, int64 [N, H, W]: 0 for the largest value."""
        size = self._image.shape[2:]
        values = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False).flatten(1)
        order = self._shuffled[values[:, self._shuffled].argsort(dim=1, descending=True, stable=True)]
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places).view(len(maps), *size)


def areas(curves: np.ndarray) -> np.ndarray:
    """Area below curves [N, steps + 1] over the share of the pixels, by the trapezoidal rule: [N], 0 to 1."""
    return np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)
