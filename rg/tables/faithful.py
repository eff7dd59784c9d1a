"""What ``faithful`` measured, for people: a table for every recipe, mean and standard deviation over its runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rg.attribution.methods import BASELINES, KINDS, NAMES
from rg.explain.numbers import percent
from rg.model.edits import Edits
from rg.runs.folder import FAITHFUL, check_measured, read_json
from rg.tables.grid import render_markdown, render_text

FORMS = ("text", "markdown")


@dataclass(frozen=True)
class Column:
    """A number of faithful.json.

    Attributes:
        key: Its name there.
        heading: Its name for people.
        low: Whether less is better.
        percent: Whether it is a share.
        removal: Whether it needs drawn objects whose parts can be taken away.
    """

    key: str
    heading: str
    low: bool = False
    percent: bool = False
    removal: bool = False


COLUMNS = (
    Column("pointing_error", "pointing error", low=True, percent=True),
    Column("deletion", "deletion", low=True),
    Column("insertion", "insertion"),
    Column("noise_stability", "noise"),
    Column("shift_stability", "shift"),
    Column("single_deletion", "single deletion", removal=True),
    Column("preservation", "preservation", percent=True, removal=True),
    Column("deletion_check", "deletion check", percent=True, removal=True),
    Column("distractibility", "distractibility", percent=True, removal=True),
    Column("outside", "outside", low=True, percent=True, removal=True),
)
SAME = ("dataset", "split", "shards", "samples", "protocol", "removal")  # of results that share a table
OF_LATE = ("shards",)  # earlier versions did not name them
CURVES = "deletion, insertion: area below the probability while pixels go to grey, or come into the blurred image"
STABILITY = "noise, shift: rank correlation with the map of the noisy image, and of the image one stride further"
REMOVAL = (
    "the last five: parts taken away from drawn objects, after FunnyBirds (Hesse et al., 2023); see docs/faithful.md"
)
FLOOR = "random, centre: look at no pixel. Objects are mostly in the middle, so centre is a floor, not a straw man"


def read(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The faithful.json of some runs.

    Raises:
        ValueError: one has none, was trained on since, or was measured in another way than the first.
    """
    results: list[dict[str, Any]] = []
    for run in runs:
        if not (run / FAITHFUL).is_file():
            raise ValueError(f"{run}: has no {FAITHFUL}; run `python -m rg faithful {run} --data DIR` first")
        result = read_json(run / FAITHFUL, "models", *(name for name in SAME if name not in OF_LATE))
        check_measured(run, result["models"][0], "faithful")
        for name in SAME:
            expected = next((other[name] for other in results if other.get(name)), None)
            if expected and result.get(name, expected) != expected:
                raise ValueError(f"{run}: expected {name} as in {runs[0]}, {expected}, got {result[name]}")
        results.append(result)
    return results


def render(results: Sequence[Mapping[str, Any]], form: str) -> str:
    """The tables in the form text or markdown.

    Args:
        results: What ``faithful`` returns, measured in one way.
        form: One of ``FORMS``.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected {', '.join(FORMS)}, got {form!r}")
    first = results[0]
    columns = [column for column in COLUMNS if first["removal"] == "measured" or not column.removal]
    models = {(model["weights"], _edits(model)): model for result in results for model in result["models"]}  # once each
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for model in models.values():
        groups.setdefault((model["kind"], str(model["recipe"]), _edits(model)), []).append(model)
    blocks = [f"{first['dataset']}, {first['split']}: {first['samples']} images, seed {first['protocol']['seed']}"]
    for (kind, recipe, edits), group in groups.items():
        named = f"{recipe}, {edits}" if edits else recipe
        title, grid, remarks = _title(kind, named, group), _grid(group, columns), _remarks(group)
        if form == "markdown":
            blocks.append(render_markdown(f"**{title}**", grid, remarks))
        else:
            blocks.append(render_text(title, grid, remarks))
    removal = REMOVAL if first["removal"] == "measured" else f"parts taken away: not measured, {first['removal']}"
    notes = [CURVES, STABILITY, removal, FLOOR, "* the best that looks at pixels; ↓ less is better, ↑ more is"]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _edits(model: Mapping[str, Any]) -> str:
    """Which parts of a model people have switched off or merged, in words."""
    return str(Edits.from_dict(model.get("edits") or {}))


def _title(kind: str, recipe: str, models: Sequence[Mapping[str, Any]]) -> str:
    number = f", {len(models)} runs" if len(models) > 1 else ""
    accuracy = _figure([model["accuracy"] for model in models], share=True)
    return f"{KINDS[kind]} ({recipe}{number}): accuracy on these images {accuracy}"


def _grid(models: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[list[str]]:
    """Header and a row for each method, with a star at the best of every column."""
    grid = [["method", *(f"{column.heading} {'↓' if column.low else '↑'}" for column in columns)]]
    keys = [key for key in NAMES if key in models[0]["methods"]]
    values = {(key, c.key): [model["methods"][key][c.key] for model in models] for key in keys for c in columns}
    stars: set[tuple[str, str]] = set()
    for column in columns:
        means = {key: _mean(values[key, column.key]) for key in keys if key not in BASELINES}
        known = {key: -value if column.low else value for key, value in means.items() if value is not None}
        best = max(known.values(), default=None)
        stars |= {(key, column.key) for key, value in known.items() if value == best}
    for key in keys:
        figures = [
            _figure(values[key, column.key], column.percent) + (" *" if (key, column.key) in stars else "")
            for column in columns
        ]
        grid.append([NAMES[key], *figures])
    return grid


def _remarks(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else there is to say of a model, in lines."""
    lines = [f"{NAMES[key]}: not defined, {why}" for key, why in models[0]["undefined"].items()]
    ends = ("image", "grey", "blurred")
    probabilities = [f"{end} {_figure([model['probability'][end] for model in models], share=True)}" for end in ends]
    lines.append(f"probability of the class: {', '.join(probabilities)}")
    if "background_independence" in models[0]:
        independent = _figure([model["background_independence"] for model in models], share=True)
        lines.append(f"without the scenery the class stays in {independent} of the images")
    covering = [model["covering"] for model in models if model.get("covering")]
    if covering:
        fall, others, most, chance = (
            _figure([parts[name] for parts in covering], share=name in ("most", "chance"))
            for name in ("fall", "others", "most", "chance")
        )
        lines.append(
            f"without a true part the contribution of the discovered part that covers it falls by {fall}, those of the "
            f"others change by {others}; it changes most of all in {most} of the cases (chance {chance})"
        )
    return lines


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _figure(values: Sequence[float | None], share: bool = False) -> str:
    """Mean ± standard deviation, a dash if nothing was measured."""
    mean = _mean(values)
    if mean is None:
        return "-"
    scale, decimals, unit = (100, 1, " %") if share else (1, 3, "")
    known = [scale * value for value in values if value is not None]
    if len(known) > 1:
        return f"{scale * mean:.{decimals}f} ± {statistics.stdev(known):.{decimals}f}{unit}"
    return percent(mean) if share else f"{mean:.3f}"
