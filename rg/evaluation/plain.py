"""Evaluation of a plain network, and of what others make of one: activation maps, and deep feature factorisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.loader import Batch
from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.maps import cam, grad_cam, guided_grad_cam, guides
from rg.attribution.methods import factorize
from rg.attribution.pointing import pointing_game
from rg.evaluation.field import field_metrics
from rg.evaluation.hits import noisy
from rg.evaluation.intervals import PerImage, intervals
from rg.evaluation.passes import Passes
from rg.evaluation.plan import Plan
from rg.evaluation.tally import Answers, Predictions, Tally, landmark_metrics, threshold
from rg.model.build import mean_with_mirror, said
from rg.model.plain import PlainModel
from rg.model.region_grouping import ModelOutput

OF_OBJECT = ("landmarks_on_object", "foreground_iou")  # need to know which factors are background
MAPS: dict[str, Callable[[PlainModel, Tensor, Tensor], Tensor]] = {
    "cam": cam,
    "grad_cam": grad_cam,
    "guided_grad_cam": guided_grad_cam,
}

logger = logging.getLogger(__name__)


@dataclass
class PlainAnswers(Answers):
    """Also of activation maps.

    Attributes:
        peaks: float32 [n, maps], whether the peaks of ``MAPS`` lie in a box; nan without boxes, or if undefined.
    """

    peaks: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Looked:
    """What a plain network says of the images.

    Attributes:
        answers: Of the split that is measured.
        tested: Where factors of its last feature map are on the same images; None without landmarks.
        fitted: The same of the split that factors and landmark regression are fitted on.
    """

    answers: PlainAnswers
    tested: Tally | None
    fitted: Tally | None


def look(plan: Plan, passes: Passes) -> Looked:
    """Look at everything that is to be measured: the network, activation maps of the class that it names, and factors.

    The factors are as many as the configuration has parts; their centres tell landmarks as the centres of parts do.

    Raises:
        ValueError: the data has boxes and Captum is not installed.
    """
    model, evaluation = _plain(plan), plan.evaluation
    if not guides(model) and passes.pieces.first:
        logger.warning("Guided Grad-CAM is not measured: it is defined for ReLU networks only")
    device = next(model.parameters()).device

    def take(answers: PlainAnswers, batch: Batch) -> None:
        images = batch.images.to(device)
        with torch.no_grad():
            output = said(model, images, batch.places)
            logits = output.logits
            if evaluation.flip:
                logits = mean_with_mirror(model, images, batch.places, logits)
        answers.answer(batch, logits.float().cpu(), None if output.place is None else output.place.float().cpu())
        answers.peaks.append(_peaks(model, batch, images, logits, plan.manifest.multi_label))

    def new() -> PlainAnswers:
        return PlainAnswers(plan.manifest, threshold(evaluation))

    answers = passes.tally("answers", plan.split, evaluation.view, new, take)
    if not plan.manifest.landmarks:
        return Looked(answers, None, None)
    factors = _factorize(plan, passes)
    fitted, tested = (_factor_tally(plan, passes, factors, name) for name in (plan.fit, plan.split))
    return Looked(answers, tested, fitted)


def validate(plan: Plan, passes: Passes) -> Answers:
    """What the network says of the classes of the validation split."""
    model, evaluation = _plain(plan), plan.evaluation
    device = next(model.parameters()).device

    def take(answers: Answers, batch: Batch) -> None:
        images = batch.images.to(device)
        with torch.inference_mode():
            logits = said(model, images, batch.places).logits
            if evaluation.flip:
                logits = mean_with_mirror(model, images, batch.places, logits)
        answers.answer(batch, logits.float().cpu())

    return passes.tally(
        "validation", "val", evaluation.view, lambda: Answers(plan.manifest, threshold(evaluation)), take
    )


def measure(plan: Plan, looked: Looked) -> tuple[dict[str, Any], Predictions]:
    """What metrics.json holds, and what predictions.jsonl holds at a temperature."""
    evaluation, answers = plan.evaluation, looked.answers
    result: dict[str, Any] = {"damaged": answers.damaged} | answers.accuracies()
    hits = torch.cat(answers.peaks).double()
    result["pointing_errors"] = {
        name: None if column.isnan().all() else 1 - column.nanmean().item()
        for name, column in zip(MAPS, hits.T, strict=True)
    }
    result |= {"dff_landmark_error": None, "dff_field": None}
    of_answers = PerImage()
    of_answers.mean("accuracy", answers.correct().numpy())
    result |= answers.places()
    ends: dict[str, Any] = dict(intervals(of_answers))
    fitted, tested = looked.fitted, looked.tested
    if fitted and tested:
        errors, landmark_errors = landmark_metrics(fitted, tested, evaluation, plan.manifest.classes)
        result |= {f"dff_{name}": value for name, value in errors.items()}

        no_background = np.zeros(plan.config.model.grouping.num_parts, dtype=bool)
        figures, of_field = field_metrics(fitted, tested, tested, no_background, evaluation.landmark_scale)
        result["dff_field"] = {name: value for name, value in figures.items() if name not in OF_OBJECT}
        of_factors = intervals(tested.landmarks_per_image(landmark_errors))
        ends |= {f"dff_{name}": value for name, value in of_factors.items()}
        ends["dff_field"] = {name: value for name, value in of_field.items() if name not in OF_OBJECT}
    result["intervals"] = ends
    return result, answers.predictions


def _plain(plan: Plan) -> PlainModel:
    assert isinstance(plan.model, PlainModel)
    return plan.model


def _peaks(model: PlainModel, batch: Batch, images: Tensor, logits: Tensor, multi_label: bool) -> Tensor:
    """Whether the peaks of activation maps lie in boxes; see ``PlainAnswers``."""
    found = torch.full((len(images), len(MAPS)), torch.nan)
    boxes = {n: boxes for n, boxes in enumerate(batch.boxes or []) if len(boxes)}
    if boxes and not multi_label:
        rows, size = list(boxes), (images.shape[2], images.shape[3])
        for column, (name, method) in enumerate(MAPS.items()):
            if name != "guided_grad_cam" or guides(model):
                hits = pointing_game(method(model, images[rows], logits[rows].argmax(1)), list(boxes.values()), size)
                found[rows, column] = torch.tensor([float(hit is True) for hit in hits])
    return found


def _factorize(plan: Plan, passes: Passes) -> DeepFeatureFactorization:
    """The factors of all images to fit on, found by the first process, as a piece of their own."""
    samples = plan.manifest.split(plan.fit).samples
    parts, seed = plan.config.model.grouping.num_parts, plan.config.seed

    def work(_: Sequence[int], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
        def images() -> Iterator[Tensor]:
            for batch in passes.load(plan.fit, plan.evaluation.landmark_view, [range(samples)]):
                yield batch.images
                advance(len(batch.keys))

        yield factorize(_plain(plan), images(), samples, parts, seed).components

    files = passes.pieces.make(f"{plan.fit}-components", [samples], work, lambda found, out: np.save(out, found))
    return DeepFeatureFactorization.of(passes.pieces.peers.collect([np.load(file) for file in files])[0][0])


def _factor_tally(plan: Plan, passes: Passes, factors: DeepFeatureFactorization, split: str) -> Tally:
    """A tally whose parts are the factors, all of them active; of the split that is measured with what they meet."""
    model, evaluation = _plain(plan), plan.evaluation

    def new() -> Tally:
        return Tally(plan.manifest, corner=evaluation.centers == "corner", active_above=-1)

    def take(tally: Tally, batch: Batch) -> None:
        assign = _factor_maps(model, factors, batch.images)
        if split == plan.split:
            noise = None
            if evaluation.stability:
                pixel_std = model.backbone.pixel_std
                images = noisy(batch.images.to(pixel_std.device), batch.numbers, pixel_std)
                noise = _factor_maps(model, factors, images)
            tally.hit(batch, assign, noise)
        occurrence = assign.amax((2, 3))
        even = torch.full_like(occurrence, 1 / occurrence.shape[1])
        no_logits = torch.empty(len(assign), 0)
        tally.add(batch, ModelOutput(no_logits, assign, even, occurrence, regions=torch.empty(0)))

    name = "factors" if split == plan.split else "fit"
    return passes.tally(name, split, evaluation.landmark_view, new, take)


def _factor_maps(model: PlainModel, factors: DeepFeatureFactorization, images: Tensor) -> Tensor:
    """Maps of the factors on the images, float32 [N, K, h, w]."""
    images = images.to(next(model.parameters()).device)
    maps = torch.from_numpy(factors.transform(_features(model, images)))
    return model.onto_images(maps.to(images.device), images).cpu()


@torch.no_grad()
def _features(model: PlainModel, images: Tensor) -> np.ndarray:
    """The last feature map, float32 [N, C, h, w]."""
    return model.features(images.to(next(model.parameters()).device)).float().cpu().numpy()
