"""The loss of a step of SCOPS, which asks for no labels; for the loop the same as ``rg.training.objective``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rg.config import ScopsConfig
from rg.model import scops_terms
from rg.model.backbones import build_features
from rg.model.color_jitter import color_jitter
from rg.model.region_grouping import ModelOutput
from rg.model.saliency import spectral_residual
from rg.model.scops import ScopsTraining
from rg.model.warping import random_warps, warp

TERMS = ("concentration", "equivariance", "landmark_equivariance", "semantic_consistency", "orthonormality")


class Sight(NamedTuple):
    """What the images of a micro batch are compared with.

    Attributes:
        warps: By which they were warped [N, 28, 2].
        features: Of the network that does not learn [N, C, h, w].
        saliency: [N, I, J], from 0 to 1.
    """

    warps: Tensor
    features: Tensor
    saliency: Tensor


class ScopsObjective:
    """Terms of the loss by name, all means over images; those of weight 0 are not computed.

    The network whose features are looked at belongs here: it never learns, and no run folder holds it.

    Args:
        config: What is learned from.

    Attributes:
        names: Of the terms.
        labelled: Whether labels are learned from: no.
        noisy: Whether the images of a step need seeds: yes.
        moved: Whether there are warped images: yes.
        past: Occurrences of past steps, of which there are none.

    Raises:
        ValueError: the network cannot be built, or its weights cannot be had.
    """

    labelled, noisy, moved, past = False, True, True, None

    def __init__(self, config: ScopsConfig) -> None:
        self.config = config
        self.names = tuple(name for name in TERMS if getattr(config, f"{name}_weight") > 0)
        self._network = build_features(config.features, config.feature_weights)

    def remember(self, _rows: Tensor) -> None:
        """Nothing is kept of a step."""

    def move(self, images: Tensor, seeds: Tensor, part_maps: Tensor | None) -> tuple[Tensor, Sight]:
        """Warped images of other colours, and what the images are compared with.

        Args:
            images: [N, 3, H, W] in 0..255.
            seeds: int64 [N].
            part_maps: uint8 [N, H, W], not 0 where the object is; needed with ``saliency`` = mask.
        """
        warps = random_warps(seeds, *images.shape[2:])
        moved = warp(color_jitter(images.float(), seeds), warps, padding="reflection")
        with torch.no_grad():
            features = self._network.to(images.device)(images).relu()
        if self.config.saliency == "mask":
            assert part_maps is not None
            saliency = (part_maps > 0).to(images.device).float()
        else:
            saliency = spectral_residual(images.float())
        return moved, Sight(warps, features, saliency)

    def rows(self, output: ModelOutput) -> Tensor:
        """No term needs anything of all images at once: float [N, 0]."""
        return output.logits

    def of_images(
        self,
        output: ModelOutput,
        _labels: Tensor,
        training: ScopsTraining,
        sight: Sight,
        _shares: Tensor | None = None,
        _streams: None = None,
        _answers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Means over the images of this rank, by name.

        Args:
            output: Of the model.
            _labels: Are not looked at.
            training: Of the model, too.
            sight: See ``move``.
            _shares: None, as images are not mixed.
            _streams: None, as there is no sampler.
            _answers: Are not looked at.
        """
        assign, parts = output.assign, output.assign[:, :-1]
        logits, basis = training
        compute = {
            "concentration": lambda: scops_terms.concentration_loss(parts),
            "equivariance": lambda: scops_terms.equivariance_loss(assign, logits, sight.warps),
            "landmark_equivariance": lambda: scops_terms.landmark_equivariance_loss(
                parts, logits.softmax(1)[:, :-1], sight.warps
            ),
            "semantic_consistency": lambda: scops_terms.semantic_consistency_loss(
                parts, basis, sight.features, sight.saliency
            ),
            "orthonormality": lambda: scops_terms.orthonormality_loss(basis),
        }
        return {name: compute[name]() for name in self.names}

    def of_batch(self, _rows: Tensor) -> dict[str, Tensor]:
        """No terms."""
        return {}

    def total(self, values: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        """Weighted sum of terms, a scalar; ``scale`` multiplies the weights."""
        weighted = [getattr(self.config, f"{name}_weight") * scale * value for name, value in values.items()]
        return functools.reduce(torch.add, weighted, torch.zeros(()))
