"""How far figures would move with other images of the same kind: bootstrap over the images of a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rg.evaluation.metrics import clusterings
from rg.runs.resampling import REPLICATES, draws, ends


@dataclass
class PerImage:
    """What figures are made of, image by image.

    Attributes:
        ratios: Figure -> numerators and denominators [N]; the figure is the ratio of their sums.
        tables: NMI and ARI -> the counts that both are scores of [N, P, K].
    """

    ratios: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    tables: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def mean(self, name: str, values: np.ndarray) -> None:
        """Take note of a figure that is the mean of values [N] or [N, M]; nan does not count."""
        values = values.reshape(len(values), -1)
        self.ratios[name] = np.nansum(values, axis=1), (~np.isnan(values)).sum(1)

    def figures(self) -> dict[str, float | None]:
        """The figures; None where nothing was measured."""
        values = self.weighted(np.ones((1, self.images)))
        return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()}

    @property
    def images(self) -> int:
        """N."""
        return len(next(iter((*self.tables.values(), *(above for above, _ in self.ratios.values()))), ()))

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The figures [R] where every image counts by its weight, of weights float64 [R, N]; nan where undefined."""
        columns = [counts.reshape(len(counts), -1) for counts in self.tables.values()]
        columns += [np.stack(pair, axis=1) for pair in self.ratios.values()]
        if not columns:
            return {}
        sums = weights @ np.concatenate(columns, axis=1).astype(np.float64)  # one product for all figures
        ends = np.cumsum([column.shape[1] for column in columns])[:-1]
        parts = iter(np.split(sums, ends, axis=1))
        figures: dict[str, np.ndarray] = {}
        for names, counts in self.tables.items():
            scores = clusterings(next(parts).reshape(len(weights), *counts.shape[1:]))
            figures.update(zip(names, scores, strict=True))
        for name, (above, below) in zip(self.ratios, (part.T for part in parts), strict=True):
            figures[name] = np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)
        return figures


def intervals(samples: PerImage, replicates: int = REPLICATES) -> dict[str, list[float]]:
    """95 % confidence intervals of figures, as percentiles of the bootstrap.

    Every replicate draws as many images as there are, with replacement. The draws are the same for all figures and in
    every evaluation.

    Args:
        samples: Of N images.
        replicates: How many are drawn.

    Returns:
        Lower and upper end of every figure that was measured.
    """
    measured = [name for name, value in samples.figures().items() if value is not None]
    if not measured:
        return {}
    blocks = [samples.weighted(weights) for weights in draws(samples.images, replicates)]
    return {name: ends(np.concatenate([block[name] for block in blocks])) for name in measured}
