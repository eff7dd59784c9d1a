"""Evaluation by the protocols of the paper; writes metrics.json, predictions.jsonl and confidence.json."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.batches.loader import Loader
from pipelines.files import atomic_write, check_file, json_line, sha256, write_json
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from pipelines.shards.storage import Location, resolve
from rg.config import EvaluationConfig, RunConfig, flatten
from rg.evaluation import calibration, metrics, rollup
from rg.evaluation.confidence import fit_confidence, selective_metrics
from rg.evaluation.field import field_metrics
from rg.evaluation.hits import noisy
from rg.evaluation.intervals import intervals
from rg.evaluation.part_pictures import part_pictures
from rg.evaluation.parts import shows
from rg.evaluation.plain import evaluate_plain
from rg.evaluation.tally import Answers, Predictions, Tally, landmark_metrics, threshold
from rg.explain.explainer import Explainer
from rg.model.build import Model, class_logits, mean_with_mirror
from rg.model.device import pick_device
from rg.model.losses import occurrence_prior_loss
from rg.model.plain import PlainModel
from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.model.scops import ScopsModel
from rg.runs import inputs
from rg.runs.confidence import Confidence, read_confidence, write_confidence
from rg.runs.folder import CONFIDENCE, METRICS, PART_PICTURES, PREDICTIONS, WEIGHTS, Classes, load_model, of_view
from rg.runs.part_names import Part, named_by_people
from rg.runs.part_pictures import write_part_pictures

logger = logging.getLogger(__name__)

DATA_OPTIONS = ("allow_partial", "val_fraction", "short_side", "quality")  # with which data is not as published


def evaluate(
    run: Path,
    data: Location,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    settings: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Measure a run on one split; the landmark regression is fitted on the split ``fit``, or ``train`` without one.

    Another view than that of the run is written to files of its own, such as metrics.whole.json.

    Args:
        run: Run folder.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        settings: What is measured, and how; as the run says if None.

    Returns:
        What metrics.json holds: errors and rates as fractions, None for what the data set cannot tell.

    Raises:
        ValueError: run, data, split or settings cannot be used, or the run folder cannot be written to.
    """
    model, config, classes = load_model(run)
    evaluation = settings or config.evaluation
    manifest = Manifest.load(data)
    classes.check(Classes.of(manifest), "--data", run)
    _check(evaluation, classes, manifest)
    any_size = model.takes_any_size(config.input.test_size[1])
    if "whole" in (evaluation.view, evaluation.landmark_view) and not any_size:
        what = "a sampler" if model.sampler else config.model.backbone.name
        raise ValueError(
            f"evaluation.view, evaluation.landmark_view: expected input, as {what} takes images of one size only, "
            "got whole"
        )
    split = split or ("test" if "test" in manifest.splits else "val")
    manifest.split(split)
    fit = "fit" if "fit" in manifest.splits else "train"
    view = None if evaluation.view == config.evaluation.view else evaluation.view
    for name in (METRICS, PREDICTIONS, CONFIDENCE, PART_PICTURES):
        check_file(run / of_view(name, view), "run")
    needed = {split, *([fit] if manifest.landmarks else []), *({"val"} & manifest.splits.keys())}
    for name in sorted(needed):
        Reader(data, name).lost()  # raises if a file is missing
    model.to(pick_device(device)).to(memory_format=torch.channels_last)

    stride = model.backbone.stride

    def load(name: str, view: str) -> Loader:
        whole = view == "whole"
        geometry = inputs.whole_geometry(config.input, stride) if whole else inputs.evaluation_geometry(config.input)
        return inputs.evaluation_loader(config.input, data, name, geometry, batch_size, pick_device(device))

    shards = {name: manifest.split(name).sha256 for name in sorted(needed)}
    weights = sha256(run / WEIGHTS)
    answers: Answers
    if not isinstance(model, PlainModel):
        parts = named_by_people(run, model.background.tolist(), config.model.grouping.background)
        answers, measured, predictions = _measure_parts(model, load, fit, split, evaluation, config, parts)
    else:
        answers, measured, predictions = evaluate_plain(model, load, fit, split, evaluation, config)
    measured["levels"] = _levels(answers)
    confidence = None
    if "val" in manifest.splits and answers.labelled:
        validation = answers if split == "val" else _answers(model, load("val", evaluation.view), evaluation)
        targets = evaluation.target_precision, evaluation.false_alarms
        confidence = fit_confidence(
            *validation.arrays(),
            validation.presence(),
            *targets,
            dataset=manifest.dataset,
            weights=weights,
            shards=shards["val"],
        )
    measured |= _calibration(answers, None if split == "val" else confidence)
    fitted = {"images": confidence.images, "too_few": confidence.too_few} if confidence else None
    measured["confidence"] = fitted
    chosen = {name: value for name, value in manifest.options.items() if name in DATA_OPTIONS and value}
    source = {"data": resolve(data), "dataset": manifest.dataset, "split": split, "options": chosen}
    with atomic_write(run / of_view(PREDICTIONS, view)) as file:
        used = confidence or read_confidence(run, view)  # of an earlier evaluation, as explain will take it
        file.writelines(map(json_line, predictions(used.temperature if used else None)))
    if confidence:
        write_confidence(run / of_view(CONFIDENCE, view), confidence)
    if isinstance(answers, Tally) and not isinstance(model, PlainModel) and view is None:
        explainer = Explainer(model, config, classes, pick_device(device), parts)
        areas, occurrences = (torch.cat(batches).numpy() for batches in (answers.wins, answers.occurrence))
        write_part_pictures(run, list(part_pictures(explainer, data, split, answers.keys, areas, occurrences)))
    sums = {"shards": shards, "weights": weights, "predictions": sha256(run / of_view(PREDICTIONS, view))}
    result = source | measured | {"evaluation": flatten(asdict(evaluation))} | sums
    write_json(run / of_view(METRICS, view), result)  # last: it names the others
    return result


