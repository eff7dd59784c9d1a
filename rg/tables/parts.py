"""Parts found from image labels: what others published of theirs, and beside it what runs measured.

Every figure is a percentage, by the field's protocol (docs/evaluation.md). Quoted rows are figures of others, which
nothing here measures; a measured row is the mean of runs that differ in their seed alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rg.config import RunConfig, flatten
from rg.model.edits import Edits
from rg.runs.folder import METRICS, WEIGHTS, check_measured, load_config, read_json, read_record
from rg.tables.grid import escape, render_markdown, render_text
from rg.tables.paper import NO_EFFECT, RENDERERS

COLUMNS = {  # heading -> path in metrics.json
    "Acc": "accuracy",
    "Kp": "field/keypoint_error",
    "NMI": "field/nmi",
    "ARI": "field/ari",
    "Pixel NMI": "field/pixel_nmi",
    "Pixel ARI": "field/pixel_ari",
    "Fg IoU": "field/foreground_iou",
    "On object": "field/landmarks_on_object",
    "Consistency": "field/consistency",
    "Stability": "field/stability",
    "Landmark err": "landmark_error",
    "Pointing err": "pointing_error",
}
ALIKE = NO_EFFECT - {"evaluation.view"}  # settings that may differ within a row
MODEL_ZOO = "model zoo of PDiscoFormer, github.com/ananthu-aniraj/pdiscoformer"
MPAE = "Xia et al., ICCV 2025"
NAMES = {"nabirds": "NABirds", "cub200": "CUB-200-2011"}


@dataclass(frozen=True)
class Row:
    """One method at one number of parts.

    Attributes:
        method: Its name; of a measured row the recipe.
        parts: K, without the background.
        figures: Percentages by heading, of every run.
        source: Where quoted figures are from; None of a measured row.
        changed: Settings of a measured row that are not those of another row of that name.
        runs: Folders of a measured row.
    """

    method: str
    parts: int
    figures: dict[str, tuple[float, ...]]
    source: str | None = None
    changed: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


def _quoted(method: str, source: str, headings: str, rows: dict[int, Sequence[float]]) -> list[Row]:
    names = headings.split()
    return [
        Row(method, parts, {name: (figure,) for name, figure in zip(names, figures, strict=True)}, source)
        for parts, figures in rows.items()
    ]


PUBLISHED: dict[str, list[Row]] = {
    "nabirds": [
        *_quoted("DINO", MODEL_ZOO, "NMI ARI", {4: (26.50, 11.30), 8: (39.45, 23.20), 11: (39.23, 23.37)}),
        *_quoted(
            "region grouping of 2020 (ResNet)",
            MODEL_ZOO,
            "Kp NMI ARI Acc",
            {4: (14.54, 31.99, 19.31, 85.46), 8: (13.47, 42.06, 27.32, 85.17), 11: (12.82, 44.08, 29.28, 85.14)},
        ),
        *_quoted(
            "PDiscoNet (ResNet)",
            MODEL_ZOO,
            "Kp NMI ARI Acc",
            {4: (11.50, 31.93, 13.32, 83.56), 8: (11.19, 37.60, 19.47, 84.31), 11: (9.59, 43.57, 29.63, 84.51)},
        ),
        *_quoted(
            "PDiscoNet (ViT-B)",
            MODEL_ZOO,
            "Kp NMI ARI Acc",
            {4: (9.76, 43.02, 22.77, 87.74), 8: (9.17, 56.50, 34.10, 85.60), 11: (9.34, 68.92, 54.65, 83.37)},
        ),
        *_quoted(
            "PDiscoFormer (ViT-B)",
            MODEL_ZOO,
            "Kp NMI ARI Acc",
            {4: (11.22, 48.24, 27.73, 89.29), 8: (8.84, 60.39, 46.74, 88.72), 11: (8.36, 72.04, 63.35, 88.69)},
        ),
    ],
    "cub200": _quoted("MPAE (without labels)", MPAE, "NMI ARI", {16: (79.0, 66.6)}),
}


def parts_tables(runs: Sequence[Path]) -> dict[str, list[Row]]:
    """Rows by data set: quoted ones, then those that runs measured.

    Args:
        runs: Evaluated run folders with parts.

    Raises:
        ValueError: a run was not evaluated by this version, was trained on since, has no parts, or is given twice; or
            two runs of a data set were not measured on the same images.
    """
    tables = {dataset: list(rows) for dataset, rows in PUBLISHED.items()}
    groups: dict[tuple[str, str, str], list[tuple[Path, RunConfig, dict[str, Any]]]] = {}
    images: dict[str, tuple[Path, Any]] = {}
    weights: dict[str, Path] = {}
    for folder in runs:
        config, metrics = _read(folder)
        if metrics["weights"] in weights:
            raise ValueError(f"{folder}: has the weights of {weights[metrics['weights']]}; a run counts once")
        weights[metrics["weights"]] = folder
        measured_on = (metrics["split"], metrics["shards"][metrics["split"]])
        first, expected = images.setdefault(metrics["dataset"], (folder, measured_on))
        if measured_on != expected:
            raise ValueError(f"{folder}: expected to be measured on the images of {first}, got others")
        recipe = str(read_record(folder).get("recipe", "unknown recipe"))
        settings = json.dumps({name: value for name, value in flatten(asdict(config)).items() if name not in ALIKE})
        groups.setdefault((metrics["dataset"], recipe, settings), []).append((folder, config, metrics))
    for (dataset, recipe, settings), members in groups.items():
        named = [json.loads(other) for data, name, other in groups if (data, name) == (dataset, recipe)]
        own = json.loads(settings)
        differing = [name for name in own if any(other.get(name) != own[name] for other in named)]
        figures = {
            heading: tuple(100 * value for *_, metrics in members if (value := _lookup(metrics, path)) is not None)
            for heading, path in COLUMNS.items()
        }
        row = Row(recipe, members[0][1].model.grouping.num_parts, figures, runs=tuple(str(f) for f, *_ in members))
        changed = tuple(f"{name} {json.dumps(own[name])}" for name in differing)
        tables.setdefault(dataset, []).append(replace(row, changed=changed))
    return tables


def _read(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The settings of a run, with those that it was measured by, and its metrics."""
    config, _ = load_config(folder)
    if not (folder / METRICS).is_file():
        raise ValueError(f"{folder}: was not evaluated; run `python -m rg evaluate`")
    if config.model.kind == "plain":
        raise ValueError(f"{folder}: expected a run with parts, got a plain network")
    metrics = read_json(folder / METRICS)
    if not {"field", "weights", "evaluation", "shards"} <= metrics.keys():
        raise ValueError(f"{folder}: was evaluated by an earlier version; run `python -m rg evaluate` again")
    if (folder / WEIGHTS).is_file():
        check_measured(folder, metrics, "evaluate")
    if metrics.get("edits"):
        changes = Edits.from_dict(metrics["edits"])
        raise ValueError(f"{folder}: expected a run as it was trained, got one measured with {changes}")
    return RunConfig.from_dict(asdict(config) | {"evaluation": metrics["evaluation"]}), metrics


