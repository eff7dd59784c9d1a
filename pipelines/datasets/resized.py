"""Smaller images on the way into the shards: a source around another source."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pipelines import images
from pipelines.shards.samples import Sample
from pipelines.shards.writer import Source


@dataclass(frozen=True)
class Resized:
    """A source whose images have a short side of at most ``short_side`` pixels.

    An image that is larger is scaled down (Lanczos, the long side rounded, halves up) and encoded anew; landmarks,
    boxes and part map are scaled alike. Any other sample passes through as it is.

    Attributes:
        original: Where the samples come from.
        short_side: Longest short side in pixels.
        quality: JPEG quality of the images that are encoded anew, 1 to 100.
    """

    original: Source
    short_side: int
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"short_side: expected at least 1 pixel, got {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality: expected 1 to 100, got {self.quality}")

    def __len__(self) -> int:
        return len(self.original)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample.

        Raises:
            ValueError: the image cannot be decoded, or is not of the size that the sample states.
            OSError: the file cannot be read.
        """
        sample = self.original[index]
        short = min(sample.width, sample.height)
        if short <= self.short_side:
            return sample
        image = images.open_rgb(sample.jpeg)
        if image.size != (sample.width, sample.height):
            raise ValueError(f"the image is {image.width}x{image.height}, expected {sample.width}x{sample.height}")
        width, height = size = [(2 * side * self.short_side + short) // (2 * short) for side in image.size]
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=self.quality)
        return replace(
            sample,
            jpeg=buffer.getvalue(),
            width=width,
            height=height,
            landmarks=_scaled(sample.landmarks, image.size, size),
            boxes=_scaled(sample.boxes, image.size, size),
            part_map=_resized_map(sample.part_map, size),
        )

    def source(self, index: int) -> str:
        """Where a sample comes from."""
        return self.original.source(index)


def _scaled(coordinates: np.ndarray | None, old: tuple[int, int], new: list[int]) -> np.ndarray | None:
    """x, y, x, y, ... of float32 [N, 2 or 4], from pixels of an image of one (width, height) to another."""
    if coordinates is None:
        return None
    repeats = coordinates.shape[1] // 2
    return (coordinates.astype(float) * (new * repeats) / (old * repeats)).astype(np.float32)


def _resized_map(part_map: np.ndarray | None, size: list[int]) -> np.ndarray | None:
    if part_map is None:
        return None
    return np.asarray(Image.fromarray(part_map).resize(size, Image.Resampling.NEAREST))
