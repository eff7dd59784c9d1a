"""What was measured image by image: RUN/faithful_images.npz, and the figures and intervals that follow from it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rg.attribution.funnybirds import CHECKS, at_best_threshold, dimensions
from rg.runs.resampling import REPLICATES, draws, ends

KEYS = "keys"
COVERED_BY = "covered_by"  # numbers of discovered parts: no figure is made of them
ByName = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Values:
    """Of one model and N images; nan where an image cannot tell.

    A name with a slash is a place in faithful.json: ``covering/fall`` is ``fall`` in ``covering``.

    Attributes:
        keys: Of the images.
        methods: For every method its measures, float64 [N] or [N, ...].
        model: The measures of the model itself.
    """

    keys: Sequence[str]
    methods: dict[str, dict[str, np.ndarray]]
    model: dict[str, np.ndarray]

    @classmethod
    def join(cls, parts: Sequence[Values]) -> Values:
        """Of the images of all, one after the other."""
        first = parts[0]
        return cls(
            [key for part in parts for key in part.keys],
            {
                method: {name: _stack([part.methods[method][name] for part in parts]) for name in by_name}
                for method, by_name in first.methods.items()
            },
            {name: _stack([part.model[name] for part in parts]) for name in first.model},
        )

    def beside(self, others: Values) -> Values:
        """With other measures of the same images and methods."""
        methods = {method: by_name | others.methods[method] for method, by_name in self.methods.items()}
        return Values(self.keys, methods, self.model | others.model)

    def figures(self) -> dict[str, Any]:
        """What faithful.json holds of the model and its methods: None where nothing was measured."""
        weights = np.ones((1, len(self.keys)))

        def of(values: ByName) -> dict[str, float | None]:
            return {name: _plain(found[0]) for name, found in figures(values, weights).items()}

        return _places(of(self.model), {method: of(by_name) for method, by_name in self.methods.items()})

    def intervals(self, others: Sequence[Values] = ()) -> dict[str, Any]:
        """95 % intervals of the figures, as percentiles of the bootstrap: [lower, upper] where ``figures`` has one.

        Every replicate draws as many images as there are, with replacement. The draws are the same for all figures,
        methods and runs. A threshold is chosen anew in every replicate.

        Args:
            others: Of further runs on the same images and methods; the intervals are those of the means over all runs.
        """
        runs, blocks = (self, *others), list(draws(len(self.keys), REPLICATES))

        def of(by_run: Sequence[ByName]) -> dict[str, list[float]]:
            found = [[figures(values, weights) for weights in blocks] for values in by_run]
            names = [name for name in found[0][0] if all(name in run[0] for run in found)] if blocks else []
            replicates = {
                name: np.mean([np.concatenate([block[name] for block in run]) for run in found], axis=0)
                for name in names
            }
            return {name: ends(drawn) for name, drawn in replicates.items() if not np.isnan(drawn).all()}

        by_method = {method: of([run.methods[method] for run in runs]) for method in self.methods}
        return _places(of([run.model for run in runs]), by_method)


def _places(of_model: Mapping[str, Any], by_method: Mapping[str, Any]) -> dict[str, Any]:
    places: dict[str, Any] = {}
    for name, value in of_model.items():
        *folders, last = name.split("/")
        place = places
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return places | {"methods": by_method}


def figures(values: ByName, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of one method, where every image counts by its weight.

    A measure is averaged over all its numbers that are known. ``CHECKS`` are given at their best threshold.

    Args:
        values: Measure -> float64 [N, ...].
        weights: float64 [R, N].

    Returns:
        Figure -> float64 [R], nan where nothing was measured.
    """
    found: dict[str, np.ndarray] = {}
    for name, numbers in values.items():
        if name == COVERED_BY:
            continue
        known = ~np.isnan(numbers)
        above, below = (np.tensordot(weights, part, 1) for part in (np.where(known, numbers, 0.0), known.astype(float)))
        if name == CHECKS:
            found |= at_best_threshold(_ratio(above, below))
        else:
            found[name] = _ratio(*(part.reshape(len(weights), -1).sum(1) for part in (above, below)))
    return found | dimensions(found) if CHECKS in values else found


def save_values(models: Sequence[Values], out: IO[bytes]) -> None:
    """Write the values of some models on the same images: an .npz without pickles."""
    arrays: dict[str, np.ndarray] = {KEYS: np.array(models[0].keys, dtype=np.str_)}
    for number, model in enumerate(models):
        arrays |= {f"{number}/model/{name}": numbers for name, numbers in model.model.items()}
        for method, by_name in model.methods.items():
            arrays |= {f"{number}/methods/{method}/{name}": numbers for name, numbers in by_name.items()}
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type] # names are the array's, not options


def load_values(path: Path) -> list[Values]:
    """Read what ``save_values`` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        keys = arrays.pop(KEYS).tolist()
        models: dict[str, Values] = {}
        for name, numbers in arrays.items():
            number, kind, rest = name.split("/", 2)
            model = models.setdefault(number, Values(keys, {}, {}))
            if kind == "model":
                model.model[rest] = numbers
            else:
                method, _, measure = rest.partition("/")
                model.methods.setdefault(method, {})[measure] = numbers
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected the values that faithful wrote ({error})") from None
    return list(models.values())


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One below the other, rows that are shorter than others filled up with nan."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = [
        np.pad(part, [(0, 0), *((0, most - size) for most, size in zip(longest, part.shape[1:], strict=True))],
               constant_values=np.nan)
        for part in parts
    ]  # fmt: skip
    return np.concatenate(padded)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
