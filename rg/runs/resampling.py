"""Images drawn again for intervals, and methods that change places for paired tests; alike in every measurement."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

REPLICATES, LEVEL = 1000, 0.95
TOSSES = 10_000
BLOCK = 1 << 22  # numbers at once


def draws(images: int, replicates: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, of as many as there are, with replacement.

    Returns:
        Multinomial, float64 [R, N] of some replicates at a time.
    """
    rng = np.random.default_rng(0)
    for count in _blocks(images, replicates):
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)


def tosses(images: int, number: int) -> Iterator[np.ndarray]:
    """For each image whether two methods change places, by a fair coin: 0 or 1, float64 [R, N] of some at a time."""
    rng = np.random.default_rng(0)
    for count in _blocks(images, number):
        yield rng.integers(0, 2, (count, images)).astype(np.float64)


def ends(values: np.ndarray) -> list[float]:
    """Lower and upper end of the 95 % percentile interval of replicates [R]; nan does not count."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return [low, high]


def _blocks(images: int, number: int) -> Iterator[int]:
    size = max(BLOCK // max(images, 1), 1)
    for first in range(0, number, size):
        yield min(size, number - first)
