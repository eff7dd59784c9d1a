"""The protocol of later work on parts from image labels, beside that of the paper; docs/evaluation.md defines it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rg.evaluation.hits import consistency
from rg.evaluation.intervals import PerImage, intervals
from rg.evaluation.keypoints import keypoint_errors
from rg.evaluation.metrics import foreground_ious
from rg.evaluation.tally import Tally, in_frames

FIGURES = (
    "keypoint_error",
    "nmi",
    "ari",
    "landmarks_on_object",
    "consistency",
    "stability",
    "pixel_nmi",
    "pixel_ari",
    "foreground_iou",
)


def at_landmarks(fit: Tally, seen: Tally, background: np.ndarray, scale: str) -> tuple[PerImage, dict[str, Any]]:
    """What landmarks tell of the parts.

    Args:
        fit: Of the images that the regression is fitted on.
        seen: Of those that it is tested on.
        background: Which parts are background, bool [K].
        scale: What errors are fractions of, as in ``Tally.frames``.

    Returns:
        Figures image by image, and others by name.
    """
    samples = PerImage()
    fitted, _ = in_frames(fit, fit.cell_corners, scale)
    tested, lengths = in_frames(seen, seen.cell_corners, scale)
    active, tested_active = (torch.cat(tally.active).numpy()[:, : fitted[0].shape[1]] for tally in (fit, seen))
    samples.mean("keypoint_error", keypoint_errors(*fitted, active, *tested, tested_active, lengths))
    visible, strongest = torch.cat(seen.visibility).numpy(), torch.cat(seen.landmark_parts).numpy()
    samples.tables["nmi", "ari"] = seen.landmark_tables()
    samples.mean("landmarks_on_object", np.where(visible, ~background[strongest], np.nan))
    others: dict[str, Any] = {"consistency": None}
    if seen.hits:
        hits, labels = (torch.cat(values).numpy() for values in (seen.hits, seen.labels))
        if labels.ndim == 1:
            others["consistency"] = consistency(hits[:, ~background], visible, labels)
    if seen.unchanged:
        samples.mean("stability", torch.cat(seen.unchanged).numpy()[:, ~background].astype(float))
    return samples, others


def on_pixels(seen: Tally, background: np.ndarray) -> PerImage:
    """What part maps or masks tell of the parts; nothing without any."""
    samples = PerImage()
    if seen.pixel_tables:
        tables = torch.cat(seen.pixel_tables).numpy()
        samples.tables["pixel_nmi", "pixel_ari"] = tables
        samples.mean("foreground_iou", foreground_ious(tables, ~background))
    return samples


def field_metrics(
    fit: Tally | None, tested: Tally, seen: Tally, background: np.ndarray, scale: str
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What metrics.json holds under ``field``: every figure, None where the data cannot tell it; and their intervals.

    Args:
        fit: Of the images that the keypoint regression is fitted on; None without landmarks.
        tested: Of those with the landmarks that it is tested on.
        seen: Of those with the part maps.
        background: Which parts are background, bool [K].
        scale: What errors are fractions of, as in ``Tally.frames``.
    """
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    pixels = on_pixels(seen, background)
    figures |= pixels.figures()
    ends = intervals(pixels)
    if fit:
        samples, others = at_landmarks(fit, tested, background, scale)
        figures |= samples.figures() | others
        ends |= intervals(samples)
    return figures, ends
