"""What is measured: landmark error, pointing game, clustering scores, state of the parts. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import entr
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
    if table.sum() < 2:
        raise ValueError(f"table: expected at least two counts, got {table.sum():g}")
    (nmi,), (ari,) = clusterings(table[None])
    return float(nmi), float(ari)


def clusterings(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of several tables [R, P, K]: float64 [R] each, nan for fewer than two counts."""
    tables = tables.astype(np.float64)
    n = tables.sum((1, 2))
    n = np.where(n < 2, np.nan, n)
    counts = tables.reshape(len(tables), -1), tables.sum(2), tables.sum(1)
    joint, of_rows, of_columns = (entr(values / n[:, None]).sum(1) for values in counts)
    entropy = of_rows + of_columns
    information = np.maximum(entropy - joint, 0)
    nmi = np.divide(2 * information, entropy, out=np.ones(len(n)), where=entropy != 0)

    together, in_rows, in_columns = ((values * (values - 1) / 2).sum(1) for values in counts)
    expected = in_rows * in_columns / (n * (n - 1) / 2)
    largest = (in_rows + in_columns) / 2
    ari = np.divide(together - expected, largest - expected, out=np.ones(len(n)), where=largest != expected)
    ari[np.isnan(n)] = np.nan
    return nmi, ari


def foreground_ious(tables: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Intersection over union of the object and the parts that show it, in every image.

    Args:
        tables: Pixels of each true part, after those of no part, at which each part is the strongest [N, 1 + P, K].
        objects: Which parts show the object, bool [K].

    Returns:
        float64 [N], nan where there is neither.
    """
    both = tables[:, 1:, objects].sum((1, 2))
    either = tables[:, 1:].sum((1, 2)) + tables[:, 0, objects].sum(1)
    return np.divide(both, either, out=np.full(len(tables), np.nan), where=either > 0)


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
