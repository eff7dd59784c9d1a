"""Modules that own parameters: part dictionary, region transform, attention, classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from rg.config import GroupingConfig, HeadConfig
from rg.model.noise import Stream, uniform

if not hasattr(kernels, "vlad_pooling"):
    place = getattr(kernels, "__file__", None) or "kernels"
    raise ImportError(
        f"{place}: expected the package kernels of region-grouping, got another of that name; remove it, or put "
        "region-grouping before it on the path",
        name="kernels",
    )

RUNNING_MOMENTUM = 0.02


class FeatureStandardization(nn.Module):
    """Batch-normalised features whose expected squared length is 4, whatever the number of channels.

    Maps that are fused have the same share of it each, or those with many channels would drown out the others. The
    assignment of Eq. 1 compares squared distances with a bandwidth in (0, 0.71). Features that do not come out of a
    ReLU (a linear bottleneck, a ViT) can be of any scale, and then all positions fall into one part.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(widths), affine=False)
        scale = torch.cat([torch.full((width,), 2 / math.sqrt(width * len(widths))) for width in widths])
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        normalized = self.norm(x)
        return self.scale.to(normalized.dtype) * normalized


class PartDictionary(nn.Module):
    """Centres and bandwidths of the K parts; groups a feature map into regions (Eq. 1 and Eq. 3).

    With a background slot, which is the last one, K counts it too.

    Attributes:
        centers: Part dictionary D [K, C].
        raw_sigma: [K]; ``2 sigma^2 = sigmoid(raw_sigma)``, so sigma lies in (0, 0.71).
        border: [2, K] running mean assignment at the border and in the interior of the map.
    """

    def __init__(self, config: GroupingConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        centers = torch.empty(config.slots, channels)
        nn.init.kaiming_normal_(centers)
        self.centers = nn.Parameter(centers.clamp_(min=1e-5))
        share = 2 * config.sigma**2
        self.raw_sigma = nn.Parameter(torch.full((config.slots,), math.log(share / (1 - share))))
        self.register_buffer("border", torch.full((2, config.slots), 1 / config.slots))
        self.border: Tensor

    @property
    def sigma(self) -> Tensor:
        """Bandwidth of every part [K], in (0, 0.71)."""
        return torch.sqrt(torch.sigmoid(self.raw_sigma) / 2)

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, C, H, W], noise seeds [N] -> assign [N, K, H, W], regions [N, K, C], occurrence [N, K]."""
        config = self.config
        if x.requires_grad and len(x) == 1:
            # The gradient of one image has strides that say nothing of the first dimension, and the batch norm of
            # PyTorch 2.14 misreads them on a CPU: it returns another gradient without a word.
            x = x.view_as(x)
            x.register_hook(torch.Tensor.contiguous)
        if config.gumbel and seeds is not None:
            assign = perturb(self._assign(x), seeds)
            regions = self.pool(x, assign)
        else:
            assign, regions = self.group(x)
        occurrence = self.occurrence(assign)
        if self.training:
            self._track_border(assign.detach())
        return assign, regions, occurrence

    def occurrence(self, assign: Tensor) -> Tensor:
        """How surely parts occur whose maps are [N, K, H, W]: t [N, K]."""
        config = self.config
        return kernels.part_occurrence(assign, config.smoothing_radius, config.smoothing_std, config.smoothing_padding)

    def group(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, C, H, W] -> assign [N, K, H, W], regions [N, K, C]."""
        if self.config.centered:
            assign = self._assign(x)
            return assign, self.pool(x, assign)
        return kernels.region_grouping(x, self.centers, self.sigma, check_values=False)

    def _assign(self, x: Tensor) -> Tensor:
        return kernels.part_assignment(self.told_apart(x), self.centers, self.sigma, check_values=False)

    def pool(self, x: Tensor, assign: Tensor) -> Tensor:
        """Features [N, C, H, W], non-negative weights of the positions [N, K, H, W] -> regions [N, K, C] (Eq. 3)."""
        return kernels.vlad_pooling(x, assign, self.centers, self.sigma, check_values=False)

    def told_apart(self, x: Tensor) -> Tensor:
        """What of features [N, C, H, W] the distances to the centres are measured on: of the same shape."""
        return x - x.mean((2, 3), keepdim=True) if self.config.centered else x

    def _track_border(self, assign: Tensor) -> None:
        height, width = assign.shape[2:]
        if min(height, width) < 3:
            return
        total = assign.mean(0).flatten(1).sum(1)
        inside = assign.mean(0)[:, 1:-1, 1:-1].flatten(1).sum(1)
        interior = (height - 2) * (width - 2)
        density = torch.stack([(total - inside) / (height * width - interior), inside / interior])
        self.border.lerp_(density.to(self.border.dtype), RUNNING_MOMENTUM)


