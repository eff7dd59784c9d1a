"""Confidence that can be trusted: temperature scaling and reliability (Guo et al., ICML 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from rg.evaluation.rows import Rows, check_finite, slices
from rg.runs.confidence import probabilities

LOWEST, HIGHEST = 0.01, 100.0


@dataclass(frozen=True)
class Reliability:
    """How often decisions of a confidence are right, in bins of equal width from 0 to 1.

    Attributes:
        counts: Decisions in every bin.
        confidences: Their mean confidence; None where there are none.
        accuracies: The share of them that is right; None where there are none.
        ece: Expected calibration error: distance of confidence and accuracy, the mean over decisions of their bins.
    """

    counts: tuple[int, ...]
    confidences: tuple[float | None, ...]
    accuracies: tuple[float | None, ...]
    ece: float


def fit_temperature(logits: np.ndarray | Rows, labels: np.ndarray) -> float:
    """The temperature T at which softmax(logits / T), or sigmoid(logits / T), fits the labels best.

    Minimises the mean negative log likelihood, or the mean binary cross entropy of attributes. Both are convex in
    1 / T, so their slope changes its sign at most once: there T is found, in float64 and block by block.

    Args:
        logits: [N, C], finite; of images that the model was not trained on.
        labels: Class indices int [N], or 0/1 attributes [N, C].

    Returns:
        0.01 to 100. A bound is returned where the best is beyond it: the lower one if all answers are right (the more
        confident, the better), the upper one if the logits tell nothing of the labels. 1 if the temperature makes no
        difference.

    Raises:
        ValueError: logits or labels are not as above, or there are none.
    """
    _check(logits, labels)

    def slope(temperature: float) -> float:
        """Of the loss over 1 / T."""
        total = 0.0
        for z, y in _blocks(logits, labels):
            if y.ndim == 1:
                excess = z - np.take_along_axis(z, y[:, None], axis=1)  # over the right class
                total += (softmax(excess / temperature, axis=1) * excess).sum()
            else:
                excess = np.where(y, -z, z)  # of the wrong value over the right one
                total += (expit(excess / temperature) * excess).sum()
        return total / labels.size

    at_lowest, at_highest = slope(LOWEST), slope(HIGHEST)
    if at_lowest == at_highest == 0:
        return 1.0
    if at_lowest <= 0:
        return LOWEST
    if at_highest >= 0:
        return HIGHEST
    return float(np.exp(brentq(lambda logarithm: slope(np.exp(logarithm)), np.log(LOWEST), np.log(HIGHEST))))


def confidences(logits: np.ndarray | Rows, labels: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """How sure every decision is, and whether it is right.

    Args:
        logits: [N, C], finite.
        labels: Class indices int [N], or 0/1 attributes [N, C].
        temperature: Positive; 1 for the probabilities that the model was trained to give.

    Returns:
        confidence: float64 [N], the probability of the best class; or [N * C], every attribute being a decision of its
            own, that of the likelier value.
        correct: bool of the same shape. An attribute holds where its probability is above a half.

    Raises:
        ValueError: an argument is not as above.
    """
    _check(logits, labels)
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    confidence, correct = [], []
    for z, y in _blocks(logits, labels):
        if y.ndim == 1:
            confidence.append(probabilities(z, temperature, multi_label=False).max(1))
            correct.append(z.argmax(1) == y)
        else:
            confidence.append(probabilities(np.abs(z), temperature, multi_label=True).ravel())
            correct.append(((z > 0) == y).ravel())
    return np.concatenate(confidence), np.concatenate(correct)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Reliability:
    """How often decisions are right that are about equally sure.

    Args:
        confidence: [M], 0 to 1.
        correct: bool [M].
        bins: Their number. A bin includes its upper end; the first includes 0 as well.

    Raises:
        ValueError: an argument is not as above, or there are no decisions.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if confidence.ndim != 1 or not confidence.size:
        raise ValueError(f"confidence: expected [M], got {list(confidence.shape)}")
    if not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ValueError(f"confidence: expected 0 to 1, got {confidence.min()} to {confidence.max()}")
    if correct.shape != confidence.shape:
        raise ValueError(f"correct: expected {list(confidence.shape)}, got {list(correct.shape)}")
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    counts = np.bincount(index, minlength=bins)
    sure = np.bincount(index, weights=confidence, minlength=bins)
    right = np.bincount(index, weights=correct, minlength=bins)
    return Reliability(
        counts=tuple(counts.tolist()),
        confidences=_means(sure, counts),
        accuracies=_means(right, counts),
        ece=float(np.abs(sure - right).sum() / len(confidence)),
    )


def _check(logits: np.ndarray | Rows, labels: np.ndarray) -> None:
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits: expected [N, C], got {list(logits.shape)}")
    N, C = logits.shape
    check_finite(logits)
    if labels.shape not in ((N,), (N, C)):
        raise ValueError(f"labels: expected [{N}] or [{N}, {C}], got {list(labels.shape)}")
    highest = 1 if labels.ndim == 2 else C - 1
    if labels.min() < 0 or labels.max() > highest:
        raise ValueError(f"labels: expected 0 to {highest}, got {labels.min()} to {labels.max()}")


def _blocks(logits: np.ndarray | Rows, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows in slices(logits):
        yield logits[rows].astype(np.float64), labels[rows]


def _means(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, ...]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return tuple(total / count if count else None for total, count in pairs)
