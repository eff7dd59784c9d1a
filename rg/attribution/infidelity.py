"""Infidelity (Yeh et al., NeurIPS 2019): how badly sums of a map foretell what the logit loses under grey squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SQUARES = 16
SIDES = (0.125, 0.5)  # smallest and largest, of the short side


def squares(rows: int, columns: int, seed: Sequence[int]) -> np.ndarray:
    """Masks of squares of random sides at random places inside the image: bool [SQUARES, rows, columns]."""
    random = np.random.default_rng(seed)
    masks = np.zeros((SQUARES, rows, columns), bool)
    short = min(rows, columns)
    for mask in masks:
        side = int(random.integers(max(1, round(SIDES[0] * short)), max(1, round(SIDES[1] * short)) + 1))
        y, x = random.integers(rows - side + 1), random.integers(columns - side + 1)
        mask[y : y + side, x : x + side] = True
    return masks


def infidelity(sums: np.ndarray, falls: np.ndarray) -> np.ndarray:
    """Mean squared error of the scaled sums, as a share of the mean square of the falls.

    Maps have no unit, so the sums of an image are scaled by the factor that fits best, as the authors do. Theirs may be
    negative and then forgives a map that calls important what speaks against the class; ours is at least 0.

    Args:
        sums: Of the map under every mask, float64 [N, M].
        falls: Of the logit, float64 [N, M]; both from ``Occlusions``.

    Returns:
        float64 [N]: 0 for a map that foretells all falls, 1 for one that is no better than none; nan where no mask
        changes the logit.
    """
    square = (sums**2).sum(1)
    scale = np.divide((sums * falls).sum(1), square, out=np.zeros(len(sums)), where=square > 0).clip(min=0)
    error = ((scale[:, None] * sums - falls) ** 2).sum(1)
    total = (falls**2).sum(1)
    return np.divide(error, total, out=np.full(len(sums), np.nan), where=total > 0)
