"""Noisy linear imputation of ROAD (Rong et al., ICML 2022): missing pixels become weighted means of their neighbours.

Grey and blurred patches have an outline, and a network can read the shape of what was taken away from it. Here every
missing pixel equals the mean of its eight neighbours, missing ones included, so that nothing marks where it was.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

NOISE = 2.55  # standard deviation in grey levels; 0.01 of the range in the paper
WEIGHTS = {(dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}


def impute(image: np.ndarray, missing: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """An image whose missing pixels are told by the others.

    Direct neighbours count 1/6, diagonal ones 1/12; at the border those that there are count in proportion.

    Args:
        image: float64 [rows, columns, channels].
        missing: bool [rows, columns], not all of them.
        noise: float64 [rows, columns, channels], added to what is imputed.

    Returns:
        float64 [rows, columns, channels].

    Raises:
        ValueError: no pixel is left.
    """
    if missing.all():
        raise ValueError("missing: expected a pixel to be left, got none")
    unknowns = int(missing.sum())
    if not unknowns:
        return image.copy()
    number = np.full(np.add(missing.shape, 2), -1)  # -1 of what is known, with a frame of one pixel
    number[1:-1, 1:-1][missing] = np.arange(unknowns)
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    exists = np.pad(np.ones(missing.shape, bool), 1)
    y, x = (places + 1 for places in np.nonzero(missing))
    own = np.arange(unknowns)
    total, known = np.zeros(unknowns), np.zeros((unknowns, image.shape[2]))
    rows, columns, values = [], [], []
    for (dy, dx), weight in WEIGHTS.items():
        there = exists[y + dy, x + dx]
        neighbour = number[y + dy, x + dx]
        total += weight * there
        known += weight * (there & (neighbour < 0))[:, None] * framed[y + dy, x + dx]
        unknown = neighbour >= 0
        rows.append(own[unknown])
        columns.append(neighbour[unknown])
        values.append(np.full(int(unknown.sum()), -weight))
    places = np.concatenate([own, *rows]), np.concatenate([own, *columns])
    matrix = csc_array((np.concatenate([total, *values]), places), shape=(unknowns, unknowns))
    # Symmetric and diagonally dominant: no pivots are needed, and that halves the time.
    solve = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}).solve
    imputed = image.copy()
    imputed[missing] = solve(known) + noise[missing]
    return imputed
