"""Providers compared: they take turns, and what was measured becomes a table and rows of the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tools import ledger, process

UNITS = {"throughput": "images/s", "CPU time": "s/1000 images", "peak memory": "MB", "first batch": "s"}

Figures = dict[str, list[float]]  # metric -> values
Key = tuple[int, str]  # number of workers, provider


def take_turns(
    measure: Callable[..., Figures], cases: Mapping[Key, Sequence[object]], rounds: int
) -> dict[Key, Figures]:
    """The figures of all rounds and the peak memory; each round calls ``measure`` for every case, in its own process.

    Args:
        measure: Takes the arguments of a case.
        cases: Workers and provider -> arguments.
        rounds: How often every case takes its turn.
    """
    pooled: dict[Key, Figures] = {key: {} for key in cases}
    for _, (key, arguments) in itertools.product(range(rounds), cases.items()):
        figures, peak = process.alone(measure, *arguments)
        for metric, values in {**figures, "peak memory": [peak / 1e6]}.items():
            pooled[key].setdefault(metric, []).extend(values)
    return pooled


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    p20, p50, p80 = np.percentile(values, (20, 50, 80))
    return float(p20), float(p50), float(p80)


def table(pooled: Mapping[Key, Figures], workers: str, baseline: str) -> str:
    """Medians of all metrics, and images/s relative to those of a baseline with as many workers."""
    lines = [
        f"{workers:>7} {'provider':<13}{'images/s':>9}{'p20':>9}{'p80':>9}{'of ' + baseline:>16}"
        f"{'CPU s/1000':>12}{'peak MB':>9}{'first s':>9}"
    ]
    for (count, provider), figures in pooled.items():
        p20, p50, p80 = percentiles(figures["throughput"])
        reference = pooled.get((count, baseline))
        share = f"{p50 / percentiles(reference['throughput'])[1]:.2f}x" if reference else "-"
        first = f"{percentiles(figures['first batch'])[1]:.2f}" if "first batch" in figures else "-"
        processor, peak = (percentiles(figures[metric])[1] for metric in ("CPU time", "peak memory"))
        lines.append(
            f"{count:>7} {provider:<13}{p50:>9.1f}{p20:>9.1f}{p80:>9.1f}{share:>16}"
            f"{processor:>12.2f}{peak:>9.0f}{first:>9}"
        )
    return "\n".join(lines)


def record_all(results: Path, case: str, workers: str, pooled: Mapping[Key, Figures]) -> None:
    """Appends a row for every metric of every provider to the ledger."""
    for (count, provider), figures in pooled.items():
        for metric, values in figures.items():
            record(results, case, provider, f"{count} {workers}", metric, UNITS[metric], values)


def record(results: Path, case: str, provider: str, mode: str, metric: str, unit: str, values: Sequence[float]) -> None:
    """Appends a row to the ledger."""
    row = {"case": case, "provider": provider, "mode": mode, "metric": metric, "unit": unit, "n": len(values)}
    columns = dict(zip(("p20", "p50", "p80"), (f"{value:.4g}" for value in percentiles(values)), strict=True))
    ledger.append(results, row | columns, gpu=provider.startswith("dali_mixed"))
