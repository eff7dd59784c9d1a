"""What is said of the parts of an evaluated run: when they occur, which classes they matter for, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rg.charts import quantile_path
from rg.losses import prior_quantiles
from rg.part_names import Part
from rg.pictures import NOTABLE

BACKGROUND_ABOVE = 2 / 3  # share of the parts
CLASSES = 3  # named for a part
ADVICE = {
    "dead": "It is the strongest part in less than 1 % of the images. Start from k-means centres "
    "(model.grouping.init=kmeans), train longer, or ask for fewer parts (model.grouping.num_parts).",
    "duplicate": "It covers the same places as an earlier part. Ask for fewer parts (model.grouping.num_parts), or "
    "start from k-means centres (model.grouping.init=kmeans).",
    "everywhere": "It covers most of most images, so it tells nothing apart. Standardise the features "
    "(model.grouping.standardize=true), start from k-means centres (model.grouping.init=kmeans), or give the "
    "occurrence prior more weight (loss.prior_weight).",
    "background": "Few parts are left to tell the classes apart. Ask for fewer parts (model.grouping.num_parts), give "
    "the occurrence prior more weight (loss.prior_weight), or start from k-means centres (model.grouping.init=kmeans). "
    "If parts of the object are among them, say so in part_names.json.",
}


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
    predictions: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> list[Concept]:
    """All parts of a run.

    Args:
        parts: Their names and kinds.
        measured: What metrics.json says of them.
        predictions: Lines of predictions.jsonl.
        classes: Names of the classes or attributes.
    """
    occurrence = np.array([prediction["occurrence"] for prediction in predictions])
    means = class_means(predictions, len(classes))
    given = ~np.isnan(means[:, 0])
    names = [name for name, there in zip(classes, given, strict=True) if there]
    means = means[given]
    found = []
    for part, about in zip(parts, measured, strict=True):
        adds = means[:, part.index]
        effects = [
            ClassEffect(names[c], float(adds[c]), float(adds[c] - adds.mean()))
            for c in np.argsort(-adds, kind="stable")
        ]
        found.append(
            Concept(
                part,
                about,
                curve=quantile_path(occurrence[:, part.index]),
                separation=float(adds.std()),
                matters=[effect for effect in effects[:CLASSES] if effect.contribution >= NOTABLE],
                against=[effect for effect in effects[: -CLASSES - 1 : -1] if effect.contribution <= -NOTABLE],
                advice=ADVICE.get(about["state"].split()[0], ""),
            )
        )
    return found


def class_means(predictions: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """What every part adds to the logit of every class, the mean over the images that got its label.

    Args:
        predictions: Lines of predictions.jsonl.
        num_classes: Number of classes, or attributes.

    Returns:
        float64 [classes, K]; nan for a class that no image got.
    """
    contributions = np.array([prediction["contributions"] for prediction in predictions])
    explained = np.array([prediction["explained"] for prediction in predictions])
    sums = np.zeros((num_classes, contributions.shape[1]))
    np.add.at(sums, explained, contributions)
    counts = np.bincount(explained, minlength=num_classes)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def prior_path(count: int, prior_alpha: float, prior_beta: float) -> str:
    """The curve that the prior asks of the occurrences of ``count`` images (Eq. 2)."""
    return quantile_path(prior_quantiles(count, prior_alpha, prior_beta))


def problems(parts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What is wrong with the parts that metrics.json describes, and what to do."""
    found = []
    for kind in ("dead", "duplicate", "everywhere"):
        names = [part["name"] for part in parts if part["state"].startswith(kind)]
        if names:
            found.append((f"{kind.capitalize()}: {', '.join(names)}.", ADVICE[kind]))
    return found + mostly_background([part["background"] for part in parts])


def mostly_background(background: Sequence[bool]) -> list[tuple[str, str]]:
    """The same of all parts together, of which some are background."""
    if sum(background) <= BACKGROUND_ABOVE * len(background):
        return []
    return [(f"{sum(background)} of {len(background)} parts are background.", ADVICE["background"])]
