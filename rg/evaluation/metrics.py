"""What is measured: landmark error, pointing game, clustering scores, state of the parts. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LinearRegression

DEAD_BELOW = 0.01
DUPLICATE_ABOVE = 0.8
EVERYWHERE_ABOVE = 0.5


def landmark_errors(
    fit_centers: np.ndarray,
    fit_landmarks: np.ndarray,
    fit_visibility: np.ndarray,
    centers: np.ndarray,
    landmarks: np.ndarray,
    visibility: np.ndarray,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks predicted from part centres by one linear regression per landmark (Section 4 of the paper).

    All coordinates are relative to the object's box: (0, 0) and (1, 1) are its corners. The regression sees visible
    landmarks only. Least squares do not care whether features and targets are standardised, nor whether landmarks that
    are always visible are predicted together, as the authors' code does.

    Args:
        fit_centers: [M, K, 2] part centres of the images to fit on.
        fit_landmarks: [M, P, 2].
        fit_visibility: bool [M, P].
        centers: [N, K, 2] part centres of the images to test on.
        landmarks: [N, P, 2].
        visibility: bool [N, P].
        lengths: [N, 2], the length of a unit along x and y of every image; 1 if None. nan leaves an image out.

    Returns:
        errors: L2 distance of every landmark [N, P]; nan where it is invisible, or was never visible in fitting.
        mean_shape_errors: The same for the mean of the fitted landmarks instead of the prediction.
    """
    units = np.ones((len(centers), 2)) if lengths is None else lengths
    errors = np.full(visibility.shape, np.nan)
    mean_shape_errors = errors.copy()
    for p in range(landmarks.shape[1]):
        fit, test = fit_visibility[:, p], visibility[:, p]
        if not fit.any() or not test.any():
            continue
        target = fit_landmarks[fit, p]
        regression = LinearRegression().fit(fit_centers[fit].reshape(fit.sum(), -1), target)
        predicted = regression.predict(centers[test].reshape(test.sum(), -1))
        errors[test, p] = np.linalg.norm((predicted - landmarks[test, p]) * units[test], axis=1)
        mean_shape_errors[test, p] = np.linalg.norm((target.mean(0) - landmarks[test, p]) * units[test], axis=1)
    return errors, mean_shape_errors


def relative_to_box(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points [N, P, 2] in pixels -> fractions of their boxes [N, 4] (x0, y0, x1, y1)."""
    return (points - boxes[:, None, :2]) / (boxes[:, None, 2:] - boxes[:, None, :2])


def contingency(predicted: np.ndarray, truth: np.ndarray, num_predicted: int, num_truth: int) -> np.ndarray:
    """int64 [num_truth, num_predicted]: how often each true label met each predicted one."""
    flat = truth.astype(np.int64).ravel() * num_predicted + predicted.astype(np.int64).ravel()
    return np.bincount(flat, minlength=num_predicted * num_truth).reshape(num_truth, num_predicted)


def clustering_scores(table: np.ndarray) -> tuple[float, float]:
    """NMI (arithmetic mean) and adjusted Rand index of a contingency table.

    Counts instead of labels, so that every pixel of a large test set fits.

    Raises:
        ValueError: fewer than two counts, for which neither is defined.
    """
    table = table.astype(np.float64)
    n = table.sum()
    if n < 2:
        raise ValueError(f"table: expected at least two counts, got {n:g}")
    rows, columns = table.sum(1), table.sum(0)
    nonzero = table[table > 0]
    information = (nonzero / n * np.log(nonzero * n / np.outer(rows, columns)[table > 0])).sum()
    entropy = sum(-(p[p > 0] / n * np.log(p[p > 0] / n)).sum() for p in (rows, columns))
    nmi = 2 * information / entropy if entropy > 0 else 1.0

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    expected = pairs(rows) * pairs(columns) / pairs(n)
    largest = (pairs(rows) + pairs(columns)) / 2
    ari = (pairs(table) - expected) / (largest - expected) if largest != expected else 1.0
    return float(nmi), float(ari)


def part_states(wins: np.ndarray, overlap: np.ndarray, names: Sequence[str]) -> list[str]:
    """Which parts do their work.

    Args:
        wins: [N, K] share of the positions of each image at which each part is the strongest.
        overlap: [K, K] inner products of the assignment maps, summed over images.
        names: Of the parts.

    Returns:
        For every part one of: ``in use``; ``dead``, strongest anywhere in less than 1 % of the images; ``duplicate of
        NAME``, an earlier part whose maps have a cosine similarity above 0.8 with its own; ``everywhere``, strongest at
        more than half of all positions in more than half of the images.
    """
    norm = np.sqrt(np.diag(overlap))
    norm[norm == 0] = 1
    similarity = overlap / np.outer(norm, norm)
    states = []
    for k in range(wins.shape[1]):
        twins = [j for j in range(k) if similarity[j, k] > DUPLICATE_ABOVE]
        if (wins[:, k] > 0).mean() < DEAD_BELOW:
            states.append("dead")
        elif twins:
            states.append(f"duplicate of {names[twins[0]]}")
        elif (wins[:, k] > 0.5).mean() > EVERYWHERE_ABOVE:
            states.append("everywhere")
        else:
            states.append("in use")
    return states
