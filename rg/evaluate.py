"""Evaluation by the protocols of the paper; writes metrics.json and predictions.jsonl into the run folder."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.loader import Batch, Loader
from pipelines.manifest import Manifest, atomic_write, sha256
from pipelines.storage import Location, resolve
from rg import checkpoint, inputs, metrics
from rg.checkpoint import Classes
from rg.config import RunConfig
from rg.explain import pick_device
from rg.losses import occurrence_prior_loss
from rg.model import ModelOutput, RegionGroupingModel
from rg.report import MEASURED, METRICS, PREDICTIONS, not_measured

logger = logging.getLogger(__name__)


def evaluate(
    run: Path, data: Location, split: str | None = None, batch_size: int = 64, device: str = "auto"
) -> dict[str, Any]:
    """Measure a run on one split; the landmark regression is fitted on the training split.

    Args:
        run: Run folder.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        batch_size: Images at once.
        device: cpu, cuda or auto.

    Returns:
        What metrics.json holds: errors and rates as fractions, None for what the data set cannot tell.

    Raises:
        ValueError: run, data or split cannot be used.
    """
    model, config, classes = checkpoint.load_model(run)
    manifest = Manifest.load(data)
    if (manifest.classes, manifest.multi_label) != (classes.names, classes.multi_label):
        raise ValueError(
            f"--data: {data} has {len(manifest.classes)} classes ({', '.join(manifest.classes[:2])}, ...), which are "
            f"not the {len(classes.names)} classes ({', '.join(classes.names[:2])}, ...) of {run}"
        )
    split = split or ("test" if "test" in manifest.splits else "val")
    manifest.split(split)
    model.to(pick_device(device))

    loader = _loader(config, data, split, batch_size, pick_device(device))
    seen = _seen(model, config, loader, split)
    fit = None
    if manifest.landmarks:
        fit = _seen(model, config, _loader(config, data, "train", batch_size, pick_device(device)), "train")
    result, landmark_errors = _measure(seen, fit, config, classes, model.background.cpu().tolist())
    result = {"data": resolve(data), "dataset": manifest.dataset, "split": split, "damaged": loader.damaged} | result

    result["weights"] = sha256(run / checkpoint.WEIGHTS)
    checkpoint.write_json(run / METRICS, result)
    with atomic_write(run / PREDICTIONS) as file:
        for line in seen.predictions(landmark_errors):
            file.write((json.dumps(line) + "\n").encode())
    return result


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


def _loader(config: RunConfig, data: Location, split: str, batch_size: int, device: torch.device) -> Loader:
    settings = config.input
    if settings.decoder == "mixed" and device.type == "cpu":  # trained on a GPU, evaluated without
        settings = replace(settings, decoder="auto")
    return Loader(
        data,
        split,
        inputs.test_geometry(settings),
        batch_size,
        annotations=True,
        decoding=inputs.decoding(settings, device),
        max_damaged=settings.max_damaged,
    )


def _seen(model: RegionGroupingModel, config: RunConfig, loader: Loader, split: str) -> _Seen:
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    seen = _Seen(config, loader.manifest)
    with tqdm(total=loader.samples, desc=split, unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        for batch in loader:
            with torch.inference_mode():
                output = model(batch.images.to(device))
            seen.add(batch, ModelOutput(*(tensor.float().cpu() for tensor in output)))
            bar.update(len(batch.keys))
    return seen


@dataclass
class _Seen:
    """What is kept of the images of a split: a few numbers each, whatever the size of the maps."""

    config: RunConfig
    manifest: Manifest
    keys: list[str] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    occurrence: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    centers: list[Tensor] = field(default_factory=list)
    wins: list[Tensor] = field(default_factory=list)
    overlap: Tensor | None = None
    landmarks: list[Tensor] = field(default_factory=list)
    visibility: list[Tensor] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    pointing: list[bool | None] = field(default_factory=list)
    landmark_table: np.ndarray | int = 0
    part_map_table: np.ndarray | int = 0

    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Take note of one batch."""
        size, K = self.config.input.test_size[1], output.assign.shape[1]
        attention = output.attention if output.attention.ndim == 2 else output.attention.mean(1)
        self.keys += batch.keys
        self.labels.append(batch.labels)
        self.logits.append(output.logits)
        self.occurrence.append(output.occurrence)
        self.attention.append(attention)
        self.centers.append(metrics.part_centers(output.assign) * size)
        winner = torch.nn.functional.one_hot(output.assign.argmax(1), K).float()
        self.wins.append(winner.mean((1, 2)))
        maps = output.assign.transpose(0, 1).flatten(1)
        self.overlap = maps @ maps.T + (0 if self.overlap is None else self.overlap)

        if batch.landmarks is not None and batch.visibility is not None:
            self.landmarks.append(batch.landmarks)
            self.visibility.append(batch.visibility)
            where = batch.visibility.numpy()
            predicted = metrics.parts_at(output.assign, batch.landmarks, size).numpy()
            truth = np.broadcast_to(np.arange(where.shape[1]), where.shape)
            self.landmark_table += metrics.contingency(predicted[where], truth[where], K, where.shape[1])
        whole = np.array([[0, 0, size, size]], dtype=np.float32)
        for boxes in batch.boxes or [whole[:0]] * len(batch.keys):
            self.boxes.append(boxes[0] if len(boxes) else whole[0])
        attribution = torch.einsum("nk,nkhw->nhw", attention, output.assign)
        peaks = metrics.peaks(attribution, size).numpy()
        self.pointing += [
            metrics.in_any_box(peak, boxes) if len(boxes) else None
            for peak, boxes in zip(peaks, batch.boxes or [whole[:0]] * len(batch.keys), strict=True)
        ]
        if batch.part_maps is not None:
            up = torch.nn.functional.interpolate(output.assign, (size, size), mode="bilinear", align_corners=False)
            truth_map, predicted_map = batch.part_maps.numpy(), up.argmax(1).numpy()
            on = truth_map > 0
            self.part_map_table += metrics.contingency(
                predicted_map[on], truth_map[on] - 1, K, len(self.manifest.parts)
            )

    def predictions(self, landmark_errors: np.ndarray | None) -> Iterator[dict[str, Any]]:
        """One line of predictions.jsonl per image."""
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        multi_label = labels.ndim == 2
        probabilities = torch.sigmoid(logits) if multi_label else torch.softmax(logits, 1)
        predicted = (probabilities > 0.5).int() if multi_label else logits.argmax(1)
        occurrence, attention, area = torch.cat(self.occurrence), torch.cat(self.attention), torch.cat(self.wins)
        for n, key in enumerate(self.keys):
            errors = landmark_errors[n][~np.isnan(landmark_errors[n])] if landmark_errors is not None else np.empty(0)
            yield {
                "key": key,
                "label": labels[n].tolist(),
                "predicted": predicted[n].tolist(),
                "probability": float(probabilities[n].max()),
                "occurrence": [round(value, 6) for value in occurrence[n].tolist()],
                "attention": [round(value, 6) for value in attention[n].tolist()],
                "area": [round(value, 6) for value in area[n].tolist()],
                "landmark_error": float(errors.mean()) if len(errors) else None,
                "pointing": self.pointing[n],
            }