def _measure_parts(
    model: RegionGroupingModel | ScopsModel,
    load: Callable[[str, str], Loader],
    fit: str,
    split: str,
    evaluation: EvaluationConfig,
    config: RunConfig,
    parts: Sequence[Part],
) -> tuple[Tally, dict[str, Any], Predictions]:
    """The answers of a model with parts, what metrics.json holds, and what predictions.jsonl holds at a temperature."""
    loader = load(split, evaluation.view)
    same_view = evaluation.landmark_view == evaluation.view
    seen = _tally(model, loader, evaluation, answer=True, explain=True, hits=same_view)
    result = {"damaged": loader.damaged} | _measure(seen, config, parts)
    if isinstance(model, ScopsModel):
        result["saliency"] = config.model.scops.saliency
    landmark_errors: dict[str, np.ndarray] = {}
    tested, fitted = seen, None
    if loader.manifest.landmarks:
        if not same_view:
            tested = _tally(model, load(split, evaluation.landmark_view), evaluation, hits=True)
        fitted = _tally(model, load(fit, evaluation.landmark_view), evaluation)
        errors, landmark_errors = landmark_metrics(fitted, tested, evaluation, loader.manifest.classes)
        result |= errors
    background = np.array([part.background for part in parts])
    result["field"], of_field = field_metrics(fitted, tested, seen, background, evaluation.landmark_scale)
    ends = intervals(seen.per_image()) | intervals(tested.landmarks_per_image(landmark_errors))
    result["intervals"] = ends | {"field": of_field}
    return seen, result, partial(seen.part_predictions, landmark_errors)


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


def _answers(model: Model, loader: Loader, evaluation: EvaluationConfig) -> Answers:
    """What the model says of the classes of a split, and its presence if it has parts."""
    if not isinstance(model, PlainModel):
        return _tally(model, loader, evaluation, answer=True)
    device = next(model.parameters()).device
    answers = Answers(loader.manifest, threshold(evaluation))
    for batch in inputs.progress(loader):
        images = batch.images.to(device)
        with torch.inference_mode():
            logits = class_logits(model, images, evaluation.flip)
        answers.answer(batch, logits.float().cpu())
    return answers


def _check(evaluation: EvaluationConfig, classes: Classes, manifest: Manifest) -> None:
    if evaluation.landmark_classes and (classes.multi_label or max(evaluation.landmark_classes) >= len(classes.names)):
        raise ValueError(
            f"evaluation.landmark_classes: expected numbers of {len(classes.names)} classes, got "
            f"{evaluation.landmark_classes}"
        )
    if evaluation.landmark_scale != "box" and not all("eye" in name for name in (*manifest.landmarks, "", "")[:2]):
        raise ValueError(
            f"evaluation.landmark_scale: {evaluation.landmark_scale} needs two eyes as the first landmarks, got "
            f"{', '.join(manifest.landmarks[:2]) or 'none'}"
        )


