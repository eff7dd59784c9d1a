"""The model that a configuration names, and what is asked of a model of any kind."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from rg.config import ModelConfig
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel
from rg.model.scops import ScopsModel

Model: TypeAlias = RegionGroupingModel | PlainModel | ScopsModel


def build_model(config: ModelConfig, num_classes: int, multi_label: bool = False, pretrained: bool = True) -> Model:
    """The model of the kind that the configuration names; see there for the arguments and errors."""
    if config.kind == "plain":
        return PlainModel(config.backbone, num_classes, multi_label, pretrained, config.sampler)
    if config.kind == "scops":
        return ScopsModel(config, pretrained)
    return RegionGroupingModel(config, num_classes, multi_label, pretrained)


def class_logits(model: Model, images: Tensor, mirror: bool) -> Tensor:
    """Logits [N, classes] of images [N, 3, H, W]; with ``mirror`` the mean over the images and their mirror images."""
    logits = model(images).logits
    return mean_with_mirror(model, images, logits) if mirror else logits


def mean_with_mirror(model: Model, images: Tensor, logits: Tensor) -> Tensor:
    """The mean of the logits [N, classes] of images [N, 3, H, W] and those of their mirror images."""
    return (logits + model(images.flip(3)).logits) / 2
