"""How many floating-point operations training on an image takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rg.config import RunConfig
from rg.model.build import Model, build_model
from rg.runs.inputs import growing_geometries

BATCH = 2  # batch norm in training needs more than one


@dataclass(frozen=True)
class Stage:
    """Epochs with crops of one size: how many, pixels of a side, and operations of an image, forward and backward."""

    epochs: int
    crop: int
    operations: float


def stages(config: RunConfig, num_classes: int) -> tuple[list[Stage], int]:
    """The stages of a training, and the parameters that it has gradients of.

    A multiplication and an addition are two operations. Matrix products and convolutions count; nothing is computed.

    Args:
        config: Of the run.
        num_classes: Number of classes.
    """
    model = build_model(config.model, num_classes, pretrained=False).train()
    first_epochs = growing_geometries(config.input, config.train.epochs)
    ends = [*list(first_epochs)[1:], config.train.epochs]
    found = [
        Stage(end - begin, geometry.crop, _operations(model, geometry.crop))
        for (begin, geometry), end in zip(first_epochs.items(), ends, strict=True)
    ]
    return found, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _operations(model: Model, crop: int) -> float:
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        model(torch.empty(BATCH, 3, crop, crop, dtype=torch.uint8)).logits.sum().backward()
    return counter.get_total_flops() / BATCH