def _measure(
    seen: _Seen, fit: _Seen | None, config: RunConfig, classes: Classes, background: list[bool]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The metrics, and the error of every landmark of every image."""
    labels, logits = torch.cat(seen.labels), torch.cat(seen.logits)
    occurrence = torch.cat(seen.occurrence)
    if classes.multi_label:
        correct = ((logits > 0) == labels.bool()).double()
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
    errors = None
    if fit is not None and seen.landmarks:
        arguments = [array for split in (fit, seen) for array in _relative(split)]
        errors, mean_shape_errors = metrics.landmark_errors(*arguments)
        result["landmark_error"], result["mean_shape_error"] = _mean(errors), _mean(mean_shape_errors)
        result["landmark_errors"] = {name: _mean(errors[:, p]) for p, name in enumerate(seen.manifest.landmarks)}
    if np.sum(seen.landmark_table) >= 2:
        result["nmi"], result["ari"] = metrics.clustering_scores(np.asarray(seen.landmark_table))
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
    return result, errors


def _mean(errors: np.ndarray) -> float | None:
    """Mean over what was measured, None if nothing was."""
    return None if np.isnan(errors).all() else float(np.nanmean(errors))


def _relative(split: _Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part centres, landmarks (both relative to the box) and visibility of all images of a split."""
    boxes = np.stack(split.boxes)
    centers, landmarks = torch.cat(split.centers).numpy(), torch.cat(split.landmarks).numpy()
    return (
        metrics.relative_to_box(centers, boxes),
        metrics.relative_to_box(landmarks, boxes),
        torch.cat(split.visibility).numpy(),
    )
