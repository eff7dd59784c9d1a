"""The metrics of an evaluated run, for people: names, meanings, and what they need of the data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A number of metrics.json.

    Attributes:
        name: For people.
        key: In metrics.json.
        meaning: A sentence.
        needs: What it needs of the data set; nothing if any has it.
    """

    name: str
    key: str
    meaning: str
    needs: tuple[str, ...] = ()


MEASURED = (
    Metric("Accuracy", "accuracy", "Share of right answers."),
    Metric("Mean class accuracy", "mean_class_accuracy", "The same, every class counted once."),
    Metric(
        "Landmark error",
        "landmark_error",
        "Distance of landmarks told from part centres, by size of the box, or by that between the eyes.",
        ("landmarks", "boxes"),
    ),
    Metric(
        "Mean-shape error",
        "mean_shape_error",
        "The same for one mean shape, without looking.",
        ("landmarks", "boxes"),
    ),
    Metric("Pointing-game error", "pointing_error", "Attribution peaks that miss the box of the object.", ("boxes",)),
    Metric("NMI at landmarks", "nmi", "Mutual information of parts and landmarks, normalised.", ("landmarks",)),
    Metric("ARI at landmarks", "ari", "Adjusted Rand index of the same; 0 by chance.", ("landmarks",)),
    Metric(
        "NMI on part maps", "part_map_nmi", "Mutual information of parts and true parts of all pixels.", ("part maps",)
    ),
    Metric("ARI on part maps", "part_map_ari", "Adjusted Rand index of the same; 0 by chance.", ("part maps",)),
)

FIELD = (  # the protocol of later work; keys are those of "field" in metrics.json
    Metric(
        "Keypoint error",
        "keypoint_error",
        "Distance of landmarks told without intercept from the centres of parts that are sure somewhere.",
        ("landmarks", "boxes"),
    ),
    Metric("NMI at landmarks", "nmi", "As above: both protocols agree.", ("landmarks",)),
    Metric("ARI at landmarks", "ari", "As above: both protocols agree.", ("landmarks",)),
    Metric("Landmarks on object parts", "landmarks_on_object", "Visible ones, not on background.", ("landmarks",)),
    Metric(
        "Consistency",
        "consistency",
        "Object parts of classes whose peaks meet one landmark in at least 80 % of the images.",
        ("landmarks",),
    ),
    Metric("Stability", "stability", "Peaks of object parts that meet the same landmarks under noise.", ("landmarks",)),
    Metric(
        "NMI on all pixels", "pixel_nmi", "Mutual information of parts and true parts or background.", ("part maps",)
    ),
    Metric("ARI on all pixels", "pixel_ari", "Adjusted Rand index of the same; 0 by chance.", ("part maps",)),
    Metric("Foreground IoU", "foreground_iou", "Overlap of object parts with the object.", ("part maps",)),
)


def not_measured(result: Mapping[str, Any]) -> list[str]:
    """One line that names the metrics that the data set cannot tell, and why; none if there is nothing to name."""
    absent = {metric.name: metric.needs for metric in MEASURED if result[metric.key] is None and metric.needs}
    if not absent:
        return []
    needs = " or ".join(", ".join(dict.fromkeys(itertools.chain(*absent.values()))).rsplit(", ", 1))
    return [f"Not measured without {needs}: {', '.join(absent)}"]
