"""Forward and backward of a micro batch: from tensors on the device of a rank to gradients and the values of a loss.

Nothing here waits for the device or brings it anything from the host, so that a CUDA graph can hold it
(``rg.training.captured_step``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.batches.loader import Batch
from rg.config import RunConfig
from rg.training.engine import Engine
from rg.training.mixing import mix
from rg.training.objective import Objective
from rg.training.scops_objective import ScopsObjective
from rg.training.step_flags import StepFlags


class Inputs(NamedTuple):
    """What a micro batch is computed from, on the device of the rank.

    Attributes:
        images: [N, 3, H, W], uint8 or float in 0..255; mixed already.
        labels: As ``classification_loss`` takes them.
        flags: ``StepFlags.of_host``.
        answers: As ``classification_loss`` takes them.
        seeds: Of the images, int64 [N]; None where nothing is drawn at random.
        shares: What mixed images kept of themselves, float32 [N]; None if they are not mixed.
        places: float32 [N, 3]; None of a model without places.
        part_maps: uint8 [N, H, W]; None where no term looks at them.
    """

    images: Tensor
    labels: Tensor
    flags: Tensor
    answers: Tensor | None = None
    seeds: Tensor | None = None
    shares: Tensor | None = None
    places: Tensor | None = None
    part_maps: Tensor | None = None


class Losses(NamedTuple):
    """What forward leaves to backward.

    Attributes:
        means: Terms that are means over the images of this rank, by name.
        of_batch: Terms of the images of all ranks, by name.
        scores: Share of right answers, one scalar, or none without labels.
        rows: ``Objective.rows`` of all ranks, without gradient.
        flags: ``StepFlags`` of all ranks, packed [world, 3].
    """

    means: Mapping[str, Tensor]
    of_batch: Mapping[str, Tensor]
    scores: list[Tensor]
    rows: Tensor
    flags: Tensor


class MicroStep:
    """Forward and backward of micro batches.

    Args:
        config: Of the run.
        engine: Goes forward and backward.
        objective: What is made small.
    """

    def __init__(self, config: RunConfig, engine: Engine, objective: Objective | ScopsObjective) -> None:
        self._config, self._engine, self._objective = config, engine, objective
        self._mixes = bool(config.input.mixup or config.input.cutmix)
        self._masked = config.model.kind == "scops" and config.model.scops.saliency == "mask"

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random, so that images need seeds."""
        return self._mixes or self._objective.noisy

    def inputs(self, batch: Batch, flags: Tensor, seeds: Tensor | None) -> Inputs:
        """What is computed from a batch; flags and seeds are on the CPU. Images are mixed on the way."""
        device = self._engine.group.ranks.device

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        images, shares = batch.images.to(device, non_blocking=True), None
        if self._mixes and seeds is not None:
            images, shares = mix(images, seeds, self._config.input)
        return Inputs(
            images,
            batch.labels.to(device, non_blocking=True),
            flags.to(device, non_blocking=True),
            moved(batch.answers),
            moved(seeds) if self._objective.noisy else None,
            shares,
            moved(batch.places) if self._config.model.place.on else None,
            moved(batch.part_maps) if self._masked else None,
        )

    def forward(self, inputs: Inputs) -> Losses:
        """Terms of the loss, with gradient, and what the ranks tell each other."""
        objective = self._objective
        output, streams, moved, inverse = self._look(inputs)
        images = (inputs.labels, moved, inverse, inputs.shares, streams, inputs.answers)
        means = objective.of_images(output, *images)
        rows = objective.rows(output)
        finite = torch.isfinite(torch.stack(list(means.values()))).all() & torch.isfinite(rows).all()
        flags = StepFlags.pack(finite, inputs.flags)
        rows, all_flags = self._engine.group.gather(rows, flags, self._engine.sizes)
        scores = [right_share(output.logits.detach(), inputs.labels, inputs.answers)] if objective.labelled else []
        return Losses(means, objective.of_batch(rows), scores, rows.detach(), all_flags)

    def backward(self, losses: Losses) -> Tensor:
        """Adds the gradients; returns the loss, its terms and, with labels, accuracy of this rank: float [V]."""
        engine, objective = self._engine, self._objective
        share = engine.share * len(engine.sizes)  # the engine takes the plain mean over the ranks
        engine.backward(objective.total(losses.means, share) + objective.total(losses.of_batch))
        with torch.no_grad():
            by_name = {**losses.means, **losses.of_batch}
            terms = [by_name[name] for name in objective.names if name in by_name]
            return torch.stack([objective.total(by_name), *terms, *losses.scores])

    def _look(self, inputs: Inputs) -> tuple[Any, Any, Any, Any]:
        """What ``of_images`` of the objective takes: output, streams, what was said of moved images, how they moved."""
        images, seeds = inputs.images, inputs.seeds
        told = {} if inputs.places is None else {"places": inputs.places}
        if seeds is None:
            return self._engine(images, **told), None, None, None
        if self._config.model.sampler.kind == "trilinear":
            return *self._engine(images, seeds, **told), None, None
        if not self._objective.moved:
            return self._engine(images, seeds, **told), None, None, None
        part_maps: Any = inputs.part_maps  # which the objective of labels takes none of
        moved, inverse = self._objective.move(images, seeds, part_maps)
        output, assign = self._engine(images, seeds, moved, **told)
        return output, None, assign, inverse


def right_share(logits: Tensor, labels: Tensor, answers: Tensor | None = None) -> Tensor:
    """Share of right answers, a scalar: the class, or the mean over attributes at probability 0.5.

    Where several classes are right, ``answers`` [N, classes] says which.
    """
    if answers is not None:
        return answers.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    predicted = logits.argmax(1) if labels.ndim == 1 else (logits > 0).to(labels.dtype)
    return (predicted == labels).float().mean()
