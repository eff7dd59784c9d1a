"""What ``leakage`` measured, for people: how far answers move, for every change and margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rg.evaluation.leakage import CHANGES, WHOLE
from rg.explain.numbers import percent
from rg.tables.grid import render_text

COLUMNS = {  # measure -> heading, and whether it is a share
    "changed": ("pixels changed", True),
    "answer": ("answer changes", True),
    "probability": ("probabilities", False),
    "logit": ("logit", False),
    "contributions": ("contributions", False),
    "accuracy": ("accuracy", True),
}
OBJECTS = {"masks": "the masks of the data", "parts": "the parts that the model takes for no background"}


def table(result: Mapping[str, Any]) -> str:
    """A table of what ``leakage`` returns: means over the images with 95 % intervals."""
    header = ["surroundings", "margin", *(heading for heading, _ in COLUMNS.values()), "images"]
    rows = []
    for change in CHANGES:
        for margin, measured in result[change].items():
            figures = [_figure(measured[key], share) for key, (_, share) in COLUMNS.items()]
            rows.append([change, f"{margin} px", *figures, str(measured["answer"]["images"])])
    whole = result[WHOLE]
    size = _figure(whole["contribution"], share=False)
    below = [
        f"the object: {OBJECTS[result['object']]}",
        f"images as they are: accuracy {_figure(whole['accuracy'], share=True)}, mean absolute contribution {size}",
        "mean [95 % interval] over the images that have pixels beyond the margin; see docs/leakage.md",
    ]
    title = f"{result['dataset']}, {result['split']}: {result['samples']} images, seed {result['protocol']['seed']}"
    return render_text(title, [header, *rows], below)


def _figure(figure: Mapping[str, Any], share: bool) -> str:
    mean, interval = figure["mean"], figure["interval"]
    if mean is None:
        return "-"
    low, high = interval
    if share:
        return f"{percent(mean)} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
