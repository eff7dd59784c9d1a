"""Which parameters learn, and how fast."""

import dataclasses

import pytest
import timm
import torch

pytest.importorskip("deepspeed")

from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model.region_grouping import RegionGroupingModel
from rg.training.parameters import TOKEN, choose_learning

HEAD = HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8)
VIT = "vit_tiny_patch16_224"


def build(name: str, train: str = "all") -> RegionGroupingModel:
    """A small model on a backbone with random weights, of which some learn."""
    torch.manual_seed(0)
    backbone = BackboneConfig(name=name, weights="none", train=train)  # type: ignore[arg-type]
    model = RegionGroupingModel(ModelConfig(backbone, GroupingConfig(num_parts=3, smoothing_padding="same"), HEAD), 4)
    choose_learning(model, backbone)
    return model


def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def nodes(loss: torch.Tensor) -> set:
    """What autograd has recorded of a loss."""
    known, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in known:
            known.add(node)
            left.extend(function for function, _ in node.next_functions)
    return known


@pytest.mark.parametrize("name", ["resnet18", VIT])
def test_autograd_records_nothing_of_a_frozen_backbone(name):
    whole, frozen = build(name), build(name, "none")
    head = frozen.describe(frozen.backbone(images()).detach()).logits.sum()
    recorded = nodes(frozen(images()).logits.sum())
    assert frozen.backbone(images()).grad_fn is None
    assert len(recorded) == len(nodes(head)) < len(nodes(whole(images()).logits.sum())) - 50


def test_tokens_positions_and_norms_learn_alone():
    model = build(VIT, "tokens")
    model(images()).logits.sum().backward()
    learning = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    names = {name.removeprefix("features.model.") for name in learning}
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.11.norm2.bias"} <= names
    assert all("norm" in name for name in names - {"cls_token", "pos_embed"})
    assert {name for name, value in model.backbone.named_parameters() if value.grad is not None} <= learning
    new = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
    assert all(parameter.requires_grad for parameter in new)


@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"])
def test_tokens_and_positions_are_those_that_timm_knows(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    names = {name for name, _ in network.named_parameters()}
    assert {name for name in names if TOKEN.search(name)} == names & network.no_weight_decay()


def test_a_network_without_tokens_cannot_train_them():
    with pytest.raises(ValueError, match=r"train: expected all or none, as resnet18 has no tokens or positions"):
        build("resnet18", "tokens")
