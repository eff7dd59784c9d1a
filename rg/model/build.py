"""The model that a configuration names, and what is asked of a model of any kind."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from rg.config import ModelConfig
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel
from rg.model.scops import ScopsModel

Model: TypeAlias = RegionGroupingModel | PlainModel | ScopsModel


def build_model(config: ModelConfig, num_classes: int, multi_label: bool = False, pretrained: bool = True) -> Model:
    """The model of the kind that the configuration names; see there for the arguments and errors."""
    if config.kind == "plain":
        return PlainModel(config.backbone, num_classes, multi_label, pretrained, config.sampler, config.place)
    if config.kind == "scops":
        return ScopsModel(config, pretrained)
    return RegionGroupingModel(config, num_classes, multi_label, pretrained)


def said(model: Model, images: Tensor, places: Tensor | None) -> Any:
    """What a model in evaluation mode says of images [N, 3, H, W] that were taken at places [N, 3].

    A model without a term for places is not told of them.
    """
    return model(images) if model.place is None or places is None else model(images, places=places.to(images.device))


def mean_with_mirror(model: Model, images: Tensor, places: Tensor | None, logits: Tensor) -> Tensor:
    """The mean of the logits [N, classes] of images [N, 3, H, W] and those of their mirror images."""
    return (logits + said(model, images.flip(3), places).logits) / 2
