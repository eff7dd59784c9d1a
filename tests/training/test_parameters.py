"""Which parameters learn, and how fast."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig, OptimizerConfig
from rg.model.region_grouping import RegionGroupingModel
from rg.training.parameters import TOKEN, choose_learning, parameter_groups

HEAD = HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8)
VIT = "vit_tiny_patch16_224"


def build(name: str, train: str = "all", stride: int = 16) -> RegionGroupingModel:
    """A small model on a backbone with random weights, of which some learn."""
    torch.manual_seed(0)
    backbone = BackboneConfig(name, "none", stride, train=train)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    "name", ["vit_base_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
)
def test_tokens_and_positions_are_those_that_timm_knows(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    names = {name for name, _ in network.named_parameters()}
    assert {name for name in names if TOKEN.search(name)} == names & network.no_weight_decay()


def test_a_network_without_tokens_cannot_train_them():
    with pytest.raises(ValueError, match=r"train: expected all or none, as resnet18 has no tokens or positions"):
        build("resnet18", "tokens")


def settings(model: RegionGroupingModel, **changed) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter that learns."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(lr=0.01, new_layer_lr_scale=2.0, weight_decay=0.1, **changed))
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }


def test_backbone_and_new_layers_are_two_groups_in_their_order():
    model = build("resnet18")
    groups = parameter_groups(model, OptimizerConfig(lr=0.01, new_layer_lr_scale=1.0))
    assert [group["params"] for group in groups] == [*map(list, model.parameter_groups())]
    assert [group["lr"] for group in groups] == [0.01, 0.01]


@pytest.mark.parametrize("name", ["resnet18", VIT])
def test_depth_and_decay_are_those_of_timm(name):
    """Of a whole network, of which the backbone is all but the classifier; there is no decay of one dimension."""
    network = timm.create_model(name)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    tokens = network.no_weight_decay() if name == VIT else set()
    expected = {
        names[id(parameter)]: (0.01 * group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(network, 0.1, tokens, layer_decay=0.7)
        for parameter in group["params"]
    }
    prefix = "backbone.features.model." if name == VIT else "backbone.features."
    own = settings(build(name, stride=32), kind="adamw", depth_decay=0.7)
    for parameter, pair in own.items():
        if parameter.startswith(prefix):
            assert pair == pytest.approx(expected[parameter.removeprefix(prefix)]), parameter
    assert own["classifier.linear.weight"] == (0.02, 0.1)
    assert own["dictionary.raw_sigma"] == (0.02, 0.0)


def test_rates_are_factors_of_the_patterns_that_match():
    model = build("resnet18", "none")
    own = settings(model, rates={"*.weight": 0.5, "classifier.*": 0.1})
    assert own["classifier.linear.weight"] == pytest.approx((0.001, 0.1))
    assert own["classifier.linear.bias"] == pytest.approx((0.002, 0.1))
    assert own["dictionary.centers"] == (0.02, 0.1)


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"rates": {"backbone.*": 0.1}}, r"optimizer.rates: 'backbone.\*' matches no parameter that learns; there are"),
        ({"rates": {"centers": 0.1}}, r"'centers' matches no .* such as dictionary.centers"),
    ],
)
def test_a_pattern_that_matches_nothing_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        settings(build("resnet18", "none"), **changed)
