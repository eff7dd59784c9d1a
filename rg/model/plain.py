"""The network without region grouping: backbone -> global average pooling -> linear classifier.

What the paper compares accuracy with, and what class activation maps explain (see ``rg.attribution.maps``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rg.config import BackboneConfig, PlaceConfig, SamplerConfig
from rg.model.backbones import build_network
from rg.model.sampled import NO_PLACE, SampledModel
from rg.model.samplers import Streams


class PlainOutput(NamedTuple):
    """What the model says of a batch.

    Attributes:
        logits: [N, classes].
        place: What the places add to them [N, classes], 0 where none is known; None if none were told.
    """

    logits: Tensor
    place: Tensor | None = None


NO_SAMPLER = SamplerConfig()


class PlainModel(SampledModel):
    """The complete network that a backbone is taken from, with a new classifier.

    Args:
        backbone_config: Name and weights of the network; the stride is the network's own.
        num_classes: Number of classes, or of attributes.
        multi_label: Attributes (one sigmoid each) instead of classes (one softmax).
        pretrained: Load the weights of the network; False when a checkpoint follows.
        sampler_config: What chooses the pixels that the network sees.
        place_config: What places add to the logits.

    Attributes:
        sampler: That, or None.
        backbone: All of the network but its classifier.
        classifier: Linear layer.

    Raises:
        ValueError: the network cannot be built, or ends without a feature map.
    """

    def __init__(
        self,
        backbone_config: BackboneConfig,
        num_classes: int,
        multi_label: bool = False,
        pretrained: bool = True,
        sampler_config: SamplerConfig = NO_SAMPLER,
        place_config: PlaceConfig = NO_PLACE,
    ) -> None:
        backbone = build_network(backbone_config, pretrained)
        super().__init__(backbone, sampler_config, num_classes, multi_label, pretrained, place_config)
        self.classifier = nn.Linear(self.backbone.channels, num_classes)
        if sampler_config.kind == "trilinear":
            self.detail_classifier = nn.Linear(self.backbone.channels, num_classes)

    def features(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> last feature map [N, C, h, w]; nodes as of ``seen``."""
        return self.backbone(self.seen(images, nodes))

    def describe(self, x: Tensor, term: Tensor | None = None) -> PlainOutput:
        """What the model says of feature maps [N, C, h, w], and of what their places add [N, classes]."""
        logits = self.classifier(x.mean((2, 3)))
        return PlainOutput(logits) if term is None else PlainOutput(logits + term, term)

    def forward(
        self, images: Tensor, seeds: Tensor | None = None, places: Tensor | None = None
    ) -> PlainOutput | tuple[PlainOutput, Streams]:
        """What the model says of images.

        Args:
            images: [N, 3, H, W], uint8 or float in 0..255.
            seeds: Of the noise of training, int64 [N]; none without it.
            places: Where and when they were taken, float32 [N, 3] (see ``rg.model.place``); None if it is not told.

        Returns:
            The output; in training behind a trilinear sampler also what it adds.
        """
        term = self.place_logits(places, seeds)
        if self.sampler is None:
            return self.describe(self.backbone(images), term)
        sampled = self.sampler(images, seeds)
        if sampled.details is None:
            return self.describe(self.backbone(sampled.images), term)
        x, detail = self.backbone(torch.cat([sampled.images, sampled.details])).chunk(2)
        return self.describe(x, term), Streams(self.detail_classifier(detail.mean((2, 3))), sampled.logits)
