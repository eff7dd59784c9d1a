"""How often the parts of a run occur: the shares of images that ``python -m rg evaluate`` has counted."""

from __future__ import annotations

from pathlib import Path

from rg.runs.folder import METRICS, is_as_measured, read_json


def read_frequencies(run: Path) -> tuple[float, ...] | None:
    """Shares of the images of the evaluated split in which the parts occur (an occurrence above 0.5).

    Returns:
        One for each part; None if the run was not evaluated, or with other weights, or other parts off or merged.

    Raises:
        ValueError: metrics.json is no JSON object.
    """
    if not (run / METRICS).is_file():
        return None
    metrics = read_json(run / METRICS)
    if not is_as_measured(run, metrics):  # or a file of another program
        return None
    return tuple(part["on"] for part in metrics["parts"])
