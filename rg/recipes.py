"""Named runs: every recipe is a function without arguments that returns a ``RunConfig``.

The learning rate, batch size, epochs, loss weights and prior of the paper's data sets are those of its Section 4.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from rg.config import (
    BackboneConfig,
    GroupingConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
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
    return replace(birds_lite0(), loss=LossConfig(prior_weight=0.0))


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
    return replace(paper, model=replace(paper.model, backbone=BackboneConfig(name="resnet50")))


def cub200_resnet101() -> RunConfig:
    """CUB-200-2011 as in Section 4.2 of the paper, with the cosine schedule of the authors' code."""
    return RunConfig(
        model=ModelConfig(grouping=GroupingConfig(num_parts=5)),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.5, prior_alpha=1.0, prior_beta=1e-3),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=5e-4),
        input=InputConfig(short_side=448, crop=448),
        train=TrainConfig(epochs=150, global_batch=32),
    )


def inat2017_resnet101() -> RunConfig:
    """iNaturalist 2017 as in Section 4.3 of the paper, but with a cosine schedule and bf16 autocast."""
    return RunConfig(
        model=ModelConfig(grouping=GroupingConfig(num_parts=8)),
        loss=LossConfig(classification_weight=1.0, prior_weight=0.1, prior_alpha=2e-3, prior_beta=1e-3),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=5e-4),
        input=InputConfig(short_side=320, crop=224, test_short_side=320),
        train=TrainConfig(epochs=75, global_batch=128, precision="bf16"),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (
        birds_lite0,
        birds_lite0_no_prior,
        photos_lite0,
        photos_resnet50,
        cub200_resnet101,
        inat2017_resnet101,
    )
}


def get(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3) or list(RECIPES)
        raise ValueError(f"recipe: there is no {name!r}; did you mean {', '.join(near)}? (python -m rg recipes)")
    return RECIPES[name]()
