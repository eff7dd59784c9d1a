"""Evaluation by the protocols of the paper; writes metrics.json and predictions.jsonl into the run folder."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipelines.loader import Loader
from pipelines.manifest import Manifest, atomic_write, sha256
from pipelines.storage import Location, resolve
from rg import checkpoint, inputs, metrics
from rg.checkpoint import Classes
from rg.config import EvaluationConfig, RunConfig, flatten
from rg.explain import pick_device
from rg.losses import occurrence_prior_loss
from rg.model import ModelOutput, RegionGroupingModel
from rg.report import MEASURED, METRICS, PREDICTIONS, not_measured
from rg.tally import Tally

logger = logging.getLogger(__name__)


def evaluate(
    run: Path,
    data: Location,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    settings: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Measure a run on one split; the landmark regression is fitted on the split ``fit``, or ``train`` without one.

    Args:
        run: Run folder.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        settings: How; as the run says if None.

    Returns:
        What metrics.json holds: errors and rates as fractions, None for what the data set cannot tell.

    Raises:
        ValueError: run, data, split or settings cannot be used.
    """
    model, config, classes = checkpoint.load_model(run)
    how = settings or config.evaluation
    manifest = Manifest.load(data)
    if (manifest.classes, manifest.multi_label) != (classes.names, classes.multi_label):
        raise ValueError(
            f"--data: {data} has {len(manifest.classes)} classes ({', '.join(manifest.classes[:2])}, ...), which are "
            f"not the {len(classes.names)} classes ({', '.join(classes.names[:2])}, ...) of {run}"
        )
    _check(how, classes, manifest)
    split = split or ("test" if "test" in manifest.splits else "val")
    manifest.split(split)
    model.to(pick_device(device))
    model.to(memory_format=torch.channels_last)

    def tally(of: str, view: str) -> tuple[Tally, int]:
        return _tally(model, config, how, data, of, view, batch_size)

    seen, damaged = tally(split, how.view)
    result = _measure(seen, config, classes, model.background.cpu().tolist())
    landmark_errors: dict[str, np.ndarray] = {}
    if manifest.landmarks:
        tested = seen if how.landmark_view == how.view else tally(split, how.landmark_view)[0]
        fit, _ = tally("fit" if "fit" in manifest.splits else "train", how.landmark_view)
        found, landmark_errors = _measure_landmarks(fit, tested, how, classes)
        result |= found
    about = {"data": resolve(data), "dataset": manifest.dataset, "split": split, "damaged": damaged}
    result = about | result | {"evaluation": flatten(asdict(how)), "weights": sha256(run / checkpoint.WEIGHTS)}
    checkpoint.write_json(run / METRICS, result)
    with atomic_write(run / PREDICTIONS) as file:
        for line in seen.predictions(landmark_errors):
            file.write((json.dumps(line) + "\n").encode())
    return result


def _check(how: EvaluationConfig, classes: Classes, manifest: Manifest) -> None:
    if how.landmark_classes and (classes.multi_label or max(how.landmark_classes) >= len(classes.names)):
        raise ValueError(
            f"evaluation.landmark_classes: expected numbers of {len(classes.names)} classes, got {how.landmark_classes}"
        )
    if how.landmark_scale == "interocular" and len(manifest.landmarks) < 2:
        raise ValueError("evaluation.landmark_scale: interocular needs two landmarks, the eyes")


def table(result: dict[str, Any]) -> str:
    """The metrics for people: percentages, and a line per part."""

    found = {key: f"{100 * result[key]:.2f} %" for _, key, _, _ in MEASURED if result[key] is not None}
    if result["chance"] is not None:
        right = round(result["accuracy"] * result["samples"])
        found["accuracy"] += f" ({right} of {result['samples']} images; chance {100 * result['chance']:.2f} %)"
    rows = [
        *((name, found[key]) for name, key, _, _ in MEASURED if key in found),
        ("Occurrence prior loss", f"{result['prior_loss']:.4f}"),
        ("Parts in use", f"{result['parts_in_use']} of {len(result['parts'])}"),
    ]
    lines = [f"{result['dataset']}, {result['split']}: {result['samples']} images"]
    if result["damaged"]:
        lines[0] += f", {result['damaged']} more are damaged and left out"
    lines += [f"  {name:<24}{value}" for name, value in rows]
    lines += [f"  {line}" for line in not_measured(result)]
    lines.append("  part  occurrence  present  prior distance  attention  area    kind        state")
    for part in result["parts"]:
        lines.append(
            f"  {part['part']:>4}  {part['occurrence']:>10.3f}  {part['on']:>7.1%}  {part['prior_distance']:>14.3f}  "
            f"{part['attention']:>9.3f}  {part['area']:>6.1%}  {'background' if part['background'] else 'object':<10}  "
            f"{part['state']}"
        )
    if any(part["background"] for part in result["parts"]):
        lines.append("  background: surroundings, or parts that hardly count")
    return "\n".join(lines)


