"""Sensitivity-n (Ancona et al., ICLR 2018): whether sums of a map rise with what the logit loses without n features.

A feature is a cell of a grid. Single pixels, taken away at random, leave an image under noise: any sum is as good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GRID = 8  # cells on each side
NUMBERS = (6, 16, 32)  # n: 10, 25 and 50 % of the cells
SUBSETS = 12  # of every n


def subsets(rows: int, columns: int, seed: Sequence[int]) -> np.ndarray:
    """Masks of n random cells, for every n: bool [len(NUMBERS) * SUBSETS, rows, columns]."""
    random = np.random.default_rng(seed)
    y, x = (np.arange(side) * GRID // side for side in (rows, columns))
    cells = y[:, None] * GRID + x
    chosen = [random.choice(GRID * GRID, n, replace=False) for n in NUMBERS for _ in range(SUBSETS)]
    return np.stack([np.isin(cells, own) for own in chosen])


def sensitivity_n(sums: np.ndarray, falls: np.ndarray) -> np.ndarray:
    """Pearson's correlation of sums and falls over the subsets of the same n, mean over n.

    Args:
        sums: Of the map under every mask of ``subsets``, float64 [N, M].
        falls: Of the logit, float64 [N, M]; both from ``Occlusions``.

    Returns:
        float64 [N], nan where either is constant for one n.
    """
    by_number = (values.reshape(-1, len(NUMBERS), SUBSETS) for values in (sums, falls))
    a, b = (values - values.mean(2, keepdims=True) for values in by_number)
    spread = np.sqrt((a**2).sum(2) * (b**2).sum(2))
    correlation = np.divide((a * b).sum(2), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
    return correlation.mean(1)
