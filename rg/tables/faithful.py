"""What ``faithful`` measured, for people: a table for every recipe, mean and standard deviation over its runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rg.attribution.methods import BASELINES, KINDS, NAMES
from rg.attribution.randomization import SURVIVES, survivors
from rg.explain.numbers import percent
from rg.runs.folder import FAITHFUL, check_weights, read_json
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
    """

    key: str
    heading: str
    low: bool = False
    percent: bool = False


GROUPS = {
    "where it points": (
        Column("pointing_error", "pointing error", low=True, percent=True),
        Column("outside", "outside", low=True, percent=True),
        Column("focus", "focus", percent=True),
    ),
    "order of pixels": (
        Column("deletion", "deletion", low=True),
        Column("insertion", "insertion"),
        Column("road_morf", "ROAD MoRF", low=True),
        Column("road_lerf", "ROAD LeRF"),
    ),
    "amounts": (
        Column("infidelity", "infidelity", low=True),
        Column("sensitivity_n", "sensitivity-n"),
    ),
    "stability": (
        Column("noise_stability", "noise"),
        Column("shift_stability", "shift"),
    ),
    "randomisation": (
        Column("mprt", "MPRT", low=True),
        Column("mprt_full", "all random", low=True),
        Column("smprt", "sMPRT", low=True),
        Column("emprt", "eMPRT"),
        Column("random_logit", "random logit", low=True),
    ),
    "true parts": (
        Column("single_deletion", "single deletion"),
        Column("preservation", "preservation", percent=True),
        Column("deletion_check", "deletion check", percent=True),
        Column("distractibility", "distractibility", percent=True),
    ),
}
SAME = ("dataset", "split", "shards", "samples", "protocol", "removal")  # of results that share a table
OF_LATE = ("shards",)  # earlier versions did not name them
NOTES = (
    "focus: share of the positive map on the images of the class, in mosaics of two classes",
    "deletion, insertion: area below the probability while pixels go to grey, or come into the blurred image",
    "ROAD: probability while pixels are imputed, the most (MoRF) or the least relevant first (LeRF)",
    "infidelity, sensitivity-n: how well sums of the map foretell what the logit loses",
    "noise, shift: rank correlation with the map of the noisy image, and of the image one stride further",
    "MPRT: rank correlation with maps of random parameters, mean of all stages; sMPRT: of denoised maps, all random",
    "eMPRT: how much more complex the map is when all is random; random logit: rank correlation with another class",
)
REMOVAL = "outside, true parts: on drawn objects, after FunnyBirds (Hesse et al., 2023); see docs/faithful.md"
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
        check_weights(run, result["models"][0]["weights"], "faithful")
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
    models = {model["weights"]: model for result in results for model in result["models"]}  # a network counts once
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model in models.values():
        groups.setdefault((model["kind"], str(model["recipe"])), []).append(model)
    blocks = [f"{first['dataset']}, {first['split']}: {first['samples']} images, seed {first['protocol']['seed']}"]
    for (kind, recipe), group in groups.items():
        title, remarks = _title(kind, recipe, group), _remarks(group)
        if form == "markdown":
            blocks.append("\n".join([f"**{title}**", "", *(f"- {remark}" for remark in remarks)]))
        else:
            blocks.append("\n  ".join([title, *remarks]))
        for name, grid in _grids(group).items():
            blocks.append(render_markdown(f"*{name}*", grid, []) if form == "markdown" else render_text(name, grid, []))
    removal = REMOVAL if first["removal"] == "measured" else f"parts taken away: not measured, {first['removal']}"
    notes = [*NOTES, removal, FLOOR, "* the best that looks at pixels; ↓ less is better, ↑ more is"]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _title(kind: str, recipe: str, models: Sequence[Mapping[str, Any]]) -> str:
    number = f", {len(models)} runs" if len(models) > 1 else ""
    accuracy = _figure([model["accuracy"] for model in models], share=True)
    return f"{KINDS[kind]} ({recipe}{number}): accuracy on these images {accuracy}"


def _grids(models: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """The tables of a recipe by their names, of what was measured of all its runs: earlier versions measured less."""
    measured = [values for model in models for values in model["methods"].values()]
    found = {
        name: [column for column in columns if all(column.key in values for values in measured)]
        for name, columns in GROUPS.items()
    }
    return {name: _grid(models, columns) for name, columns in found.items() if columns}


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
    lines += _survivors(models)
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


def _survivors(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which methods hardly notice that all parameters are random, in a line; none where that was not measured."""
    methods = [model["methods"] for model in models]
    keys = [key for key in NAMES if key in methods[0] and key not in BASELINES]
    if not all("mprt_full" in by_key[key] for by_key in methods for key in keys):
        return []
    found = survivors({key: _mean(by_key[key]["mprt_full"] for by_key in methods) for key in keys})
    named = ", ".join(NAMES[key] for key in found) or "none"
    return [f"survive the randomisation of all parameters (all random at least {SURVIVES}): {named}"]


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