def _tally(
    model: RegionGroupingModel | ScopsModel,
    loader: Loader,
    evaluation: EvaluationConfig,
    answer: bool = False,
    explain: bool = False,
    hits: bool = False,
) -> Tally:
    """What the model says of a split: answers and part centres, or all that is measured.

    Args:
        answer: Whether the logits count; they are then those that ``evaluation.flip`` asks for.
        explain: Whether all of it is kept, with contributions.
        hits: Whether all of it is kept, with the landmarks that parts meet, if the data has any.
    """
    device = next(model.parameters()).device
    tally = Tally(
        loader.manifest,
        threshold(evaluation),
        num_parts=model.num_parts,
        corner=evaluation.centers == "corner",
    )
    for batch in inputs.progress(loader):
        images = batch.images.to(device)
        contributions = None
        with torch.inference_mode():
            output = model(images)
            logits = output.logits
            if answer and evaluation.flip:
                output = output._replace(logits=mean_with_mirror(model, images, logits))
            if explain and isinstance(model, RegionGroupingModel):
                explained = output.logits.topk(min(2, logits.shape[1])).indices  # the label and its rival
                parts, constants = model.contributions(output, explained)
                error = (parts.sum(2) + constants - logits.gather(1, explained)).abs().max().item()
                tally.decomposition_error = max(tally.decomposition_error, error)
                contributions = parts[:, 0].float().cpu()
            if hits and batch.landmarks is not None:
                noise = noisy(images, len(tally.keys), model.backbone.pixel_std) if evaluation.stability else None
                tally.hit(batch, output.assign, None if noise is None else model(noise).assign)
        output = ModelOutput(*(tensor.float().cpu() for tensor in output))
        if explain or hits:
            tally.add(batch, output, contributions)
        else:
            tally.locate(batch, output)
    return tally


def _measure(seen: Tally, config: RunConfig, parts: Sequence[Part]) -> dict[str, Any]:
    """Everything but the landmark error."""
    occurrence = torch.cat(seen.occurrence)
    result: dict[str, Any] = seen.accuracies() | {
        "landmark_error": None,
        "mean_shape_error": None,
        "landmark_errors": None,
        "landmark_images": 0,
        "pointing_error": None,
        "nmi": None,
        "ari": None,
        "part_map_nmi": None,
        "part_map_ari": None,
    }
    part_table = seen.part_map_table if len(seen.manifest.parts) > 1 else 0  # one is the foreground
    if np.sum(part_table) >= 2:
        result["part_map_nmi"], result["part_map_ari"] = metrics.clustering_scores(np.asarray(part_table))
    pointing = [hit for hit in seen.pointing if hit is not None]
    if pointing:
        result["pointing_error"] = 1 - sum(pointing) / len(pointing)

    loss = config.loss
    names = [part.name for part in parts]
    states = metrics.part_states(torch.cat(seen.wins).numpy(), np.asarray(seen.overlap), names)
    true_parts = shows(part_table, seen.manifest.parts, len(names))
    result["occurrence"] = occurrence.mean(0).tolist()
    result["prior_loss"] = occurrence_prior_loss(
        occurrence[:, : seen.num_parts], loss.prior_alpha, loss.prior_beta
    ).item()
    result["decomposition_error"] = seen.decomposition_error
    if parts[-1].slot:
        states[-1] = "background slot"
    result["parts_in_use"] = sum(state == "in use" for state in states)
    result["parts"] = [
        {
            "part": k,
            "name": names[k],
            "occurrence": occurrence[:, k].mean().item(),
            "on": (occurrence[:, k] > 0.5).float().mean().item(),
            "prior_distance": occurrence_prior_loss(occurrence[:, k : k + 1], loss.prior_alpha, loss.prior_beta).item(),
            "attention": torch.cat(seen.attention)[:, k].mean().item(),
            "area": torch.cat(seen.wins)[:, k].mean().item(),
            "background": parts[k].background,
            "state": state,
            "true_parts": true_parts[k],
        }
        for k, state in enumerate(states)
    ]
    return result
