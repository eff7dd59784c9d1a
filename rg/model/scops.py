"""SCOPS, self-supervised co-part segmentation (Hung et al., CVPR 2019): backbone -> atrous pyramid -> parts.

It learns without labels and names no class. What it learns from is in ``rg.model.scops_terms``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rg.config import ModelConfig
from rg.model.backbones import build_backbone, feature_channels
from rg.model.region_grouping import ModelOutput
from rg.model.sampled import SampledModel

DILATIONS = (6, 12, 18, 24)  # of DeepLab (Chen et al., 2018)
INITIAL_STD = 0.01


class ScopsTraining(NamedTuple):
    """What is learned from, beside the output.

    Attributes:
        warped_logits: Of the warped images, before the softmax [N, K + 1, h, w].
        basis: Learned features of the parts [K, C].
    """

    warped_logits: Tensor
    basis: Tensor


class AtrousPyramid(nn.Module):
    """The sum of 3 x 3 convolutions of several dilations: [N, C, h, w] -> [N, maps, h, w]."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        branches = [nn.Conv2d(channels, maps, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS]
        for branch in branches:
            nn.init.normal_(branch.weight, std=INITIAL_STD)
            if branch.bias is not None:
                nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [N, C, h, w] -> [N, maps, h, w]."""
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class ScopsModel(SampledModel):
    """Parts without labels.

    The output is that of a model of region grouping with a background slot, as far as there is any: no logits, no
    regions, all parts of the same attention, and the largest value of its map as occurrence of a part. So whatever
    measures or shows parts takes it as it is.

    Args:
        config: Architecture.
        pretrained: Load the backbone's weights; False when a checkpoint follows.

    Attributes:
        basis: Learned features of the parts [K, C] in the network that does not learn; training alone needs it.

    Raises:
        ValueError: the backbone or the network of ``config.scops.features`` cannot be built.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        backbone = build_backbone(config.backbone, pretrained)
        super().__init__(backbone, config.sampler, num_classes=0, multi_label=False, pretrained=pretrained)
        self.config = config
        self.num_parts = config.grouping.num_parts
        self.pyramid = AtrousPyramid(self.backbone.channels, self.num_parts + 1)
        self.basis = nn.Parameter(torch.randn(self.num_parts, feature_channels(config.scops.features)))

    @property
    def background(self) -> Tensor:
        """bool [K + 1]: the last map is the background."""
        return torch.arange(self.num_parts + 1, device=self.basis.device) == self.num_parts

    def features(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> feature map [N, C, h, w]; nodes as of ``seen``."""
        return self.backbone(self.seen(images, nodes))

    def _logits(self, x: Tensor) -> Tensor:
        """Feature maps [N, C, h, w] -> maps [N, K + 1, h, w]; places are read off them, so they have full precision."""
        maps = self.pyramid(x)
        return maps.to(torch.promote_types(maps.dtype, torch.float32))

    def describe(self, x: Tensor) -> ModelOutput:
        """What the model says of feature maps [N, C, h, w]."""
        assign = self._logits(x).softmax(1)
        even = assign.new_full((len(x), self.num_parts), 1 / self.num_parts)
        nothing = assign.new_empty(len(x), 0)
        return ModelOutput(nothing, assign, F.pad(even, (0, 1)), assign.amax((2, 3)), regions=nothing)

    def forward(
        self,
        images: Tensor,
        _seeds: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> ModelOutput | tuple[ModelOutput, ScopsTraining]:
        """What the model says of images.

        Args:
            images: [N, 3, H, W], uint8 or float in 0..255.
            _seeds: Of the noise of training, of which there is none inside the model.
            moved: The same images warped [N, 3, H, W].

        Returns:
            The output; with warped images also what is learned from.
        """
        output = self.describe(self.features(images))
        if moved is None:
            return output
        return output, ScopsTraining(self._logits(self.features(moved)), self.basis)
