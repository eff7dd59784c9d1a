"""Samplers in front of a backbone: they look at the whole image and give the backbone more pixels of what matters."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rg.config import BackboneConfig, SamplerConfig
from rg.model import grids
from rg.model.backbones import build_backbone, named
from rg.model.noise import Stream, uniform
from rg.model.precision import without_autocast

SHARPNESS = 7  # of the softmax over positions in trilinear attention


class Sampled(NamedTuple):
    """What a sampler makes of images.

    Attributes:
        images: What the backbone sees, float32 [N, 3, S, S] in 0..255.
        nodes: Of the grid that it comes from, see ``rg.model.grids``.
        details: In training of a trilinear sampler, another image each, of one detail; else None.
        logits: Of the network that looks, [N, classes], where there are details.
    """

    images: Tensor
    nodes: Tensor
    details: Tensor | None = None
    logits: Tensor | None = None


class Streams(NamedTuple):
    """Logits [N, classes] that a trilinear sampler adds in training.

    Attributes:
        detail: Of the details.
        glimpse: Of the network that looks at the whole image.
    """

    detail: Tensor
    glimpse: Tensor


class Sampler(nn.Module):
    """What both samplers have: a network that looks at the whole image, made small.

    Args:
        config: See there.
        pretrained: Load the weights of that network; False when a checkpoint follows.

    Attributes:
        shrinking: Whether this is the phase of training in which what the backbone sees is made small and large again.

    Raises:
        ValueError: the network cannot be built.
    """

    shrinking = False

    def __init__(self, config: SamplerConfig, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        own = {"name": "model.sampler.network"} | {
            field: f"model.sampler.{field}" for field in ("weights", "stride", "dilated")
        }
        with named(**own):
            network = BackboneConfig(config.network, config.weights, config.stride, dilated=config.dilated)
            self.network = build_backbone(network, pretrained)

    def look(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> what the network makes of them, non-negative [N, C, h, w]."""
        small = F.adaptive_avg_pool2d(images.to(self.network.pixel_mean.dtype), self.config.glimpse)
        return F.relu(self.network(small))

    def sample(self, images: Tensor, nodes: Tensor, seeds: Tensor | None) -> Tensor:
        """What the backbone sees through a grid, float32 [N, 3, S, S]."""
        sampled = grids.sample(images, nodes, self.config.size, self.config.oversampling)
        return shrink(sampled, seeds) if self.shrinking and self.training and seeds is not None else sampled

    def inverse(self, nodes: Tensor, size: tuple[int, int]) -> Tensor:
        """Where a grid of this sampler has put the cells of an image, see ``grids.inverse``."""
        return grids.inverse(nodes, size)


class SaliencySampler(Sampler):
    """SSN: gathers where a learned saliency is (Recasens et al., ECCV 2018).

    The convolution that makes saliency starts at zero, so a model begins with its images as they are.
    """

    def __init__(self, config: SamplerConfig, pretrained: bool) -> None:
        super().__init__(config, pretrained)
        self.saliency = nn.Conv2d(self.network.channels, 1, 1)
        for parameter in self.saliency.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Sampled:
        """Images [N, 3, H, W], uint8 or float in 0..255, and seeds of the noise of training [N]."""
        side = self.config.nodes
        logits = F.interpolate(self.saliency(self.look(images)), (side, side), mode="bilinear", align_corners=False)
        saliency = torch.softmax(logits.flatten(1), 1).view(-1, side, side)
        nodes = grids.saliency_grid(saliency, self.config.spread * (side - 1) / 30)
        return Sampled(self.sample(images, nodes, seeds), nodes)


class TrilinearSampler(Sampler):
    """TASN: one image that keeps the structure and, in training, one of a detail at a time (Zheng et al., CVPR 2019).

    Attention has no gradient. The network that looks learns from a classifier of its own.
    """

    def __init__(self, config: SamplerConfig, pretrained: bool, num_classes: int) -> None:
        super().__init__(config, pretrained)
        channels = self.network.channels
        self.first = DilatedConvolution(channels, (1, 2))
        self.second = DilatedConvolution(channels, (1, 2, 3))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Sampled:
        """Images [N, 3, H, W], uint8 or float in 0..255, and seeds of the noise of training [N]."""
        features = self.second(self.first(self.look(images)))
        attention = trilinear_attention(features.detach())
        nodes = self._grid(attention.sum(1).square())
        sampled = self.sample(images, nodes, seeds)
        if not self.training or seeds is None:
            return Sampled(sampled, nodes)
        channel = (uniform(seeds, 1, Stream.DETAIL)[:, 0] * attention.shape[1]).long()
        detail = self._grid(attention[torch.arange(len(images), device=channel.device), channel])
        return Sampled(sampled, nodes, self.sample(images, detail, seeds), self.classifier(features.mean((2, 3))))

    def inverse(self, nodes: Tensor, size: tuple[int, int]) -> Tensor:
        """See ``Sampler``."""
        return grids.separable_inverse(nodes, size)

    def _grid(self, attention: Tensor) -> Tensor:
        return grids.marginal_grid(attention, self.config.largest_zoom, self.config.size + 1)


class DilatedConvolution(nn.Module):
    """A 3x3 convolution with the same weights at several dilations, ReLU of each, summed up."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilations = dilations
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> non-negative [N, C, h, w]."""
        weight, bias = self.convolution.weight, self.convolution.bias
        at = [F.relu(F.conv2d(x, weight, bias, padding=rate, dilation=rate)) for rate in self.dilations]
        return torch.stack(at).sum(0)


@without_autocast
def trilinear_attention(features: Tensor) -> Tensor:
    """Attention maps from how the channels of a feature map go together (Zheng et al., CVPR 2019, Eq. 3).

    A = softmax_c(softmax_hw(7 F) F^T) F with F [C, h w].

    Args:
        features: [N, C, h, w].

    Returns:
        [N, C, h, w].
    """
    x = features.flatten(2)
    relations = torch.softmax(SHARPNESS * x, 2) @ x.transpose(1, 2)
    return (torch.softmax(relations, 2) @ x).view_as(features)


@torch.compiler.disable  # every image has a side of its own
def shrink(images: Tensor, seeds: Tensor) -> Tensor:
    """Images made small and large again, each to a side of its own: of 224 pixels, 64 to 224.

    Args:
        images: [N, 3, S, S], float.
        seeds: Of the images, int64 [N].

    Returns:
        [N, 3, S, S].
    """
    side = images.shape[2]
    smallest = round(side * 64 / 224)
    sides = (smallest + uniform(seeds, 1, Stream.SHRINKING)[:, 0] * (side + 1 - smallest)).long().tolist()
    return torch.cat([_blur(image[None], own) for image, own in zip(images, sides, strict=True)])


def _blur(image: Tensor, side: int) -> Tensor:
    small = F.interpolate(image, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(small, image.shape[2:], mode="bilinear", align_corners=False)


def build_sampler(config: SamplerConfig, num_classes: int, multi_label: bool, pretrained: bool) -> Sampler | None:
    """The sampler that a configuration names, None for none.

    Raises:
        ValueError: its network cannot be built, or a trilinear one with attributes.
    """
    if config.kind == "none":
        return None
    if config.kind == "saliency":
        return SaliencySampler(config, pretrained)
    if multi_label:
        raise ValueError("model.sampler.kind: expected none or saliency for attributes, got trilinear")
    return TrilinearSampler(config, pretrained, num_classes)
