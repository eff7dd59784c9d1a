"""Named runs: every recipe is a function without arguments that returns a ``RunConfig``.

Learning rate, batch size, epochs, loss weights and prior of the data sets of the paper are those of its Section 4.
Batches are global, over however many GPUs; with a batch k times as large, take k times the learning rate (optimizer.lr)
and some epochs of warm-up. The prior compares the parts of the whole global batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rg.config import (
    BackboneConfig,
    EvaluationConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PlaceConfig,
    RunConfig,
    SamplerConfig,
    ScopsConfig,
    SecondStageConfig,
    TrainConfig,
)


def birds_lite0() -> RunConfig:
    """The embedded birds on EfficientNet-Lite0, crops of 128 px: the demo, minutes on two CPU cores.

    Tested on the whole image at the scale of training (short side 144), which the network, fully convolutional up to
    the pooling, takes as it comes; at 128 px accuracy and pointing game are both worse.
    """
    return RunConfig(
        model=ModelConfig(
            backbone=BackboneConfig(name="tf_efficientnet_lite0"),
            grouping=GroupingConfig(num_parts=12, init="kmeans", standardize=True, smoothing_padding="same"),
            head=HeadConfig(region_channels=256, region_width=64, region_blocks=2, attention_width=32),
        ),
        loss=LossConfig(prior_weight=0.5),
        optimizer=OptimizerConfig(lr=0.02, new_layer_lr_scale=2.0, weight_decay=1e-4, warmup_epochs=0.5),
        input=InputConfig(short_side=144, crop=128, test_crop=144),
        train=TrainConfig(epochs=6, global_batch=32),
    )


def birds_lite0_no_prior() -> RunConfig:
    """birds_lite0 without the occurrence prior: what the prior is good for."""
    return _without_prior(birds_lite0())


def birds_lite0_plain() -> RunConfig:
    """The network of birds_lite0 without region grouping: what activation maps and feature factors are made of."""
    return _plain(birds_lite0())


def birds_lite0_scops() -> RunConfig:
    """SCOPS on the embedded birds: parts without labels, minutes on two CPU cores.

    Lite0 takes the place of ResNet-50 and of the VGG-19 whose features are looked at.
    """
    return _scops_of_lite0(birds_lite0())


def photos_lite0() -> RunConfig:
    """Your own photos in class folders on EfficientNet-Lite0 at 224 px: runs on a laptop."""
    demo = birds_lite0()
    return replace(
        demo,
        input=InputConfig(short_side=256, crop=224),
        train=TrainConfig(epochs=30, global_batch=32),
    )


def photos_resnet50() -> RunConfig:
    """Your own photos in class folders on ResNet-50 at 448 px, with the settings of CUB-200: one GPU."""
    paper = cub200_resnet101()
    model = replace(paper.model, backbone=BackboneConfig(name="resnet50"))
    return replace(paper, model=model, evaluation=EvaluationConfig())


def mini_inat() -> RunConfig:
    """The embedded creatures on EfficientNet-Lite0, with the U-shaped prior of iNaturalist: minutes on two CPU cores.

    Super-categories share few parts, so a part that occurs in some images and not in others is the rule, which is what
    Beta(2e-3, 1e-3) says: absent in a third of a batch, present in the rest.
    """
    demo = birds_lite0()
    grouping = replace(demo.model.grouping, num_parts=8)
    return replace(
        demo,
        model=replace(demo.model, grouping=grouping),
        loss=LossConfig(prior_weight=0.1, prior_alpha=2e-3, prior_beta=1e-3),
        input=InputConfig(short_side=144, crop=128, test_crop=144),
        train=TrainConfig(epochs=6, global_batch=32),
    )


def mini_inat_no_prior() -> RunConfig:
    """mini_inat without the occurrence prior."""
    return _without_prior(mini_inat())


def mini_inat_no_attention() -> RunConfig:
    """mini_inat with regions that all count the same."""
    return _without_attention(mini_inat())


def mini_inat_plain() -> RunConfig:
    """The network of mini_inat without region grouping: what activation maps and feature factors are made of."""
    return _plain(mini_inat())


def mini_inat_modern() -> RunConfig:
    """mini_inat with what inat2017_resnet101_modern changes: crops that grow, balanced classes, smooth labels, EMA."""
    return _modern(mini_inat(), smallest_crop=80, warmup_epochs=1.0)


def mini_inat_places() -> RunConfig:
    """mini_inat with where and when as a term of its own; for creatures with places (--creatures.places true)."""
    return _with_places(mini_inat())


def mini_inat_scops() -> RunConfig:
    """SCOPS on the embedded creatures, with the settings of birds_lite0_scops."""
    return _scops_of_lite0(mini_inat())


def cub200_resnet101() -> RunConfig:
    """CUB-200-2011 as in Section 4.2 of the paper, with the cosine schedule of the authors' code.

    The paper says that the learning rate falls in steps, not when; the code that was released lets it fall along a
    cosine. Landmarks are measured on whole images; accuracy on the central 448 pixels.
    """
    return RunConfig(
        model=ModelConfig(grouping=GroupingConfig(num_parts=5)),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.5, prior_alpha=1.0, prior_beta=1e-3),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=5e-4),
        input=InputConfig(short_side=448, crop=448),
        train=TrainConfig(epochs=150, global_batch=32),
        evaluation=EvaluationConfig(landmark_view="whole", landmark_classes=(0, 1, 2)),
    )


def cub200_resnet101_authors() -> RunConfig:
    """CUB-200-2011 as in the authors' code: half the learning rate and batch, accuracy averaged over mirror images.

    Part centres are counted from the far corners of the cells of the map. The code also picks the best epoch on the
    test set, which is not done here.
    """
    paper = cub200_resnet101()
    return replace(
        paper,
        optimizer=replace(paper.optimizer, lr=5e-4),
        train=replace(paper.train, global_batch=16),
        evaluation=replace(paper.evaluation, flip=True, centers="corner"),
    )


def cub200_resnet101_no_prior() -> RunConfig:
    """cub200_resnet101 without the occurrence prior."""
    return _without_prior(cub200_resnet101())


def cub200_resnet101_no_attention() -> RunConfig:
    """cub200_resnet101 with regions that all count the same."""
    return _without_attention(cub200_resnet101())


def cub200_resnet101_plain() -> RunConfig:
    """The baseline of Table 3: ResNet-101 with the settings of cub200_resnet101."""
    return _plain(cub200_resnet101())


def celeba_attributes_resnet101() -> RunConfig:
    """Attributes of the aligned faces of CelebA as in Section 4.1 of the paper (Table 1).

    The paper trains for 30 epochs with a step schedule it does not describe; the steps here are at half and at three
    quarters of them.
    """
    return RunConfig(
        model=ModelConfig(grouping=GroupingConfig(num_parts=9)),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.1, prior_alpha=1.0, prior_beta=1e-3),
        optimizer=OptimizerConfig(lr=5e-3, weight_decay=1e-4, schedule="step", milestones=(15, 22)),
        input=InputConfig(view="stretch", short_side=256, crop=256),
        train=TrainConfig(epochs=30, global_batch=32),
    )


def celeba_attributes_resnet101_authors() -> RunConfig:
    """Attributes of CelebA as in the authors' code: 10 epochs, the learning rate falls at the fifth, logits above 0.5.

    Their code calls an attribute present where its logit, not its probability, is above 0.5.
    """
    paper = celeba_attributes_resnet101()
    return replace(
        paper,
        optimizer=replace(paper.optimizer, milestones=(5,)),
        train=replace(paper.train, epochs=10),
        evaluation=EvaluationConfig(attribute_threshold="logit"),
    )


def celeba_attributes_resnet101_plain() -> RunConfig:
    """The baseline of Table 1: ResNet-101 with the settings of celeba_attributes_resnet101."""
    return _plain(celeba_attributes_resnet101())


def celeba_landmarks_resnet101() -> RunConfig:
    """Landmarks of faces that are not aligned as in Section 4.1 of the paper (Tables 2 and 7).

    Errors are fractions of the distance between the eyes.
    """
    attributes = celeba_attributes_resnet101()
    return replace(attributes, evaluation=EvaluationConfig(landmark_scale="interocular"))


def celeba_landmarks_resnet101_authors() -> RunConfig:
    """Landmarks of CelebA as in the authors' code: 10 epochs, and everything measured in distances between the eyes.

    Part centres are counted from the far corners of the cells of the map. The code picks the best epoch on faces of
    the validation partition, which is not done here.
    """
    paper = celeba_landmarks_resnet101()
    return replace(
        paper,
        optimizer=replace(paper.optimizer, milestones=(5,)),
        train=replace(paper.train, epochs=10),
        evaluation=EvaluationConfig(landmark_scale="interocular_units", centers="corner"),
    )


def celeba_landmarks_resnet101_no_prior() -> RunConfig:
    """The second row of Table 7: celeba_landmarks_resnet101 without the occurrence prior."""
    return _without_prior(celeba_landmarks_resnet101())


def celeba_landmarks_resnet101_no_attention() -> RunConfig:
    """The first row of Table 7: celeba_landmarks_resnet101 with regions that all count the same."""
    return _without_attention(celeba_landmarks_resnet101())


def celeba_landmarks_resnet101_plain() -> RunConfig:
    """ResNet-101 with the settings of celeba_landmarks_resnet101, for deep feature factorisation (Table 2)."""
    return _plain(celeba_landmarks_resnet101())


def celeba_landmarks_scops() -> RunConfig:
    """SCOPS on faces that are not aligned (Table 2), with its own settings.

    ResNet-50 of stride 8, images of 256 px, batches of 6; 100,000 steps are 13 epochs. What stands out
    comes from the image itself (the spectral residual) where SCOPS took saliency maps from elsewhere, and the pyramid
    sees all channels of the last stage, not half of them.
    """
    landmarks = celeba_landmarks_resnet101()
    return _scops(landmarks, parts=8, epochs=13)


def cub200_scops() -> RunConfig:
    """SCOPS on CUB-200-2011 (Table 4) with the settings of celeba_landmarks_scops; 100,000 steps are 100 epochs.

    Four parts. No settings of SCOPS for these data were released.
    """
    paper = cub200_resnet101()
    return _scops(replace(paper, input=InputConfig(short_side=256, crop=256)), parts=4, epochs=100)


def inat2017_resnet101() -> RunConfig:
    """iNaturalist 2017 as in Section 4.3 of the paper, but with a cosine schedule and bf16 autocast.

    The fully convolutional test of Table 5 is `evaluate RUN --evaluation.view whole`. No code for this data set was
    ever released by the authors, so there is no variant of theirs.
    """
    return RunConfig(
        model=ModelConfig(grouping=GroupingConfig(num_parts=8)),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.1, prior_alpha=2e-3, prior_beta=1e-3),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=5e-4),
        input=InputConfig(short_side=320, crop=224, test_short_side=320),
        train=TrainConfig(epochs=75, global_batch=128, precision="bf16"),
    )


def inat2017_resnet101_no_prior() -> RunConfig:
    """inat2017_resnet101 without the occurrence prior."""
    return _without_prior(inat2017_resnet101())


def inat2017_resnet101_no_attention() -> RunConfig:
    """inat2017_resnet101 with regions that all count the same."""
    return _without_attention(inat2017_resnet101())


def inat2017_resnet101_plain() -> RunConfig:
    """The baseline of Tables 5 and 6: ResNet-101 with the settings of inat2017_resnet101."""
    return _plain(inat2017_resnet101())


def inat2017_resnet101_modern() -> RunConfig:
    """inat2017_resnet101 as such data are trained on today: crops that grow, balanced classes, smooth labels, EMA.

    The rate is that of the paper's batch, scaled to batches of 512 (Goyal et al., 2017).
    """
    paper = inat2017_resnet101()
    config = _modern(paper, smallest_crop=128, warmup_epochs=5.0)
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=4e-3),
        train=replace(config.train, global_batch=512),
    )


def inat2017_resnet101_places() -> RunConfig:
    """inat2017_resnet101 with where and when as a term of its own, from the published locations.

    The layers of the term are those of the geographical prior of Mac Aodha et al. (ICCV 2019), which was trained apart.
    """
    return _with_places(inat2017_resnet101())


def inat2017_dinov2() -> RunConfig:
    """iNaturalist 2017, region grouping on DINOv2 with registers, all of which learns: AdamW with rates by depth.

    Settings are the usual ones to fine-tune such a backbone; the prior and the parts are those of inat2017_resnet101.
    """
    paper = inat2017_resnet101()
    backbone = BackboneConfig(name="vit_base_patch14_reg4_dinov2.lvd142m")
    grouping = replace(paper.model.grouping, init="kmeans", standardize=True, smoothing_padding="same")
    return replace(
        paper,
        model=replace(paper.model, backbone=backbone, grouping=grouping),
        loss=replace(paper.loss, label_smoothing=0.1),
        optimizer=OptimizerConfig(
            kind="adamw",
            lr=1e-4,
            new_layer_lr_scale=10.0,
            weight_decay=0.05,
            depth_decay=0.75,
            warmup_epochs=2.0,
            clip_norm=1.0,
        ),
        input=InputConfig(short_side=392, crop=392),
        train=TrainConfig(epochs=20, global_batch=512, precision="bf16", balance=0.5, ema=0.9998),
    )


def inat2017_resnet101_saliency() -> RunConfig:
    """inat2017_resnet101 behind the sampler of SSN (ECCV 2018), which zooms in from 800 px, trained as SSN was.

    The first 30 epochs teach the sampler, on images that are made small; then the rates start anew. The network that
    looks learns at a thousandth of the rate, what makes saliency of it at a hundredth.
    """
    paper = inat2017_resnet101()
    return replace(
        paper,
        model=replace(paper.model, sampler=SamplerConfig(kind="saliency", shrink_epochs=30)),
        optimizer=OptimizerConfig(
            lr=0.1,
            new_layer_lr_scale=1.0,
            rates={"sampler.network.*": 1e-3, "sampler.saliency.*": 1e-2},
            weight_decay=1e-4,
            schedule="step",
            milestones=(60, 90),
            restarts=(30,),
        ),
        input=InputConfig(short_side=800, crop=800, test_crop=700),
        train=TrainConfig(epochs=120, global_batch=256, precision="bf16"),
    )


def inat2017_resnet101_saliency_plain() -> RunConfig:
    """SSN itself (Table 5): ResNet-101 behind its sampler, without region grouping."""
    return _plain(inat2017_resnet101_saliency())


def inat2017_resnet50_tasn() -> RunConfig:
    """Region grouping with the prior of iNaturalist on ResNet-50 behind the sampler of TASN (CVPR 2019), as it trains.

    Images of 512 px give 224. The network that looks is a ResNet-18 whose map is dilated to 28 x 28; TASN moves its
    strides instead.
    """
    paper = inat2017_resnet101()
    return replace(
        paper,
        model=replace(
            paper.model,
            backbone=BackboneConfig(name="resnet50"),
            sampler=SamplerConfig(kind="trilinear", stride=8, dilated=True),
        ),
        loss=_distilling(paper.loss),
        optimizer=OptimizerConfig(
            lr=0.1, new_layer_lr_scale=1.0, weight_decay=1e-4, schedule="step", milestones=(100, 200)
        ),
        input=InputConfig(short_side=512, crop=512),
        train=TrainConfig(epochs=300, global_batch=96, precision="bf16"),
    )


def inat2017_resnet50_tasn_plain() -> RunConfig:
    """TASN itself (Table 5): ResNet-50 behind its sampler, without region grouping."""
    return _plain(inat2017_resnet50_tasn())


def nabirds_resnet101() -> RunConfig:
    """NABirds with the settings of cub200_resnet101; parts as many as landmarks, epochs for five times the images."""
    return _for_data(cub200_resnet101(), parts=11, epochs=60)


def partimagenet_resnet101() -> RunConfig:
    """PartImageNet with the settings of cub200_resnet101 and 25 parts; boxes and masks are measured, not seen."""
    return _for_data(cub200_resnet101(), parts=25, epochs=60)


def cub200_dinov2() -> RunConfig:
    """CUB-200-2011, region grouping on DINOv2 with registers: ViT-B at 518 px, as PDiscoFormer trains it.

    Only tokens, positions and norms of the backbone learn. Learning rates, schedule, batch and clipping are those of
    PDiscoFormer (ECCV 2024); without weight decay AdamW is Adam.
    """
    return RunConfig(
        model=ModelConfig(
            backbone=BackboneConfig(name="vit_base_patch14_reg4_dinov2.lvd142m", train="tokens"),
            grouping=GroupingConfig(num_parts=16, init="kmeans", standardize=True, smoothing_padding="same"),
        ),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.5, prior_alpha=1.0, prior_beta=1e-3),
        optimizer=OptimizerConfig(
            kind="adamw",
            lr=1.4e-6,
            new_layer_lr_scale=1e4,
            weight_decay=0.0,
            schedule="step",
            milestones=(4, 8, 12, 16, 20, 24),
            gamma=0.5,
            clip_norm=2.0,
        ),
        input=InputConfig(view="stretch", short_side=518, crop=518),
        train=TrainConfig(epochs=28, global_batch=32, precision="bf16"),
    )


def nabirds_dinov2() -> RunConfig:
    """NABirds with the settings of cub200_dinov2 and 11 parts."""
    return _for_data(cub200_dinov2(), parts=11, epochs=28)


def partimagenet_dinov2() -> RunConfig:
    """PartImageNet with the settings of cub200_dinov2 and 25 parts."""
    return _for_data(cub200_dinov2(), parts=25, epochs=28)


def _for_data(config: RunConfig, parts: int, epochs: int) -> RunConfig:
    grouping = replace(config.model.grouping, num_parts=parts)
    return replace(
        config,
        model=replace(config.model, grouping=grouping),
        train=replace(config.train, epochs=epochs),
        evaluation=EvaluationConfig(),
    )


def _pdisconet(config: RunConfig, side: int) -> RunConfig:
    """The terms and weights of PDiscoNet (ICCV 2023) in place of the prior; head and schedule stay as they are.

    The weights are for 28 x 28 positions. Presence asks for parts of 3 x 3 positions, and concentration must cost them
    the same on other maps: squared distances, and the share of a part, both grow with the square of the side.
    """
    return replace(
        config,
        model=replace(
            config.model,
            grouping=replace(config.model.grouping, background=True),
            head=replace(config.model.head, part_dropout=0.3),
        ),
        loss=replace(
            config.loss,
            prior_weight=0.0,
            presence_weight=1.0,
            presence_margin=round(2 * side / 28),
            concentration_weight=float(round(1000 * (side / 28) ** 4)),
            equivariance_weight=1.0,
            orthogonality_weight=1.0,
        ),
    )


def _pdiscoformer(config: RunConfig, side: int) -> RunConfig:
    """The terms and weights of PDiscoFormer (ECCV 2024) in place of the prior; head and schedule stay as they are.

    The weights are for 37 x 37 positions. The outline of a part of 3 x 3 positions is a share of all neighbours that
    grows with the square of the side.
    """
    return replace(
        config,
        model=replace(
            config.model,
            grouping=replace(config.model.grouping, background=True, gumbel=True),
            head=replace(config.model.head, part_dropout=0.3),
        ),
        loss=replace(
            config.loss,
            prior_weight=0.0,
            presence_weight=1.0,
            background_weight=2.0,
            total_variation_weight=round((side / 37) ** 2, 2),
            equivariance_weight=1.0,
            orthogonality_weight=1.0,
            entropy_weight=1.0,
        ),
    )


def _parts(config: RunConfig) -> RunConfig:
    """Ours: a background slot; parts that are centred, crisp and start at what stands out; short outlines.

    The prior asks for every part in every image. One that lets parts be absent, or a weak one, leaves all to the slot.
    """
    grouping = replace(
        config.model.grouping,
        background=True,
        centered=True,
        sigma=0.3,
        init="salient",
        standardize=True,
        smoothing_padding="same",
    )
    return replace(
        config,
        model=replace(config.model, grouping=grouping),
        loss=replace(
            config.loss,
            prior_weight=0.5,
            prior_alpha=1.0,
            prior_beta=1e-3,
            background_weight=0.2,
            total_variation_weight=0.3,
        ),
    )


def _parts_of_cnn(config: RunConfig) -> RunConfig:
    """Ours, along the deepest maps, too."""
    ours = _parts(config)
    backbone = replace(ours.model.backbone, fused_strides=(32,))
    return replace(ours, model=replace(ours.model, backbone=backbone))


def _parts_on_drawings(config: RunConfig) -> RunConfig:
    """Ours for a CNN that never saw drawings: how parts move tells it more than what it was pretrained for."""
    ours = _parts_of_cnn(config)
    return replace(ours, loss=replace(ours.loss, equivariance_weight=1.0, equivariance_share=0.5))


def _parts_on_photographs(config: RunConfig) -> RunConfig:
    """Ours for a CNN, with the statistics of pretraining: photographs are what it saw, drawings are not."""
    ours = _parts_of_cnn(config)
    backbone = replace(ours.model.backbone, frozen_statistics=True)
    return replace(ours, model=replace(ours.model, backbone=backbone))


def _parts_on_photographs_by_lite0(config: RunConfig) -> RunConfig:
    """Ours; with the statistics of pretraining, Lite0 diverges at the rate of the other recipes."""
    ours = _parts_on_photographs(config)
    return replace(ours, optimizer=replace(ours.optimizer, lr=5e-4, new_layer_lr_scale=40.0))


def _masked(config: RunConfig) -> RunConfig:
    """Parts as we find them on drawings, none of which is at the border, and a second look at them alone."""
    ours = _parts_on_drawings(config)
    model = replace(ours.model, second_stage=SecondStageConfig(masks="together"))
    return replace(ours, model=model, loss=replace(ours.loss, border_weight=1.0))


def _scops(config: RunConfig, parts: int, epochs: int) -> RunConfig:
    """The settings of SCOPS (CVPR 2019) on the data and the evaluation of a recipe."""
    return replace(
        config,
        model=ModelConfig(
            kind="scops",
            backbone=BackboneConfig(name="resnet50", stride=8, dilated=True),
            grouping=GroupingConfig(num_parts=parts, background=True),
        ),
        optimizer=OptimizerConfig(
            lr=1e-5, new_layer_lr_scale=10.0, rates={"basis": 100.0}, schedule="poly", clip_norm=5.0
        ),
        train=TrainConfig(epochs=epochs, global_batch=6),
    )


def _scops_of_lite0(config: RunConfig) -> RunConfig:
    """SCOPS on Lite0, which does not learn; weights and rates are for its features, found on the drawn birds."""
    return replace(
        config,
        model=replace(
            config.model,
            kind="scops",
            backbone=replace(config.model.backbone, fused_strides=(32,), train="none"),
            grouping=replace(config.model.grouping, background=True),
            scops=ScopsConfig(
                concentration_weight=5.0,
                equivariance_weight=30.0,
                landmark_equivariance_weight=10.0,
                semantic_consistency_weight=30.0,
                features="tf_efficientnet_lite0",
            ),
        ),
        optimizer=OptimizerConfig(
            kind="adamw", lr=1e-3, new_layer_lr_scale=1.0, rates={"basis": 10.0}, weight_decay=1e-4
        ),
    )


def _distilling(loss: LossConfig) -> LossConfig:
    """With the weights of TASN: half of each classification, and distillation."""
    return replace(loss, classification_weight=0.5, detail_weight=0.5, glimpse_weight=0.5, distillation_weight=1.0)


def _modern(config: RunConfig, smallest_crop: int, warmup_epochs: float) -> RunConfig:
    """What large data sets with a long tail are trained with today, whatever the backbone."""
    return replace(
        config,
        loss=replace(config.loss, label_smoothing=0.1),
        optimizer=replace(config.optimizer, warmup_epochs=warmup_epochs),
        input=replace(config.input, smallest_crop=smallest_crop),
        train=replace(config.train, balance=0.5, ema=0.9998),
    )


def _behind_saliency(config: RunConfig) -> RunConfig:
    """Features of Lite0 are far larger than those of SSN's ResNet, so what makes saliency of them learns far slower."""
    sampler = SamplerConfig("saliency", 128, 2, "tf_efficientnet_lite0", glimpse=128)
    rates = {"sampler.network.*": 5e-3, "sampler.saliency.*": 3e-4}
    return replace(
        config,
        model=replace(config.model, sampler=sampler),
        optimizer=replace(config.optimizer, rates=rates),
        input=InputConfig(short_side=448, crop=400),
    )


