"""The checks of FunnyBirds that ask which parts are important, at the threshold at which they are best together."""

from __future__ import annotations

import numpy as np

CHECKS = "checks"  # the measure that holds them all: [N, 3, T]
NAMES = ("preservation", "deletion_check", "distractibility")
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


def at_best_threshold(means: np.ndarray) -> dict[str, np.ndarray]:
    """Means of the checks by threshold [R, 3, T] -> each check and ``threshold`` at the best mean of the three: [R]."""
    known = np.where(np.isnan(means), 0.0, means)
    counts = np.maximum((~np.isnan(means)).sum(1), 1)
    best = (known.sum(1) / counts).argmax(1)
    chosen = means[np.arange(len(means)), :, best]
    undefined = np.isnan(chosen).all(1)
    found = dict(zip(NAMES, chosen.T, strict=True))
    return found | {"threshold": np.where(undefined, np.nan, np.array(THRESHOLDS)[best])}
