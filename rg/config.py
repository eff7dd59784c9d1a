"""The typed, validated settings of a run: everything a recipe says and a command line may override."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class BackboneConfig:
    """The network up to the feature map.

    Attributes:
        name: resnet50, resnet101 (torchvision) or any timm model that yields a feature map, convolutional or ViT.
        weights: imagenet (downloaded, or taken from an installed weights package), none, or the path of a file.
        stride: Take the deepest feature map whose stride in pixels is at most this.
        fused_strides: Further feature maps, the deepest within each of these strides, resized to that one and
            concatenated with it. Deeper maps tell parts apart, finer ones place them.
        train: What of it learns: all, none (it also stays in evaluation mode, batch norm and drop-out included), or
            tokens: class and register tokens, positions and the scales and shifts of norms, of a ViT.
        dilated: Stages deeper than stride have no strides of their own and dilate their convolutions instead, so that
            the deepest map of the network has that stride. Of torchvision's ResNets and timm's CNNs, to 8 or 16.
        frozen_statistics: Its batch norms normalise by the running statistics that they begin with, the pretrained ones
            for example. Small photographs of one kind of thing say little of their own. It asks for a small rate.
    """

    name: str = "resnet101"
    weights: str = "imagenet"
    stride: int = 16
    fused_strides: tuple[int, ...] = ()
    train: Literal["all", "none", "tokens"] = "all"
    dilated: bool = False
    frozen_statistics: bool = False

    def __post_init__(self) -> None:
        _require(self.stride >= 1, "model.backbone.stride", "at least 1", self.stride)
        if self.dilated:
            fused = self.fused_strides
            _require(self.stride in (8, 16), "model.backbone.stride", "8 or 16 of dilated stages", self.stride)
            _require(not fused, "model.backbone.fused_strides", "none of dilated stages", fused)
        for stride in self.fused_strides:
            _require(stride >= 1, "model.backbone.fused_strides", "at least 1", stride)


@dataclass(frozen=True)
class GroupingConfig:
    """The part dictionary and the occurrence detector (Section 3.1).

    Attributes:
        num_parts: K, the number of parts.
        background: One more slot of the dictionary, the last, for what is no part: the classifier does not hear of it,
            and the occurrence prior leaves it alone. Without it, statistics tell which parts are background.
        gumbel: Gumbel noise on the logits of the assignment in training (temperature 1, soft), so that a position
            tries other parts, too.
        centered: Positions are told apart by how their features differ from the mean of their image, so that parts do
            not follow the colours of a species.
        sigma: Bandwidth of every part at the start, below 0.7; it is learned. A small one makes crisp parts.
        init: Dictionary from Kaiming-normal noise as the authors do (random), k-means on first features (kmeans), or
            k-means that rather looks at what stands out from its image, on first images as they are tested, normalised
            as in training (salient).
        standardize: Standardise the features before grouping; needed where they do not come out of a ReLU.
        smoothing_radius: The smoothing window is 2 * radius + 1 positions wide.
        smoothing_std: Standard deviation of the smoothing Gaussian in positions.
        smoothing_padding: valid (the authors' choice) or same.
    """

    num_parts: int = 5
    background: bool = False
    gumbel: bool = False
    centered: bool = False
    sigma: float = 0.5
    init: Literal["random", "kmeans", "salient"] = "random"
    standardize: bool = False
    smoothing_radius: int = 2
    smoothing_std: float = 0.4
    smoothing_padding: Literal["valid", "same"] = "valid"

    @property
    def slots(self) -> int:
        """Entries of the dictionary: the parts, and the background if it has a slot."""
        return self.num_parts + self.background

    def __post_init__(self) -> None:
        most = 63 if self.background else 64
        _require(1 <= self.num_parts <= most, "model.grouping.num_parts", f"1 to {most} parts", self.num_parts)
        _require(0 < self.sigma < 0.7, "model.grouping.sigma", "a number above 0, below 0.7", self.sigma)
        _require(self.smoothing_radius >= 0, "model.grouping.smoothing_radius", "0 or more", self.smoothing_radius)
        _require(self.smoothing_std > 0, "model.grouping.smoothing_std", "a positive number", self.smoothing_std)


@dataclass(frozen=True)
class HeadConfig:
    """Region transform f_z, attention f_a and classifier (Sections 3.2 and 3.3).

    Attributes:
        attention: Weigh the regions by learned attention; without it every region counts 1/K (ablation of Table 7).
        region_channels: Channels of a transformed region, the input width of the classifier.
        region_width: Inner width of the bottlenecks of f_z.
        region_blocks: Number of bottlenecks of f_z.
        attention_width: Inner width of f_a.
        part_dropout: Probability that a part is left out of the classification of an image in training. At least one
            stays.
    """

    attention: bool = True
    region_channels: int = 2048
    region_width: int = 512
    region_blocks: int = 4
    attention_width: int = 256
    part_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("region_channels", "region_width", "region_blocks", "attention_width"):
            _require(getattr(self, name) >= 1, f"model.head.{name}", "at least 1", getattr(self, name))
        _require(0 <= self.part_dropout < 1, "model.head.part_dropout", "a probability below 1", self.part_dropout)


@dataclass(frozen=True)
class SamplerConfig:
    """What chooses the pixels that the backbone sees, from more of them: input.crop is then what it chooses from.

    Attributes:
        kind: none; saliency (SSN, ECCV 2018), which learns from the classification where to gather; or trilinear (TASN,
            CVPR 2019), which follows the attention of a network of its own, and in training also teaches details, one
            at a time.
        size: Side in pixels of what the backbone sees.
        oversampling: A pixel of it is the mean of so many bilinear samples each way. Published samplers take 1, and
            alias what they make smaller.
        network: What looks at the whole image: any network that model.backbone.name takes.
        weights: Of it, as of model.backbone.weights.
        stride: Of its feature map in pixels.
        dilated: As of model.backbone.dilated.
        glimpse: Side in pixels to which the image is averaged down for it.
        nodes: Of a side of the grid (saliency).
        spread: Full width at half maximum of the Gaussian that gathers, in nodes of a grid of 31 (saliency).
        largest_zoom: Largest magnification along a side, beside an image that is made as small evenly (trilinear).
        shrink_epochs: So many epochs what the backbone sees is made small and large again, which teaches where to look.
    """

    kind: Literal["none", "saliency", "trilinear"] = "none"
    size: int = 224
    oversampling: int = 1
    network: str = "resnet18"
    weights: str = "imagenet"
    stride: int = 16
    dilated: bool = False
    glimpse: int = 224
    nodes: int = 31
    spread: float = 13.0
    largest_zoom: float = 4.0
    shrink_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "oversampling", "stride", "glimpse"):
            _require(getattr(self, name) >= 1, f"model.sampler.{name}", "at least 1", getattr(self, name))
        _require(self.nodes >= 2, "model.sampler.nodes", "at least 2", self.nodes)
        _require(self.spread > 0, "model.sampler.spread", "a positive number", self.spread)
        zoom = self.largest_zoom
        _require(1 < zoom < float("inf"), "model.sampler.largest_zoom", "a finite number above 1", zoom)
        if self.dilated:
            _require(self.stride in (8, 16), "model.sampler.stride", "8 or 16 of dilated stages", self.stride)
        _require(self.shrink_epochs >= 0, "model.sampler.shrink_epochs", "0 or more", self.shrink_epochs)


@dataclass(frozen=True)
class PlaceConfig:
    """What where and when a photo was taken adds to the logits, as a term of its own (``rg.model.place``).

    Attributes:
        on: Whether there is such a term. Images without a place get 0 of it.
        width: Of its layers.
        blocks: Number of residual blocks, of two layers each.
        dropout: In training, nothing of its place is told of an image with this probability, and each of the
            coordinates and the date is left out with the same one.
    """

    on: bool = False
    width: int = 256
    blocks: int = 4
    dropout: float = 0.25

    def __post_init__(self) -> None:
        _require(self.width >= 1, "model.place.width", "at least 1", self.width)
        _require(self.blocks >= 0, "model.place.blocks", "0 or more", self.blocks)
        _require(0 <= self.dropout < 1, "model.place.dropout", "a probability below 1", self.dropout)


@dataclass(frozen=True)
class SecondStageConfig:
    """A second look at the image, at its parts alone, which the classification rests on.

    Attributes:
        masks: none: no second look. Else every pixel goes to its strongest part, those of the background become the
            mean pixel, and the backbone looks again: once at all parts (together), or at every part alone (each), which
            takes as many passes as there are parts.
        shrink: The first look sees images averaged down by this factor.
    """

    masks: Literal["none", "together", "each"] = "none"
    shrink: int = 1

    def __post_init__(self) -> None:
        _require(self.shrink >= 1, "model.second_stage.shrink", "at least 1", self.shrink)
        one = self.masks != "none" or self.shrink == 1
        _require(one, "model.second_stage.shrink", "1 with model.second_stage.masks = none", self.shrink)


@dataclass(frozen=True)
class ScopsConfig:
    """What ``model.kind: scops`` learns from in place of labels; ``rg.model.scops_terms`` defines the terms.

    A term of weight 0 is not computed. The weights are the published ones.

    Attributes:
        concentration_weight: Parts are compact.
        equivariance_weight: Every position belongs to the same part when the image is warped and its colours change.
        landmark_equivariance_weight: The centres of the parts move with the image.
        semantic_consistency_weight: A part has one feature of a network that does not learn, over all images.
        orthonormality_weight: The features of the parts differ.
        features: That network: vgg19 (torchvision), or a backbone, of which the maps of strides 16 and 32 are taken.
        feature_weights: imagenet (downloaded, or taken from an installed weights package), none, or the path of a file.
        saliency: Where the object is: the masks of the training data (mask), or what stands out from the image itself
            (spectral_residual).
    """

    concentration_weight: float = 10.0
    equivariance_weight: float = 1000.0
    landmark_equivariance_weight: float = 100.0
    semantic_consistency_weight: float = 10000.0
    orthonormality_weight: float = 0.1
    features: str = "vgg19"
    feature_weights: str = "imagenet"
    saliency: Literal["mask", "spectral_residual"] = "spectral_residual"

    def __post_init__(self) -> None:
        weights = {field_.name: getattr(self, field_.name) for field_ in dataclasses.fields(self)}
        weights = {name: value for name, value in weights.items() if name.endswith("_weight")}
        for name, value in weights.items():
            _require(value >= 0, f"model.scops.{name}", "0 or more", value)
        _require(any(weights.values()), "model.scops", "a weight above 0", "none")


@dataclass(frozen=True)
class ModelConfig:
    """Sampler -> backbone -> grouping -> head.

    Attributes:
        backbone: The feature extractor.
        grouping: The part dictionary.
        head: Region transform, attention and classifier.
        kind: region_grouping, or plain: the whole network of the backbone with a linear classifier, to compare with. Of
            grouping it takes the number of parts for deep feature factorisation; nothing of head, of the strides of the
            backbone and whether it is dilated, and of the loss what is of classes alone. Or scops: parts without labels
            (Hung et al., CVPR 2019), to compare with. Of grouping it takes the number of parts and the background;
            nothing of head and loss.
        init: none, or where all weights come from that fit: a run folder, one of its checkpoints, or a file. The
            backbone has to be the same; layers for other classes or parts start anew.
        sampler: What chooses the pixels that the backbone sees.
        scops: What a model of kind scops learns from.
        place: What where and when a photo was taken adds to the logits.
        second_stage: A second look at the parts alone, with a background slot and without a sampler.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    kind: Literal["region_grouping", "plain", "scops"] = "region_grouping"
    init: str = "none"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scops: ScopsConfig = field(default_factory=ScopsConfig)
    place: PlaceConfig = field(default_factory=PlaceConfig)
    second_stage: SecondStageConfig = field(default_factory=SecondStageConfig)

    def __post_init__(self) -> None:
        named = self.kind != "scops" or not self.place.on
        _require(named, "model.place.on", "false with model.kind = scops, which names no class", self.place.on)
        _require(
            self.kind != "scops" or self.grouping.background,
            "model.grouping.background",
            "true with model.kind = scops",
            self.grouping.background,
        )
        if self.second_stage.masks == "none":
            return
        twice = f"with model.second_stage.masks = {self.second_stage.masks}"
        _require(self.kind == "region_grouping", "model.kind", f"region_grouping {twice}", self.kind)
        background = self.grouping.background
        _require(background, "model.grouping.background", f"true {twice}", background)
        _require(self.sampler.kind == "none", "model.sampler.kind", f"none {twice}", self.sampler.kind)


@dataclass(frozen=True)
class LossConfig:
    """What is made small: classification loss, occurrence prior (Eq. 2) and terms that shape the parts, each weighted.

    A term of weight 0 is not computed, but for the prior, which is logged. ``rg.model.terms`` defines the others.

    Attributes:
        classification_weight: Weight of the cross entropy (or, for multi-label data, the mean binary cross entropy).
        label_smoothing: In training, this share of the target is spread evenly over the classes; for attributes over
            0 and 1.
        prior_weight: Weight of the occurrence prior; 0 switches it off (ablation of Table 7).
        prior_alpha: First parameter of the Beta distribution.
        prior_beta: Second parameter of the Beta distribution.
        prior_queue: Images of past steps that the prior looks at beside those of the step, for small batches: with
            them some 32, as more are of a model that was another. At first they are as the prior wants them.
        presence_weight: Every part is seen in some image of the batch.
        presence_margin: Positions at the border of the map whose windows do not count for presence.
        background_weight: Every image has background, and rather at its border; needs model.grouping.background.
        border_weight: What is at the border of the map is background; needs model.grouping.background.
        concentration_weight: Parts are compact.
        total_variation_weight: Parts have few and short outlines.
        equivariance_weight: Parts move with the image; takes a second forward pass of moved images.
        equivariance_share: Share of the batch that the second pass takes.
        orthogonality_weight: The features of the parts of an image differ.
        entropy_weight: A position belongs to one part.
        detail_weight: Cross entropy of what details say of the class, with a trilinear model.sampler as the next two.
        glimpse_weight: Cross entropy of what the network says that looks at the whole image.
        distillation_weight: Cross entropy of the softened answer of the model with that of details.
    """

    classification_weight: float = 1.0
    label_smoothing: float = 0.0
    prior_weight: float = 0.5
    prior_alpha: float = 1.0
    prior_beta: float = 1e-3
    prior_queue: int = 0
    presence_weight: float = 0.0
    presence_margin: int = 0
    background_weight: float = 0.0
    border_weight: float = 0.0
    concentration_weight: float = 0.0
    total_variation_weight: float = 0.0
    equivariance_weight: float = 0.0
    equivariance_share: float = 1.0
    orthogonality_weight: float = 0.0
    entropy_weight: float = 0.0
    detail_weight: float = 0.0
    glimpse_weight: float = 0.0
    distillation_weight: float = 0.0

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            if field_.name.endswith("_weight"):
                value = getattr(self, field_.name)
                _require(value >= 0, f"loss.{field_.name}", "0 or more", value)
        for name in ("prior_alpha", "prior_beta"):
            _require(getattr(self, name) > 0, f"loss.{name}", "a positive number", getattr(self, name))
        _require(self.prior_queue >= 0, "loss.prior_queue", "0 or more", self.prior_queue)
        _require(0 <= self.label_smoothing < 1, "loss.label_smoothing", "0 or more, below 1", self.label_smoothing)
        _require(self.presence_margin >= 0, "loss.presence_margin", "0 or more", self.presence_margin)
        _require(
            0 < self.equivariance_share <= 1,
            "loss.equivariance_share",
            "a share above 0, at most 1",
            self.equivariance_share,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum or AdamW, one learning rate for the backbone and one for everything new, and factors of both.

    Attributes:
        lr: Learning rate of the pretrained backbone.
        new_layer_lr_scale: The new layers learn at lr times this.
        kind: sgd or adamw.
        momentum: SGD momentum.
        betas: Of the two moments of AdamW.
        eps: Added to the root of the second moment of AdamW.
        weight_decay: L2 penalty (sgd, of all parameters), or the share of lr by which weights shrink in a step (adamw).
            With adamw biases, norms and all else of one dimension, tokens and positions do not shrink.
        rates: Pattern of parameter names, such as "backbone.*.pos_embed" -> factor of their learning rate. Factors of
            all patterns that match multiply.
        depth_decay: Factor for every block of the backbone from the head downwards: the last block learns at lr times
            this, the one before at lr times its square, and what lies before the first block slowest.
        schedule: cosine or poly (both to zero over the whole run; poly: by what is left of it, to the power of 0.9), or
            step.
        milestones: Epochs at which a step schedule multiplies the learning rate by gamma.
        restarts: Epochs at which the schedule begins anew, without warm-up. Milestones count up to the next one.
        gamma: Factor of the step schedule.
        warmup_epochs: Linear warm-up from zero, in epochs (fractions allowed).
        clip_norm: Largest norm of the gradient; 0 does not clip.
    """

    lr: float = 1e-3
    new_layer_lr_scale: float = 20.0
    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    rates: dict[str, float] = field(default_factory=dict)
    depth_decay: float = 1.0
    schedule: Literal["cosine", "poly", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    restarts: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optimizer.lr", "a positive number", self.lr)
        for name in ("new_layer_lr_scale", "momentum", "weight_decay", "gamma", "warmup_epochs", "clip_norm"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", "0 or more", getattr(self, name))
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas",
            "two numbers from 0, below 1",
            self.betas,
        )
        _require(self.eps > 0, "optimizer.eps", "a positive number", self.eps)
        for pattern, factor in self.rates.items():
            _require(factor > 0, "optimizer.rates", f"a positive factor for {pattern!r}", factor)
        _require(0 < self.depth_decay <= 1, "optimizer.depth_decay", "a factor above 0, at most 1", self.depth_decay)
        _require(
            (self.schedule == "step") == bool(self.milestones),
            "optimizer.milestones",
            "epochs for schedule=step and none for others",
            self.milestones,
        )
        ascending = [0, *self.restarts] == sorted({0, *self.restarts})
        _require(ascending, "optimizer.restarts", "epochs above 0 in ascending order", self.restarts)


@dataclass(frozen=True)
class InputConfig:
    """Geometry and augmentation.

    Attributes:
        view: crop resizes the short side of the image and cuts a square; stretch makes the whole image a square.
        short_side: The short side of the image is resized to this many pixels (view = crop).
        crop: Then a square of this many pixels is cut: at random for training, from the centre for testing.
        smallest_crop: In training, the crop of the first stage. It grows to ``crop`` from stage to stage, and the short
            side with it. 0 for crops of one size.
        stages: Of equal numbers of epochs, in which crops grow.
        test_short_side: Short side for testing; 0 takes short_side.
        test_crop: Side of the central square for testing; 0 takes crop. Larger than crop, it gives a finer map.
        flip: Probability of a horizontal flip in training.
        brightness: Brightness varies by up to this fraction in training.
        mixup: In training, neighbours of a batch are blended, and so are their labels. Each keeps a share of itself of
            the distribution Beta(mixup, mixup); 0 blends none.
        cutmix: In training, neighbours of a batch swap a box, and their labels as much of each other; alpha as of
            mixup. With both, half of the pairs are mixed in each way.
        decoder: What decodes JPEGs: cpu or mixed (GPU) for DALI, pillow for machines without DALI, or auto (DALI
            where it is installed, on the GPU where there is one).
        threads: Decoding threads of a rank; 0 takes the cores of this process divided by the ranks that share them.
        prefetch: Batches decoded ahead.
        hardware_load: Share of the images that mixed gives to the JPEG engine of the GPU, where it has one. With 0 or 1
            pixels depend on the image alone; between them by a few grey levels on its batch, too.
        largest_width: Columns of the largest image, so that mixed allocates memory once; 0 if not known.
        largest_height: Rows of the largest image.
        max_damaged: Share of damaged samples, of those read and of at least 1000, above which a run stops.
        cache: Folder of a local disk that keeps shards on the way from an object store or a slow disk, for all runs and
            ranks of this host; none reads every sample from afar.
        cache_gib: Size of that folder in GiB at most. Training holds the shards of 16,384 to 32,768 samples at once.
    """

    view: Literal["crop", "stretch"] = "crop"
    short_side: int = 256
    crop: int = 224
    smallest_crop: int = 0
    stages: int = 4
    test_short_side: int = 0
    test_crop: int = 0
    flip: float = 0.5
    brightness: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    decoder: Literal["auto", "cpu", "mixed", "pillow"] = "auto"
    threads: int = 0
    prefetch: int = 2
    hardware_load: float = 1.0
    largest_width: int = 0
    largest_height: int = 0
    max_damaged: float = 0.01
    cache: str = "none"
    cache_gib: float = 50.0

    @property
    def test_size(self) -> tuple[int, int]:
        """Short side and crop for testing in pixels."""
        return self.test_short_side or self.short_side, self.test_crop or self.crop

    def __post_init__(self) -> None:
        _require(self.crop >= 16, "input.crop", "at least 16 pixels", self.crop)
        _require(
            self.short_side >= self.crop, "input.short_side", f"at least input.crop = {self.crop}", self.short_side
        )
        smallest = self.smallest_crop == 0 or 16 <= self.smallest_crop <= self.crop
        _require(smallest, "input.smallest_crop", f"0, or 16 to input.crop = {self.crop}", self.smallest_crop)
        _require(self.stages >= 2, "input.stages", "at least 2", self.stages)
        _require(self.test_crop == 0 or self.test_crop >= 16, "input.test_crop", "0 or 16 or more", self.test_crop)
        side, crop = self.test_size
        _require(side >= crop, "input.test_short_side", f"at least the crop for testing = {crop}", side)
        _require(0 <= self.flip <= 1, "input.flip", "a probability", self.flip)
        _require(0 <= self.brightness < 1, "input.brightness", "a fraction below 1", self.brightness)
        for name in ("mixup", "cutmix", "threads", "largest_width", "largest_height"):
            _require(getattr(self, name) >= 0, f"input.{name}", "0 or more", getattr(self, name))
        _require(self.prefetch >= 1, "input.prefetch", "at least 1", self.prefetch)
        _require(self.cache != "", "input.cache", "a folder, or none", self.cache)
        _require(0 < self.cache_gib < float("inf"), "input.cache_gib", "more than 0", self.cache_gib)
        for name in ("hardware_load", "max_damaged"):
            _require(0 <= getattr(self, name) <= 1, f"input.{name}", "a share from 0 to 1", getattr(self, name))


@dataclass(frozen=True)
class TrainConfig:
    """Length and bookkeeping of a run.

    Attributes:
        epochs: Passes over the training set.
        global_batch: Images of one optimiser step, over all ranks and accumulated micro batches. Any number of ranks
            shares them out; shares may differ by one image.
        balance: A class of n images is drawn as if it had n^(1 - balance) of them: with 0 as it is, with 1 as often as
            any other. Epochs are as long as without it. Not for attributes.
        accumulation: Micro batches whose gradients are added up before a step. The occurrence prior sees one micro
            batch of all ranks at a time.
        precision: fp32, or bf16 by autocast (parameters stay fp32).
        engine: What takes the steps: deepspeed, or ddp, PyTorch's own data parallelism, which needs no DeepSpeed.
        compile: no, or what torch.compile makes the model of: inductor (generated kernels; the first step takes
            minutes), cuda_graphs (the kernels as they are, replayed from CUDA graphs instead of launched one by one; on
            a GPU, without accumulation or synchronised batch norm) or aot_eager (neither; tells whether a fault is
            inductor's). Validation is never compiled.
        capture: Whole steps, forward to optimiser, are captured in CUDA graphs and replayed: with ddp, on one GPU.
        activation_checkpointing: The blocks of the backbone keep their inputs alone and compute the rest again in the
            backward pass: less memory, longer steps, the same results.
        batch_norm: Sees the micro batch of its own rank (local), of all ranks (sync), or normalises by running
            statistics that stay as they are, pretrained ones for example (frozen).
        ema: Decay of a moving average of the weights, which then is what is validated, saved and evaluated; 0 for none.
            In step n (from 1) it is 1 - n^(-2/3) at most, so that the first steps are forgotten.
        checkpoint_epochs: Epochs between two checkpoints.
        checkpoint_steps: Steps between two checkpoints, in addition; 0 for none.
        keep_checkpoints: Newest checkpoints kept, beside the one with the best validation accuracy.
        validate_epochs: Epochs between two validations; 0 never validates.
        log_steps: Steps between two lines of metrics.jsonl.
        peer_timeout: Seconds without a sign of life of a rank, or without progress of any, after which all others end.
        join_timeout: Seconds that the ranks wait for each other at the start.
        max_skipped: Steps in a row that may be left out because a loss is not finite; the next one ends the run.
    """

    epochs: int = 75
    global_batch: int = 32
    balance: float = 0.0
    accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    compile: Literal["no", "inductor", "cuda_graphs", "aot_eager"] = "no"
    capture: bool = False
    activation_checkpointing: bool = False
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    ema: float = 0.0
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    validate_epochs: int = 1
    log_steps: int = 10
    peer_timeout: float = 600.0
    join_timeout: float = 300.0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulation", "checkpoint_epochs", "keep_checkpoints", "log_steps"):
            _require(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        _require(self.global_batch >= 2, "train.global_batch", "at least 2 (batch norm)", self.global_batch)
        _require(
            self.global_batch % self.accumulation == 0,
            "train.global_batch",
            f"a multiple of train.accumulation = {self.accumulation}",
            self.global_batch,
        )
        _require(
            self.compile == "no" or not self.activation_checkpointing,
            "train.activation_checkpointing",
            f"false with train.compile = {self.compile}, which decides itself what is kept",
            self.activation_checkpointing,
        )
        _require(
            self.compile != "cuda_graphs" or self.accumulation == 1,
            "train.accumulation",
            "1 with train.compile = cuda_graphs, whose next replay overwrites the gradients",
            self.accumulation,
        )
        _require(
            self.compile != "cuda_graphs" or self.batch_norm != "sync",
            "train.batch_norm",
            "local or frozen with train.compile = cuda_graphs, which keep no communication",
            self.batch_norm,
        )
        _require(not self.capture or self.engine == "ddp", "train.engine", "ddp with train.capture = true", self.engine)
        _require(
            not self.capture or not self.activation_checkpointing,  # PyTorch 2.9 asks for the random state in between
            "train.activation_checkpointing",
            "false with train.capture = true",
            self.activation_checkpointing,
        )
        _require(
            not self.capture or self.compile != "cuda_graphs",
            "train.compile",
            "no, inductor or aot_eager with train.capture = true",
            self.compile,
        )
        _require(0 <= self.balance <= 1, "train.balance", "an exponent from 0 to 1", self.balance)
        _require(0 <= self.ema < 1, "train.ema", "a decay from 0, below 1", self.ema)
        for name in ("checkpoint_steps", "validate_epochs", "max_skipped"):
            _require(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        for name in ("peer_timeout", "join_timeout"):
            _require(getattr(self, name) >= 1, f"train.{name}", "at least 1 second", getattr(self, name))


View = Literal["input", "whole"]


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is measured. All of it may be changed for a finished run.

    Attributes:
        view: input tests on what input says; whole on whole images of short side input.test_short_side, cut to
            multiples of the stride of the backbone (networks that take images of any size).
        landmark_view: The same for the landmark error alone.
        landmark_scale: Landmark errors are fractions of the box of the object (box; images without one do not count),
            or of the distance between the first two landmarks, the eyes (interocular). interocular_units: part centres
            and landmarks are divided by that distance before the regression, as in the authors' code, which so tells it
            how large the face is.
        centers: Positions of the map lie in the middle of their cells, or as in the authors' code at their far corner.
            Landmarks relative to boxes of different sizes are predicted a little differently.
        landmark_classes: Class numbers, from 0, whose landmark error is also measured alone: regression fitted and
            tested on images of that class only.
        flip: Average the logits of the image and its mirror image.
        attribute_threshold: Attributes hold where the probability, or as in the authors' code the logit, is above 0.5.
        target_precision: Share of the answers given that are to be right; the model abstains from the least sure ones
            as far as the validation split needs it.
        false_alarms: Share of the images like those for validation that may be called unknown, as no known part fits
            them; 0 calls none so.
        stability: Where there are landmarks, also look at every image under noise, and say how often the parts meet the
            same landmarks.
    """

    view: View = "input"
    landmark_view: View = "input"
    landmark_scale: Literal["box", "interocular", "interocular_units"] = "box"
    centers: Literal["middle", "corner"] = "middle"
    landmark_classes: tuple[int, ...] = ()
    flip: bool = False
    attribute_threshold: Literal["probability", "logit"] = "probability"
    target_precision: float = 0.95
    false_alarms: float = 0.01
    stability: bool = True

    def __post_init__(self) -> None:
        _require(
            0 < self.target_precision <= 1,
            "evaluation.target_precision",
            "a share above 0, at most 1",
            self.target_precision,
        )
        _require(0 <= self.false_alarms < 1, "evaluation.false_alarms", "a share from 0, below 1", self.false_alarms)
        _require(
            min(self.landmark_classes, default=0) >= 0,
            "evaluation.landmark_classes",
            "class numbers from 0",
            self.landmark_classes,
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes, and how it is measured.

    Attributes:
        model: Architecture.
        loss: Objective.
        optimizer: Optimiser and schedule.
        input: Geometry and augmentation of the images.
        train: Length and bookkeeping.
        evaluation: How the run is measured.
        seed: Seed of every random stream of the run.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    input: InputConfig = field(default_factory=InputConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", "0 to 2147483647", self.seed)
        for name in ("background", "border"):
            weight = getattr(self.loss, f"{name}_weight")
            slot = weight == 0 or self.model.grouping.background
            _require(slot, f"loss.{name}_weight", "0 without model.grouping.background", weight)
        captured = self.train.capture and self.model.kind == "scops"  # whose colours are drawn on the host
        _require(not captured, "train.capture", "false with model.kind = scops", self.train.capture)
        if self.model.kind == "scops":
            for name in ("mixup", "cutmix"):
                value = getattr(self.input, name)
                _require(value == 0, f"input.{name}", "0 with model.kind = scops", value)
            kind = self.model.sampler.kind
            _require(kind == "none", "model.sampler.kind", "none with model.kind = scops", kind)
        for name in ("mixup", "cutmix") if self.model.place.on else ():
            value = getattr(self.input, name)
            _require(value == 0, f"input.{name}", "0 with model.place.on, as places cannot be mixed", value)
        sampler = self.model.sampler
        for name in ("detail_weight", "glimpse_weight", "distillation_weight"):
            weight = getattr(self.loss, name)
            expected = "0 without model.sampler.kind = trilinear"
            _require(weight == 0 or sampler.kind == "trilinear", f"loss.{name}", expected, weight)
        if sampler.kind == "none":
            return
        least = min(self.input.crop, self.input.test_size[1])
        for name in ("size", "glimpse"):
            pixels, expected = getattr(sampler, name), f"at most the {least} pixels of input.crop and input.test_crop"
            _require(pixels <= least, f"model.sampler.{name}", expected, pixels)
        for name in ("detail_weight", "glimpse_weight") if sampler.kind == "trilinear" else ():
            weight = getattr(self.loss, name)  # without them, what they teach would stay as it begins
            _require(weight > 0, f"loss.{name}", "a weight above 0 with model.sampler.kind = trilinear", weight)
        equivariance = self.loss.equivariance_weight  # moved images would be sampled otherwise
        _require(equivariance == 0, "loss.equivariance_weight", "0 with a model.sampler", equivariance)
        for name in ("view", "landmark_view"):
            view = getattr(self.evaluation, name)
            _require(view == "input", f"evaluation.{name}", "input with a model.sampler, which takes squares", view)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        return _from_dict(cls, values)


MAPPINGS = {"optimizer.rates"}  # settings that are mappings themselves, not groups of settings


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"model.grouping.num_parts": 8, ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and prefix + name not in MAPPINGS:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


BOOKKEEPING = {  # settings that change at most the rounding of what is computed, so that a resumed run may have others
    "train.engine",
    "train.capture",
    "train.checkpoint_epochs",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.peer_timeout",
    "train.join_timeout",
    "train.max_skipped",
    "input.threads",
    "input.prefetch",
    "input.largest_width",
    "input.largest_height",
    "input.cache",
    "input.cache_gib",
}


def differences(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings whose values differ: dotted name -> (value in before, value in after)."""
    old, new = flatten(dataclasses.asdict(before)), flatten(dataclasses.asdict(after))
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


T = TypeVar("T")


def _from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{cls.__name__}: unknown setting {', '.join(unknown)}; known are {', '.join(hints)}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _from_dict(hints[name], value)
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)
