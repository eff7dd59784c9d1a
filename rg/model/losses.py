"""Losses of classification, distillation and the prior on part occurrence (Section 3.1, Eq. 2)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

EPSILON = 1e-5
TEMPERATURE = 10  # of distillation


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    answers: Tensor | None = None,
) -> Tensor:
    """Cross entropy for one class per image, mean binary cross entropy for attributes.

    Of an image with several right answers it is minus the logarithm of the probability that one of them is given.

    Args:
        logits: [N, classes].
        labels: Class indices [N], or 0/1 attributes [N, classes].
        smoothing: Share of the target that is spread evenly: over the classes, or over 0 and 1.
        weights: Of the images [N], 1 each if None.
        answers: bool [N, classes], which are right if that is not the label alone; of classes.

    Returns:
        Scalar mean of the weighted losses of the images.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if answers is not None:
        logarithms = F.log_softmax(logits, 1)
        right = torch.logsumexp(logarithms.masked_fill(~answers, -torch.inf), 1)
        losses = -torch.lerp(right, logarithms.mean(1), smoothing)
        return (losses if weights is None else weights * losses).mean()
    if labels.ndim == 1:
        if weights is not None:
            return (weights * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    targets = labels.to(logits.dtype)
    if smoothing:
        targets = targets.lerp(torch.full_like(targets, 0.5), smoothing)
    return F.binary_cross_entropy_with_logits(logits, targets, None if weights is None else weights.unsqueeze(1))


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of softened answers with those of a teacher (Hinton et al., 2015), as TASN distils details.

    Args:
        logits: [N, classes].
        teacher: Logits of the teacher [N, classes]; gets no gradient.

    Returns:
        Scalar mean over the images, at temperature 10.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target = torch.softmax(teacher.detach().to(dtype) / TEMPERATURE, 1)
    return F.cross_entropy(logits.to(dtype) / TEMPERATURE, target)


def occurrence_prior_loss(
    occurrence: Tensor, prior_alpha: float, prior_beta: float, past: Tensor | None = None
) -> Tensor:
    """1D Wasserstein distance, on a log scale, between part occurrence and a Beta prior (Eq. 2).

    For every part the N occurrences are sorted and compared with the N quantiles (2n - 1) / 2N of the prior. N must be
    the whole batch of a step: the mean of two half batches is another loss. A small batch says little of a
    distribution: then occurrences of past steps are sorted along, and every occurrence of the batch is compared with
    the quantile of its place among all.

    Args:
        occurrence: [N, K] in (0, 1), N >= 1.
        prior_alpha: First parameter of the Beta distribution, positive.
        prior_beta: Second parameter of the Beta distribution, positive.
        past: Occurrences of past steps [Q, K], without gradient.

    Returns:
        Scalar mean over the images of the batch and parts.

    Raises:
        ValueError: wrong shape or parameters.
    """
    if occurrence.ndim != 2 or occurrence.shape[0] == 0:
        raise ValueError(f"occurrence: expected [N, K] with N >= 1, got {list(occurrence.shape)}")
    if prior_alpha <= 0 or prior_beta <= 0:
        raise ValueError(f"expected positive prior_alpha and prior_beta, got {prior_alpha} and {prior_beta}")
    dtype = torch.promote_types(occurrence.dtype, torch.float32)
    occurrence = occurrence.to(dtype)
    everything = occurrence if past is None else torch.cat([occurrence, past.to(occurrence)])
    target = _log_target(len(everything), prior_alpha, prior_beta, dtype, occurrence.device)
    if past is None:
        ascending = occurrence.sort(dim=0).values
        return (torch.log(ascending + EPSILON) - target.unsqueeze(1)).abs().mean()
    places = everything.argsort(dim=0, stable=True).argsort(dim=0)[: len(occurrence)]
    return (torch.log(occurrence + EPSILON) - target[places]).abs().mean()


def prior_quantiles(count: int, prior_alpha: float, prior_beta: float) -> np.ndarray:
    """Quantiles (2n - 1) / 2N, n = 1..N, of the Beta prior: float64 [count], ascending."""
    return betaincinv(prior_alpha, prior_beta, (2 * np.arange(1, count + 1) - 1) / (2 * count))


@lru_cache(maxsize=64)
def _log_target(count: int, prior_alpha: float, prior_beta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    log_quantiles = np.log(prior_quantiles(count, prior_alpha, prior_beta) + EPSILON)
    return torch.as_tensor(log_quantiles, dtype=dtype, device=device)
