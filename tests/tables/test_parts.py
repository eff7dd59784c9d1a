"""The table of parts: figures of others as published, means over seeds against numpy, and what cannot share a row."""

import dataclasses
import json
import statistics

import pytest

from rg import recipes
from rg.config import flatten
from rg.runs.folder import Classes, save_config
from rg.tables.parts import COLUMNS, parts_tables, render

FIELD = {path.split("/")[1]: 0.3 for path in COLUMNS.values() if "/" in path}


def make_run(run, *, recipe="birds_lite0", config=None, dataset="nabirds", shards="s", **metrics):
    config = config or recipes.get(recipe)
    run.mkdir(parents=True)
    save_config(run, config, Classes(("a", "b")))
    (run / "run.json").write_text(json.dumps({"recipe": recipe, "command": "", "data": {"dataset": dataset}}))
    measured = {
        "dataset": dataset,
        "split": "test",
        "shards": {"test": shards},
        "evaluation": flatten(dataclasses.asdict(config.evaluation)),
        "weights": str(run),
        "accuracy": 0.9,
        "landmark_error": None,
        "pointing_error": 0.01,
        "field": FIELD,
    }
    (run / "metrics.json").write_text(json.dumps(measured | metrics))
    return run


def test_quoted_rows_are_those_of_the_model_zoo_and_marked():
    tables = parts_tables([])
    assert all(row.source and not row.runs for rows in tables.values() for row in rows)
    best = {name: [row for row in tables["nabirds"] if row.method.startswith(name)] for name in ("region", "PDiscoF")}
    assert [row.parts for row in best["region"]] == [row.parts for row in best["PDiscoF"]] == [4, 8, 11]
    assert best["region"][2].figures == {"Kp": (12.82,), "NMI": (44.08,), "ARI": (29.28,), "Acc": (85.14,)}
    assert best["PDiscoF"][2].figures == {"Kp": (8.36,), "NMI": (72.04,), "ARI": (63.35,), "Acc": (88.69,)}
    lines = render(tables, "markdown").splitlines()
    assert "| DINO | quoted | 4 | - | - | 26.5 | 11.3 |" in lines
    assert any("model zoo of PDiscoFormer" in line for line in lines)


def test_seeds_share_a_row_and_other_settings_have_one_of_their_own(tmp_path):
    config = recipes.get("birds_lite0")
    seeds = [
        make_run(tmp_path / str(seed), config=dataclasses.replace(config, seed=seed), field=FIELD | {"nmi": nmi})
        for seed, nmi in enumerate((0.5, 0.6, 0.8))
    ]
    other = dataclasses.replace(config, loss=dataclasses.replace(config.loss, prior_weight=0.25))
    tables = parts_tables([*seeds, make_run(tmp_path / "other", config=other)])
    first, second = [row for row in tables["nabirds"] if row.runs]
    assert first.runs == tuple(map(str, seeds))
    assert first.figures["NMI"] == pytest.approx((50, 60, 80))
    assert first.figures["Landmark err"] == ()
    assert (first.parts, second.changed) == (config.model.grouping.num_parts, ("loss.prior_weight 0.25",))
    text = render(tables, "text")
    mean, spread = statistics.fmean((50, 60, 80)), statistics.stdev((50, 60, 80))
    assert f"{mean:.1f} ± {spread:.1f}" in text
    assert "birds_lite0 (3 runs)" in text
    assert "with loss.prior_weight 0.25" in text
    assert "Landmark err" not in text
    written = json.loads(render(tables, "json"))
    assert [row["figures"]["NMI"] for row in written["nabirds"] if row["runs"]][1] == [30]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"weights": "same"}, "a run counts once"),
        ({"shards": "others"}, "expected to be measured on the images of"),
        ({"recipe": "mini_inat_plain"}, "got a plain network"),
        ({"edits": {"off": [2], "merged": {}}}, "as it was trained, got one measured with part 2 switched off"),
    ],
)
def test_runs_that_cannot_stand_in_the_table_are_refused(tmp_path, metrics, expected):
    first = make_run(tmp_path / "first", weights="same")
    with pytest.raises(ValueError, match=expected):
        parts_tables([first, make_run(tmp_path / "second", **metrics)])


def test_a_run_that_was_not_measured_by_the_protocol_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["field"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="earlier version"):
        parts_tables([run])
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="was not evaluated"):
        parts_tables([run])
    with pytest.raises(ValueError, match="form: expected text, markdown, json"):
        render({}, "html")
