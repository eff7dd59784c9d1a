"""What becomes of a run without each of its parts: as if it were evaluated with that part off, in one pass."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.files import write_json
from pipelines.shards.manifest import Manifest
from rg.cli.main import main
from rg.evaluation.evaluate import evaluate
from rg.evaluation.part_effects import class_accuracies, pairs, part_effects, shares_of_classes
from rg.runs.folder import Classes
from rg.runs.part_names import Part, unnamed
from tests.evaluation.test_evaluate import K, make_run
from tests.support.launch import Launch


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects") / "run"
    make_run(folder, small_birds, Classes.of(Manifest.load(small_birds)))
    evaluate(folder, small_birds, device="cpu")
    return folder


@pytest.fixture(scope="module")
def effects(run, small_birds):
    return part_effects(run, small_birds, device="cpu")


def measured_with(run, data, folder, said):
    """What ``evaluate`` says of a run with such a part_names.json: metrics and predictions."""
    copy = Path(shutil.copytree(run, folder / "copy"))
    write_json(copy / "part_names.json", said)
    metrics = evaluate(copy, data, device="cpu")
    assert json.loads((copy / "metrics.json").read_text())["edits"] == metrics["edits"]
    return metrics, [json.loads(line) for line in (copy / "predictions.jsonl").open()]


def accuracies(predictions):
    labels, named = (np.array([line[name] for line in predictions]) for name in ("label", "predicted"))
    return [float((named[labels == c] == c).mean()) for c in range(4)]


def test_with_all_parts_it_is_what_was_evaluated(run, effects):
    metrics = json.loads((run / "metrics.json").read_text())
    result, seen = effects
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert (result["accuracy"], result["samples"]) == (metrics["accuracy"], metrics["samples"])
    assert result["class_accuracy"] == accuracies(predictions)
    assert json.loads((run / "parts.json").read_text()) == json.loads(json.dumps(result))
    for name in ("occurrence", "attention", "area"):
        found, expected = ([part[name] for part in source["parts"]] for source in (result, metrics))
        assert found == pytest.approx(expected, abs=1e-6)
    assert seen.keys == [line["key"] for line in predictions]
    contributions = np.array([line["contributions"] for line in predictions])
    explained = np.array([line["explained"] for line in predictions])
    shares = np.array([part["class_shares"] for part in result["parts"]], float).T
    for c in range(4):
        if not (explained == c).any():
            assert np.isnan(shares[c]).all()
            continue
        mean = contributions[explained == c].mean(0)
        np.testing.assert_allclose(shares[c], mean / np.abs(mean).sum(), atol=1e-4)  # six decimals are written


@pytest.mark.parametrize("k", range(K))
def test_without_a_part_it_is_as_if_evaluated_with_that_part_off(run, small_birds, effects, tmp_path, k):
    metrics, predictions = measured_with(run, small_birds, tmp_path, {str(k): {"off": True}})
    part = effects[0]["parts"][k]
    assert part["accuracy_without"] == metrics["accuracy"]
    assert part["class_accuracy_without"] == accuracies(predictions)
    before = [json.loads(line)["predicted"] for line in (run / "predictions.jsonl").open()]
    changed = np.mean([line["predicted"] != was for line, was in zip(predictions, before, strict=True)])
    assert part["changed"] == pytest.approx(changed)
    assert metrics["edits"] == {"off": [k], "merged": {}}
    assert metrics["parts"][k]["state"] == "switched off"
    assert metrics["decomposition_error"] < 1e-4


def test_some_answers_do_change(effects):
    assert max(part["changed"] for part in effects[0]["parts"]) > 0.1


def test_parts_that_are_one_change_no_answer(run, small_birds, effects, tmp_path):
    metrics, _ = measured_with(run, small_birds, tmp_path, {"3": {"merge": 0}})
    assert metrics["accuracy"] == effects[0]["accuracy"]
    assert metrics["decomposition_error"] < 1e-4
    whole, merged = effects[0]["parts"], metrics["parts"]
    assert merged[0]["attention"] == pytest.approx(whole[0]["attention"] + whole[3]["attention"], abs=1e-6)
    assert merged[0]["area"] >= whole[0]["area"] + whole[3]["area"] - 1e-6
    assert (merged[3]["state"], merged[3]["area"]) == ("merged into part 0", 0)
    again, _ = part_effects(tmp_path / "copy", small_birds, device="cpu")
    expected, _ = measured_with(run, small_birds, tmp_path / "off", {"3": {"merge": 0}, "0": {"off": True}})
    assert again["parts"][0]["accuracy_without"] == expected["accuracy"]
    assert 3 not in {part for pair in again["pairs"] for part in pair["parts"]}


def test_what_was_measured_with_other_edits_is_refused(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    write_json(copy / "part_names.json", {"1": {"off": True}})
    assert main(["report", str(copy)]) == 2
    told = capsys.readouterr().err
    assert "part_names.json switches off or merges other parts than when it was measured" in told
    assert told.count("\n") == 1


def test_classes_of_attributes_are_attributes():
    answers, labels = np.array([[1, 0], [1, 1]]), np.array([[1, 1], [1, 1]])
    assert class_accuracies(answers, labels, 2) == [1.0, 0.5]
    assert class_accuracies(np.array([0, 2]), np.array([0, 0]), 3) == [0.5, None, None]


def test_shares_are_of_all_that_parts_add_or_take():
    shares = shares_of_classes(np.array([[3.0, -1], [1, -1], [0, 5]]), np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(shares, [[4 / 6, -2 / 6], [np.nan] * 2, [0, 1]])


def test_pairs_are_ranked_by_where_their_maps_lie():
    maps = np.random.default_rng(0).random((4, 50))
    maps[2] = maps[0] + 0.01 * maps[3]
    parts = (*unnamed([False] * 4)[:3], Part(3, "scenery", True, slot=True))
    means = {"attention": [0.5, 0.25, 0.25, 0], "area": [0.25] * 4}
    first, *others = pairs(maps @ maps.T, np.eye(4), parts, means)
    assert first["parts"] == [0, 2]
    expected = maps[0] @ maps[2] / np.linalg.norm(maps[0]) / np.linalg.norm(maps[2])
    assert first["overlap"] == pytest.approx(expected)
    assert (first["similarity"], first["attention"], first["area"]) == (0, 0.75, 0.5)
    assert sorted(pair["parts"] for pair in others) == [[0, 1], [1, 2]]


def test_several_processes_leave_the_files_of_one(run, small_birds, tmp_path):
    """One image at a time, in pieces of 16."""
    alone, together = (Path(shutil.copytree(run, tmp_path / name)) for name in ("alone", "together"))
    part_effects(alone, small_birds, batch_size=1, device="cpu")
    words = ["parts", together, "--data", small_birds, "--batch-size", "1", "--device", "cpu"]
    launch = Launch(words, tmp_path, 2)
    assert launch.wait() == [0, 0], launch.said
    assert (together / "parts.json").read_bytes() == (alone / "parts.json").read_bytes()
    assert (together / "parts.html").is_file()
    assert not (together / "parts.json.pieces").exists()