def perturb(assign: Tensor, seeds: Tensor) -> Tensor:
    """Gumbel noise on the logarithm of an assignment, at temperature 1.

    The noise g of a logit turns q into q exp(g) before the sum over the parts is made 1 again, and exp(g) = -1 / log u
    for a uniform u.

    Args:
        assign: [N, K, H, W], sums to 1 over K.
        seeds: Of the images, int64 [N].

    Returns:
        [N, K, H, W], sums to 1 over K.
    """
    numbers = uniform(seeds, assign[0].numel(), Stream.GUMBEL).view(assign.shape)
    noisy = assign / -torch.log(numbers)
    return noisy / noisy.sum(1, keepdim=True)


def kept_parts(seeds: Tensor, parts: int, dropout: float) -> Tensor:
    """Which parts the classification of an image hears of: bool [N, parts], at least one of every image."""
    numbers = uniform(seeds, parts, Stream.PART_DROPOUT)
    return (numbers >= dropout) | (numbers == numbers.amax(1, keepdim=True))


class Bottleneck(nn.Module):
    """Residual block of three 1x1 convolutions with batch norm, as a map of vectors.

    A 1x1 convolution over K regions is a linear layer on each of them. The last batch norm starts at zero, so the block
    starts as its shortcut (followed by ReLU).
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Linear(inputs, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.conv3 = nn.Linear(width, outputs, bias=False)
        self.bn3 = nn.BatchNorm1d(outputs)
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[M, inputs] -> [M, outputs]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class RegionTransform(nn.Module):
    """f_z: residual bottlenecks applied to every region feature alone (Section 3.2)."""

    def __init__(self, config: HeadConfig, channels: int) -> None:
        super().__init__()
        widths = [channels] + [config.region_channels] * config.region_blocks
        self.blocks = nn.Sequential(
            *(Bottleneck(inputs, outputs, config.region_width) for inputs, outputs in pairwise(widths))
        )

    def forward(self, regions: Tensor) -> Tensor:
        """[N, K, C] -> [N, K, D]."""
        return self.blocks(regions.flatten(0, 1)).unflatten(0, regions.shape[:2])


class Attention(nn.Module):
    """f_a: one importance per region, a softmax over the parts (Section 3.2)."""

    def __init__(self, config: HeadConfig, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Bottleneck(channels, channels, config.attention_width),
            Bottleneck(channels, channels, config.attention_width),
            nn.Linear(channels, 1),
            nn.BatchNorm1d(1),
            nn.ReLU(),
        )

    def forward(self, regions: Tensor) -> Tensor:
        """[N, K, C] -> [N, K], sums to 1 over K."""
        return torch.softmax(self.layers(regions.flatten(0, 1)).view(regions.shape[:2]), dim=1)


class Classifier(nn.Module):
    """Softmax classifier on the attended mean of the regions (Eq. 4): batch norm, then linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Features f_z(Z) [N, K, D], attention [N, K] -> logits [N, classes]."""
        return self.linear(self.norm(torch.einsum("nk,nkd->nd", attention, features)))

    def contributions(self, features: Tensor, attention: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """What every part adds to the logits of some classes, exactly (in evaluation mode).

        In evaluation mode batch norm is affine, so a logit is a sum over parts plus a constant.

        Args:
            features: f_z(Z) [N, K, D].
            attention: [N, K].
            classes: Class indices [N, J].

        Returns:
            contributions: [N, J, K].
            constant: [N, J]; the sum of both over K is the logit.
        """
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        slope = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = self.linear.weight * slope
        constant = self.linear.bias + self.linear.weight @ (norm.bias - norm.running_mean * slope)
        parts = torch.einsum("nk,nkd,njd->njk", attention, features, weight[classes])
        return parts, constant[classes]


class MultiLabelAttention(nn.Module):
    """One attention per attribute, all in batched products (the CelebA model: C -> 256 -> 32 -> 1 with BN and ReLU)."""

    def __init__(self, config: HeadConfig, channels: int, num_labels: int) -> None:
        super().__init__()
        widths = (channels, config.attention_width, max(1, config.attention_width // 8), 1)
        self.num_labels = num_labels
        self.layers = nn.ModuleList(GroupedLinear(num_labels, *size) for size in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(num_labels * width) for width in widths[1:])

    def forward(self, regions: Tensor) -> Tensor:
        """[N, K, C] -> [N, L, K], sums to 1 over K."""
        N, K = regions.shape[:2]
        out = regions.flatten(0, 1).unsqueeze(1).expand(-1, self.num_labels, -1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            out = F.relu(norm(layer(out).flatten(1))).unflatten(1, (self.num_labels, -1))
        return torch.softmax(out.view(N, K, self.num_labels).transpose(1, 2), dim=2)


class GroupedLinear(nn.Module):
    """L linear layers without bias in one batched product."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, inputs, outputs))
        nn.init.uniform_(self.weight, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[M, L, inputs] -> [M, L, outputs]."""
        return torch.einsum("mli,lio->mlo", x, self.weight)


MAX_SHAPLEY_PARTS = 12


class MultiLabelClassifier(nn.Module):
    """One binary classifier per attribute: a batch norm for all, then a bottleneck and a linear layer for each."""

    def __init__(self, config: HeadConfig, channels: int, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        width = config.region_width
        self.norm = nn.BatchNorm1d(channels)
        self.layers = nn.ModuleList(
            [GroupedLinear(num_labels, *size) for size in ((channels, width), (width, width), (width, channels))]
        )
        norms = [nn.BatchNorm1d(num_labels * size) for size in (width, width, channels)]
        nn.init.zeros_(norms[-1].weight)
        self.norms = nn.ModuleList(norms)
        self.weight = nn.Parameter(torch.empty(num_labels, channels))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(channels), 1 / math.sqrt(channels))

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Features f_z(Z) [N, K, D], attention [N, L, K] -> logits [N, L]."""
        attended = torch.einsum("nlk,nkd->nld", attention, features)
        shared = self.norm(attended.flatten(0, 1)).view(attended.shape)
        out = shared
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            out = norm(layer(out).flatten(1)).unflatten(1, (self.num_labels, -1))
            out = F.relu(out + shared if index == 2 else out)
        return torch.einsum("nld,ld->nl", out, self.weight) + self.bias

    def contributions(self, features: Tensor, attention: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Shapley values of the parts for the logits of some attributes (in evaluation mode).

        The bottleneck after the attended sum is not linear, so the parts of a logit do not simply add up. Shapley
        values do, exactly: over all 2^K sets of parts, what a part adds to a set that lacks it, averaged by the size
        of the set. A part that is left out adds nothing to the attended sum; the constant is the logit of no part.

        Args:
            features: f_z(Z) [N, K, D].
            attention: [N, L, K].
            classes: Attribute indices [N, J].

        Returns:
            contributions: [N, J, K].
            constant: [N, J]; the sum of both over K is the logit.
        """
        N, K, _ = features.shape
        sets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * K).view(-1, K).to(features)
        values = torch.stack(
            [
                torch.stack(
                    [self._logit(sets * attention[n, label] @ features[n], label) for label in classes[n].tolist()]
                )
                for n in range(N)
            ]
        )  # [N, J, 2^K]
        present = sets.bool()
        size = sets.sum(1)
        weight = torch.exp(torch.lgamma(size + 1) + torch.lgamma(K - size) - math.lgamma(K + 1))
        shares = []
        for part in range(K):
            without = ~present[:, part]
            # cartesian_prod counts like a binary number whose first digit is part 0.
            with_part = torch.nonzero(without).squeeze(1) + 2 ** (K - 1 - part)
            gain = values[:, :, with_part] - values[:, :, without]
            shares.append((gain * weight[without]).sum(2))
        return torch.stack(shares, dim=2), values[:, :, 0]

    def _logit(self, attended: Tensor, label: int) -> Tensor:
        """Attended sums [M, D] -> logits of one attribute [M], in evaluation mode."""
        shared = _affine(self.norm, slice(None), attended)
        out = shared
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            assert isinstance(layer, GroupedLinear)
            assert isinstance(norm, nn.BatchNorm1d)
            width = layer.weight.shape[2]
            out = _affine(norm, slice(label * width, (label + 1) * width), out @ layer.weight[label])
            out = F.relu(out + shared if index == 2 else out)
        return out @ self.weight[label] + self.bias[label]


def _affine(norm: nn.BatchNorm1d, channels: slice, x: Tensor) -> Tensor:
    """Some channels of a batch norm in evaluation mode: [M, channels] -> [M, channels]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = norm.running_mean[channels], norm.running_var[channels]
    return F.batch_norm(x, *statistics, norm.weight[channels], norm.bias[channels], eps=norm.eps)
