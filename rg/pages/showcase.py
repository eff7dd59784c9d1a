"""Which images of an evaluated split are worth showing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from pipelines.shards.manifest import Manifest
from rg.pages.predictions import Predictions


def take_turns(images: Iterable[int], group: Callable[[int], Hashable]) -> list[int]:
    """The first of every group, then the second of every group, ...; otherwise in the given order."""
    turns: Counter[Hashable] = Counter()
    rounds: defaultdict[int, list[int]] = defaultdict(list)
    for image in images:
        rounds[turns[group(image)]].append(image)
        turns[group(image)] += 1
    return [image for turn in sorted(rounds) for image in rounds[turn]]


def best(predictions: Predictions, manifest: Manifest) -> list[int]:
    """Right and sure, and as diverse as there are classes and coarse classes: numbers of images."""

    def coarse(image: int) -> Hashable:
        return manifest.super_categories[predictions.labels[image]] if manifest.super_categories else None

    ranked, errors = _ranked(predictions, predictions.errors, -predictions.probability), predictions.errors
    if manifest.multi_label:
        return take_turns(ranked, _groups(predictions))
    return take_turns(take_turns((image for image in ranked if not errors[image]), _groups(predictions)), coarse)


def worst(predictions: Predictions) -> list[int]:
    """Wrong and sure, of different classes: numbers of images."""
    errors = predictions.errors
    ranked = _ranked(predictions, -errors, -predictions.probability)
    return take_turns((image for image in ranked if errors[image]), _groups(predictions))


def showing(predictions: Predictions, k: int, part: Mapping[str, Any]) -> list[int]:
    """Where part k occurs most surely, in different classes, of the images with a place where it is the strongest."""
    if part["state"] == "dead":
        return []
    ranked = _ranked(predictions, -predictions.occurrence[:, k])
    return take_turns((image for image in ranked if predictions.area[image, k]), _groups(predictions))


def _ranked(predictions: Predictions, *values: np.ndarray) -> list[int]:
    """Numbers of the images by rising values, the first ones first, then by their keys."""
    columns = [column.tolist() for column in values]
    return sorted(range(len(predictions)), key=lambda image: (*(c[image] for c in columns), predictions.keys[image]))


def _groups(predictions: Predictions) -> Callable[[int], Hashable]:
    """What two images of the same kind have in common."""
    labels = predictions.labels
    return lambda image: tuple(labels[image].tolist()) if labels.ndim == 2 else int(labels[image])
