"""The network without region grouping: backbone -> global average pooling -> linear classifier.

What the paper compares accuracy with, and what class activation maps explain (see ``rg.attribution.maps``).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rg.config import BackboneConfig
from rg.model.backbones import build_network


class PlainOutput(NamedTuple):
    """What the model says of a batch.

    Attributes:
        logits: [N, classes].
    """

    logits: Tensor


class PlainModel(nn.Module):
    """The complete network that a backbone is taken from, with a new classifier.

    Args:
        backbone_config: Name and weights of the network; the stride is the network's own.
        num_classes: Number of classes, or of attributes.
        multi_label: Attributes (one sigmoid each) instead of classes (one softmax).
        pretrained: Load the weights of the network; False when a checkpoint follows.

    Attributes:
        backbone: All of the network but its classifier.
        classifier: Linear layer.

    Raises:
        ValueError: the network cannot be built, or ends without a feature map.
    """

    def __init__(
        self, backbone_config: BackboneConfig, num_classes: int, multi_label: bool = False, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.backbone = build_network(backbone_config, pretrained)
        self.classifier = nn.Linear(self.backbone.channels, num_classes)
        self.num_classes = num_classes
        self.multi_label = multi_label

    def features(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> last feature map [N, C, h, w]."""
        return self.backbone(images)

    def describe(self, x: Tensor) -> PlainOutput:
        """What the model says of feature maps [N, C, h, w]."""
        return PlainOutput(self.classifier(x.mean((2, 3))))

    def forward(self, images: Tensor) -> PlainOutput:
        """Images [N, 3, H, W], uint8 or float in 0..255."""
        return self.describe(self.features(images))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the backbone, and those of the classifier (the new layer)."""
        return list(self.backbone.parameters()), list(self.classifier.parameters())
