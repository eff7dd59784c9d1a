"""predictions.jsonl, of which a report is made, as columns, which stay small with many images and classes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.files import read_json_lines


class Prediction(NamedTuple):
    """The answer to one image.

    Attributes:
        key: Of the sample.
        label: int, the class, or a list of 0 and 1 for the attributes.
        predicted: The same as the model says.
        probability: Of the class, or the most probable attribute.
        errors: Number of wrong attributes; 0 or 1 for a class.
    """

    key: str
    label: Any
    predicted: Any
    probability: float
    errors: int


@dataclass(frozen=True)
class Predictions:
    """The answers to N images by K parts.

    Attributes:
        keys: Of the samples.
        labels: int64 [N], or 0 and 1 for attributes [N, L].
        predicted: The same as the model says.
        probability: float64 [N], of the class, or the most probable attribute.
        explained: int64 [N], the class or attribute that contributions are made to.
        occurrence: float64 [N, K].
        area: float64 [N, K], share of the positions where a part is the strongest.
        contributions: float64 [N, K].
    """

    keys: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    explained: np.ndarray
    occurrence: np.ndarray
    area: np.ndarray
    contributions: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read the file of a run of region grouping.

        Raises:
            ValueError: there is none, or it is not as ``evaluate`` writes it.
        """
        keys: list[str] = []
        columns: dict[str, array] = {name: array("q") for name in ("label", "predicted", "explained")}
        columns |= {name: array("d") for name in ("probability", "occurrence", "area", "contributions")}
        widths: dict[str, int] = {}
        try:
            for number, line in enumerate(read_json_lines(path), 1):
                if not (isinstance(line, dict) and {"key", "label", "predicted"} <= set(line)):
                    raise ValueError(
                        f"{path}: expected key, label, predicted in every line, but line {number} has others"
                    )
                if "explained" not in line:
                    raise ValueError(
                        f"{path.parent}: was evaluated by an earlier version; run `python -m rg evaluate` again"
                    )
                keys.append(line["key"])
                for name, column in columns.items():
                    values = line[name] if isinstance(line[name], list) else [line[name]]
                    if widths.setdefault(name, len(values)) != len(values):
                        raise ValueError(
                            f"{path}: expected {widths[name]} numbers as {name}, got {len(values)} in line {number}"
                        )
                    column.extend(values)
        except FileNotFoundError:
            raise ValueError(f"{path.parent}: has no {path.name}, which `python -m rg evaluate` writes") from None
        if not keys:
            raise ValueError(f"{path}: expected a line for every image, got none")
        arrays = {name: np.array(column).reshape(len(keys), -1) for name, column in columns.items()}
        labels, predicted = arrays["label"], arrays["predicted"]
        if labels.shape[1] == 1:
            labels, predicted = labels[:, 0], predicted[:, 0]
        return cls(
            keys,
            labels,
            predicted,
            arrays["probability"][:, 0],
            arrays["explained"][:, 0],
            arrays["occurrence"],
            arrays["area"],
            arrays["contributions"],
        )

    @property
    def errors(self) -> np.ndarray:
        """Number of wrong attributes, 0 or 1 for a class: int64 [N]."""
        return (self.labels != self.predicted).reshape(len(self), -1).sum(1)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, n: int) -> Prediction:
        label, predicted = self.labels[n].tolist(), self.predicted[n].tolist()
        wrong = int(np.sum(self.labels[n] != self.predicted[n]))
        return Prediction(self.keys[n], label, predicted, float(self.probability[n]), wrong)
