"""What ``faithful`` measured, for people: a table for every recipe, mean and standard deviation over its runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import sha256
from rg.attribution.comparison import winners
from rg.attribution.methods import BASELINES, KINDS, NAMES
from rg.attribution.randomization import SURVIVES, survivors
from rg.attribution.values import Values, load_values
from rg.explain.numbers import percent
from rg.model.edits import Edits
from rg.runs.folder import FAITHFUL, FAITHFUL_IMAGES, check_measured, read_json
from rg.tables.grid import FORMS, render_markdown, render_text


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
    "parts taken away": (
        Column("synthetic_data", "synthetic data", percent=True),
        Column("preservation", "preservation", percent=True),
        Column("deletion_check", "deletion check", percent=True),
        Column("distractibility", "distractibility", percent=True),
    ),
    "FunnyBirds": (
        Column("single_deletion", "single deletion"),
        Column("completeness", "completeness", percent=True),
        Column("correctness", "correctness", percent=True),
        Column("contrastivity", "contrastivity", percent=True),
        Column("explainability", "mean of the three", percent=True),
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
PARTS = "parts taken away"
REMOVAL = f"{PARTS}: from drawn objects, by the protocol of FunnyBirds (Hesse et al., 2023); see docs/faithful.md"
FLOOR = "random, centre: look at no pixel. Objects are mostly in the middle, so centre is a floor, not a straw man"
ARROWS = "↓ less is better, ↑ more is"
STAR = (
    "[from, to]: 95 % interval over images, of the mean of several runs",
    "* better than every other method that looks at pixels, and ahead in every run: paired permutation tests over "
    "images, 5 % after Holm's correction",
)
NO_IMAGES = ("no intervals and no stars: a run was measured by a version that kept no values of single images",)


@dataclass(frozen=True)
class Measured:
    """What ``faithful`` wrote of a run.

    Attributes:
        result: RUN/faithful.json.
        images: What the figures of its models are made of; None of an earlier version, which kept no such values.
    """

    result: Mapping[str, Any]
    images: Sequence[Values] | None


@dataclass(frozen=True)
class Recipe:
    """Networks of one recipe, or a single one.

    Attributes:
        models: What faithful.json holds of each.
        intervals: Of their mean figures, at the places of the figures; empty if they are not known.
    """

    models: Sequence[Mapping[str, Any]]
    intervals: Mapping[str, Any]

    def figure(self, place: str, share: bool = False) -> str:
        """Of one model a figure, of several mean ± standard deviation, and the interval; a dash if there is none."""
        known = [value for value in (_at(model, place) for model in self.models) if value is not None]
        if not known:
            return "-"
        scale, decimals, unit = (100, 1, " %") if share else (1, 3, "")
        if len(known) > 1:
            mean, deviation = scale * statistics.fmean(known), scale * statistics.stdev(known)
            text = f"{mean:.{decimals}f} ± {deviation:.{decimals}f}{unit}"
        else:
            text = percent(known[0]) if share else f"{known[0]:.3f}"
        ends = _at(self.intervals, place) if len(known) == len(self.models) else None
        return text if ends is None else f"{text} [{', '.join(f'{scale * end:.{decimals}f}' for end in ends)}]"


def read(runs: Sequence[Path]) -> list[Measured]:
    """What ``faithful`` wrote of some runs.

    Raises:
        ValueError: one has no results or half of them, was trained on since, or was measured in another way than the
            first.
    """
    measured: list[Measured] = []
    for run in runs:
        if not (run / FAITHFUL).is_file():
            raise ValueError(f"{run}: has no {FAITHFUL}; run `python -m rg faithful {run} --data DIR` first")
        result = read_json(run / FAITHFUL, "models", *(name for name in SAME if name not in OF_LATE))
        check_measured(run, result["models"][0], "faithful")
        for name in SAME:
            expected = next((other.result[name] for other in measured if other.result.get(name)), None)
            if expected and result.get(name, expected) != expected:
                raise ValueError(f"{run}: expected {name} as in {runs[0]}, {expected}, got {result[name]}")
        measured.append(Measured(result, _images(run, result)))
        if (measured[0].images is None) != (measured[-1].images is None):
            raise ValueError(f"{run}: measured by another version than {runs[0]}; run `python -m rg faithful` again")
    return measured


def _images(run: Path, result: Mapping[str, Any]) -> list[Values] | None:
    if "images_sha256" not in result:
        return None
    path = run / FAITHFUL_IMAGES
    if not path.is_file() or sha256(path) != result["images_sha256"]:
        raise ValueError(f"{path}: missing, or not what {FAITHFUL} was made of; run `python -m rg faithful` again")
    return load_values(path)


def render(runs: Sequence[Measured], form: str) -> str:
    """The tables in the form text or markdown.

    Args:
        runs: Measured in one way.
        form: One of ``FORMS``.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected {', '.join(FORMS)}, got {form!r}")
    first = runs[0].result
    groups: dict[tuple[str, str, str], dict[str, tuple[Mapping[str, Any], Values | None]]] = {}
    for run in runs:
        models = run.result["models"]
        images: Sequence[Values | None] = run.images or [None] * len(models)
        for model, values in zip(models, images, strict=True):
            group = groups.setdefault((model["kind"], str(model["recipe"]), _edits(model)), {})
            group[model["weights"]] = (model, values)  # a network counts once
    blocks = [f"{first['dataset']}, {first['split']}: {first['samples']} images, seed {first['protocol']['seed']}"]
    for (kind, recipe, edits), group in groups.items():
        models = [model for model, _ in group.values()]
        known = [values for _, values in group.values() if values is not None]
        all_known = len(known) == len(models)
        stars = _stars(known) if all_known else {}
        of_recipe = Recipe(models, known[0].intervals(known[1:]) if all_known else {})
        named = f"{recipe}, {edits}" if edits else recipe
        title, remarks = _title(kind, named, of_recipe), _remarks(of_recipe)
        if form == "markdown":
            blocks.append("\n".join([f"**{title}**", "", *(f"- {remark}" for remark in remarks)]))
        else:
            blocks.append("\n  ".join([title, *remarks]))
        for name, grid in _grids(of_recipe, stars).items():
            blocks.append(render_markdown(f"*{name}*", grid, []) if form == "markdown" else render_text(name, grid, []))
    on_parts = REMOVAL if first["removal"] == "measured" else f"{PARTS}: not measured, {first['removal']}"
    notes = [*NOTES, on_parts, FLOOR, *(STAR if all(run.images for run in runs) else NO_IMAGES), ARROWS]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _edits(model: Mapping[str, Any]) -> str:
    """Which parts of a model people have switched off or merged, in words."""
    return str(Edits.from_dict(model.get("edits") or {}))


