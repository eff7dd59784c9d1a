"""What an evaluation measures, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.files import check_file
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from pipelines.shards.storage import Location
from rg.config import EvaluationConfig, RunConfig
from rg.model.build import Model
from rg.model.device import pick_device
from rg.runs.folder import CONFIDENCE, METRICS, PART_PICTURES, PREDICTIONS, Classes, load_model, of_view


@dataclass(frozen=True)
class Plan:
    """What is measured of which model.

    Attributes:
        model: Of the run.
        config: Of the run.
        classes: Of the run, and of the data.
        evaluation: What is measured, and how.
        manifest: Of the data.
        split: That is measured.
        fit: That the landmark regression, and factors, are fitted on.
        splits: All that are looked at.
        view: Of the images, where it is not that of the run: part of the names of what is written.
    """

    model: Model
    config: RunConfig
    classes: Classes
    evaluation: EvaluationConfig
    manifest: Manifest
    split: str
    fit: str
    splits: Sequence[str]
    view: str | None


def make_plan(
    run: Path, data: Location, split: str | None, batch_size: int, device: str, settings: EvaluationConfig | None
) -> Plan:
    """The plan of ``evaluate``; see there for the arguments. The model is on its device.

    Raises:
        ValueError: run, data, split or settings cannot be used, or the run folder cannot be written to.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    place = pick_device(device)
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
    splits = sorted({split, *([fit] if manifest.landmarks else []), *({"val"} & manifest.splits.keys())})
    for name in splits:
        Reader(data, name).lost()  # raises if a file is missing
    model.to(place).to(memory_format=torch.channels_last)
    return Plan(model, config, classes, evaluation, manifest, split, fit, splits, view)


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
