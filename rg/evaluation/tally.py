"""What is kept of the images of a split while it is measured: a few numbers each, whatever the size of the maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.batches.loader import Batch
from pipelines.shards.manifest import Manifest
from rg.attribution.pointing import pointing_game
from rg.config import EvaluationConfig
from rg.evaluation import metrics
from rg.evaluation.hits import hit_vectors
from rg.evaluation.intervals import PerImage
from rg.evaluation.keypoints import ACTIVE_ABOVE
from rg.evaluation.rows import Rows
from rg.model.maps import part_centers, parts_at
from rg.model.region_grouping import ModelOutput
from rg.runs.confidence import probabilities

Predictions: TypeAlias = Callable[[float | None], Iterator[dict[str, Any]]]  # temperature -> lines


@dataclass
class Answers:
    """What a model says of the classes. Lists grow with every batch.

    Attributes:
        manifest: Of the data set.
        threshold: Attributes hold where their logit is above this.
        keys: Sample keys.
        numbers: int64 [n] of every batch, of its samples in their split.
        logits: float32 [N, classes] of all images; no classes for a model that names none.
        labels: int64 [n] or [n, L], like the next ones.
        best: int64 [n], the class or attribute with the largest logit.
        predicted: The same, or int32 [n, L]: which attributes hold.
        presences: float32 [n], of a model with parts.
        without_place: ``predicted``, but of the images alone; like the next one of a model that was told places.
        told: bool [n], whether anything of the place is known.
        damaged: How many samples were left out.
    """

    manifest: Manifest
    threshold: float = 0.0
    keys: list[str] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    logits: Rows = field(default_factory=Rows)
    best: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    presences: list[Tensor] = field(default_factory=list)
    without_place: list[Tensor] = field(default_factory=list)
    told: list[Tensor] = field(default_factory=list)
    damaged: int = 0

    def answer(self, batch: Batch, logits: Tensor, place: Tensor | None = None) -> None:
        """Take note of the logits of one batch, and of what their places add to them.

        Raises:
            ValueError: one is not finite, so that nothing could be measured in the end.
        """
        _check_finite(batch, logits, "logits")
        self.keys += batch.keys
        self.numbers.append(torch.tensor(batch.numbers))
        self.labels.append(batch.labels)
        self.logits.append(logits.numpy())
        if self.labelled:
            self.best.append(logits.argmax(1))
            self.predicted.append(self._answers(batch, logits))
            if place is not None and batch.places is not None:
                self.without_place.append(self._answers(batch, logits - place))
                self.told.append(~batch.places.isnan().all(1))

    def _answers(self, batch: Batch, logits: Tensor) -> Tensor:
        """The class of each image, or which attributes hold."""
        return (logits > self.threshold).int() if batch.labels.ndim == 2 else logits.argmax(1)

    @property
    def labelled(self) -> bool:
        """Whether the model names classes."""
        return self.logits.shape[1] > 0

    def arrays(self) -> tuple[Rows, np.ndarray]:
        """Logits and labels of all images."""
        return self.logits, torch.cat(self.labels).numpy()

    def presence(self) -> np.ndarray | None:
        """Presence [N] of all images (see ``ModelOutput``); None of a network without parts."""
        return torch.cat(self.presences).numpy() if self.presences else None

    def accuracies(self) -> dict[str, Any]:
        """What metrics.json holds of the classes, as fractions."""
        if not self.labelled:
            count = sum(map(len, self.labels))
            return {"samples": count, "chance": None, "accuracy": None, "mean_class_accuracy": None}
        labels, correct = torch.cat(self.labels), self.correct()
        if labels.ndim == 2:
            mean_class_accuracy = correct.mean(0).mean()
        else:
            mean_class_accuracy = torch.stack([correct[labels == label].mean() for label in labels.unique()]).mean()
        return {
            "samples": len(labels),
            "chance": None if labels.ndim == 2 else 1 / self.manifest.num_classes,
            "accuracy": correct.mean().item(),
            "mean_class_accuracy": mean_class_accuracy.item(),
        }

    def correct(self) -> Tensor:
        """Which answers are right, 0 or 1: float64 [N], or [N, L] for attributes."""
        return (torch.cat(self.predicted) == torch.cat(self.labels)).double()

    def places(self) -> dict[str, Any]:
        """What metrics.json holds of places, of a model that was told some: how right it is by the images alone."""
        if not self.without_place:
            return {}
        without = torch.cat(self.without_place)
        return {
            "places": {
                "told": int(torch.cat(self.told).sum()),
                "accuracy_without": (without == torch.cat(self.labels)).double().mean().item(),
                "changed": (without != torch.cat(self.predicted)).double().mean().item(),
            }
        }

    def predictions(self, temperature: float | None) -> Iterator[dict[str, Any]]:
        """One line of predictions.jsonl per image, with the probability at that temperature, if classes are named."""
        keys = iter(self.keys)
        if not self.labelled:
            for key, label in zip(keys, torch.cat(self.labels).tolist(), strict=True):
                yield {"key": key, "label": label}
            return
        first, without = 0, iter(torch.cat(self.without_place).tolist() if self.without_place else ())
        for labels, predicted in zip(self.labels, self.predicted, strict=True):
            logits = self.logits[first : first + len(labels)]
            first += len(labels)
            best = probabilities(logits, temperature, labels.ndim == 2).max(1)
            for label, answer, probability in zip(labels.tolist(), predicted.tolist(), best.tolist(), strict=True):
                line = {"key": next(keys), "label": label, "predicted": answer, "probability": probability}
                yield line | ({"without_place": next(without)} if self.without_place else {})


@dataclass
class Tally(Answers):
    """Also of the parts; all coordinates are pixels of the images as the model sees them.

    Attributes:
        num_parts: K without the background slot, which centres and the prior leave alone; 0 takes all.
        occurrence: float32 [n, K].
        attention: float32 [n, K], the mean over attributes.
        centers: float32 [n, K, 2], soft centres of the parts.
        cell_corners: float32 [n, K, 2], the same counted from the near corners of the cells, as later work does.
        active: bool [n, K], whether the map of a part exceeds ``active_above`` somewhere.
        wins: float32 [n, K], share of the positions at which a part is the strongest.
        contributions: float32 [n, K], to the logit of the class (or attribute) with the largest.
        decomposition_errors: float32 [n], largest difference of the sum of contributions and constant from their logit,
            over the two best classes of an image.
        landmarks: float32 [n, P, 2].
        visibility: bool [n, P].
        corner: Whether the centres are counted from the far corners of the cells of the map.
        active_above: See there.
        landmark_parts: int64 [n, P], the strongest part at each landmark.
        hits: bool [n, K, P], which landmarks the peak of each part meets (see ``hits``).
        unchanged: bool [n, K], whether it meets the same ones under noise; empty where that is not asked for.
        sizes: int64 [n, 2], height and width.
        boxes: float32 [n, 4], the first box; nan where there is none.
        pointing: float32 [n], whether the peak of the attribution lies in a box; nan without boxes.
        overlap: [K, K] inner products of the assignment maps, summed over images.
        landmark_table: How often each part was the strongest at each landmark.
        part_map_table: The same at each pixel of the true parts.
        pixel_tables: int64 [n, 1 + true parts, K], the same for every image, after the pixels of no true part.
    """

    num_parts: int = 0
    occurrence: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    centers: list[Tensor] = field(default_factory=list)
    cell_corners: list[Tensor] = field(default_factory=list)
    active: list[Tensor] = field(default_factory=list)
    active_above: float = ACTIVE_ABOVE
    landmark_parts: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    unchanged: list[Tensor] = field(default_factory=list)
    wins: list[Tensor] = field(default_factory=list)
    contributions: list[Tensor] = field(default_factory=list)
    landmarks: list[Tensor] = field(default_factory=list)
    visibility: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    boxes: list[Tensor] = field(default_factory=list)
    pointing: list[Tensor] = field(default_factory=list)
    decomposition_errors: list[Tensor] = field(default_factory=list)
    overlap: np.ndarray | int = 0
    landmark_table: np.ndarray | int = 0
    part_map_table: np.ndarray | int = 0
    pixel_tables: list[Tensor] = field(default_factory=list)
    corner: bool = False

    def locate(self, batch: Batch, output: ModelOutput) -> None:
        """Take note of the answers to one batch, and of where its parts are."""
        map_height, map_width = output.assign.shape[2:]
        height, width = batch.images.shape[2:]
        _check_finite(batch, output.assign, "maps")
        self.answer(batch, output.logits, output.place)
        self.presences.append(output.presence)
        middles = part_centers(output.assign)
        half, size = 0.5 / torch.tensor([map_width, map_height]), torch.tensor([width, height])
        self.centers.append((middles + half if self.corner else middles) * size)
        self.cell_corners.append((middles - half) * size)
        self.active.append(output.assign.amax((2, 3)) > self.active_above)
        self.sizes.append(torch.tensor([[height, width]] * len(batch.keys)))
        if batch.landmarks is not None and batch.visibility is not None:
            self.landmarks.append(batch.landmarks)
            self.visibility.append(batch.visibility)
        none = np.full(4, np.nan, dtype=np.float32)
        first = [boxes[0] if len(boxes) else none for boxes in _boxes(batch)]
        self.boxes.append(torch.from_numpy(np.stack(first)))

    def hit(self, batch: Batch, assign: Tensor, noisy: Tensor | None) -> None:
        """Take note of which landmarks of one batch the parts meet, with maps [N, K, h, w] and those under noise."""
        if batch.landmarks is None or batch.visibility is None:
            return
        size = (batch.images.shape[2], batch.images.shape[3])
        hits = hit_vectors(assign, batch.landmarks, batch.visibility, size)
        self.hits.append(hits)
        if noisy is not None:
            self.unchanged.append((hits == hit_vectors(noisy, batch.landmarks, batch.visibility, size)).all(2))

    def add(self, batch: Batch, output: ModelOutput, contributions: Tensor | None = None) -> None:
        """Take note of one batch; contributions [n, K] only where they are to be written."""
        self.locate(batch, output)
        N, K = output.assign.shape[:2]
        height, width = batch.images.shape[2:]
        attention = output.attention if output.attention.ndim == 2 else output.attention.mean(1)
        self.occurrence.append(output.occurrence)
        self.attention.append(attention)
        if contributions is not None:
            self.contributions.append(contributions)
        winner = F.one_hot(output.assign.argmax(1), K).float()
        self.wins.append(winner.mean((1, 2)))
        maps = output.assign.transpose(0, 1).flatten(1)
        self.overlap = self.overlap + (maps @ maps.T).numpy()
        if batch.landmarks is not None and batch.visibility is not None:
            visible = batch.visibility.numpy()
            strongest = parts_at(output.assign, batch.landmarks, (height, width))
            self.landmark_parts.append(strongest)
            truth = np.broadcast_to(np.arange(visible.shape[1]), visible.shape)
            self.landmark_table += metrics.contingency(strongest.numpy()[visible], truth[visible], K, visible.shape[1])
        attribution = torch.einsum("nk,nkhw->nhw", attention, output.assign)
        found = pointing_game(attribution, _boxes(batch), (height, width))
        self.pointing.append(torch.tensor([torch.nan if hit is None else float(hit) for hit in found]))
        if batch.part_maps is not None:
            up = F.interpolate(output.assign, (height, width), mode="bilinear", align_corners=False)
            rows = 1 + len(self.manifest.parts)
            truth = batch.part_maps.numpy() + rows * np.arange(N)[:, None, None]
            tables = metrics.contingency(up.argmax(1).numpy(), truth, K, rows * N).reshape(N, rows, K)
            self.pixel_tables.append(torch.from_numpy(tables))
            self.part_map_table += tables[:, 1:].sum(0)

    def part_predictions(
        self, landmark_errors: dict[str, np.ndarray], temperature: float | None
    ) -> Iterator[dict[str, Any]]:
        """``predictions`` with the parts; landmark errors are those of a sample, nan where not measured."""
        part_values = {
            "occurrence": torch.cat(self.occurrence),
            "attention": torch.cat(self.attention),
            "area": torch.cat(self.wins),
        }
        if self.labelled:
            part_values["contributions"] = torch.cat(self.contributions)
            explained = torch.cat(self.best).tolist()
        pointing = torch.cat(self.pointing).tolist()
        for n, line in enumerate(self.predictions(temperature)):
            errors = landmark_errors.get(line["key"], np.empty(0))
            errors = errors[~np.isnan(errors)]
            line |= {name: [round(value, 6) for value in values[n].tolist()] for name, values in part_values.items()}
            if self.labelled:
                line["explained"] = explained[n]
            yield line | {
                "landmark_error": float(errors.mean()) if len(errors) else None,
                "pointing": None if np.isnan(pointing[n]) else bool(pointing[n]),
            }

    def per_image(self) -> PerImage:
        """Accuracy, pointing error and scores on part maps."""
        samples = PerImage()
        if self.labelled:
            samples.mean("accuracy", self.correct().numpy())
        samples.mean("pointing_error", 1 - torch.cat(self.pointing).double().numpy())
        if self.pixel_tables and len(self.manifest.parts) > 1:
            samples.tables["part_map_nmi", "part_map_ari"] = torch.cat(self.pixel_tables).numpy()[:, 1:]
        return samples

    def landmarks_per_image(self, landmark_errors: dict[str, np.ndarray]) -> PerImage:
        """Landmark error, of errors [P] by key, and scores at landmarks; nothing without landmarks."""
        samples = PerImage()
        if landmark_errors:
            samples.mean("landmark_error", np.stack([landmark_errors[key] for key in self.keys]))
            samples.tables["nmi", "ari"] = self.landmark_tables()
        return samples

    def landmark_tables(self) -> np.ndarray:
        """Which part is the strongest at each visible landmark of each image: bool [N, P, K]."""
        visible, strongest = torch.cat(self.visibility).numpy(), torch.cat(self.landmark_parts).numpy()
        K = self.wins[0].shape[1]
        return (strongest[:, :, None] == np.arange(K)) & visible[:, :, None]

    def frames(self, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """What landmark coordinates and errors of an image are fractions of.

        Args:
            scale: box; interocular: coordinates are fractions of the image, errors of the distance between the first
                two landmarks; or interocular_units: both of that distance.

        Returns:
            boxes: [N, 4]; coordinates are relative to them. nan where an image has none, and scale is box.
            lengths: [N, 2], what a difference of 1 in x and in y is as an error; nan where that is not known.
        """
        if scale == "box":
            boxes = torch.cat(self.boxes).numpy()
            return boxes, np.where(np.isnan(boxes[:, :2]), np.nan, 1.0)
        sides = torch.cat(self.sizes).double().numpy()[:, ::-1]  # along x, along y
        landmarks, visible = torch.cat(self.landmarks).numpy(), torch.cat(self.visibility).numpy()
        distance = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
        known = visible[:, :2].all(1) & (distance > 0)
        distance = np.where(known, distance, np.nan)
        if scale == "interocular_units":
            boxes = np.zeros((len(distance), 4))
            boxes[:, 2:] = np.where(known, distance, 1)[:, None]
            return boxes, np.where(known, 1, np.nan)[:, None].repeat(2, axis=1)
        lengths = sides / distance[:, None]
        return np.concatenate([np.zeros_like(sides), sides], axis=1), lengths


def _check_finite(batch: Batch, values: Tensor, what: str) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        key = batch.keys[int(finite.int().argmin())]
        raise ValueError(
            f"{key}: the model gives {what} that are not finite; training diverged, or its weights are damaged"
        )


def _boxes(batch: Batch) -> list[np.ndarray]:
    return batch.boxes or [np.empty((0, 4), dtype=np.float32)] * len(batch.keys)


def landmark_metrics(
    fit: Tally, seen: Tally, evaluation: EvaluationConfig, classes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The landmark error and what belongs to it (Section 4 of the paper).

    Args:
        fit: Of the images that the regression is fitted on.
        seen: Of those that it is tested on.
        evaluation: Scale, and classes to measure alone.
        classes: Names of all classes.

    Returns:
        What metrics.json holds of it, None where no image has what errors are fractions of; and the errors [P] of
        every image by its key, nan where not measured.
    """
    fitted, _ = in_frames(fit, fit.centers, evaluation.landmark_scale)
    tested, lengths = in_frames(seen, seen.centers, evaluation.landmark_scale)
    errors, mean_shape_errors = metrics.landmark_errors(*fitted, *tested, lengths)
    names = seen.manifest.landmarks
    result: dict[str, Any] = {
        "landmark_error": _mean(errors),
        "mean_shape_error": _mean(mean_shape_errors),
        "landmark_errors": {name: _mean(errors[:, p]) for p, name in enumerate(names)},
        "landmark_images": int((~np.isnan(errors)).any(1).sum()),
    }
    if np.sum(seen.landmark_table) >= 2:
        result["nmi"], result["ari"] = metrics.clustering_scores(np.asarray(seen.landmark_table))
    if evaluation.landmark_classes:
        result["landmark_errors_alone"] = {}
    for label in evaluation.landmark_classes:
        first, second = (torch.cat(tally.labels).numpy() == label for tally in (fit, seen))
        (a, b, c), (d, e, f) = fitted, tested
        alone, _ = metrics.landmark_errors(
            a[first], b[first], c[first], d[second], e[second], f[second], lengths[second]
        )
        result["landmark_errors_alone"][classes[label]] = _mean(alone)
    return result, dict(zip(seen.keys, errors, strict=True))


def in_frames(
    seen: Tally, points: Sequence[Tensor], scale: str
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Points of all parts but the background slot, landmarks, visibility, in their frames; and lengths of a unit."""
    boxes, lengths = seen.frames(scale)
    centers, marks = torch.cat(list(points)).numpy(), torch.cat(seen.landmarks).numpy()
    centers = centers[:, : seen.num_parts or None]
    visibility = torch.cat(seen.visibility).numpy()
    if scale in ("box", "interocular_units"):  # the coordinates are fractions of it, too
        visibility = visibility & ~np.isnan(lengths[:, :1])
    return (metrics.relative_to_box(centers, boxes), metrics.relative_to_box(marks, boxes), visibility), lengths


def _mean(errors: np.ndarray) -> float | None:
    """Mean over what was measured, None if nothing was."""
    return None if np.isnan(errors).all() else float(np.nanmean(errors))


def threshold(evaluation: EvaluationConfig) -> float:
    """The logit above which an attribute holds."""
    return 0.5 if evaluation.attribute_threshold == "logit" else 0.0
