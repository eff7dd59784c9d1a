"""Evaluation of a model with parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines.batches.loader import Batch
from rg.config import RunConfig
from rg.evaluation import metrics
from rg.evaluation.field import field_metrics
from rg.evaluation.hits import noisy
from rg.evaluation.intervals import intervals
from rg.evaluation.parts import shows
from rg.evaluation.passes import Passes
from rg.evaluation.plan import Plan
from rg.evaluation.tally import Predictions, Tally, landmark_metrics, threshold
from rg.model.build import mean_with_mirror, said
from rg.model.losses import occurrence_prior_loss
from rg.model.region_grouping import RegionGroupingModel
from rg.model.scops import ScopsModel
from rg.runs.part_names import Part


@dataclass(frozen=True)
class Looked:
    """What a model with parts says of the images.

    Attributes:
        answers: All of it, of the split that is measured.
        tested: Where its parts are as landmarks see them: the same, or in another view.
        fitted: The same of the split that the landmark regression is fitted on; None without landmarks.
    """

    answers: Tally
    tested: Tally
    fitted: Tally | None


def look(plan: Plan, passes: Passes) -> Looked:
    """Look at everything that is to be measured."""
    evaluation = plan.evaluation
    same_view = evaluation.landmark_view == evaluation.view
    answers = _tally(plan, passes, "answers", plan.split, answer=True, explain=True, hits=same_view)
    if not plan.manifest.landmarks:
        return Looked(answers, answers, None)
    tested = answers if same_view else _tally(plan, passes, "landmarks", plan.split, hits=True)
    return Looked(answers, tested, _tally(plan, passes, "fit", plan.fit))


def validate(plan: Plan, passes: Passes) -> Tally:
    """What the model says of the classes of the validation split."""
    return _tally(plan, passes, "validation", "val", answer=True)


def measure(plan: Plan, looked: Looked, parts: Sequence[Part]) -> tuple[dict[str, Any], Predictions]:
    """What metrics.json holds, and what predictions.jsonl holds at a temperature."""
    evaluation, answers = plan.evaluation, looked.answers
    result = {"damaged": answers.damaged} | _figures(answers, plan.config, parts)
    if isinstance(plan.model, ScopsModel):
        result["saliency"] = plan.config.model.scops.saliency
    landmark_errors: dict[str, np.ndarray] = {}
    if looked.fitted:
        errors, landmark_errors = landmark_metrics(looked.fitted, looked.tested, evaluation, plan.manifest.classes)
        result |= errors
    background = np.array([part.background or part.merged_into is not None for part in parts])
    scale = evaluation.landmark_scale
    result["field"], of_field = field_metrics(looked.fitted, looked.tested, answers, background, scale)
    ends = intervals(answers.per_image()) | intervals(looked.tested.landmarks_per_image(landmark_errors))
    result["intervals"] = ends | {"field": of_field}
    return result, partial(answers.part_predictions, landmark_errors)


def _tally(
    plan: Plan,
    passes: Passes,
    name: str,
    split: str,
    answer: bool = False,
    explain: bool = False,
    hits: bool = False,
) -> Tally:
    """What the model says of a split: answers and part centres, or all that is measured.

    Args:
        plan: What is measured.
        passes: Of the evaluation.
        name: Of this pass.
        split: Its name.
        answer: Whether the logits count; they are then those that ``evaluation.flip`` asks for, of ``evaluation.view``.
        explain: Whether all of it is kept, with contributions.
        hits: Whether all of it is kept, with the landmarks that parts meet, if the data has any.
    """
    model, evaluation = plan.model, plan.evaluation
    assert isinstance(model, RegionGroupingModel | ScopsModel)
    device = next(model.parameters()).device

    def new() -> Tally:
        corner = evaluation.centers == "corner"
        return Tally(plan.manifest, threshold(evaluation), num_parts=model.num_parts, corner=corner)

    def take(tally: Tally, batch: Batch) -> None:
        images = batch.images.to(device)
        contributions = None
        with torch.inference_mode():
            output = said(model, images, batch.places)
            logits = output.logits
            if answer and evaluation.flip:
                output = output._replace(logits=mean_with_mirror(model, images, batch.places, logits))
            if explain and isinstance(model, RegionGroupingModel):
                explained = output.logits.topk(min(2, logits.shape[1])).indices  # the label and its rival
                parts, constants = model.contributions(output, explained)
                added = parts.sum(2) + constants
                if output.place is not None:
                    added = added + output.place.gather(1, explained)
                errors = (added - logits.gather(1, explained)).abs().amax(1)
                tally.decomposition_errors.append(errors.float().cpu())
                contributions = parts[:, 0].float().cpu()
            if hits and batch.landmarks is not None:
                noise = noisy(images, batch.numbers, model.backbone.pixel_std) if evaluation.stability else None
                tally.hit(batch, output.assign, None if noise is None else model(noise).assign)
        output = output.on_host()
        if explain or hits:
            tally.add(batch, output, contributions)
        else:
            tally.locate(batch, output)

    return passes.tally(name, split, evaluation.view if answer else evaluation.landmark_view, new, take)


def _figures(seen: Tally, config: RunConfig, parts: Sequence[Part]) -> dict[str, Any]:
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
    result |= seen.places()
    part_table = seen.part_map_table if len(seen.manifest.parts) > 1 else 0  # one is the foreground
    if np.sum(part_table) >= 2:
        result["part_map_nmi"], result["part_map_ari"] = metrics.clustering_scores(np.asarray(part_table))
    pointing = torch.cat(seen.pointing).double()
    if not pointing.isnan().all():
        result["pointing_error"] = 1 - pointing.nanmean().item()

    loss = config.loss
    names = [part.name for part in parts]
    states = metrics.part_states(torch.cat(seen.wins).numpy(), np.asarray(seen.overlap), names)
    true_parts = shows(part_table, seen.manifest.parts, len(names))
    result["occurrence"] = occurrence.mean(0).tolist()
    result["prior_loss"] = occurrence_prior_loss(
        occurrence[:, : seen.num_parts], loss.prior_alpha, loss.prior_beta
    ).item()
    result["decomposition_error"] = max((errors.max().item() for errors in seen.decomposition_errors), default=0.0)
    for part in parts:
        if part.slot:
            states[part.index] = "background slot"
        elif part.merged_into is not None:
            states[part.index] = f"merged into part {part.merged_into}"
        elif part.off:
            states[part.index] = "switched off"
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
