"""The parts of an evaluated run: when they occur, which classes they matter for, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rg.evaluation.parts import ADVICE
from rg.explain.contributions import NOTABLE
from rg.model.losses import prior_quantiles
from rg.pages.charts import quantile_path
from rg.pages.predictions import Predictions
from rg.runs.part_names import Part

CLASSES = 3  # named for a part


@dataclass(frozen=True)
class ClassEffect:
    """What a part does for a class.

    Attributes:
        label: Name of the class, or attribute.
        contribution: Mean of what the part adds to its logit, over the images that got this label.
        difference: The same, less its mean over all classes: how far the part tells this class from others.
    """

    label: str
    contribution: float
    difference: float


@dataclass(frozen=True)
class Concept:
    """A part over all images of a split.

    Attributes:
        part: Its name and kind.
        measured: What metrics.json says of it.
        curve: SVG path of its occurrence, sorted over the images (see ``charts.quantile_path``).
        separation: Standard deviation over the classes of what it adds.
        matters: The classes that it adds most to.
        against: The classes that it takes most from, although they won.
        advice: What to do if it does not do its work; empty if it does.
    """

    part: Part
    measured: Mapping[str, Any]
    curve: str
    separation: float
    matters: list[ClassEffect]
    against: list[ClassEffect]
    advice: str

    @property
    def title(self) -> str:
        """Its name, to begin a sentence with."""
        return self.part.name[0].upper() + self.part.name[1:]


def concepts(
    parts: Sequence[Part],
    measured: Sequence[Mapping[str, Any]],
    predictions: Predictions,
    classes: Sequence[str],
) -> list[Concept]:
    """All parts of a run.

    Args:
        parts: Their names and kinds.
        measured: What metrics.json says of them.
        predictions: Answers to all images.
        classes: Names of the classes or attributes.
    """
    means = class_means(predictions, len(classes))
    predicted = np.flatnonzero(~np.isnan(means[:, 0])).tolist()
    names = [classes[c] for c in predicted]
    means = means[predicted]
    concepts_of_run = []
    for part, metrics in zip(parts, measured, strict=True):
        adds = means[:, part.index]
        effects = [
            ClassEffect(names[c], float(adds[c]), float(adds[c] - adds.mean()))
            for c in np.argsort(-adds, kind="stable")
        ]
        concepts_of_run.append(
            Concept(
                part,
                metrics,
                curve=quantile_path(predictions.occurrence[:, part.index]),
                separation=float(adds.std()),
                matters=[effect for effect in effects[:CLASSES] if effect.contribution >= NOTABLE],
                against=[effect for effect in effects[: -CLASSES - 1 : -1] if effect.contribution <= -NOTABLE],
                advice="" if part.slot else ADVICE.get(metrics["state"].split()[0], ""),
            )
        )
    return concepts_of_run


def class_means(predictions: Predictions, num_classes: int) -> np.ndarray:
    """What every part adds to the logit of every class, the mean over the images that got its label.

    Args:
        predictions: Answers to all images.
        num_classes: Number of classes, or attributes.

    Returns:
        float64 [classes, K]; nan for a class that no image got.
    """
    explained = predictions.explained
    sums = np.zeros((num_classes, predictions.contributions.shape[1]))
    np.add.at(sums, explained, predictions.contributions)
    counts = np.bincount(explained, minlength=num_classes)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def prior_path(count: int, prior_alpha: float, prior_beta: float) -> str:
    """The curve that the prior asks of the occurrences of ``count`` images (Eq. 2)."""
    return quantile_path(prior_quantiles(count, prior_alpha, prior_beta))
