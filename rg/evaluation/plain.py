"""Evaluation of a plain network, and of what others make of one: activation maps, and deep feature factorisation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.loader import Loader
from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.maps import cam, grad_cam, guided_grad_cam, guides
from rg.attribution.methods import factorize
from rg.attribution.pointing import pointing_game
from rg.config import EvaluationConfig, RunConfig
from rg.evaluation.field import field_metrics
from rg.evaluation.hits import noisy
from rg.evaluation.intervals import PerImage, intervals
from rg.evaluation.tally import Answers, Predictions, Tally, landmark_metrics, threshold
from rg.model.build import class_logits
from rg.model.plain import PlainModel
from rg.model.region_grouping import ModelOutput
from rg.runs import inputs

OF_OBJECT = ("landmarks_on_object", "foreground_iou")  # need to know which factors are background

logger = logging.getLogger(__name__)


def evaluate_plain(
    model: PlainModel,
    load: Callable[[str, str], Loader],
    fit: str,
    split: str,
    evaluation: EvaluationConfig,
    config: RunConfig,
) -> tuple[Answers, dict[str, Any], Predictions]:
    """Measures the network, the pointing game of its activation maps, and the landmark error of its feature factors.

    The maps explain the class that the network names. The factors, as many as the configuration has parts, are those of
    its last feature map; their centres tell landmarks as the centres of parts do.

    Args:
        model: In evaluation mode.
        load: Split and view -> loader.
        fit: The split that factors and landmark regression are fitted on.
        split: The split that is measured.
        evaluation: Settings to measure by.
        config: Of the run.

    Returns:
        The answers, what metrics.json holds, and what predictions.jsonl holds at a temperature.

    Raises:
        ValueError: the data has boxes and Captum is not installed.
    """
    loader = load(split, evaluation.view)
    answers, pointing_errors = _answers(model, loader, evaluation)
    result: dict[str, Any] = {"damaged": loader.damaged} | answers.accuracies()
    result["pointing_errors"] = pointing_errors
    result |= {"dff_landmark_error": None, "dff_field": None}
    of_answers = PerImage()
    of_answers.mean("accuracy", answers.correct().numpy())
    ends: dict[str, Any] = dict(intervals(of_answers))
    if loader.manifest.landmarks:
        fitting = load(fit, evaluation.landmark_view)
        images = (batch.images for batch in inputs.progress(fitting))
        factors = factorize(model, images, fitting.samples, config.model.grouping.num_parts, config.seed)
        fitted, tested = (
            _factor_tally(model, factors, load(name, evaluation.landmark_view), evaluation, hits=name == split)
            for name in (fit, split)
        )
        errors, landmark_errors = landmark_metrics(fitted, tested, evaluation, loader.manifest.classes)
        result |= {f"dff_{name}": value for name, value in errors.items()}

        no_background = np.zeros(config.model.grouping.num_parts, dtype=bool)
        figures, of_field = field_metrics(fitted, tested, tested, no_background, evaluation.landmark_scale)
        result["dff_field"] = {name: value for name, value in figures.items() if name not in OF_OBJECT}
        of_factors = intervals(tested.landmarks_per_image(landmark_errors))
        ends |= {f"dff_{name}": value for name, value in of_factors.items()}
        ends["dff_field"] = {name: value for name, value in of_field.items() if name not in OF_OBJECT}
    result["intervals"] = ends
    return answers, result, answers.predictions


def _answers(
    model: PlainModel, loader: Loader, evaluation: EvaluationConfig
) -> tuple[Answers, dict[str, float | None]]:
    """Logits, and how often the peak of each activation map misses the boxes; None where there are none."""
    device = next(model.parameters()).device
    methods: dict[str, Callable[[PlainModel, Tensor, Tensor], Tensor]] = {"cam": cam, "grad_cam": grad_cam}
    if guides(model):
        methods["guided_grad_cam"] = guided_grad_cam
    else:
        logger.warning("Guided Grad-CAM is not measured: it is defined for ReLU networks only")
    hits: dict[str, list[bool]] = {"cam": [], "grad_cam": [], "guided_grad_cam": []}
    answers = Answers(loader.manifest, threshold(evaluation))
    for batch in inputs.progress(loader):
        images = batch.images.to(device)
        height, width = images.shape[2:]
        with torch.no_grad():
            logits = class_logits(model, images, evaluation.flip)
        answers.answer(batch, logits.float().cpu())
        boxes = {n: boxes for n, boxes in enumerate(batch.boxes or []) if len(boxes)}
        if not boxes or loader.manifest.multi_label:
            continue
        for name, method in methods.items():
            maps = method(model, images[list(boxes)], logits[list(boxes)].argmax(1))
            hits[name] += [hit is True for hit in pointing_game(maps, list(boxes.values()), (height, width))]
    return answers, {name: 1 - sum(values) / len(values) if values else None for name, values in hits.items()}


def _factor_tally(
    model: PlainModel, factors: DeepFeatureFactorization, loader: Loader, evaluation: EvaluationConfig, hits: bool
) -> Tally:
    """A tally whose parts are the factors, all of them active; ``hits`` adds which landmarks they meet."""
    tally = Tally(loader.manifest, corner=evaluation.centers == "corner", active_above=-1)
    for batch in inputs.progress(loader):
        assign = _factor_maps(model, factors, batch.images)
        if hits:
            noise = None
            if evaluation.stability:
                pixel_std = model.backbone.pixel_std
                images = noisy(batch.images.to(pixel_std.device), len(tally.keys), pixel_std)
                noise = _factor_maps(model, factors, images)
            tally.hit(batch, assign, noise)
        occurrence = assign.amax((2, 3))
        even = torch.full_like(occurrence, 1 / occurrence.shape[1])
        no_logits = torch.empty(len(assign), 0)
        tally.add(batch, ModelOutput(no_logits, assign, even, occurrence, regions=torch.empty(0)))
    return tally


def _factor_maps(model: PlainModel, factors: DeepFeatureFactorization, images: Tensor) -> Tensor:
    """Maps of the factors on the images, float32 [N, K, h, w]."""
    images = images.to(next(model.parameters()).device)
    maps = torch.from_numpy(factors.transform(_features(model, images)))
    return model.onto_images(maps.to(images.device), images).cpu()


@torch.no_grad()
def _features(model: PlainModel, images: Tensor) -> np.ndarray:
    """The last feature map, float32 [N, C, h, w]."""
    return model.features(images.to(next(model.parameters()).device)).float().cpu().numpy()
