"""The tables of the paper: published figures against its running text, measured ones against numpy, three forms."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rg import recipes
from rg.config import RunConfig, flatten
from rg.runs.folder import Classes, save_config
from rg.tables.paper import Cell, Row, Table, render, tables

DATASETS = {  # start of the recipe -> data set
    "cub200": "cub200",
    "celeba_attributes": "celeba",
    "celeba_landmarks": "celeba_unaligned",
    "inat2017": "inat2017",
    "mini_inat": "creatures",
}
PARTS = {
    "accuracy": 0.64,
    "mean_class_accuracy": 0.63,
    "landmark_error": 0.08,
    "landmark_errors": {
        "left eye": 0.071,
        "right eye": 0.072,
        "nose": 0.073,
        "left mouth": 0.074,
        "right mouth": 0.075,
    },
    "landmark_errors_alone": {"Black footed Albatross": 0.15, "Laysan Albatross": 0.16, "Sooty Albatross": 0.17},
    "pointing_error": 0.09,
}
PLAIN = {
    "accuracy": 0.61,
    "mean_class_accuracy": 0.62,
    "pointing_errors": {"cam": 0.11, "grad_cam": 0.12, "guided_grad_cam": 0.13},
    "dff_landmark_error": 0.31,
    "dff_landmark_errors_alone": {"Black footed Albatross": 0.32, "Laysan Albatross": 0.33, "Sooty Albatross": 0.34},
}


def dataset_of(recipe: str) -> str:
    return next(dataset for start, dataset in DATASETS.items() if recipe.startswith(start))


def make_run(
    run: Path,
    recipe: str,
    config: RunConfig | None = None,
    metrics: dict | None = None,
    record: dict | None = None,
    **evaluation: object,
) -> Path:
    """The files that the tables are made from; of metrics.json and run.json what differs from a proper run."""
    config = config or recipes.get(recipe)
    run.mkdir(parents=True)
    save_config(run, config, Classes(("a", "b")))
    data = {"dataset": dataset_of(recipe)}
    written = {"recipe": recipe, "command": "", "data": data, "environment": {"commit": "abc1234"}}
    (run / "run.json").write_text(json.dumps(written | (record or {})))
    measured = {
        "dataset": dataset_of(recipe),
        "split": "test",
        "evaluation": flatten(dataclasses.asdict(config.evaluation)) | evaluation,
        "weights": str(run),
    }
    values = PLAIN if config.model.kind == "plain" else PARTS
    (run / "metrics.json").write_text(json.dumps(measured | values | (metrics or {})))
    return run


def find(found: list[Table], start: str) -> Table:
    return next(table for table in found if table.title.startswith(start))


def row(table: Table, method: str) -> Row:
    return next(row for row in table.rows if row.method == method)


def cell(found: list[Table], start: str, method: str, column: str | None = None) -> Cell:
    """Of a table with one column, or in the column of that name."""
    table = find(found, start)
    names = [one.name for one in table.columns]
    return row(table, method).cells[names.index(column) if column else 0]


def lines_of(found: list[Table], start: str, form: str) -> list[str]:
    return render([find(found, start)], form).splitlines()


def figures(start: str) -> dict[str, float | None]:
    """What is published in a table of one column."""
    return {row.method: row.cells[0].published for row in find(tables([]), start).rows}


def rows_of_markdown(lines: list[str]) -> list[list[str]]:
    """The cells of a pipe table by the rules of GitHub: a pipe after a backslash is text."""
    found = []
    for line in lines:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.append([re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", one.strip()) for one in cells])
    return found


def test_published_figures_are_those_of_the_running_text():
    assert cell(tables([]), "Table 4", "Ours", "all 200").published == 11.51
    face = row(find(tables([]), "Section 4.4"), "full model").cells
    assert [one.published for one in face] == [7.4, 7.5, 9.1, 9.3, 8.6]
    full = cell(tables([]), "Table 7", "full model", "Err").published
    assert np.mean([one.published for one in face]) == pytest.approx(full, abs=0.05)  # of rounded errors
    assert figures("Table 2")["Ours"] == round(full, 1)


def test_published_figures_differ_as_the_running_text_says():
    faces, birds, species, pointing = (figures(f"Table {number}") for number in (2, 3, 5, 6))
    assert faces["SCOPS"] - faces["Ours"] == pytest.approx(6.6)
    assert birds["Ours"] - birds["ResNet101"] == pytest.approx(-0.4)
    assert species["Ours"] - species["ResNet101 (ours)"] == pytest.approx(3.7)
    assert species["Ours + FC test"] - species["Ours"] == pytest.approx(2.0)
    assert species["Ours + FC test"] - species["ResNet101 (ours)"] == pytest.approx(5.7)
    assert species["Ours + FC test"] - species["TASN"] == pytest.approx(-1.4)
    assert pointing["CAM [70]"] - pointing["Ours"] == pytest.approx(4.2)
    assert pointing["Grad-CAM [47]"] == pointing["CAM [70]"]
    assert pointing["Guided Grad-CAM [47]"] - pointing["Ours"] == pytest.approx(0.6)
    without, full = (cell(tables([]), "Table 7", method, "Err") for method in ("w/o regularization", "full model"))
    assert round(without.published - full.published, 1) == 3.9
    scops, ours = (row(find(tables([]), "Table 4"), method).cells[:3] for method in ("SCOPS", "Ours"))
    assert round(min(a.published - b.published for a, b in zip(scops, ours, strict=True)), 1) == 2.9


def test_quoted_methods_are_those_that_the_running_text_compares_with():
    def references(start: str) -> list[int]:
        quoted = [row.method for row in find(tables([]), start).rows if row.kind == "quoted"]
        return [int(re.search(r"\[(\d+)\]", method)[1]) for method in quoted]

    assert references("Table 1") == [36, 45, 37, 20, 30, 21, 7]
    assert references("Table 3") == [27, 14, 67, 16, 9, 56, 59, 10, 68]


def test_every_table_is_there_and_quoted_rows_are_never_measured():
    found = tables([])
    assert [table.title.split(".")[0] for table in found[:7]] == [f"Table {number}" for number in range(1, 8)]
    assert len(found) == 9
    for table in found:
        for one in table.rows:
            assert len(one.cells) == len(table.columns)
            measurable = any(cell.metric for cell in one.cells)
            assert measurable == (one.kind != "quoted") == (one.recipe is not None)
            assert one.recipe is None or (one.recipe in recipes.RECIPES and table.dataset == dataset_of(one.recipe))


def test_figures_are_printed_with_the_decimals_of_the_paper():
    table = rows_of_markdown(lines_of(tables([]), "Table 7", "markdown"))
    assert [(line[2], line[4]) for line in table[2:]] == [("91.5", "7.55"), ("91.3", "12.33"), ("91.5", "8.40")]
    assert rows_of_markdown(lines_of(tables([]), "Table 2", "markdown"))[-1][2] == "8.4"


CASES = [
    ("celeba_attributes_resnet101", "Table 1", "Ours", {"Acc": 63}),
    ("celeba_attributes_resnet101_plain", "Table 1", "ResNet101", {"Acc": 62}),
    ("celeba_landmarks_resnet101", "Table 2", "Ours", {"Err": 8}),
    ("celeba_landmarks_resnet101_plain", "Table 2", "DFF", {"Err": 31}),
    ("celeba_landmarks_scops", "Table 2", "SCOPS", {"Err": 8}),
    ("cub200_resnet101", "Table 3", "Ours", {"Acc": 64}),
    ("cub200_resnet101_plain", "Table 3", "ResNet101", {"Acc": 61}),
    ("cub200_resnet101", "Table 4", "Ours", {"CUB-001": 15, "CUB-002": 16, "CUB-003": 17, "all 200": 8}),
    ("cub200_resnet101_plain", "Table 4", "DFF", {"CUB-001": 32, "CUB-002": 33, "CUB-003": 34, "all 200": 31}),
    ("cub200_scops", "Table 4", "SCOPS", {"CUB-001": 15, "CUB-002": 16, "CUB-003": 17, "all 200": 8}),
    ("inat2017_resnet101", "Table 5", "Ours", {"Acc": 64}),
    ("inat2017_resnet101_plain", "Table 5", "ResNet101 (ours)", {"Acc": 61}),
    ("inat2017_resnet101_saliency_plain", "Table 5", "SSN", {"Acc": 61}),
    ("inat2017_resnet50_tasn_plain", "Table 5", "TASN", {"Acc": 61}),
    ("inat2017_resnet101", "Table 6", "Ours", {"Error": 9}),
    ("inat2017_resnet101_plain", "Table 6", "CAM [70]", {"Error": 11}),
    ("inat2017_resnet101_plain", "Table 6", "Grad-CAM [47]", {"Error": 12}),
    ("inat2017_resnet101_plain", "Table 6", "Guided Grad-CAM [47]", {"Error": 13}),
    ("celeba_landmarks_resnet101", "Table 7", "full model", {"Acc": 63, "Err": 8}),
    ("celeba_landmarks_resnet101_no_prior", "Table 7", "w/o regularization", {"Acc": 63, "Err": 8}),
    ("celeba_landmarks_resnet101_no_attention", "Table 7", "w/o attention", {"Acc": 63, "Err": 8}),
    ("celeba_landmarks_resnet101", "Section 4.4", "full model", {"left eye": 7.1, "right eye": 7.2, "nose": 7.3}),
    ("celeba_landmarks_resnet101", "Section 4.4", "full model", {"left mouth": 7.4, "right mouth": 7.5}),
    ("mini_inat", "Creatures", "full model", {"Acc": 64, "Landmark err": 8, "Pointing err": 9}),
    ("mini_inat_no_prior", "Creatures", "w/o regularization", {"Acc": 64, "Landmark err": 8, "Pointing err": 9}),
    ("mini_inat_no_attention", "Creatures", "w/o attention", {"Acc": 64, "Landmark err": 8, "Pointing err": 9}),
    ("mini_inat_plain", "Creatures", "plain network", {"Acc": 61}),
    ("mini_inat_plain", "Creatures", "CAM", {"Pointing err": 11}),
    ("mini_inat_plain", "Creatures", "Grad-CAM", {"Pointing err": 12}),
    ("mini_inat_plain", "Creatures", "Guided Grad-CAM", {"Pointing err": 13}),
    ("mini_inat_plain", "Creatures", "DFF", {"Landmark err": 31}),
    ("mini_inat_scops", "Creatures", "SCOPS", {"Landmark err": 8}),
]


@pytest.mark.parametrize("recipe, start, method, expected", CASES)
def test_a_run_fills_its_cells(tmp_path, recipe, start, method, expected):
    found = tables([make_run(tmp_path / "run", recipe)])
    for column, percentage in expected.items():
        filled = cell(found, start, method, column)
        assert filled.values == pytest.approx((percentage,)), column
        assert [(run.folder, run.commit) for run in filled.runs] == [(str(tmp_path / "run"), "abc1234")]


def test_the_cases_above_are_all_rows_but_one_and_no_run_fills_a_row_of_another(tmp_path):
    named = {(recipe, start, method) for recipe, start, method, _ in CASES}
    every = {
        (row.recipe, re.split(r"[. (](?=\D)", table.title)[0], row.method) for table in tables([]) for row in table.rows
    }
    assert {one for one in every if one[0]} - named == {("inat2017_resnet101", "Table 5", "Ours + FC test")}
    for recipe in {recipe for recipe, _, _ in named}:
        filled = tables([make_run(tmp_path / recipe, recipe)])
        methods = {(recipe, row.method) for table in filled for row in table.rows if row.runs}
        assert methods == {(one, method) for one, _, method in named if one == recipe}


def test_seeds_become_mean_and_sample_standard_deviation(tmp_path):
    accuracies = [0.8731, 0.8659, 0.8702]
    for seed, accuracy in enumerate(accuracies):
        config = dataclasses.replace(recipes.get("cub200_resnet101"), seed=seed)
        make_run(tmp_path / f"{seed}", "cub200_resnet101", config, {"accuracy": accuracy})
    filled = tables([tmp_path / f"{seed}" for seed in range(3)])
    ours = cell(filled, "Table 3", "Ours")
    percent = 100 * np.array(accuracies)
    assert ours.values == pytest.approx(tuple(percent))
    assert ours.mean == pytest.approx(np.mean(percent))
    assert ours.std == pytest.approx(np.std(percent, ddof=1))
    line = rows_of_markdown(lines_of(filled, "Table 3", "markdown"))[-1]
    assert line == ["Ours", "ours", "87.3", f"{percent.mean():.1f} ± {np.std(percent, ddof=1):.1f} (3 runs)", "abc1234"]


def test_one_run_has_no_standard_deviation(tmp_path):
    filled = tables([make_run(tmp_path / "run", "cub200_resnet101")])
    assert cell(filled, "Table 3", "Ours").std is None
    assert rows_of_markdown(lines_of(filled, "Table 3", "markdown"))[-1][3] == "64.0 (1 run)"


def test_the_view_decides_between_the_rows_of_table_5(tmp_path):
    crop = make_run(tmp_path / "crop", "inat2017_resnet101")
    whole = make_run(tmp_path / "whole", "inat2017_resnet101", metrics={"accuracy": 0.66}, view="whole")
    table = find(tables([crop, whole]), "Table 5")
    assert {row.method: row.cells[0].values for row in table.rows if row.cells[0].values} == {
        "Ours": pytest.approx((64,)),
        "Ours + FC test": pytest.approx((66,)),
    }
    assert cell(tables([whole]), "Table 6", "Ours").values == ()
    assert not row(table, "Ours + FC test").runs[0].changed


def test_the_commits_of_a_row_are_shown_once_each(tmp_path):
    environments = [{"commit": "abc1234"}, {"commit": "def5678-dirty"}, {"commit": "abc1234"}, {}]
    runs = [
        make_run(tmp_path / f"{number}", "mini_inat", record={"environment": environment})
        for number, environment in enumerate(environments)
    ]
    line = rows_of_markdown(lines_of(tables(runs), "Creatures", "markdown"))[-1]
    assert line[-1] == "abc1234, def5678-dirty, unknown"


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_every_empty_cell_is_named_once_with_the_command_that_fills_it(tmp_path, form):
    run = make_run(tmp_path / "run", "cub200_resnet101_plain", metrics={"dff_landmark_errors_alone": None})
    found = tables([run, make_run(tmp_path / "other", "inat2017_resnet101")])
    for table in found:
        lines = [re.sub(r"\\(.)", r"\1", line).lstrip(" -") for line in render([table], form).splitlines()]
        for one in table.rows:
            empty = [
                column.name
                for column, cell in zip(table.columns, one.cells, strict=True)
                if cell.metric and not cell.values
            ]
            named = [line for line in lines if line.startswith(f"{one.method} ({', '.join(empty)}):")]
            assert len(named) == bool(empty), one
            if empty and not one.runs:
                raw = "" if table.dataset == "creatures" else " --raw RAW"
                view = " --evaluation.view whole" if "FC" in one.method else ""
                assert named[0].split("): ")[1].strip("`") == (
                    f"python -m rg prepare {table.dataset}{raw} --out DIR && "
                    f"python -m rg train {one.recipe} --data DIR --out RUN && "
                    f"python -m rg evaluate RUN --data DIR{view}"
                )


def test_what_a_run_could_not_measure_is_said_instead_of_a_command(tmp_path):
    nothing = {"pointing_errors": {"cam": 0.11, "grad_cam": 0.12, "guided_grad_cam": None}}
    filled = tables([make_run(tmp_path / "run", "inat2017_resnet101_plain", metrics=nothing)])
    lines = lines_of(filled, "Table 6", "text")
    assert [line for line in lines if "not measured" in line] == [
        f"  Guided Grad-CAM [47] (Error): not measured by {tmp_path / 'run'}"
    ]
    assert cell(filled, "Table 6", "CAM [70]").values == pytest.approx((11,))
    rows = rows_of_markdown(lines_of(filled, "Table 6", "markdown"))
    assert [line[-1] for line in rows[2:5]] == ["abc1234", "abc1234", ""]


def test_changed_settings_are_marked_and_named(tmp_path):
    recipe = recipes.get("cub200_resnet101")
    config = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=3))
    filled = tables([make_run(tmp_path / "run", "cub200_resnet101", config, landmark_scale="interocular")])
    lines = lines_of(filled, "Table 3", "text")
    assert any("  64.0 (1 run)†  abc1234" in line for line in lines)
    (note,) = [line for line in lines if line.startswith("  †")]
    assert str(tmp_path / "run") in note
    assert f"train.epochs 3 instead of {recipe.train.epochs}" in note
    assert 'evaluation.landmark_scale "interocular" instead of "box"' in note
    assert "†" not in "".join(lines_of(filled, "Table 5", "text"))


def test_settings_without_effect_are_not_marked(tmp_path):
    recipe = recipes.get("cub200_resnet101")
    settings = dataclasses.replace(recipe.input, decoder="pillow", threads=3, prefetch=5)
    config = dataclasses.replace(recipe, input=settings, seed=7)
    filled = tables([make_run(tmp_path / "run", "cub200_resnet101", config, landmark_classes=[0, 1, 2, 3])])
    assert row(find(filled, "Table 3"), "Ours").runs[0].changed == ()
    assert "†" not in render(filled, "text")


def test_imported_weights_are_marked(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101", record={"imported": {"file": "best.pth.tar"}})
    record = json.loads((run / "run.json").read_text())
    del record["data"]
    (run / "run.json").write_text(json.dumps(record))
    assert row(find(tables([run]), "Table 3"), "Ours").runs[0].changed == ("weights imported",)


def test_json_holds_what_the_tables_hold(tmp_path):
    runs = [
        make_run(tmp_path / f"{k}", "mini_inat", metrics={"accuracy": value}) for k, value in enumerate((0.5, 0.75))
    ]
    found = tables(runs)
    read = json.loads(render(found, "json"))
    assert [table["title"] for table in read] == [table.title for table in found]
    for table, expected in zip(read, found, strict=True):
        assert [tuple(column.values()) for column in table["columns"]] == [
            (c.name, c.decimals) for c in expected.columns
        ]
        for line, wanted in zip(table["rows"], expected.rows, strict=True):
            assert (line["method"], line["kind"], line["recipe"]) == (wanted.method, wanted.kind, wanted.recipe)
            assert [one["published"] for one in line["cells"]] == [one.published for one in wanted.cells]
            assert [one["values"] for one in line["cells"]] == [list(one.values) for one in wanted.cells]
            assert bool(line["command"]) == (wanted.kind != "quoted")
    accuracy = read[-1]["rows"][-1]["cells"][0]
    assert accuracy["mean"] == pytest.approx(62.5)
    assert accuracy["std"] == pytest.approx(np.std([50, 75], ddof=1))
    assert [run["folder"] for run in accuracy["runs"]] == [str(run) for run in runs]
    assert {run["commit"] for run in accuracy["runs"]} == {"abc1234"}


def test_markdown_holds_what_the_tables_hold():
    found = tables([])
    for table in found:
        header, rule, *lines = rows_of_markdown(render([table], "markdown").splitlines())
        assert header[:2] == ["Method", "Kind"]
        assert header[-1] == "Commit"
        assert set(rule) == {"---"}
        assert {len(line) for line in [rule, *lines]} == {len(header)}
        assert [line[:2] for line in lines] == [[one.method, one.kind] for one in table.rows]
        for k, column in enumerate(table.columns):
            figures = [one.cells[k].published for one in table.rows]
            if any(figures):
                shown = [line[header.index(f"{column.name}, published")] for line in lines]
                assert [float(one) if one else None for one in shown] == figures
            measured = [line[header.index(f"{column.name}, measured")] for line in lines]
            assert [one == "-" for one in measured] == [one.cells[k].metric is not None for one in table.rows]


def test_names_cannot_break_a_markdown_table(tmp_path):
    recipe = recipes.get("mini_inat")
    config = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=99))
    name = "a|b <img src=x> *c* `d` [e](f)\n| g"
    run = make_run(tmp_path / name, "mini_inat", config, record={"environment": {"commit": "x|y <b>"}})
    lines = lines_of(tables([run]), "Creatures", "markdown")
    header, _, *rows = rows_of_markdown(lines)
    assert {len(line) for line in rows} == {len(header)}
    assert rows[-1][-1] == "x|y <b>"
    (note,) = [line for line in lines if line.startswith("- †")]
    assert r"a\|b \<img src=x\> \*c\* \`d\` \[e\](f) \| g" in note


def test_columns_of_text_stand_below_each_other(tmp_path):
    lines = lines_of(tables([make_run(tmp_path / "run", "cub200_resnet101")]), "Table 4", "text")
    title, header, *lines = lines
    at = header.index("all 200, measured")
    assert lines[2][at:].startswith("8.00 (1 run)")
    assert lines[0][at:].startswith("-")
    assert lines[2].endswith("  abc1234")
    assert not any(line != line.rstrip() for line in [title, header, *lines])


def change(run: Path, name: str, **values: object) -> None:
    content = json.loads((run / name).read_text()) | values
    (run / name).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("metrics.json", {"dataset": "birds"}, "expected a run trained on cub200 and evaluated on its split test, got"),
        ("metrics.json", {"split": "val"}, "evaluated on the split val of cub200"),
        ("run.json", {"data": {"dataset": "birds"}}, "got one trained on birds"),
        ("run.json", {"recipe": None}, "got one of recipe None"),
        (
            "run.json",
            {"recipe": "birds_lite0"},
            "expected a run of celeba_attributes_resnet101_plain, .*got one of recipe birds_lite0",
        ),
        ("metrics.json", {"weights": "absent"}, "earlier version; run `python -m rg evaluate` again"),
        (
            "metrics.json",
            {"evaluation": {"view": "whole"}},
            "no row of a table is for evaluation.view whole of cub200_resnet101",
        ),
    ],
)
def test_a_run_that_fills_no_row_is_refused_in_one_line(tmp_path, name, values, expected):
    run = make_run(tmp_path / "run", "cub200_resnet101")
    change(run, name, **values)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(run))}: .*{expected}") as caught:
        tables([run])
    assert "\n" not in str(caught.value)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101")
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{run}: was not evaluated; run `python -m rg evaluate`")):
        tables([run])


def test_a_run_that_was_trained_on_since_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101", metrics={"weights": hashlib.sha256(b"first").hexdigest()})
    (run / "model.safetensors").write_bytes(b"first")
    assert cell(tables([run]), "Table 3", "Ours").values
    (run / "model.safetensors").write_bytes(b"second")
    with pytest.raises(ValueError, match=re.escape(f"{run}: was trained on since it was measured")):
        tables([run])


def test_a_run_whose_parts_people_have_changed_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101", metrics={"edits": {"off": [], "merged": {"5": 2}}})
    told = f"{run}: expected a run as it was trained, got one measured with part 5 merged into part 2"
    with pytest.raises(ValueError, match=re.escape(told)):
        tables([run])


def test_runs_of_one_row_were_measured_on_the_same_images(tmp_path):
    a, b, older = (make_run(tmp_path / name, "cub200_resnet101") for name in ("a", "b", "older"))
    for run in (a, b):
        change(run, "metrics.json", shards={"test": "0" * 64, "train": str(run)})
    assert len(cell(tables([a, b, older]), "Table 3", "Ours").values) == 3
    change(b, "metrics.json", shards={"test": "1" * 64})
    with pytest.raises(ValueError, match=f"^{re.escape(f'{b}: expected to be measured on the shards of {a}')}"):
        tables([a, b, older])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        tables([tmp_path / "nothing"])


def test_a_run_counts_once(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101")
    with pytest.raises(ValueError, match="a run counts once"):
        tables([run, run])


def test_runs_with_different_settings_do_not_share_a_cell(tmp_path):
    recipe = recipes.get("cub200_resnet101")
    config = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=3))
    runs = [make_run(tmp_path / "a", "cub200_resnet101"), make_run(tmp_path / "b", "cub200_resnet101", config)]
    with pytest.raises(ValueError, match=r"b: expected the settings of .*a, .*train.epochs 3 instead of 150") as caught:
        tables(runs)
    assert "\n" not in str(caught.value)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form: expected text, markdown, json, got 'html'"):
        render(tables([]), "html")


def test_what_is_not_as_published_is_marked(tmp_path):
    """The authors' settings, an unfinished run, a part of the data set, damage."""
    run = make_run(tmp_path / "run", "cub200_resnet101_authors")
    change(run, "metrics.json", options={"allow_partial": True}, damaged=3)
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 5, "epoch": 0.5}) + "\n")
    text = render(tables([run]), "text")
    line = next(line for line in text.splitlines() if line.strip().startswith("† Ours: not as in cub200_resnet101:"))
    for remark in (
        "trained 0.5 of 150 epochs",
        "data prepared with allow_partial true",
        "3 samples damaged",
        "optimizer.lr 0.0005 instead of 0.001",
        'evaluation.centers "corner" instead of "middle"',
    ):
        assert remark in line
    assert "(1 run)†" in text


def test_a_view_that_no_row_asks_for_is_passed_over(tmp_path):
    run = make_run(tmp_path / "run", "cub200_resnet101")
    expected = tables([run])
    shutil.copy(run / "metrics.json", run / "metrics.whole.json")
    change(run, "metrics.whole.json", evaluation={"view": "whole"})
    assert tables([run]) == expected
