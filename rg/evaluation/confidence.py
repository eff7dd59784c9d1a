"""When an answer can be trusted, is withheld because the model is unsure, or refused because no known part fits."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from rg.evaluation import calibration
from rg.evaluation.rows import Rows
from rg.model.edits import Edits
from rg.runs.confidence import (
    FEWEST_FOR_TEMPERATURE,
    Confidence,
    basis,
    fewest_for_limit,
    fewest_for_threshold,
)

logger = logging.getLogger(__name__)


def fit_confidence(
    logits: np.ndarray | Rows,
    labels: np.ndarray,
    presence: np.ndarray | None,
    target_precision: float,
    false_alarms: float,
    dataset: str,
    weights: str,
    shards: str | None = None,
    edits: Edits | None = None,
) -> Confidence:
    """Temperature, limit and threshold of validation images, in this order; none of those that ask for more images.

    Without a temperature it is 1, without a limit no image is unknown, and without a threshold no answer is unsure.

    Args:
        logits: [N, C], finite.
        labels: Class indices int [N], or 0/1 attributes [N, C].
        presence: [N]; None for a network without parts.
        target_precision: See ``Confidence``, like the next ones.
        false_alarms: 0 calls no image unknown.
        dataset: Name.
        weights: sha256.
        shards: Digest of the images.
        edits: Of the model; none if None.

    Raises:
        ValueError: logits or labels are not as above, or there are none.
    """
    images = len(logits)
    temperature: float | None = calibration.fit_temperature(logits, labels)
    if images < FEWEST_FOR_TEMPERATURE:
        temperature = None
    elif temperature in (calibration.LOWEST, calibration.HIGHEST):
        logger.warning("no temperature: the answers on the validation split are all right, or tell nothing")
        temperature = None
    limit = None
    if presence is not None and false_alarms and images >= fewest_for_limit(false_alarms):
        limit = presence_limit(presence, false_alarms)
    confidence, correct = calibration.confidences(logits, labels, temperature or 1.0)
    known = _known(presence, limit, confidence)
    threshold: float | None = 0.0
    if images >= fewest_for_threshold(target_precision):
        threshold = choose_threshold(confidence[known], correct[known], target_precision)
    if threshold is None:
        logger.warning(
            "no threshold: not even the surest answers on the validation split are right often enough for "
            "evaluation.target_precision = %g, so all answers are called unsure",
            target_precision,
        )
    given = known & (confidence >= (math.inf if threshold is None else threshold))
    fitted = Confidence(
        temperature,
        threshold,
        limit,
        target_precision,
        false_alarms,
        coverage=float(given.mean()),
        precision=float(correct[given].mean()) if given.any() else None,
        images=images,
        dataset=dataset,
        weights=weights,
        shards=shards,
        edits=(edits or Edits()).to_dict(),
    )
    if fitted.too_few:
        logger.warning("confidence: %s", basis(images, fitted.too_few))
    return fitted


def choose_threshold(confidence: np.ndarray, correct: np.ndarray, target_precision: float) -> float | None:
    """The lowest threshold above which the share of right decisions reaches the target.

    Half-way between the last decision that is above and the first that is below, so that rounding moves none across. It
    is the target on these decisions; on others precision scatters around it.

    Args:
        confidence: [M], 0 to 1.
        correct: bool [M].
        target_precision: Above 0, at most 1.

    Returns:
        0 if all decisions together reach the target; None if no threshold does.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    precision = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    below = np.append(ranked[1:], -1.0)
    enough = np.flatnonzero((precision >= target_precision) & (below < ranked))  # equal ones stay together
    if not enough.size:
        return None
    last = enough[-1]
    return 0.0 if last == len(order) - 1 else float((ranked[last] + below[last]) / 2)


def presence_limit(presence: np.ndarray, false_alarms: float) -> float:
    """The presence below which nothing known is in an image.

    It is the k-th smallest of N values, k = false_alarms (N + 1) rounded down but at least 1. So a new image of the
    same kind is below it with a probability of at most k / (N + 1) (split conformal prediction; Vovk et al., 2005).

    Args:
        presence: [N], of images that show what the model knows.
        false_alarms: Share of such images that may be below.
    """
    return float(np.sort(presence)[max(1, math.floor(false_alarms * (len(presence) + 1))) - 1])


def selective_metrics(
    confidence: Confidence, logits: np.ndarray | Rows, labels: np.ndarray, presence: np.ndarray | None
) -> dict[str, Any]:
    """What becomes of the answers if some are withheld (selective classification).

    Args:
        confidence: Fitted on other images.
        logits: [N, C], finite.
        labels: Class indices int [N], or 0/1 attributes [N, C].
        presence: [N]; None for a network without parts.

    Returns:
        Shares of the decisions: ``coverage`` answered, ``unsure``, ``unknown``; ``precision`` of those answered (None
        if none is); ``aurc``, the area under the risk-coverage curve: the mean over n of the error among the n surest.
        And the limits that they were measured with.
    """
    sure, correct = calibration.confidences(logits, labels, confidence.temperature or 1.0)
    known = _known(presence, confidence.presence_limit, sure)
    given = known & (sure >= confidence.least_probability)
    wrong = ~correct[np.argsort(-sure, kind="stable")]
    return {
        "threshold": confidence.threshold,
        "presence_limit": confidence.presence_limit,
        "target_precision": confidence.target_precision,
        "coverage": float(given.mean()),
        "precision": float(correct[given].mean()) if given.any() else None,
        "unsure": float((known & ~given).mean()),
        "unknown": float((~known).mean()),
        "aurc": float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean()),
    }


def _known(presence: np.ndarray | None, limit: float | None, decisions: np.ndarray) -> np.ndarray:
    """Which decisions are about images that show something known; an image has as many decisions as attributes."""
    if presence is None or limit is None:
        return np.ones(len(decisions), dtype=bool)
    return np.repeat(presence >= limit, len(decisions) // len(presence))
