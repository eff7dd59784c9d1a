"""What an answer becomes if parts are switched off: enough numbers of one image to tell without the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.runs.confidence import probabilities

ALL, MOST_PROBABLE = 200, 50  # up to so many classes are all kept; else so many
DIGITS = 6  # of a logit that is written down


@dataclass(frozen=True)
class Choices:
    """What every part adds to the logit of every class that may win, of a model of classes.

    A logit is the constant, what the parts add and what the place adds, so without some parts it is the sum of the
    rest. Attributes have no such table: the parts of one do not simply add up.

    Attributes:
        labels: Names of J classes.
        constants: float32 [J], of their logits.
        contributions: float32 [J, K].
        temperature: Probabilities are softmax(logits / temperature).
        complete: Whether these are all classes; else they are those with the largest logits, and the probabilities are
            shares among them.
        places: float32 [J], what where and when the photo was taken adds; None of a model that knows nothing of places.
    """

    labels: tuple[str, ...]
    constants: np.ndarray
    contributions: np.ndarray
    temperature: float
    complete: bool
    places: np.ndarray | None = None

    def without(self, off: Collection[int]) -> list[tuple[str, float, float]]:
        """The classes, most probable first, if some parts are off: name, probability and logit of each."""
        heard = [k for k in range(self.contributions.shape[1]) if k not in off]
        logits = self.constants + self.contributions[:, heard].sum(1, dtype=np.float64)
        if self.places is not None:
            logits = logits + self.places
        shares = probabilities(logits[None], self.temperature, multi_label=False)[0]
        order = np.argsort(-logits, kind="stable").tolist()
        return [(self.labels[c], float(shares[c]), float(logits[c])) for c in order]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "labels": list(self.labels),
            "constants": [round(value, DIGITS) for value in self.constants.tolist()],
            "places": None if self.places is None else [round(value, DIGITS) for value in self.places.tolist()],
            "contributions": [[round(value, DIGITS) for value in row] for row in self.contributions.tolist()],
            "temperature": self.temperature,
            "complete": self.complete,
        }


def choices_of_images(
    model: RegionGroupingModel, output: ModelOutput, names: Sequence[str], temperature: float | None
) -> list[Choices]:
    """One for each image.

    Args:
        model: Of classes, in evaluation mode.
        output: What it says of the images.
        names: Of the classes.
        temperature: Of the probabilities; None for 1.
    """
    complete = len(names) <= ALL
    classes = output.logits.topk(len(names) if complete else MOST_PROBABLE, dim=1).indices
    adds, constants = (values.float().cpu().numpy() for values in model.contributions(output, classes))
    places = None if output.place is None else output.place.gather(1, classes).float().cpu().numpy()
    return [
        Choices(
            tuple(names[c] for c in row),
            constants[n],
            adds[n],
            temperature or 1.0,
            complete,
            None if places is None else places[n],
        )
        for n, row in enumerate(classes.tolist())
    ]
