"""Pictures of the newest rows of ``results/``: a bar for every provider and mode, medians with p20 and p80.

python -m benchmarks.plots                  # draws docs/plots/*.svg anew

Each picture holds the sum of the rows that it was drawn from, so that a test finds the one that is older than its rows.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report, step_parts
from benchmarks.tools.command import run_main
from pipelines.files import atomic_write

FOLDER = report.ROOT / "docs" / "plots"
BAR = 0.34  # inches
_SUM = re.compile(r"rows ([0-9a-f]{64})")


class Plot(NamedTuple):
    """A picture: file of the ledger and title, and what a row must have to be in it.

    Attributes:
        rows: File of the ledger.
        title: Above the picture.
        case: Of the rows.
        mode: Words of it; the others are told in the labels.
        metrics: If one, its rows are told apart by provider and mode; if more, by the metric.
        providers: Of the rows.
    """

    rows: str
    title: str
    case: str
    mode: tuple[str, ...]
    metrics: tuple[str, ...]
    providers: tuple[str, ...]


_MODELS = ("region grouping", "whole network")
_PARTS = tuple(", ".join(part) for part in step_parts.PARTS)
PLOTS = {
    "train": Plot(
        "train",
        "A training step of the demo, 32 images of 128 px",
        "birds_lite0, 32 images of 128 px",
        ("cpu", "fp32"),
        ("time",),
        _MODELS,
    ),
    "step_parts": Plot(
        "step_parts",
        "Where the time of that step goes",
        "birds_lite0, 32 images of 128 px",
        ("cpu", "fp32", "kept"),
        _PARTS,
        _MODELS[:1],
    ),
    "inference": Plot(
        "inference",
        "Images a second, 32 of 144 px at once",
        "birds_lite0, 32 images of 144 px",
        ("cpu", "fp32"),
        ("throughput",),
        (*_MODELS, "explanations", "onnx"),
    ),
    "loader": Plot(
        "loader",
        "Training batches of 32 from JPEGs of 500x375",
        "1500 JPEGs of 500x375, batch 32",
        ("2 workers",),
        ("throughput",),
        ("dali_cpu", "pillow", "imagefolder", "webdataset"),
    ),
}


def rows(plot: Plot, results: Path = report.ledger.RESULTS) -> list[report.Row]:
    """The newest rows of a picture, all of the device that the newest of them is of.

    Raises:
        ValueError: there are none.
    """
    newest = [
        row
        for row in report.read(plot.rows, results)
        if (row["case"], row["mode"].split(", ")[: len(plot.mode)]) == (plot.case, list(plot.mode))
        and len(row["mode"].split(", ")) <= len(plot.mode) + (len(plot.metrics) == 1)
        and row["metric"] in plot.metrics
        and row["provider"] in plot.providers
    ]
    if not newest:
        raise ValueError(f"{plot.rows}: expected rows of {plot.case}, {', '.join(plot.mode)}, got none")
    return [row for row in newest if row["device"] == newest[-1]["device"]]


def sha256(rows: Sequence[report.Row]) -> str:
    """Of the rows, whatever their order."""
    text = "\n".join(sorted(",".join(row.values()) for row in rows))
    return hashlib.sha256(text.encode()).hexdigest()


def drawn_from(picture: Path) -> str | None:
    """The sum that a picture holds; None if it is missing or holds none."""
    match = _SUM.search(picture.read_text()) if picture.is_file() else None
    return match[1] if match else None


def draw(plot: Plot, measured: Sequence[report.Row], path: Path) -> None:
    """Writes the picture, an SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same bytes for the same rows; text stays text, and no colour depends on the page behind.
    with pyplot.rc_context({"svg.hashsalt": "rows", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7.5, 1.1 + BAR * len(measured)), layout="constrained")
        names = [", ".join(_names(plot, row)) for row in measured]
        values = [float(row["p50"]) for row in measured]
        below = [value - float(row["p20"]) for value, row in zip(values, measured, strict=True)]
        above = [float(row["p80"]) - value for value, row in zip(values, measured, strict=True)]
        bars = axes.barh(
            range(len(measured)), values, xerr=[below, above], color="#3b7ea1", ecolor="#1c1c1c", capsize=2
        )
        axes.bar_label(bars, [f"{value:,.4g}" for value in values], padding=6)
        axes.set_yticks(range(len(measured)), names)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(f"{measured[0]['unit']}, median with p20 and p80; {measured[-1]['device']}")
        axes.set_title(plot.title, loc="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            metadata = {"Date": None, "Description": f"rows {sha256(measured)}"}
            pyplot.savefig(file, format="svg", metadata=metadata, facecolor="white")
        pyplot.close(figure)


def _names(plot: Plot, row: report.Row) -> list[str]:
    """What tells a row from the others of its picture."""
    if len(plot.metrics) > 1:
        return [row["metric"]]
    return [row["provider"], *row["mode"].split(", ")[len(plot.mode) :]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        for name, plot in PLOTS.items():
            draw(plot, rows(plot), options.out / f"{name}.svg")
            print(options.out / f"{name}.svg")
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    run_main(main)
