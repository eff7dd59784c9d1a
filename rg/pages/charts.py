"""Curves over the steps of a run, of reliability, and of quantiles, as SVG: positions and ticks, ready for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from rg.evaluation.calibration import Reliability
from rg.pages.numbers import percent

WIDTH, HEIGHT = 520, 220
CURVE_POINTS, DOTS = 300, 40
QUANTILE_WIDTH, QUANTILE_HEIGHT, QUANTILES = 260, 60, 100
LEAST_RADIUS, LARGEST_RADIUS = 2.0, 9.0
CURVES = {  # title -> name, kind of line in metrics.jsonl, value
    "Loss": (
        ("train, total", "train", "loss"),
        ("train, classification", "train", "classification_loss"),
        ("validation, classification", "validation", "classification_loss"),
    ),
    "Occurrence prior loss": (("prior loss", "train", "prior_loss"),),
    "Accuracy": (("train", "train", "accuracy"), ("validation", "validation", "accuracy")),
    "Learning rate of the backbone": (("learning rate", "train", "lr"),),
}


@dataclass(frozen=True)
class Curve:
    """One line of a chart: name, SVG path, dots where there are few points, last value."""

    name: str
    path: str
    dots: list[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over the steps of a run; ticks are (position in the SVG, text)."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Dot:
    """A bin of a reliability chart: position and radius in the SVG, ends of its interval there, and what it says."""

    x: float
    y: float
    radius: float
    interval: tuple[float, float]
    text: str


@dataclass(frozen=True)
class ReliabilityCurve:
    """One kind of confidence in a reliability chart: name, a dot for every bin, expected calibration error."""

    name: str
    dots: list[Dot]
    ece: str


@dataclass(frozen=True)
class ReliabilityChart:
    """Accuracy against confidence, the same on the diagonal, an SVG path; the description is its text alternative."""

    title: str
    description: str
    curves: list[ReliabilityCurve]
    diagonal: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts that the lines of metrics.jsonl have points for."""
    drawn = []
    for title, lines in CURVES.items():
        points = {
            name: [(line["step"], line[key]) for line in history if line["kind"] == kind and math.isfinite(line[key])]
            for name, kind, key in lines
        }
        points = {name: values for name, values in points.items() if values}
        if points:
            drawn.append(_chart(title, points, shares=title == "Accuracy"))
    return drawn


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], shares: bool) -> Chart:
    last_step = max(step for points in lines.values() for step, _ in points)
    x_ticks = ticks(last_step)
    y_ticks = ticks(1.0 if shares else max(value for points in lines.values() for _, value in points))
    x_scale = WIDTH / last_step
    y_scale = HEIGHT / y_ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        return round(step * x_scale, 1), round(HEIGHT - value * y_scale, 1)

    curves = []
    for name, points in lines.items():
        placed = [place(*point) for point in thinned(points)]
        path = "M" + "L".join(f"{x} {y}" for x, y in placed)
        last = points[-1][1]
        curves.append(
            Curve(name, path, placed if len(placed) <= DOTS else [], percent(last) if shares else f"{last:.3g}")
        )
    return Chart(
        title,
        curves,
        [(round(tick * x_scale, 1), f"{tick:g}") for tick in x_ticks if tick <= last_step],
        [(round(HEIGHT - tick * y_scale, 1), percent(tick, 0) if shares else f"{tick:g}") for tick in y_ticks],
    )


def reliability_chart(measured: Mapping[str, Reliability]) -> ReliabilityChart:
    """The reliability of decisions, for example before and after their temperature was fitted.

    Args:
        measured: Name of a curve -> its bins; those without decisions are left out. The area of a dot is in proportion
            to its share of the decisions, unless it were too small to be seen. Its interval is that of Wilson (1927) at
            95 %: how far the share of right answers may be off with so few decisions.

    Returns:
        The chart. Names are in it as they are; the page escapes them.
    """
    curves = []
    for name, bins in measured.items():
        dots = []
        for count, confidence, accuracy in zip(bins.counts, bins.confidences, bins.accuracies, strict=True):
            if confidence is None or accuracy is None:
                continue
            radius = max(LEAST_RADIUS, LARGEST_RADIUS * math.sqrt(count / sum(bins.counts)))
            interval = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
            low, high = float(interval.low), float(interval.high)
            text = (
                f"{name}: {count} decisions, {percent(confidence)} sure, {percent(accuracy)} right "
                f"({percent(low)} to {percent(high)})"
            )
            ends = round(HEIGHT - low * HEIGHT, 1), round(HEIGHT - high * HEIGHT, 1)
            x, y = round(confidence * WIDTH, 1), round(HEIGHT - accuracy * HEIGHT, 1)
            dots.append(Dot(x, y, round(radius, 1), ends, text))
        curves.append(ReliabilityCurve(name, dots, percent(bins.ece)))
    errors = ", ".join(f"{curve.ece} {curve.name}" for curve in curves)
    return ReliabilityChart(
        title="Accuracy against confidence",
        description=f"Accuracy against confidence; expected calibration error: {errors}",
        curves=curves,
        diagonal=f"M0 {HEIGHT}L{WIDTH} 0",
        x_ticks=[(round(tick * WIDTH, 1), percent(tick, 0)) for tick in ticks(1.0)],
        y_ticks=[(round(HEIGHT - tick * HEIGHT, 1), percent(tick, 0)) for tick in ticks(1.0)],
    )


def quantile_path(values: np.ndarray) -> str:
    """Values from 0 to 1 in ascending order, value n of N at (2n - 1) / 2N of the width: an SVG path.

    More than ``QUANTILES`` of them are drawn as so many quantiles.
    """
    count = min(len(values), QUANTILES)
    levels = (2 * np.arange(1, count + 1) - 1) / (2 * count)
    heights = np.quantile(values, levels, method="hazen")
    places = zip(levels * QUANTILE_WIDTH, QUANTILE_HEIGHT * (1 - heights), strict=True)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``CURVE_POINTS`` points: means of neighbours."""
    chunks = np.array_split(np.array(points, dtype=float), min(len(points), CURVE_POINTS))
    return [(float(x), float(y)) for x, y in (chunk.mean(0) for chunk in chunks)]


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to at least ``highest``, 3 to 6 of them."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [round(number * step, 12) for number in range(math.ceil(highest / step - 1e-9) + 1)]