def _tally(
    model: RegionGroupingModel,
    config: RunConfig,
    how: EvaluationConfig,
    data: Location,
    split: str,
    view: str,
    batch_size: int,
) -> tuple[Tally, int]:
    """What the model says of a split, and how many of its samples are damaged."""
    device = next(model.parameters()).device
    settings = config.input
    if settings.decoder == "mixed" and device.type == "cpu":  # trained on a GPU, evaluated without
        settings = replace(settings, decoder="auto")
    loader = Loader(
        data,
        split,
        inputs.evaluation_geometry(settings, view),
        batch_size,
        annotations=True,
        decoding=inputs.decoding(settings, device),
        max_damaged=settings.max_damaged,
    )
    seen = Tally(loader.manifest, threshold=0.5 if how.attribute_threshold == "logit" else 0.0)
    with tqdm(total=loader.samples, desc=split, unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        for batch in loader:
            images = batch.images.to(device)
            with torch.inference_mode():
                output = model(images)
                if how.flip:
                    output = output._replace(logits=(output.logits + model(images.flip(3)).logits) / 2)
            seen.add(batch, ModelOutput(*(tensor.float().cpu() for tensor in output)))
            bar.update(len(batch.keys))
    return seen, loader.damaged


def _measure(seen: Tally, config: RunConfig, classes: Classes, background: list[bool]) -> dict[str, Any]:
    """Everything but the landmark error."""
    labels, logits = torch.cat(seen.labels), torch.cat(seen.logits)
    occurrence = torch.cat(seen.occurrence)
    if classes.multi_label:
        correct = ((logits > seen.threshold) == labels.bool()).double()
        accuracy, mean_class_accuracy = correct.mean().item(), correct.mean(0).mean().item()
    else:
        correct = (logits.argmax(1) == labels).double()
        accuracy = correct.mean().item()
        mean_class_accuracy = torch.stack([correct[labels == label].mean() for label in labels.unique()]).mean().item()
    result: dict[str, Any] = {
        "samples": len(labels),
        "chance": None if classes.multi_label else 1 / len(classes.names),
        "accuracy": accuracy,
        "mean_class_accuracy": mean_class_accuracy,
        "landmark_error": None,
        "mean_shape_error": None,
        "landmark_errors": None,
        "pointing_error": None,
        "nmi": None,
        "ari": None,
        "part_map_nmi": None,
        "part_map_ari": None,
    }
    if np.sum(seen.part_map_table) >= 2:
        result["part_map_nmi"], result["part_map_ari"] = metrics.clustering_scores(np.asarray(seen.part_map_table))
    pointing = [hit for hit in seen.pointing if hit is not None]
    if pointing:
        result["pointing_error"] = 1 - sum(pointing) / len(pointing)

    loss = config.loss
    states = metrics.part_states(torch.cat(seen.wins).numpy(), np.asarray(seen.overlap))
    result["occurrence"] = occurrence.mean(0).tolist()
    result["prior_loss"] = occurrence_prior_loss(occurrence, loss.prior_alpha, loss.prior_beta).item()
    result["parts_in_use"] = sum(state == "in use" for state in states)
    result["parts"] = [
        {
            "part": k,
            "occurrence": occurrence[:, k].mean().item(),
            "on": (occurrence[:, k] > 0.5).float().mean().item(),
            "prior_distance": occurrence_prior_loss(occurrence[:, k : k + 1], loss.prior_alpha, loss.prior_beta).item(),
            "attention": torch.cat(seen.attention)[:, k].mean().item(),
            "area": torch.cat(seen.wins)[:, k].mean().item(),
            "background": background[k],
            "state": state,
        }
        for k, state in enumerate(states)
    ]
    return result


def _measure_landmarks(
    fit: Tally, seen: Tally, how: EvaluationConfig, classes: Classes
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The landmark errors, NMI and ARI; and the errors of every landmark of every image, by its key."""
    fitted, _ = _landmarks(fit, how.landmark_scale)
    tested, lengths = _landmarks(seen, how.landmark_scale)
    errors, mean_shape_errors = metrics.landmark_errors(*fitted, *tested, lengths)
    names = seen.manifest.landmarks
    result: dict[str, Any] = {
        "landmark_error": _mean(errors),
        "mean_shape_error": _mean(mean_shape_errors),
        "landmark_errors": {name: _mean(errors[:, p]) for p, name in enumerate(names)},
    }
    if np.sum(seen.landmark_table) >= 2:
        result["nmi"], result["ari"] = metrics.clustering_scores(np.asarray(seen.landmark_table))
    if how.landmark_classes:
        result["landmark_errors_alone"] = {}
    for label in how.landmark_classes:
        first, second = (torch.cat(tally.labels).numpy() == label for tally in (fit, seen))
        (a, b, c), (d, e, f) = fitted, tested
        alone, _ = metrics.landmark_errors(
            a[first], b[first], c[first], d[second], e[second], f[second], lengths[second]
        )
        result["landmark_errors_alone"][classes.names[label]] = _mean(alone)
    return result, dict(zip(seen.keys, errors, strict=True))


def _landmarks(seen: Tally, scale: str) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Part centres, landmarks and visibility of all images; and the lengths of a unit."""
    boxes, lengths = seen.frames(scale)
    centers, landmarks = (torch.cat(points).numpy() for points in (seen.centers, seen.landmarks))
    visibility = torch.cat(seen.visibility).numpy()
    return (metrics.relative_to_box(centers, boxes), metrics.relative_to_box(landmarks, boxes), visibility), lengths


def _mean(errors: np.ndarray) -> float | None:
    """Mean over what was measured, None if nothing was."""
    return None if np.isnan(errors).all() else float(np.nanmean(errors))
