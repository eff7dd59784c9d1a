"""Whether explanations are faithful, end to end: what is written, printed and refused."""

import dataclasses
import json
import re
import shutil
import signal
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.files import write_json
from pipelines.shards import writer
from pipelines.shards.manifest import Manifest
from rg.attribution.faithful import faithful
from rg.attribution.protocol import Protocol
from rg.attribution.values import load_values, save_values
from rg.cli.main import main
from rg.config import (
    BackboneConfig,
    EvaluationConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    RunConfig,
)
from rg.evaluation.evaluate import evaluate
from rg.model.build import build_model
from rg.runs.folder import RECORD, Classes, load_model, save_config, save_weights
from rg.tables.faithful import GROUPS, read, render
from tests.conftest import schema
from tests.support import miniature_funnybirds
from tests.support.launch import Launch
from tests.support.strikes import strike

FLOORS = {"random", "centre"}
BOTH = {"grad_cam", "guided_grad_cam", "integrated_gradients", "dff"}
SHORT = Protocol(images=2, steps=2, integration=2)
ORDER = ("deletion", "insertion", "road_morf", "road_lerf")
REMOVAL = {"single_deletion", "preservation", "deletion_check", "distractibility", "outside"}
COMPOSED = {"synthetic_data", "completeness", "correctness", "contrastivity", "explainability"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards that can be drawn again."""
    config = BirdsConfig(species=4, size=64)
    birds = {split: Birds(config, split, 2) for split in ("train", "test")}
    folder = tmp_path_factory.mktemp("data")
    options = dataclasses.asdict(config) | dict.fromkeys(birds, 2)
    writer.write(folder, "birds", birds, schema=schema(birds["test"]), options=options)
    return folder


def make_run(folder, data, kind="region_grouping", seed=0):
    torch.manual_seed(seed)
    config = RunConfig(
        model=ModelConfig(
            BackboneConfig(name="test_resnet", weights="none"),
            GroupingConfig(num_parts=3, standardize=True, init="kmeans", smoothing_padding="same"),
            HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
            kind=kind,
        ),
        input=InputConfig(short_side=64, crop=64, decoder="pillow"),
    )
    manifest = Manifest.load(data)
    classes = Classes(tuple(manifest.classes), manifest.multi_label)
    model = build_model(config.model, len(classes.names), classes.multi_label)
    if kind == "region_grouping":
        model.initialize_dictionary(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), 0)
    folder.mkdir()
    save_config(folder, config, classes)
    save_weights(folder, model)
    write_json(folder / RECORD, {"recipe": f"tiny_{kind}"})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_run(folder / "a", data),
        make_run(folder / "b", data, seed=1),
        make_run(folder / "plain", data, "plain"),
    ]


@pytest.fixture(scope="module")
def measured(runs, data):
    return faithful(runs[0], data, runs[2], protocol=SHORT)


def test_both_models_are_measured_by_the_same_numbers(measured, runs):
    assert json.loads((runs[0] / "faithful.json").read_text()) == measured
    assert (measured["samples"], measured["split"], measured["removal"]) == (2, "test", "measured")
    parts, plain = measured["models"]
    assert 0 <= parts["thing_independence"] <= 1
    assert set(parts["methods"]) == BOTH | FLOORS | {"attribution", "contribution"}
    assert set(plain["methods"]) == BOTH | FLOORS | {"cam"}
    assert set(parts["undefined"]) == {"cam"}
    assert set(plain["undefined"]) == {"attribution", "contribution"}
    everywhere = {column.key for columns in GROUPS.values() for column in columns}
    for model, depth in ((parts, 7), (plain, 4)):
        for values in model["methods"].values():
            after = {name for name in values if name.startswith("mprt_after_")}
            assert len(after) == depth
            assert values.keys() - after == everywhere | {"threshold", "target_sensitivity"}
            assert values["mprt_full"] == values["mprt_after_backbone_lower"]
        assert model["methods"]["centre"]["mprt"] == pytest.approx(1)
        kept = {key for key, values in model["methods"].items() if (values["mprt_full"] or 0) >= 0.5}
        assert {*model["survivors"]} == kept - FLOORS
    assert parts["methods"]["attribution"]["random_logit"] == pytest.approx(1)
    assert parts["covering"]["pairs"] > 5
    assert plain["covering"] is None
    for model in (parts, plain):
        for values in model["methods"].values():
            for name in ("pointing_error", *ORDER, "infidelity", "focus", *(REMOVAL - {"single_deletion"})):
                assert values[name] is None or 0 <= values[name] <= 1
        assert model["methods"]["centre"]["noise_stability"] == pytest.approx(1)


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(measured, runs, data, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "copy")
    again = faithful(run, data, protocol=SHORT)["models"][0]
    assert again["methods"] == measured["models"][0]["methods"]
    other = faithful(run, data, protocol=dataclasses.replace(SHORT, seed=1))["models"][0]
    assert other["methods"]["random"] != again["methods"]["random"]


def test_the_values_of_the_images_give_the_figures_and_their_intervals(measured, runs, tmp_path):
    images = load_values(runs[0] / "faithful_images.npz")
    for model, values in zip(measured["models"], images, strict=True):
        assert len(values.keys) == 2
        assert values.figures()["methods"] == model["methods"]
        for method, by_name in model["intervals"]["methods"].items():
            assert {name for name, value in model["methods"][method].items() if value is not None} == set(by_name)
            for name in by_name.keys() & {"deletion", "insertion", "noise_stability", "single_deletion", "outside"}:
                low, high = by_name[name]
                assert low - 1e-12 <= model["methods"][method][name] <= high + 1e-12
    low, high = measured["models"][0]["intervals"]["methods"]["attribution"]["deletion"]
    assert f"[{low:.3f}, {high:.3f}]" in render(read([runs[0]]), "text")
    run = shutil.copytree(runs[0], tmp_path / "run")
    write_json(run / "faithful.json", {name: value for name, value in measured.items() if name != "images_sha256"})
    assert read([run])[0].images is None
    with pytest.raises(ValueError, match="measured by another version than"):
        read([runs[0], run])
    write_json(run / "faithful.json", measured)
    with (run / "faithful_images.npz").open("wb") as out:
        save_values(images[:1], out)
    with pytest.raises(ValueError, match=r"faithful_images\.npz: missing, or not what faithful\.json was made of"):
        read([run])


def test_the_command_prints_mean_and_deviation_of_runs_of_one_recipe(runs, data, tmp_path, capsys):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs[:2]]
    options = ["--data", str(data), "--images", "2", "--steps", "2", "--integration", "2"]
    assert main(["faithful", *map(str, copies), *options]) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    found = [json.loads((run / "faithful.json").read_text())["models"][0] for run in copies]
    assert found[0]["weights"] != found[1]["weights"]
    deletion = [model["methods"]["grad_cam"]["deletion"] for model in found]
    tables = {block.split("\n")[0].strip(): block for block in printed.split("\n\n")}
    line, of_parts = (
        next(line for line in tables[name].splitlines() if line.strip().startswith("Grad-CAM"))
        for name in ("order of pixels", "parts taken away")
    )
    mean = statistics.mean(model["methods"]["grad_cam"]["distractibility"] for model in found)
    assert f"{100 * mean:.1f} ± " in of_parts
    low, high = map(float, re.search(r"± [\d.]+ \[(-?[\d.]+), (-?[\d.]+)\]", line).groups())
    assert f"{statistics.mean(deletion):.3f} ± {statistics.stdev(deletion):.3f} [" in line
    assert low - 5e-4 <= statistics.mean(deletion) <= high + 5e-4
    assert "tiny_region_grouping, 2 runs" in printed
    assert main(["faithful", *map(str, copies)]) == 0  # without data, what the runs hold
    assert capsys.readouterr().out == printed


def test_data_that_are_not_drawn_have_no_rows_of_removal(small_birds, tmp_path):
    """The manifest of these shards does not say how their images were drawn."""
    run = make_run(tmp_path / "run", small_birds)
    result = faithful(run, small_birds, protocol=SHORT)
    assert "does not say how it was drawn" in result["removal"]
    assert not REMOVAL & set(result["models"][0]["methods"]["attribution"])
    for form in ("text", "markdown"):
        printed = render(read([run]), form)
        assert "not measured" in printed
        assert "does not say how it was drawn" in printed
        assert "distractibility" not in printed


def test_images_that_are_drawn_differently_now_are_refused(runs, data, tmp_path):
    other = shutil.copytree(data, tmp_path / "data")
    manifest = Manifest.load(other)
    dataclasses.replace(manifest, options=manifest.options | {"clutter": 2.0}).save(other)
    run = shutil.copytree(runs[1], tmp_path / "run", ignore=shutil.ignore_patterns("faithful.json"))
    with pytest.raises(ValueError, match=r"test-\d+: is drawn differently now"):
        faithful(run, other, protocol=SHORT)
    assert not (run / "faithful.json").exists()


def test_what_does_not_go_together_is_refused(runs, data, tmp_path, capsys):
    with pytest.raises(ValueError, match="--plain: expected the run of a plain network"):
        faithful(runs[0], data, runs[1], protocol=SHORT)
    renamed = shutil.copytree(data, tmp_path / "data")
    manifest = Manifest.load(renamed)
    dataclasses.replace(manifest, classes=("a", "b", "c", "d")).save(renamed)
    with pytest.raises(ValueError, match=r"^--data: expected the 4 classes of .*, got 4 classes, but number 0 is 'a' "):
        faithful(runs[0], renamed, protocol=SHORT)
    dataclasses.replace(manifest, multi_label=True).save(renamed)
    with pytest.raises(ValueError, match=r"^--data: expected the 4 classes of .*, got 4 attributes$"):
        faithful(runs[0], renamed, protocol=SHORT)
    assert main(["faithful", str(make_run(tmp_path / "new", data))]) == 2
    assert "has no faithful.json" in capsys.readouterr().err
    for name in ("images", "steps", "integration", "blur", "noise"):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            Protocol(**{name: 0})


def test_runs_that_were_measured_on_different_images_share_no_table(measured, runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    write_json(run / "faithful.json", {name: value for name, value in measured.items() if name != "shards"})
    assert len(read([runs[0], run])) == len(read([run, runs[0]])) == 2  # of an earlier version: nobody knows
    write_json(run / "faithful.json", measured | {"shards": {"test": "0" * 64}})
    with pytest.raises(ValueError, match="expected shards as in"):
        read([runs[0], run])


def test_runs_that_were_measured_in_different_ways_share_no_table(measured, runs, data, tmp_path):
    run = shutil.copytree(runs[1], tmp_path / "run")
    faithful(run, data, protocol=dataclasses.replace(SHORT, images=1))
    with pytest.raises(ValueError, match="expected samples as in"):
        read([runs[0], run])
    save_weights(run, load_model(runs[0])[0])
    with pytest.raises(ValueError, match=r"was trained on since it was measured; run `python -m rg faithful` again$"):
        read([run])
    assert [of.result for of in read([runs[0]])] == [measured]
    assert np.isfinite(measured["models"][0]["accuracy"])


def test_figures_with_parts_off_are_told_from_those_without(measured, runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    write_json(run / "part_names.json", {"1": {"off": True}})
    with pytest.raises(ValueError, match=r"switches off or merges other parts than when it was measured"):
        read([run])
    first, *others = measured["models"]
    edited = first | {"edits": {"off": [1], "merged": {}}}
    write_json(run / "faithful.json", measured | {"models": [edited, *others]})
    titles = [line for line in render(read([runs[0], run]), "text").splitlines() if "accuracy on these images" in line]
    assert sum("part 1 switched off)" in title for title in titles) == 1
    assert len(titles) == len(measured["models"]) + 1


@pytest.mark.parametrize("kind", ["region_grouping", "plain"])
def test_the_pointing_game_is_that_of_evaluate(kind, data, tmp_path):
    """On all images, decoded by Pillow in both, so that no pixel differs."""
    run = make_run(tmp_path / "run", data, kind)
    metrics = evaluate(run, data, "test", settings=EvaluationConfig())
    (model,) = faithful(run, data, protocol=Protocol(images=99, steps=1, integration=1))["models"]
    errors = {key: values["pointing_error"] for key, values in model["methods"].items()}
    expected = {"attribution": metrics.get("pointing_error"), **metrics.get("pointing_errors", {})}
    compared = {"attribution"} if kind == "region_grouping" else {"cam", "grad_cam", "guided_grad_cam"}
    assert {key: errors[key] for key in compared} == pytest.approx({key: expected[key] for key in compared})
    assert model["accuracy"] == pytest.approx(metrics["accuracy"])


class Attributes:
    """Birds whose species is told in two attributes instead of a class."""

    def __init__(self, birds):
        self.birds = birds

    def __len__(self):
        return len(self.birds)

    def source(self, index):
        return self.birds.source(index)

    def __getitem__(self, index):
        sample = self.birds[index]
        return dataclasses.replace(sample, label=(sample.label % 2, sample.label // 2), super_category=None)


def test_attributes_are_explained_by_the_most_probable_one(tmp_path):
    birds = Birds(BirdsConfig(species=4, size=64), "test", 1)
    names = ("odd", "high")
    kind = dataclasses.replace(schema(birds), classes=names, super_categories=(), multi_label=True)
    writer.write(tmp_path / "data", "attributes", {"test": Attributes(birds)}, schema=kind, options={})
    run = make_run(tmp_path / "run", tmp_path / "data")
    result = faithful(run, tmp_path / "data", protocol=SHORT)
    (model,) = result["models"]
    assert model["accuracy"] is None
    assert model["probability"]["image"] >= 0.1
    assert set(model["methods"]) == BOTH | FLOORS | {"attribution", "contribution"}
    assert "attributes is not drawn" in render(read([run]), "text")


def test_funnybirds_is_measured_with_the_images_that_were_published_without_parts(runs, data, tmp_path, capsys):
    miniature_funnybirds.build(tmp_path / "raw")
    words = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "shards"), "--jobs", "1", "--allow-partial"]
    assert main(["prepare", "funnybirds", *words]) == 0
    run = make_run(tmp_path / "run", tmp_path / "shards")
    options = ["--images", "3", "--steps", "2", "--integration", "2", "--interventions", str(tmp_path / "raw")]
    assert main(["faithful", str(run), "--data", str(tmp_path / "shards"), *options]) == 0
    (model,) = json.loads((run / "faithful.json").read_text())["models"]
    (values,) = load_values(run / "faithful_images.npz")
    assert values.model["thing_independence"].shape == (3, miniature_funnybirds.THINGS)
    assert (values.model["thing_independence"][:, 0] == 1).all()  # it cannot be seen
    assert model["background_independence"] is None  # there are no images without any background
    assert set(model["covering"]["by_part"]) == set(miniature_funnybirds.LOOKS)
    for method in model["methods"].values():
        assert 0 <= method["distractibility"] <= 1
        assert method["outside"] is None
    assert "completeness" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--interventions: expected shards of funnybirds, got shards of birds"):
        faithful(runs[0], data, interventions=tmp_path / "raw", protocol=SHORT)


FEW = ("--images", "4", "--steps", "2", "--integration", "2", "--batch-size", "2", "--device", "cpu")


def test_several_processes_measure_what_one_measures_also_if_they_are_killed(runs, data, tmp_path):
    alone, together = (shutil.copytree(runs[0], tmp_path / name) for name in ("alone", "together"))
    words = ["faithful", alone, "--data", data, "--plain", runs[2], *FEW]
    for name in ("first", "killed", "last"):
        (tmp_path / name).mkdir()
    assert Launch(words, tmp_path / "first", 1).wait() == [0]
    words[1] = together
    killed = partial(strike, "rg.attribution.faithful:save_values", 2, signal.SIGKILL)  # in a piece of the second model
    launch = Launch(words, tmp_path / "killed", 2, dict.fromkeys(range(2), killed))
    codes = launch.wait()
    assert -signal.SIGKILL in codes, launch.said
    assert set(codes) <= {-signal.SIGKILL, 76}, launch.said
    pieces = together / "faithful.json.pieces"
    assert len([*pieces.glob("*-??????")]) >= 2
    launch = Launch(words, tmp_path / "last", 2)
    assert launch.wait() == [0, 0], launch.said
    assert "going on with what was done before" in launch.programs[0].output
    assert not pieces.exists()
    found, expected = (json.loads((run / "faithful.json").read_text()) for run in (together, alone))
    for result in (found, expected):
        assert result["models"][0].pop("run")
    assert found == expected
    assert launch.said.count("birds, test: 4 images") == 1


def test_of_several_runs_those_that_are_measured_are_not_measured_again(runs, data, tmp_path, monkeypatch, caplog):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    result = faithful(run, data, protocol=SHORT)
    caplog.set_level("INFO")
    monkeypatch.setattr("rg.attribution.faithful._measure", lambda *_: pytest.fail("measured again"))
    assert faithful(run, data, protocol=SHORT, again=False) == result
    assert "measured already" in caplog.text
    with pytest.raises(pytest.fail.Exception):
        faithful(run, data, protocol=SHORT)
    with pytest.raises(pytest.fail.Exception):
        faithful(run, data, protocol=dataclasses.replace(SHORT, seed=5), again=False)