def _title(kind: str, name: str, recipe: Recipe) -> str:
    number = f", {len(recipe.models)} runs" if len(recipe.models) > 1 else ""
    return f"{KINDS[kind]} ({name}{number}): accuracy on these images {recipe.figure('accuracy', share=True)}"


def _stars(images: Sequence[Values]) -> dict[str, str]:
    """Column -> the method that is better than all others that look at pixels, where there is one."""
    methods = [key for key in NAMES if key in images[0].methods and key not in BASELINES]
    columns = [column for group in GROUPS.values() for column in group]
    return winners(images, methods, {column.key: column.low for column in columns})


def _grids(recipe: Recipe, stars: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """The tables of a recipe by their names, of what was measured of all its runs: earlier versions measured less."""
    measured = [values for model in recipe.models for values in model["methods"].values()]
    found = {
        name: [column for column in columns if all(column.key in values for values in measured)]
        for name, columns in GROUPS.items()
    }
    return {name: _grid(recipe, columns, stars) for name, columns in found.items() if columns}


def _grid(recipe: Recipe, columns: Sequence[Column], stars: Mapping[str, str]) -> list[list[str]]:
    """Header and a row for each method, with a star where it is better than all others."""
    grid = [["method", *(f"{column.heading} {'↓' if column.low else '↑'}" for column in columns)]]
    for key in (key for key in NAMES if key in recipe.models[0]["methods"]):
        figures = [recipe.figure(f"methods/{key}/{column.key}", column.percent) for column in columns]
        marks = [" *" if stars.get(column.key) == key else "" for column in columns]
        grid.append([NAMES[key], *map(str.__add__, figures, marks)])
    return grid


def _remarks(recipe: Recipe) -> list[str]:
    """What else there is to say of a model, in lines."""
    lines = [f"{NAMES[key]}: not defined, {why}" for key, why in recipe.models[0]["undefined"].items()]
    ends = ("image", "grey", "blurred")
    probabilities = [f"{end} {recipe.figure(f'probability/{end}', share=True)}" for end in ends]
    lines.append(f"probability of the class: {', '.join(probabilities)}")
    lines += _survivors(recipe.models)
    return lines + (_remarks_on_parts(recipe) if "background_independence" in recipe.models[0] else [])


def _survivors(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which methods hardly notice that all parameters are random, in a line; none where that was not measured."""
    keys = [key for key in NAMES if key in models[0]["methods"] and key not in BASELINES]
    if not all("mprt_full" in model["methods"][key] for model in models for key in keys):
        return []
    values = {key: [model["methods"][key]["mprt_full"] for model in models] for key in keys}
    known = {key: [value for value in of if value is not None] for key, of in values.items()}
    found = survivors({key: statistics.fmean(of) if of else None for key, of in known.items()})
    named = ", ".join(NAMES[key] for key in found) or "none"
    return [f"survive the randomisation of all parameters (all random at least {SURVIVES}): {named}"]


def _remarks_on_parts(recipe: Recipe) -> list[str]:
    """What else there is to say of a model whose parts were taken away, in lines."""
    independent = recipe.figure("background_independence", share=True)
    lines = [f"without the scenery the class stays in {independent} of the images"]
    if all("thing_independence" in model for model in recipe.models):
        things = recipe.figure("thing_independence", share=True)
        lines.append(f"background independence, thing by thing: {things} cost less than 5 % of the logit")
    if all(model.get("covering") for model in recipe.models):
        fall, others = (recipe.figure(f"covering/{name}") for name in ("fall", "others"))
        most, chance, counts, half, of_these = (
            recipe.figure(f"covering/{name}", share=True)
            for name in ("most", "chance", "counts", "half", "most_where_both")
        )
        lines.append(
            f"without a true part the contribution of the discovered part that covers it falls by {fall}, those of the "
            f"others change by {others}; it changes most of all in {most} of the cases (chance {chance})"
        )
        if all("half" in model["covering"] for model in recipe.models):
            lines.append(
                f"of the true parts {counts} count (5 % of the logit or more), and {half} have more than half of them "
                f"covered by one discovered part; where both is so, it changes most of all in {of_these}"
            )
    return lines


def _at(places: Mapping[str, Any], place: str) -> Any:
    """What stands at a place such as ``probability/grey``; None where nothing does."""
    found: Any = places
    for name in place.split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
