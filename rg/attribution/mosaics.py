"""Mosaics of images of two classes (Focus, Arias-Duart et al., FUZZ-IEEE 2022): whether a map looks at the right ones.

Four images in a square, two of the class that is explained. Of the hundred images that are measured few share a class,
so the second image of the class is the mirror image of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EVERY = 4  # of how many images one is in a mosaic: four times the pixels of an image


@dataclass(frozen=True)
class Mosaics:
    """Mosaics, each twice as high and wide as an image.

    Attributes:
        images: uint8 [B, 3, 2 H, 2 W].
        classes: The class to explain of every mosaic, int64 [B].
        right: bool [B, 2, 2], where that class is.
        of: Numbers of the images whose class that is [B].
    """

    images: Tensor
    classes: Tensor
    right: np.ndarray
    of: np.ndarray

    @classmethod
    def of_images(cls, images: Tensor, classes: Tensor, seed: Sequence[int]) -> Mosaics:
        """A mosaic for every ``EVERY``-th image that has one of another class beside it.

        Args:
            images: uint8 [N, 3, H, W].
            classes: int64 [N], what the model says of them.
            seed: Of the places and of the images of other classes.
        """
        random = np.random.default_rng(seed)
        made, right, of = [], [], []
        for number in range(0, len(images), EVERY):
            others = torch.nonzero(classes != classes[number])[:, 0].cpu().numpy()
            places = random.permutation(4)
            if not len(others):
                continue
            first, second = random.choice(others, 2)
            tiles = [images[number], images[number].flip(2), images[first], images[second]]
            top, bottom = ([tiles[place] for place in row] for row in (places[:2], places[2:]))
            made.append(torch.cat([torch.cat(top, 2), torch.cat(bottom, 2)], 1))
            right.append(places.reshape(2, 2) < 2)
            of.append(number)
        shape = (0, 3, 2 * images.shape[2], 2 * images.shape[3])
        found = torch.stack(made) if made else images.new_empty(shape)
        return cls(found, classes[of], np.array(right, bool).reshape(-1, 2, 2), np.array(of, int))

    def focus(self, maps: Tensor) -> np.ndarray:
        """Share of the positive part of maps [B, h, w] on the right images: float64 [B], nan of maps without any."""
        up = F.interpolate(maps[:, None].float(), self.images.shape[2:], mode="bilinear", align_corners=False)
        positive = up[:, 0].double().clamp(min=0).cpu().numpy()
        count, rows, columns = positive.shape
        quarters = positive.reshape(count, 2, rows // 2, 2, columns // 2).sum((2, 4))
        total = quarters.sum((1, 2))
        return np.divide((quarters * self.right).sum((1, 2)), total, out=np.full(count, np.nan), where=total > 0)
