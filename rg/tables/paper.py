"""Tables 1 to 7 of the paper: what it published, and beside it what runs of the recipes measured.

Every figure is a percentage. A row is of one kind: ``ours``, region grouping, which a recipe trains; ``baseline``, a
method that a recipe measures, too; or ``quoted``, published figures of others, which nothing here measures.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.files import read_json_lines
from rg import recipes
from rg.config import RunConfig, View, differences
from rg.model.edits import Edits
from rg.runs.folder import HISTORY, METRICS, WEIGHTS, check_measured, load_config, of_view, read_json, read_record
from rg.tables.grid import escape, render_markdown, render_text

SPLIT = "test"  # of every data set; of iNaturalist 2017 that is what was published as val
EMBEDDED = "creatures"
NO_EFFECT = {  # settings that change no figure, or that a row asks for
    "seed", "evaluation.view", "evaluation.landmark_classes", "evaluation.stability",
    "input.decoder", "input.threads", "input.prefetch",
    "input.hardware_load", "input.largest_width", "input.largest_height", "input.cache", "input.cache_gib",
    "train.checkpoint_epochs", "train.keep_checkpoints", "train.validate_epochs", "train.log_steps",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A metric: its name and number of decimals in the paper."""

    name: str
    decimals: int


@dataclass(frozen=True)
class Run:
    """Where measured figures come from.

    Attributes:
        folder: Run folder.
        recipe: What it was trained by.
        view: The view of its evaluation, None if it is that of the recipe.
        commit: Of the code that trained it, ``-dirty`` if files differed from it; None if that is not known.
        changed: What is not as in the recipe: settings with both values, and weights that were imported.
        weights: SHA-256 of the weights that were measured.
        shards: SHA-256 of the split that they were measured on; None if that is not known.
    """

    folder: str
    recipe: str
    view: str | None
    commit: str | None
    changed: tuple[str, ...]
    weights: str
    shards: str | None = None


