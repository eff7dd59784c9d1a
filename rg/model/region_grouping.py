"""Region grouping, end to end: backbone -> part dictionary -> attention -> classifier (Figure 2 of the paper)."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rg.config import ModelConfig
from rg.model.backbones import batch_statistics, build_backbone
from rg.model.edits import Edits
from rg.model.layers import (
    MAX_SHAPLEY_PARTS,
    RUNNING_MOMENTUM,
    Attention,
    Classifier,
    FeatureStandardization,
    MultiLabelAttention,
    MultiLabelClassifier,
    PartDictionary,
    RegionTransform,
    kept_parts,
)
from rg.model.sampled import SampledModel
from rg.model.samplers import Streams
from rg.model.second_stage import SecondStage


class ModelOutput(NamedTuple):
    """What the model says of a batch.

    With a background slot, the last of the K parts is the background: its attention is 0. So is that of a part that is
    switched off; the attention of the others then sums to less than 1. A part that is merged into another has zeros.

    Attributes:
        logits: [N, classes].
        assign: Part assignment Q [N, K, H, W], sums to 1 over K.
        attention: a [N, K], sums to 1 over K; [N, L, K] for L attributes.
        occurrence: t [N, K] in (0, 1).
        regions: Z [N, K, C], unit length; of the parts as they were before any were merged.
        place: What the places add to the logits [N, classes], 0 where none is known; None if none were told.
    """

    logits: Tensor
    assign: Tensor
    attention: Tensor
    occurrence: Tensor
    regions: Tensor
    place: Tensor | None = None

    def on_host(self) -> ModelOutput:
        """The same as float32 on the CPU."""
        return ModelOutput(*(None if value is None else value.float().cpu() for value in self))  # type: ignore[arg-type]

    @property
    def presence(self) -> Tensor:
        """Attention-weighted occurrence sum_k a_k t_k [N] in (0, 1): how surely there is what the answer rests on.

        Images without any known object have a low one: their parts get attention, as always, but do not occur.
        """
        attention = self.attention if self.attention.ndim == 2 else self.attention.mean(1)
        return (attention * self.occurrence).sum(1)


class RegionGroupingModel(SampledModel):
    """The model of the paper.

    Args:
        config: Architecture.
        num_classes: Number of classes, or of attributes.
        multi_label: Attributes (one sigmoid each) instead of classes (one softmax).
        pretrained: Load the backbone's weights; False when a checkpoint follows.

    Attributes:
        sampler: What chooses the pixels that the backbone sees, or None.
        second_stage: What looks again, at the parts alone, or None.
        attention_share: [K] running mean attention of every part over the training images; exactly 0 of a background
            slot, and of nothing else.

    Raises:
        ValueError: the backbone cannot be built, or more than 12 parts with attributes.
    """

    def __init__(
        self, config: ModelConfig, num_classes: int, multi_label: bool = False, pretrained: bool = True
    ) -> None:
        if multi_label and config.grouping.num_parts > MAX_SHAPLEY_PARTS:
            raise ValueError(
                f"model.grouping.num_parts: expected at most {MAX_SHAPLEY_PARTS} parts for attributes, whose "
                f"contributions are computed over all sets of parts, got {config.grouping.num_parts}"
            )
        backbone = build_backbone(config.backbone, pretrained)
        super().__init__(backbone, config.sampler, num_classes, multi_label, pretrained, config.place)
        self.config = config
        channels = self.backbone.channels
        standardize = config.grouping.standardize
        self.standardization = FeatureStandardization(self.backbone.widths) if standardize else nn.Identity()
        second = config.second_stage
        self.second_stage = SecondStage(second, self.backbone, self.standardization) if second.masks != "none" else None
        self.dictionary = PartDictionary(config.grouping, channels)
        self.region_transform = RegionTransform(config.head, channels)
        self.attention: nn.Module | None = None
        self.classifier: Classifier | MultiLabelClassifier
        if multi_label:
            if config.head.attention:
                self.attention = MultiLabelAttention(config.head, channels, num_classes)
            self.classifier = MultiLabelClassifier(config.head, config.head.region_channels, num_classes)
        else:
            if config.head.attention:
                self.attention = Attention(config.head, channels)
            self.classifier = Classifier(config.head.region_channels, num_classes)
            if config.sampler.kind == "trilinear":
                self.detail_classifier = Classifier(config.head.region_channels, num_classes)
        self.num_parts = config.grouping.num_parts
        even = torch.full((self.num_parts,), 1 / self.num_parts)
        self.register_buffer("attention_share", self._with_background(even))
        self.attention_share: Tensor

    @property
    def background(self) -> Tensor:
        """bool [K]: parts that are surroundings rather than object: the background slot, if the model has one.

        Without it, as seen over the training images.
        Photographers put the object in the middle, so what gathers at the border of the images surrounds it; and what
        gets less than half of an even share of the attention is nothing that the classifier looks at. Occurrence does
        not tell them apart, since the prior asks the same of every part (in the demo 0.88 to 0.92 of the background,
        0.87 to 0.91 of the bird).
        """
        if self.config.grouping.background:
            return torch.arange(len(self.attention_share), device=self.attention_share.device) == self.num_parts
        border, interior = self.dictionary.border
        return (border > interior) | (self.attention_share < 0.5 / len(self.attention_share))

    def seen(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """See ``SampledModel.seen``; of a model with a second stage what the first one sees."""
        seen = super().seen(images, nodes)
        return self.second_stage.glimpse(seen) if self.second_stage else seen

    def features(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> the feature map X [N, C, h, w]; nodes as of ``seen``."""
        return self.encode(self.seen(images, nodes))

    def encode(self, images: Tensor) -> Tensor:
        """What the backbone sees [N, 3, S, S] -> the feature map X [N, C, h, w]."""
        return self.standardization(self.backbone(images))

    def forward(
        self,
        images: Tensor,
        seeds: Tensor | None = None,
        moved: Tensor | None = None,
        places: Tensor | None = None,
    ) -> ModelOutput | tuple[ModelOutput, Tensor | Streams]:
        """What the model says of images.

        In evaluation, the assignment is that of the images, whatever a sampler has made of them; in training it is that
        of what the backbone saw.

        Args:
            images: [N, 3, H, W], uint8 or float in 0..255.
            seeds: Of the noise of training, int64 [N]; none without it.
            moved: Images for the equivariance term [M, 3, H, W].
            places: Where and when they were taken, float32 [N, 3] (see ``rg.model.place``); None if it is not told.

        Returns:
            The output; with moved images also their part assignment [M, K, h, w]; in training behind a trilinear
            sampler what that adds.
        """
        term = self.place_logits(places, seeds)
        if self.sampler is None:
            looked = self._look_twice(images, seeds) if self.second_stage else self.describe(self.encode(images), seeds)
            output = with_place(looked, term)
            return output if moved is None else (output, self.dictionary.group(self.features(moved))[0])
        sampled = self.sampler(images, seeds)
        if sampled.details is not None:
            x, detail = self.encode(torch.cat([sampled.images, sampled.details])).chunk(2)
            output = with_place(self.describe(x, seeds), term)
            return output, Streams(self._classify_details(detail), sampled.logits)
        output = with_place(self.describe(self.encode(sampled.images), seeds), term)
        if self.training:
            return output
        return output._replace(assign=self.carry_back(output.assign, sampled, images))

    def _classify_details(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of the feature maps of details [N, C, h, w]: all is shared but the classifier."""
        regions = self.dictionary.group(x)[1]
        features = self.region_transform(self._heard(regions))
        return self.detail_classifier(features, self.attend(regions)[..., : self.num_parts])

    def describe(self, x: Tensor, seeds: Tensor | None = None) -> ModelOutput:
        """What the model says of feature maps X [N, C, h, w]; seeds as in ``forward``."""
        assign, regions, occurrence = self.dictionary(x, seeds)
        return self._conclude(assign, regions, occurrence, seeds)

    def _look_twice(self, images: Tensor, seeds: Tensor | None) -> ModelOutput:
        assign, _, occurrence = self.dictionary(self.features(images), seeds)
        return self._conclude(assign, self.look_again(images, assign), occurrence, seeds)

    def look_again(self, images: Tensor, assign: Tensor) -> Tensor:
        """Regions [N, K, C] of the second look at images [N, 3, H, W] whose first gave an assignment [N, K, h, w].

        It sees the pixels that ``rg.model.maps.part_map`` gives to other parts than the background.
        """
        assert self.second_stage is not None
        masks = self.second_stage.masks(assign, (images.shape[2], images.shape[3]))
        return self.second_stage(self.backbone, self.dictionary, images, masks)

    def _conclude(self, assign: Tensor, regions: Tensor, occurrence: Tensor, seeds: Tensor | None) -> ModelOutput:
        """What the model says of the regions of images."""
        attention = self.attend(regions)
        dropout = self.config.head.part_dropout
        if dropout and seeds is not None:
            kept = kept_parts(seeds, self.num_parts, dropout).to(attention.dtype)
            kept = self._with_background(kept if attention.ndim == 2 else kept.unsqueeze(1))
            attention = attention * kept / (attention * kept).sum(-1, keepdim=True)
        if self.training:
            share = attention.detach().flatten(0, -2).mean(0)
            self.attention_share.lerp_(share.to(self.attention_share.dtype), RUNNING_MOMENTUM)
        logits = self.classify(regions, attention)
        if self.edits.merged:
            assign, attention = self.edits.together(assign, 1), self.edits.together(attention, -1)
            occurrence = self.dictionary.occurrence(assign)
        return ModelOutput(logits, assign, attention, occurrence, regions)

    def attend(self, regions: Tensor) -> Tensor:
        """Importance of the regions [N, K] ([N, L, K] for attributes), 1/K each without attention.

        It is 0 of background and of parts that are off, and that of parts before any are merged.
        """
        regions = self._heard(regions)
        if self.attention is not None:
            return self.edits.switched(self._with_background(self.attention(regions)))
        N, K, _ = regions.shape
        shape = (N, self.num_classes, K) if self.multi_label else (N, K)
        return self.edits.switched(self._with_background(regions.new_full(shape, 1 / K)))

    def classify(self, regions: Tensor, attention: Tensor) -> Tensor:
        """Logits of regions [N, K, C] and their importance, as ``attend`` gives it."""
        return self.classifier(self.region_transform(self._heard(regions)), attention[..., : self.num_parts])

    def _heard(self, regions: Tensor) -> Tensor:
        """Regions of the parts alone, which the classifier hears of."""
        return regions[:, : self.num_parts]

    def _with_background(self, weights: Tensor) -> Tensor:
        """Weights of the parts [..., K], and 0 for the background slot if there is one."""
        return F.pad(weights, (0, 1)) if self.config.grouping.background else weights

    def contributions(self, output: ModelOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        """What every part adds to the logits of some classes; the model must be in evaluation mode.

        Args:
            output: Of this model.
            classes: Class indices [N, J].

        Returns:
            contributions: [N, J, K].
            constant: [N, J]; the sum of both over K is the logit, less what the place adds (``ModelOutput.place``).
        """
        contributions, constant = self.classifier.contributions(*self._weighed(output), classes)
        return self.edits.together(self._with_background(contributions), -1), constant

    def logits_without_each(self, output: ModelOutput) -> Tensor:
        """The logits if one part after the other is switched off [N, K, classes]; in evaluation mode.

        Row k is what the model says with part k off, and with it all that is merged into it, as ``Edits`` has it. The
        backbone is not asked again.

        Args:
            output: Of this model.
        """
        features, attention = self._weighed(output)
        rows = []
        for k in range(output.assign.shape[1]):
            off = [part for part in range(self.num_parts) if self.edits.merged.get(part, part) == k]
            rows.append(self.classifier(features, Edits(tuple(off)).switched(attention)))
        logits = torch.stack(rows, dim=1)
        return logits if output.place is None else logits + output.place.unsqueeze(1)

    def _weighed(self, output: ModelOutput) -> tuple[Tensor, Tensor]:
        """What the classifier hears: f_z(Z) [N, K, D] and the attention, of the parts before any are merged."""
        features = self.region_transform(self._heard(output.regions))
        attention = self.attend(output.regions) if self.edits.merged else output.attention
        return features, attention[..., : self.num_parts]

    @torch.no_grad()
    def initialize_dictionary(self, images: Tensor, seed: int, of_batches: bool = False) -> None:
        """Place the centres at the k-means clusters of the features of some images.

        The background slot gets the cluster of which the largest share lies at the border of the map. With salient as
        ``init``, the parts get clusters of the positions of all others, where those that stand out count more.
        Sets the statistics of the feature standardisation on the way. Kaiming-normal centres suit features that come
        out of a ReLU; elsewhere k-means is what makes every part start in use.

        Args:
            images: [N, 3, H, W], uint8 or float in 0..255.
            seed: Seed of k-means++.
            of_batches: Batch norms of the backbone normalise by the statistics of batches, as they will in training.

        Raises:
            ValueError: fewer positions than parts.
        """
        was_training = self.training
        self.eval()
        with batch_statistics(self.backbone) if of_batches else contextlib.nullcontext():
            x = torch.cat([self.backbone(self.seen(chunk)) for chunk in images.split(32)])
        if isinstance(self.standardization, FeatureStandardization):
            norm = self.standardization.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(x.mean((0, 2, 3)))
            norm.running_var.copy_(x.var((0, 2, 3)))
        if self.second_stage:
            self.second_stage.standardization.load_state_dict(self.standardization.state_dict())
        features = self.dictionary.told_apart(self.standardization(x))
        positions = features.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy()
        centers, clusters = _k_means(positions, len(self.dictionary.centers), seed)
        if self.config.grouping.background:
            of_border = _border_shares(clusters.reshape(len(x), *x.shape[2:]), len(centers))
            last = int(of_border.argmax())
            centers[[last, -1]] = centers[[-1, last]]
            positions = positions[clusters != last]
        if self.config.grouping.init == "salient":
            centers[: self.num_parts], _ = _k_means(_salient(positions, seed), self.num_parts, seed)
        self.dictionary.centers.copy_(torch.as_tensor(centers))
        self.train(was_training)


def with_place(output: ModelOutput, term: Tensor | None) -> ModelOutput:
    """The output of an image, and what its place adds [N, classes]."""
    return output if term is None else output._replace(logits=output.logits + term, place=term)


def _k_means(positions: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres [count, C] of clusters of positions [M, C], and the cluster of every position [M]."""
    if len(positions) < count:
        raise ValueError(
            f"model.grouping.num_parts: {count} parts but only {len(positions)} positions to cluster; use more or "
            "larger images, or fewer parts"
        )
    from scipy.cluster.vq import kmeans2  # slow to import, and needed here alone

    centers, clusters = kmeans2(positions, count, iter=30, minit="++", rng=seed)
    return centers, clusters


def _salient(positions: np.ndarray, seed: int) -> np.ndarray:
    """As many positions [M, C], drawn with replacement in proportion to the fourth power of their distance from 0.

    Centred features are differences from the mean of the image. Most positions are near it; parts that stand out, such
    as a head, are small, and k-means gives a large plain body more clusters than them.
    """
    weights = np.einsum("mc,mc->m", positions, positions) ** 2 + np.finfo(np.float64).tiny  # all 0 without any contrast
    return positions[np.random.default_rng(seed).choice(len(positions), len(positions), p=weights / weights.sum())]


def _border_shares(clusters: np.ndarray, count: int) -> np.ndarray:
    """Which share of every cluster lies at the border of its map; of clusters [N, H, W], float64 [count]."""
    border = np.ones(clusters.shape, bool)
    border[:, 1:-1, 1:-1] = False
    sizes = np.bincount(clusters.ravel(), minlength=count)
    return np.bincount(clusters[border], minlength=count) / np.maximum(sizes, 1)
