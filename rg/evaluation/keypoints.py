"""Keypoint regression as later work measures it, beside the landmark error of the paper."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

ACTIVE_ABOVE = 0.5  # of the largest value of a map, where its part counts


def keypoint_errors(
    fit_centers: np.ndarray,
    fit_landmarks: np.ndarray,
    fit_visibility: np.ndarray,
    fit_active: np.ndarray,
    centers: np.ndarray,
    landmarks: np.ndarray,
    visibility: np.ndarray,
    active: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Errors of landmarks told from part centres, by the code of PDiscoFormer (Aniraj et al., ECCV 2024).

    Centres and landmarks are standardised on those images of the fit split that show the landmark. Centres of parts
    that are not active are 0 then. The regression has no intercept. All coordinates are relative to the box.

    Args:
        fit_centers: [M, K, 2] centres of the images to fit on.
        fit_landmarks: [M, P, 2].
        fit_visibility: bool [M, P].
        fit_active: bool [M, K].
        centers: [N, K, 2] centres of the images to test on.
        landmarks: [N, P, 2].
        visibility: bool [N, P].
        active: bool [N, K].
        lengths: [N, 2], the length of a unit along x and y of every image; nan leaves an image out.

    Returns:
        L2 distance of every landmark, float64 [N, P]; nan where it is invisible, or was never visible in fitting.
    """
    errors = np.full(visibility.shape, np.nan)
    for p in range(landmarks.shape[1]):
        fit, test = fit_visibility[:, p], visibility[:, p]
        if not fit.any() or not test.any():
            continue
        of_parts, of_landmark = StandardScaler(), StandardScaler()
        features = of_parts.fit_transform(_flat(fit_centers[fit])) * _twice(fit_active[fit])
        target = of_landmark.fit_transform(fit_landmarks[fit, p].astype(np.float64))
        regression = LinearRegression(fit_intercept=False).fit(features, target)
        tested = of_parts.transform(_flat(centers[test])) * _twice(active[test])
        predicted = of_landmark.inverse_transform(regression.predict(tested))
        errors[test, p] = np.linalg.norm((predicted - landmarks[test, p]) * lengths[test], axis=1)
    return errors


def _flat(centers: np.ndarray) -> np.ndarray:
    return centers.reshape(len(centers), -1).astype(np.float64)


def _twice(active: np.ndarray) -> np.ndarray:
    """[N, K] -> [N, 2 K]: for x and y of every part."""
    return active.repeat(2, axis=1)