def _behind_tasn(config: RunConfig) -> RunConfig:
    sampler = SamplerConfig("trilinear", 128, 2, "tf_efficientnet_lite0", glimpse=128)
    return replace(
        config,
        model=replace(config.model, sampler=sampler),
        loss=_distilling(config.loss),
        input=InputConfig(short_side=448, crop=400),
    )


def _with_places(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, place=PlaceConfig(on=True)))


def _without_prior(config: RunConfig) -> RunConfig:
    return replace(config, loss=replace(config.loss, prior_weight=0.0))


def _without_attention(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, head=replace(config.model.head, attention=False)))


def _plain(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, kind="plain"))


Recipe = Callable[[], RunConfig]


def _with_rivals(base: Recipe, ours: Callable[[RunConfig], RunConfig], side: int) -> list[Recipe]:
    """A recipe of region grouping as published, and other ways to find parts with its backbone, head and epochs.

    Args:
        base: The recipe.
        ours: Our way for its backbone.
        side: Positions of a row of its maps in training.
    """
    ways: dict[str, tuple[str, Callable[[RunConfig], RunConfig]]] = {
        "pdisconet": ("the terms of PDiscoNet", partial(_pdisconet, side=side)),
        "pdiscoformer": ("the terms of PDiscoFormer", partial(_pdiscoformer, side=side)),
        "parts": ("parts as we find them", ours),
    }

    variants = (_variant(base, name, f"{base.__name__} with {text}.", change) for name, (text, change) in ways.items())
    return [base, *variants]


