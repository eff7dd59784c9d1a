"""Evaluation by the protocols of the paper; writes metrics.json, predictions.jsonl and confidence.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.batches.decoders import pick_decoder
from pipelines.batches.loader import Loader
from pipelines.files import atomic_write, json_line, sha256, write_json
from pipelines.peers import Alone, Peers
from pipelines.shards.storage import Location, resolve
from rg.config import EvaluationConfig, flatten
from rg.evaluation import calibration, grouping, plain, rollup
from rg.evaluation.confidence import fit_confidence, selective_metrics
from rg.evaluation.part_pictures import part_pictures
from rg.evaluation.passes import Passes
from rg.evaluation.plan import Plan, make_plan
from rg.evaluation.tally import Answers
from rg.explain.explainer import Explainer
from rg.model.plain import PlainModel
from rg.runs import inputs
from rg.runs.confidence import Confidence, read_confidence, write_confidence
from rg.runs.folder import CONFIDENCE, METRICS, PREDICTIONS, WEIGHTS, of_view
from rg.runs.part_names import Part, named_by_people
from rg.runs.part_pictures import write_part_pictures
from rg.runs.pieces import open_pieces

DATA_OPTIONS = ("allow_partial", "val_fraction", "short_side", "quality")  # with which data is not as published


def evaluate(
    run: Path,
    data: Location,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    settings: EvaluationConfig | None = None,
    peers: Peers | None = None,
) -> dict[str, Any]:
    """Measure a run on one split; the landmark regression is fitted on the split ``fit``, or ``train`` without one.

    Another view than that of the run is written to files of its own, such as metrics.whole.json. What was measured lies
    in RUN/metrics.json.pieces until all is done, so an evaluation that was stopped goes on there.

    Args:
        run: Run folder.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        settings: What is measured, and how; as the run says if None.
        peers: Processes that call this with the same arguments and share the images; the first writes.

    Returns:
        What metrics.json holds: errors and rates as fractions, None for what the data set cannot tell. Nothing on other
        processes than the first.

    Raises:
        ValueError: run, data, split or settings cannot be used, or the run folder cannot be written to.
    """
    peers = peers or Alone()
    plan = peers.together(lambda: make_plan(run, data, split, batch_size, device, settings))
    model, config = plan.model, plan.config
    place = next(model.parameters()).device

    def load(name: str, view: str, pieces: Sequence[range]) -> Loader:
        whole = view == "whole"
        stride = model.backbone.stride
        geometry = inputs.whole_geometry(config.input, stride) if whole else inputs.evaluation_geometry(config.input)
        return inputs.evaluation_loader(config.input, data, name, geometry, batch_size, place, pieces, peers.sharing)

    weights, shards = sha256(run / WEIGHTS), {name: plan.manifest.split(name).sha256 for name in plan.splits}
    measured = {
        "weights": weights,
        "edits": model.edits.to_dict(),
        "shards": shards,
        "split": plan.split,
        "evaluation": flatten(asdict(plan.evaluation)),
        "batch_size": batch_size,
        "device": place.type,
        "decoder": pick_decoder(inputs.tested_on(config.input, place).decoder, place),
        "run": flatten(asdict(config)),
    }
    with open_pieces(run / f"{of_view(METRICS, plan.view)}.pieces", measured, peers) as pieces:
        passes = Passes(pieces, data, plan.manifest, load, batch_size, config.input.max_damaged)
        with_parts = not isinstance(model, PlainModel)
        looked = grouping.look(plan, passes) if with_parts else plain.look(plan, passes)
        validation: Answers = looked.answers
        if "val" in shards and plan.split != "val" and config.model.kind != "scops":
            validation = grouping.validate(plan, passes) if with_parts else plain.validate(plan, passes)

        def finish() -> dict[str, Any]:
            return _write(run, data, plan, looked, validation, weights, shards) if pieces.first else {}

        return peers.together(finish)


def _write(
    run: Path,
    data: Location,
    plan: Plan,
    looked: grouping.Looked | plain.Looked,
    validation: Answers,
    weights: str,
    shards: Mapping[str, str],
) -> dict[str, Any]:
    """Makes figures of what was looked at, and writes the files of an evaluation."""
    model, config, manifest, evaluation, view = plan.model, plan.config, plan.manifest, plan.evaluation, plan.view
    answers = looked.answers
    parts: Sequence[Part] = ()
    if isinstance(looked, plain.Looked):
        measured, predictions = plain.measure(plan, looked)
    else:
        assert not isinstance(model, PlainModel)
        parts = named_by_people(run, model.background.tolist(), config.model.grouping.background)
        measured, predictions = grouping.measure(plan, looked, parts)
    measured["levels"] = _levels(answers)
    confidence = None
    if "val" in manifest.splits and answers.labelled:
        targets = evaluation.target_precision, evaluation.false_alarms
        confidence = fit_confidence(
            *validation.arrays(),
            validation.presence(),
            *targets,
            dataset=manifest.dataset,
            weights=weights,
            shards=shards["val"],
            edits=model.edits,
        )
    measured |= _calibration(answers, None if plan.split == "val" else confidence)
    fitted = {"images": confidence.images, "too_few": confidence.too_few} if confidence else None
    measured["confidence"] = fitted
    chosen = {name: value for name, value in manifest.options.items() if name in DATA_OPTIONS and value}
    source = {"data": resolve(data), "dataset": manifest.dataset, "split": plan.split, "options": chosen}
    with atomic_write(run / of_view(PREDICTIONS, view)) as file:
        used = confidence or read_confidence(run, view)  # of an earlier evaluation, as explain will take it
        file.writelines(map(json_line, predictions(used.temperature if used else None)))
    if confidence:
        write_confidence(run / of_view(CONFIDENCE, view), confidence)
    if isinstance(looked, grouping.Looked) and not isinstance(model, PlainModel) and view is None:
        explainer = Explainer(model, config, plan.classes, next(model.parameters()).device, parts)
        wins, occurrences = (torch.cat(batches).numpy() for batches in (looked.answers.wins, looked.answers.occurrence))
        pictures = part_pictures(explainer, data, plan.split, answers.keys, wins, occurrences)
        write_part_pictures(run, list(pictures))
    sums = {
        "shards": shards,
        "weights": weights,
        "edits": model.edits.to_dict(),
        "predictions": sha256(run / of_view(PREDICTIONS, view)),
    }
    result = source | measured | {"evaluation": flatten(asdict(evaluation))} | sums
    write_json(run / of_view(METRICS, view), result)  # last: it names the others
    return result


def _levels(answers: Answers) -> dict[str, dict[str, float]]:
    """Accuracy at the levels above the classes; nothing where the names tell of none."""
    manifest = answers.manifest
    levels = (
        {}
        if manifest.multi_label or not answers.labelled
        else rollup.levels(manifest.classes, manifest.super_categories)
    )
    return rollup.accuracies(*answers.arrays(), levels) if levels else {}


def _calibration(answers: Answers, confidence: Confidence | None) -> dict[str, Any]:
    """How far the answers can be trusted, also with a confidence that was fitted on other images."""
    temperature = confidence.temperature if confidence else None
    trust: dict[str, Any] = {"temperature": temperature, "selective": None}
    for name, divisor in (("reliability", 1.0), ("calibrated_reliability", temperature)):
        trust[name] = None
        if divisor and answers.labelled:
            measured = asdict(calibration.reliability(*calibration.confidences(*answers.arrays(), divisor)))
            trust[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in measured.items()}
    if confidence:
        trust["selective"] = selective_metrics(confidence, *answers.arrays(), answers.presence())
    return trust
