"""The loss of a step: which terms it has, and what each is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from rg.config import RunConfig
from rg.model import terms
from rg.model.losses import classification_loss, distillation_loss, occurrence_prior_loss, prior_quantiles
from rg.model.motion import move, random_motions
from rg.model.plain import PlainOutput
from rg.model.region_grouping import ModelOutput
from rg.model.samplers import Streams
from rg.training.mixing import neighbours

OPTIONAL = (
    "presence",
    "background",
    "border",
    "concentration",
    "total_variation",
    "equivariance",
    "orthogonality",
    "entropy",
)
OF_STREAMS = ("detail", "glimpse", "distillation")
GOLDEN_RATIO = (1 + 5**0.5) / 2


class Objective:
    """Terms of the loss by name; those of weight 0 are not computed.

    Some are means over images (``of_images``), which ranks average by their shares of the images. The others need
    ``rows`` of all images (``of_batch``), so every rank computes them from all.

    Args:
        config: Of the run.
        sizes: Images of a micro batch for every rank.
        rank: This one.

    Attributes:
        names: Of the terms.
        labelled: Whether labels are learned from, so that there is an accuracy.
        moved: Which images of this rank the equivariance term compares; spread evenly over the micro batch of all
            ranks, whatever their number.
        past: Occurrences of past steps [Q, K], the newest last; None without a queue.
        noisy: Whether anything of a step is drawn at random, so that its images need seeds.

    Raises:
        ValueError: a rank has no image for the equivariance term.
    """

    labelled = True

    def __init__(self, config: RunConfig, sizes: Sequence[int], rank: int) -> None:
        self.config, self.parts = config.loss, config.model.grouping.num_parts
        groups = config.model.kind == "region_grouping"
        active = [name for name in OPTIONAL if groups and getattr(config.loss, f"{name}_weight") > 0]
        active += [name for name in OF_STREAMS if getattr(config.loss, f"{name}_weight") > 0]
        self.names = ("classification", "prior", *active)
        self.past = self._prior_itself() if config.loss.prior_queue and groups else None
        self.moved = self._choose(sizes, rank) if "equivariance" in active else []
        self._moved = torch.tensor(self.moved, dtype=torch.int64)
        sampler = config.model.sampler
        self.noisy = sampler.kind == "trilinear" or bool(sampler.kind == "saliency" and sampler.shrink_epochs)
        self.noisy |= config.model.place.on and config.model.place.dropout > 0
        if groups:
            self.noisy |= bool(config.model.grouping.gumbel or config.model.head.part_dropout or self.moved)

    def _choose(self, sizes: Sequence[int], rank: int) -> list[int]:
        total, share = sum(sizes), Fraction(str(self.config.equivariance_share))
        chosen = [n for n in range(total) if int((n + 1) * share) > int(n * share)]
        firsts = [sum(sizes[:other]) for other in range(len(sizes))]
        of_rank = [
            [n - first for n in chosen if first <= n < first + size] for first, size in zip(firsts, sizes, strict=True)
        ]
        if not all(of_rank):
            raise ValueError(
                f"loss.equivariance_share: expected at least one image of every rank, got "
                f"{self.config.equivariance_share} of {total} images over {len(sizes)} ranks"
            )
        self._moved_weight = (len(of_rank[rank]) / len(chosen)) / (sizes[rank] / total)
        return of_rank[rank]

    def _prior_itself(self) -> Tensor:
        """The queue at first [Q, K]: the prior, in an order in which what is not yet forgotten is the prior, too.

        Were small ones forgotten first, occurrences would come last among the large ones that remain, and all would be
        asked to be 0. Multiples of the golden ratio spread evenly, wherever one stops.
        """
        config = self.config
        quantiles = prior_quantiles(config.prior_queue, config.prior_alpha, config.prior_beta)
        places = np.argsort(np.argsort(np.arange(len(quantiles)) * GOLDEN_RATIO % 1))
        return torch.as_tensor(quantiles[places], dtype=torch.float32).unsqueeze(1).repeat(1, self.parts)

    def remember(self, rows: Tensor) -> None:
        """Take the occurrences of a step into the queue, and forget as many; ``rows`` of all images [N, R]."""
        if self.past is not None:
            fresh = rows[-len(self.past) :, : self.parts].detach().to(self.past)
            self.past.copy_(torch.cat([self.past, fresh])[len(fresh) :])

    def move(self, images: Tensor, seeds: Tensor, _part_maps: None = None) -> tuple[Tensor, Tensor]:
        """Moved images for the equivariance term and what moves them back, see ``random_motions``; no part maps."""
        forward, inverse = random_motions(self._of_moved(seeds), *images.shape[2:])
        return move(self._of_moved(images), forward), inverse

    def _of_moved(self, values: Tensor) -> Tensor:
        """What the images of ``moved`` have of values of all images of this rank."""
        self._moved = self._moved.to(values.device)  # once: what a graph holds must not come from the host again
        return values[self._moved]

    def rows(self, output: ModelOutput | PlainOutput) -> Tensor:
        """What the terms of the batch need of every image: float [N, R]."""
        if not isinstance(output, ModelOutput):
            return output.logits.new_zeros(len(output.logits), 0)
        columns = [output.occurrence[:, : self.parts]]
        if "presence" in self.names:
            columns.append(terms.peaks(output.assign[:, : self.parts], self.config.presence_margin))
        return torch.cat(columns, 1)

    def of_images(
        self,
        output: ModelOutput | PlainOutput,
        labels: Tensor,
        moved: Tensor | None,
        inverse: Tensor | None,
        shares: Tensor | None = None,
        streams: Streams | None = None,
        answers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Means over the images of this rank, by name.

        Args:
            output: Of the model.
            labels: As ``classification_loss`` takes them.
            moved: Assignment of the moved images, None without the equivariance term.
            inverse: What moves them back.
            shares: What mixed images kept of themselves, see ``rg.training.mixing``; None if they are not mixed.
            streams: What a trilinear sampler adds, None without one.
            answers: As ``classification_loss`` takes them.
        """
        classification = partial(self._classification, labels=labels, shares=shares, answers=answers)
        means = {"classification": classification(output.logits)}
        if streams is not None:
            compute = {
                "detail": lambda: classification(streams.detail),
                "glimpse": lambda: classification(streams.glimpse),
                "distillation": lambda: distillation_loss(output.logits, streams.detail),
            }
            means |= {name: compute[name]() for name in OF_STREAMS if name in self.names}
        if not isinstance(output, ModelOutput):
            return means
        assign, parts = output.assign, output.assign[:, : self.parts]
        compute = {
            "background": lambda: terms.background_presence_loss(assign[:, -1]),
            "border": lambda: terms.border_loss(assign[:, -1]),
            "concentration": lambda: terms.concentration_loss(parts),
            "total_variation": lambda: terms.total_variation_loss(assign),
            "orthogonality": lambda: terms.orthogonality_loss(output.regions),
            "entropy": lambda: terms.entropy_loss(assign),
        }
        means |= {name: compute[name]() for name in self.names if name in compute}
        if moved is not None and inverse is not None:
            loss = terms.equivariance_loss(self._of_moved(parts), moved[:, : self.parts], inverse)
            means["equivariance"] = self._moved_weight * loss
        return means

    def _classification(self, logits: Tensor, labels: Tensor, shares: Tensor | None, answers: Tensor | None) -> Tensor:
        smoothing = self.config.label_smoothing
        own = classification_loss(logits, labels, smoothing, shares, answers)
        if shares is None:
            return own
        of_others = None if answers is None else neighbours(answers)
        return own + classification_loss(logits, neighbours(labels), smoothing, 1 - shares, of_others)

    def of_batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Terms of the rows of all images, by name."""
        if not rows.shape[1]:  # of a plain network
            return {"prior": rows.new_zeros(())}
        config = self.config
        occurrence = rows[:, : self.parts]
        values = {"prior": occurrence_prior_loss(occurrence, config.prior_alpha, config.prior_beta, self.past)}
        if "presence" in self.names:
            values["presence"] = terms.presence_loss(rows[:, self.parts :])
        return values

    def total(self, values: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        """Weighted sum of terms, a scalar; ``scale`` multiplies the weights."""
        weighted = [getattr(self.config, f"{name}_weight") * scale * value for name, value in values.items()]
        return reduce(torch.add, weighted)