def _lookup(metrics: Any, path: str) -> float | None:
    for name in path.split("/"):
        metrics = metrics.get(name)
    return None if metrics is None else float(metrics)


def render(tables: dict[str, list[Row]], form: str) -> str:
    """The tables in the form text, markdown or json.

    Raises:
        ValueError: there is no such form.
    """
    if form not in RENDERERS:
        raise ValueError(f"form: expected {', '.join(RENDERERS)}, got {form!r}")
    if form == "json":
        written = {dataset: [asdict(row) for row in rows] for dataset, rows in tables.items()}
        return json.dumps(written, indent=1, allow_nan=False) + "\n"
    blocks = []
    for dataset, rows in tables.items():
        title = f"Parts on {NAMES.get(dataset, dataset)} (%)"
        below = _below(rows)
        if form == "markdown":
            blocks.append(render_markdown(f"### {escape(title)}", _grid(rows), [escape(line) for line in below]))
        else:
            blocks.append(render_text(title, _grid(rows), below))
    return "\n\n".join(blocks) + "\n"


def _grid(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows, of the headings of which there are figures."""
    headings = [heading for heading in COLUMNS if any(row.figures.get(heading) for row in rows)]
    grid = [["Method", "Kind", "K", *headings]]
    for row in rows:
        kind = "quoted" if row.source else "measured"
        runs = f" ({len(row.runs)} runs)" if len(row.runs) > 1 else ""
        figures = [_figure(row.figures.get(heading, ())) for heading in headings]
        grid.append([row.method + runs, kind, str(row.parts), *figures])
    return grid


def _figure(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; a dash without any."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _below(rows: Sequence[Row]) -> list[str]:
    """Sources of what is quoted, folders and settings of what was measured."""
    sources = dict.fromkeys(row.source for row in rows if row.source)
    lines = [
        f"quoted from {source}: {', '.join(dict.fromkeys(row.method for row in rows if row.source == source))}"
        for source in sources
    ]
    for row in rows:
        if row.runs:
            settings = f", with {'; '.join(row.changed)}" if row.changed else ""
            lines.append(f"{row.method}{settings}: {', '.join(row.runs)}")
    return lines
