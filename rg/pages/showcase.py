"""Which images of an evaluated split are worth showing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from pipelines.shards.manifest import Manifest

Prediction = dict[str, Any]  # a line of predictions.jsonl


def errors(prediction: Prediction) -> int:
    """Number of wrong attributes; 0 or 1 for a class."""
    truth, predicted = prediction["label"], prediction["predicted"]
    if isinstance(truth, list):
        return sum(a != b for a, b in zip(truth, predicted, strict=True))
    return int(truth != predicted)


def _group(prediction: Prediction) -> Hashable:
    """What two images of the same kind have in common."""
    label = prediction["label"]
    return tuple(label) if isinstance(label, list) else label


def take_turns(items: Iterable[Prediction], group: Callable[[Prediction], Hashable]) -> list[Prediction]:
    """The first of every group, then the second of every group, ...; otherwise in the given order."""
    turns: Counter[Hashable] = Counter()
    rounds: defaultdict[int, list[Prediction]] = defaultdict(list)
    for item in items:
        rounds[turns[group(item)]].append(item)
        turns[group(item)] += 1
    return [item for turn in sorted(rounds) for item in rounds[turn]]


def best(predictions: Sequence[Prediction], manifest: Manifest) -> list[Prediction]:
    """Right and sure, and as diverse as there are classes and coarse classes."""

    def coarse(prediction: Prediction) -> Hashable:
        return manifest.super_categories[prediction["label"]] if manifest.super_categories else None

    ranked = sorted(predictions, key=lambda image: (errors(image), -image["probability"], image["key"]))
    if manifest.multi_label:
        return take_turns(ranked, _group)
    return take_turns(take_turns((image for image in ranked if not errors(image)), _group), coarse)


def worst(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Wrong and sure, of different classes."""
    wrong = [image for image in predictions if errors(image)]
    return take_turns(sorted(wrong, key=lambda image: (-errors(image), -image["probability"], image["key"])), _group)


def showing(predictions: Sequence[Prediction], k: int, part: Mapping[str, Any]) -> list[Prediction]:
    """Where part k occurs most surely, in different classes, of the images with a place where it is the strongest."""
    if part["state"] == "dead":
        return []
    visible = (image for image in predictions if image["area"][k])
    return take_turns(sorted(visible, key=lambda image: (-image["occurrence"][k], image["key"])), _group)