def _behind_samplers(base: Recipe) -> list[Recipe]:
    """An embedded recipe behind either sampler, with and without region grouping; for images drawn at 448 px."""
    samplers: dict[str, tuple[str, Callable[[RunConfig], RunConfig]]] = {
        "saliency": ("SSN", _behind_saliency),
        "tasn": ("TASN", _behind_tasn),
    }
    found = []
    for name, (method, change) in samplers.items():
        sampled = _variant(base, name, f"{base.__name__} behind the sampler of {method}, 128 px of 400.", change)
        plain = f"The network of {sampled.__name__} without region grouping: {method} itself."
        found += [sampled, _variant(sampled, "plain", plain, _plain)]
    return found


def _variant(base: Recipe, suffix: str, text: str, change: Callable[[RunConfig], RunConfig]) -> Recipe:
    """A recipe that changes another, with its name and docstring."""

    def make() -> RunConfig:
        return change(base())

    make.__name__, make.__doc__ = f"{base.__name__}_{suffix}", text
    return make


RECIPES: dict[str, Recipe] = {
    function.__name__: function
    for function in (
        *_with_rivals(birds_lite0, _parts_on_drawings, side=8),
        _variant(birds_lite0, "masked", "birds_lite0_parts with a second look, at the parts alone.", _masked),
        birds_lite0_no_prior,
        birds_lite0_plain,
        birds_lite0_scops,
        *_behind_samplers(birds_lite0),
        *_with_rivals(photos_lite0, _parts_on_photographs_by_lite0, side=14),
        photos_resnet50,
        *_with_rivals(mini_inat, _parts_on_drawings, side=8),
        _variant(mini_inat, "masked", "mini_inat_parts with a second look, at the parts alone.", _masked),
        mini_inat_no_prior,
        mini_inat_no_attention,
        mini_inat_plain,
        mini_inat_modern,
        mini_inat_places,
        mini_inat_scops,
        *_behind_samplers(mini_inat),
        *_with_rivals(cub200_resnet101, _parts_on_photographs, side=28),
        cub200_resnet101_authors,
        cub200_resnet101_no_prior,
        cub200_resnet101_no_attention,
        cub200_resnet101_plain,
        cub200_scops,
        celeba_attributes_resnet101,
        celeba_attributes_resnet101_authors,
        celeba_attributes_resnet101_plain,
        celeba_landmarks_resnet101,
        celeba_landmarks_resnet101_authors,
        celeba_landmarks_resnet101_no_prior,
        celeba_landmarks_resnet101_no_attention,
        celeba_landmarks_resnet101_plain,
        celeba_landmarks_scops,
        inat2017_resnet101,
        inat2017_resnet101_no_prior,
        inat2017_resnet101_no_attention,
        inat2017_resnet101_plain,
        inat2017_resnet101_modern,
        inat2017_resnet101_places,
        inat2017_dinov2,
        inat2017_resnet101_saliency,
        inat2017_resnet101_saliency_plain,
        inat2017_resnet50_tasn,
        inat2017_resnet50_tasn_plain,
        *_with_rivals(nabirds_resnet101, _parts_on_photographs, side=28),
        *_with_rivals(partimagenet_resnet101, _parts_on_photographs, side=28),
        *_with_rivals(cub200_dinov2, _parts, side=37),
        *_with_rivals(nabirds_dinov2, _parts, side=37),
        *_with_rivals(partimagenet_dinov2, _parts, side=37),
    )
}


def family(name: str) -> str:
    """The recipe that a recipe is a variant of, or itself: that whose name it starts with."""
    return next(other for other in RECIPES if name == other or name.startswith(f"{other}_"))


def get(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"recipe: there is no {name!r}{hint} (python -m rg recipes)")
    return RECIPES[name]()