@dataclass(frozen=True)
class Cell:
    """One metric of one method.

    Attributes:
        published: Percentage, None if the paper has none.
        metric: Path in metrics.json, with slashes; None if nothing measures it.
        values: Percentages that were measured.
        runs: Where each of them comes from.
    """

    published: float | None = None
    metric: str | None = None
    values: tuple[float, ...] = ()
    runs: tuple[Run, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the runs, None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the runs, None of less than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: As in the paper, with its reference there.
        kind: See the module.
        cells: One per column.
        recipe: Its runs fill the row.
        view: The view that they are evaluated in; None takes that of the recipe.
        runs: All runs of the row.
    """

    method: str
    kind: Literal["ours", "baseline", "quoted"]
    cells: tuple[Cell, ...]
    recipe: str | None = None
    view: str | None = None
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: Its number in the paper, what it shows, metrics and units.
        dataset: The data set of its runs, as ``python -m rg prepare`` names it.
        columns: Metrics.
        rows: Methods.
        notes: What to know of it.
    """

    title: str
    dataset: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def _quoted(figures: Mapping[str, float]) -> tuple[Row, ...]:
    return tuple(Row(method, "quoted", (Cell(figure),)) for method, figure in figures.items())


def _baseline(method: str, recipe: str, *cells: tuple[float | None, str | None]) -> Row:
    return Row(method, "baseline", tuple(Cell(*cell) for cell in cells), recipe)


def _ours(method: str, recipe: str, *cells: tuple[float | None, str], view: str | None = None) -> Row:
    return Row(method, "ours", tuple(Cell(*cell) for cell in cells), recipe, view)


ACC, CLASS_ACC, LANDMARKS, POINTING = "accuracy", "mean_class_accuracy", "landmark_error", "pointing_error"
CAM, GRAD_CAM, GUIDED = (f"pointing_errors/{name}" for name in ("cam", "grad_cam", "guided_grad_cam"))
CUB = [f"landmark_errors_alone/{name} Albatross" for name in ("Black footed", "Laysan", "Sooty")]  # its first classes
FACE = ("left eye", "right eye", "nose", "left mouth", "right mouth")
NONE = (None, None)
SCOPS = "SCOPS: others looked for what stands out by a network, a run does by the spectral residual of the image."
DFF = "DFF: the paper factorises features of a pre-trained VGG, a run those of the trained plain network."

PAPER = (
    Table(
        "Table 1. Facial attribute recognition on CelebA: average class accuracy (%)",
        "celeba", (Column("Acc", 1),), (
            *_quoted({"LNet+ANet [36]": 87.0, "MOON [45]": 90.9, "Lu et al. [37]": 91.0, "Hand et al. [20]": 91.2}),
            *_quoted({"Kalayeh et al. [30]": 91.8, "He et al. [21]": 91.8, "PS-MCNN [7]": 93.0}),
            _baseline("ResNet101", "celeba_attributes_resnet101_plain", (91.5, CLASS_ACC)),
            _ours("Ours", "celeba_attributes_resnet101", (91.5, CLASS_ACC)),
        ),
    ),
    Table(
        "Table 2. Landmark localisation on CelebA, not aligned: L2 distance by the inter-ocular distance (%)",
        "celeba_unaligned", (Column("Err", 1),), (
            _baseline("DFF", "celeba_landmarks_resnet101_plain", (31.3, f"dff_{LANDMARKS}")),
            _baseline("SCOPS", "celeba_landmarks_scops", (15.0, LANDMARKS)),
            _ours("Ours", "celeba_landmarks_resnet101", (8.4, LANDMARKS)),
        ), (DFF, SCOPS),
    ),
    Table(
        "Table 3. Bird species recognition on CUB-200-2011: instance level accuracy (%)",
        "cub200", (Column("Acc", 1),), (
            *_quoted({"STN [27]": 84.1, "Kernel Pooling [14]": 86.2, "MA-CNN [67]": 86.5, "PC-DenseNet161 [16]": 86.9}),
            *_quoted({"KERL [9]": 87.0, "DFL-CNN [56]": 87.4, "NTS-Net [59]": 87.5, "DCL [10]": 87.8}),
            *_quoted({"TASN [68]": 87.9}),
            _baseline("ResNet101", "cub200_resnet101_plain", (87.7, ACC)),
            _ours("Ours", "cub200_resnet101", (87.3, ACC)),
        ),
    ),
    Table(
        "Table 4. Landmark localisation on CUB-200-2011: L2 distance by the size of the box (%)",
        "cub200", (Column("CUB-001", 2), Column("CUB-002", 2), Column("CUB-003", 2), Column("all 200", 2)), (
            _baseline(
                "DFF", "cub200_resnet101_plain",
                *zip((22.42, 21.62, 21.98, None), (f"dff_{metric}" for metric in (*CUB, LANDMARKS)), strict=True),
            ),
            _baseline(
                "SCOPS", "cub200_scops", *zip((18.50, 18.82, 21.07, None), (*CUB, LANDMARKS), strict=True),
            ),
            _ours("Ours", "cub200_resnet101", *zip((15.61, 15.94, 13.80, 11.51), (*CUB, LANDMARKS), strict=True)),
        ), ("all 200: from Section 4.2, not from the table.", DFF, SCOPS),
    ),
    Table(
        "Table 5. Species classification on iNaturalist2017: instance level accuracy (%)",
        "inat2017", (Column("Acc", 1),), (
            _baseline("SSN", "inat2017_resnet101_saliency_plain", (65.2, ACC)),
            _baseline("TASN", "inat2017_resnet50_tasn_plain", (68.2, ACC)),
            *_quoted({"ResNet101 [68]": 59.6}),
            _baseline("ResNet101 (ours)", "inat2017_resnet101_plain", (61.1, ACC)),
            _ours("Ours", "inat2017_resnet101", (64.8, ACC)),
            _ours("Ours + FC test", "inat2017_resnet101", (66.8, ACC), view="whole"),
        ), ("FC test: fully convolutional, on whole images.",),
    ),
    Table(
        "Table 6. Pointing game on iNaturalist2017: error (%)",
        "inat2017", (Column("Error", 1),), (
            _baseline("CAM [70]", "inat2017_resnet101_plain", (11.8, CAM)),
            _baseline("Grad-CAM [47]", "inat2017_resnet101_plain", (11.8, GRAD_CAM)),
            _baseline("Guided Grad-CAM [47]", "inat2017_resnet101_plain", (8.2, GUIDED)),
            _ours("Ours", "inat2017_resnet101", (7.6, POINTING)),
        ), ("CAM and Grad-CAM are one row in the paper: they are the same for the last layer of a ResNet.",),
    ),
    Table(
        "Table 7. Ablation on CelebA, not aligned: recognition accuracy (%), landmark error as in Table 2 (%)",
        "celeba_unaligned", (Column("Acc", 1), Column("Err", 2)), (
            _ours("w/o attention", "celeba_landmarks_resnet101_no_attention", (91.5, CLASS_ACC), (7.55, LANDMARKS)),
            _ours("w/o regularization", "celeba_landmarks_resnet101_no_prior", (91.3, CLASS_ACC), (12.33, LANDMARKS)),
            _ours("full model", "celeba_landmarks_resnet101", (91.5, CLASS_ACC), (8.40, LANDMARKS)),
        ),
    ),
    Table(
        "Section 4.4. Each facial landmark on CelebA, not aligned: L2 distance as in Table 2 (%)",
        "celeba_unaligned", tuple(Column(name, 1) for name in FACE), (
            _ours(
                "full model", "celeba_landmarks_resnet101",
                *zip((7.4, 7.5, 9.1, 9.3, 8.6), (f"landmark_errors/{name}" for name in FACE), strict=True),
            ),
        ),
    ),
    Table(
        "Creatures (embedded). Accuracy (%), landmark error (% of the size of the box), pointing game error (%)",
        EMBEDDED, (Column("Acc", 1), Column("Landmark err", 2), Column("Pointing err", 1)), (
            _baseline("plain network", "mini_inat_plain", (None, ACC), NONE, NONE),
            _baseline("CAM", "mini_inat_plain", NONE, NONE, (None, CAM)),
            _baseline("Grad-CAM", "mini_inat_plain", NONE, NONE, (None, GRAD_CAM)),
            _baseline("Guided Grad-CAM", "mini_inat_plain", NONE, NONE, (None, GUIDED)),
            _baseline("DFF", "mini_inat_plain", NONE, (None, f"dff_{LANDMARKS}"), NONE),
            _baseline("SCOPS", "mini_inat_scops", NONE, (None, LANDMARKS), NONE),
            _ours("w/o attention", "mini_inat_no_attention", (None, ACC), (None, LANDMARKS), (None, POINTING)),
            _ours("w/o regularization", "mini_inat_no_prior", (None, ACC), (None, LANDMARKS), (None, POINTING)),
            _ours("full model", "mini_inat", (None, ACC), (None, LANDMARKS), (None, POINTING)),
        ), ("Nothing is published of the creatures, which come with this program.",
            "Landmark error: of the box. Flowers have none, so they do not count.",),
    ),
)  # fmt: skip
DATASETS = {row.recipe: table.dataset for table in PAPER for row in table.rows if row.recipe}


def tables(runs: Sequence[Path]) -> list[Table]:
    """All tables, filled by evaluated runs.

    Args:
        runs: Run folders; those of one recipe, which differ in their seed, fill the same cells.

    Returns:
        The tables; without runs as published.

    Raises:
        ValueError: a run was not evaluated, or was trained on since; fills no row; was trained or measured on other
            data; is given twice; or has other settings or test images than another of its row.
    """
    measured = [pair for run in runs for pair in _read_all(run)]
    for (run, _), (other, _) in itertools.combinations(measured, 2):
        if (run.recipe, run.view) != (other.recipe, other.view):
            continue
        if run.weights == other.weights:
            raise ValueError(f"{other.folder}: has the weights of {run.folder}; a run counts once")
        if None not in (run.shards, other.shards) and run.shards != other.shards:
            raise ValueError(f"{other.folder}: expected to be measured on the shards of {run.folder}, got others")
        if settings := {*run.changed} ^ {*other.changed}:
            differing = "; ".join(sorted(settings))
            raise ValueError(f"{other.folder}: expected the settings of {run.folder}, in one row with it: {differing}")
    return [replace(table, rows=tuple(_fill(row, measured) for row in table.rows)) for table in PAPER]


def _read_all(folder: Path) -> list[tuple[Run, dict[str, Any]]]:
    """What ``evaluate`` has written, for the view of the run and for those others that a row asks for."""
    config, _ = load_config(folder)
    views = [None, *(view for view in get_args(View) if view != config.evaluation.view)]
    measured = [path for view in views if (path := folder / of_view(METRICS, view)).is_file()]
    if not measured:
        raise ValueError(f"{folder}: was not evaluated; run `python -m rg evaluate`")
    evaluations = [_read(folder, path) for path in measured]
    known = {(row.recipe, row.view) for table in PAPER for row in table.rows}
    asked_for = [(run, metrics) for run, metrics in evaluations if (run.recipe, run.view) in known]
    if not asked_for:
        run = evaluations[0][0]
        raise ValueError(f"{folder}: no row of a table is for evaluation.view {run.view} of {run.recipe}")
    return asked_for


def _read(folder: Path, measured: Path) -> tuple[Run, dict[str, Any]]:
    """A run and its metrics."""
    config, _ = load_config(folder)
    record = read_record(folder)
    named = str(record.get("recipe"))
    recipe = named.removesuffix("_authors")  # fills the rows of the paper, marked
    if recipe not in DATASETS:
        raise ValueError(f"{folder}: expected a run of {', '.join(DATASETS)}, got one of recipe {named}")
    metrics = read_json(measured)
    if not {"dataset", "split", "evaluation", "weights"} <= metrics.keys():
        raise ValueError(f"{folder}: was evaluated by an earlier version; run `python -m rg evaluate` again")
    if (folder / WEIGHTS).is_file():
        check_measured(folder, metrics, "evaluate")
    if metrics.get("edits"):
        changes = Edits.from_dict(metrics["edits"])
        raise ValueError(f"{folder}: expected a run as it was trained, got one measured with {changes}")
    dataset, imported = DATASETS[recipe], "imported" in record  # which data imported weights have seen is not known
    trained_on = dataset if imported else record.get("data", {}).get("dataset", "unknown data")
    if (trained_on, metrics["dataset"], metrics["split"]) != (dataset, dataset, SPLIT):
        raise ValueError(
            f"{folder}: expected a run trained on {dataset} and evaluated on its split {SPLIT}, got one trained on "
            f"{trained_on} and evaluated on the split {metrics['split']} of {metrics['dataset']}"
        )
    intended = recipes.get(recipe)
    actual = RunConfig.from_dict(asdict(config) | {"evaluation": metrics["evaluation"]})
    view = None if actual.evaluation.view == intended.evaluation.view else actual.evaluation.view
    changed = _circumstances(folder, config, metrics, imported) + [
        f"{name} {json.dumps(now)} instead of {json.dumps(then)}"
        for name, (then, now) in differences(intended, actual).items()
        if name not in NO_EFFECT
    ]
    commit = record.get("environment", {}).get("commit")
    shards = metrics.get("shards", {}).get(SPLIT)
    return Run(str(folder), recipe, view, commit, tuple(changed), metrics["weights"], shards), metrics


def _circumstances(folder: Path, config: RunConfig, metrics: Mapping[str, Any], imported: bool) -> list[str]:
    """What is not as published, beside settings: weights from elsewhere, an unfinished run, other data."""
    circumstances = []
    if imported:
        circumstances.append("weights imported")
    elif (folder / HISTORY).is_file():
        history = read_json_lines(folder / HISTORY, drop_half_line=True)
        epoch = max((record["epoch"] for record in history), default=0)
        if epoch < config.train.epochs:
            circumstances.append(f"trained {epoch:g} of {config.train.epochs} epochs")
    options = metrics.get("options", {})
    circumstances += [f"data prepared with {name} {json.dumps(value)}" for name, value in options.items()]
    if metrics.get("damaged"):
        circumstances.append(f"{metrics['damaged']} samples damaged")
    return circumstances


def _fill(row: Row, measured: Sequence[tuple[Run, dict[str, Any]]]) -> Row:
    if row.recipe is None:
        return row
    mine = [(run, metrics) for run, metrics in measured if (run.recipe, run.view) == (row.recipe, row.view)]
    cells = []
    for cell in row.cells:
        measurements = [(run, _lookup(metrics, cell.metric)) for run, metrics in mine if cell.metric]
        figures = {run: 100 * value for run, value in measurements if value is not None}
        cells.append(replace(cell, values=tuple(figures.values()), runs=tuple(figures)))
    return replace(row, cells=tuple(cells), runs=tuple(run for run, _ in mine))


def _lookup(metrics: Any, path: str) -> float | None:
    for name in path.split("/"):
        metrics = (metrics or {}).get(name)
    return None if metrics is None else float(metrics)


def command(table: Table, row: Row) -> str:
    """What fills a row: a line for the shell with the placeholders RAW, DIR and RUN; empty for a quoted row."""
    if row.recipe is None:
        return ""
    raw = "" if table.dataset == EMBEDDED else " --raw RAW"
    view = f" --evaluation.view {row.view}" if row.view else ""
    return (
        f"python -m rg prepare {table.dataset}{raw} --out DIR && python -m rg train {row.recipe} --data DIR --out RUN "
        f"&& python -m rg evaluate RUN --data DIR{view}"
    )


def render(tables: Sequence[Table], form: str) -> str:
    """The tables in the form text, markdown or json.

    Raises:
        ValueError: there is no such form.
    """
    if form not in RENDERERS:
        raise ValueError(f"form: expected {', '.join(RENDERERS)}, got {form!r}")
    return RENDERERS[form](tables)


def _text(tables: Sequence[Table]) -> str:
    blocks = []
    for table in tables:
        below = [f"{text} {code}".rstrip() for text, code in _below(table)]
        blocks.append(render_text(table.title, _grid(table), below) + "\n")
    return "\n".join(blocks)


def _markdown(tables: Sequence[Table]) -> str:
    blocks = []
    for table in tables:
        below = [f"{escape(text)} `{code}`" if code else escape(text) for text, code in _below(table)]
        blocks.append(render_markdown(f"### {escape(table.title)}", _grid(table), below) + "\n")
    return "\n".join(blocks)


def _json(tables: Sequence[Table]) -> str:
    content = [asdict(table) for table in tables]
    for table, written in zip(tables, content, strict=True):
        for row, written_row in zip(table.rows, written["rows"], strict=True):
            written_row["command"] = command(table, row)
            for cell, written_cell in zip(row.cells, written_row["cells"], strict=True):
                written_cell.update(mean=cell.mean, std=cell.std)
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


RENDERERS: dict[str, Callable[[Sequence[Table]], str]] = {"text": _text, "markdown": _markdown, "json": _json}


def _grid(table: Table) -> list[list[str]]:
    """Header and rows; a metric of which nothing is published has only the column of what is measured."""
    grid = [["Method", *(row.method for row in table.rows)], ["Kind", *(row.kind for row in table.rows)]]
    for column, cells in zip(table.columns, zip(*(row.cells for row in table.rows), strict=True), strict=True):
        figures = ["" if cell.published is None else f"{cell.published:.{column.decimals}f}" for cell in cells]
        if any(figures):
            grid.append([f"{column.name}, published", *figures])
        grid.append([f"{column.name}, measured", *(_measured(cell, column.decimals) for cell in cells)])
    commits = [[run.commit or "unknown" for cell in row.cells for run in cell.runs] for row in table.rows]
    grid.append(["Commit", *(", ".join(dict.fromkeys(names)) for names in commits)])
    return [list(line) for line in zip(*grid, strict=True)]


def _measured(cell: Cell, decimals: int) -> str:
    """Mean ± standard deviation (runs), with a dagger if settings were changed; a dash if it could be measured."""
    if cell.mean is None:
        return "-" if cell.metric else ""
    mark = "†" if cell.runs[0].changed else ""  # all runs of a row have the same settings
    spread = "" if cell.std is None else f" ± {cell.std:.{decimals}f}"
    runs = "1 run" if len(cell.runs) == 1 else f"{len(cell.runs)} runs"
    return f"{cell.mean:.{decimals}f}{spread} ({runs}){mark}"


def _below(table: Table) -> list[tuple[str, str]]:
    """The lines below a table: text, and the command that it ends in, if any."""
    lines = [(note, "") for note in table.notes]
    for row in table.rows:
        folders = ", ".join(" ".join(run.folder.split()) for run in row.runs)
        if row.runs and row.runs[0].changed:
            lines.append((f"† {row.method}: not as in {row.recipe}: {'; '.join(row.runs[0].changed)} ({folders})", ""))
        cells = zip(table.columns, row.cells, strict=True)
        empty = ", ".join(column.name for column, cell in cells if cell.metric and not cell.values)
        if empty and row.runs:
            lines.append((f"{row.method} ({empty}): not measured by {folders}", ""))
        elif empty:
            lines.append((f"{row.method} ({empty}):", command(table, row)))
    return lines
