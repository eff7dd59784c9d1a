"""Blocks whose activations are computed again: the same gradients and statistics, and less that is kept."""

import copy

import pytest
import torch
from torch import nn

from rg.config import BackboneConfig, TrainConfig
from rg.model.backbones import build_backbone
from rg.training.activation_checkpointing import checkpoint_blocks

BLOCKS = {"resnet50": 13, "tf_efficientnet_lite0": 11, "convnext_tiny": 15, "densenet121": 0}  # up to stride 16


def step(backbone, images):
    """Gradients and state after a step, and the bytes that autograd has packed for the backward pass.

    Blocks pack nothing; their inputs, small beside what is inside of them, are not counted.
    """
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(3)  # of drop-out
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = backbone(images)
    total = sum(kept.values())
    out.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return gradients, backbone.state_dict(), total


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_tiny"])
def test_a_step_is_the_same_and_keeps_less(name):
    torch.manual_seed(0)
    plain = build_backbone(BackboneConfig(name, "none")).train()
    again = copy.deepcopy(plain)
    assert checkpoint_blocks(again) == BLOCKS[name]
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    for _ in range(2):
        (gradients, state, kept), (found_gradients, found_state, kept_less) = step(plain, images), step(again, images)
        assert list(found_gradients) == list(gradients)
        assert all(torch.equal(found_gradients[key], gradients[key]) for key in gradients)
        assert list(found_state) == list(state)
        assert all(torch.equal(found_state[key], state[key]) for key in state)  # batch norms have seen the images once
        assert kept_less < kept / 2


def test_without_gradients_nothing_is_computed_twice():
    backbone = build_backbone(BackboneConfig("tf_efficientnet_lite0", "none")).train()
    calls = []
    block = backbone.features.blocks[1][0]
    block.conv_dw.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_blocks(backbone)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        backbone(images)
    backbone.eval()(images).sum().backward()
    assert len(calls) == 2
    backbone.train()(images).sum().backward()
    assert len(calls) == 4


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_backbones(name):
    assert checkpoint_blocks(build_backbone(BackboneConfig(name, "none"))) == BLOCKS[name]


def test_rows_of_rows_are_no_blocks():
    def block():
        inner = nn.Module()
        inner.layer = nn.Linear(2, 2)
        return inner

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block())))
    assert checkpoint_blocks(model) == 3


def test_a_compiler_decides_itself_what_is_kept():
    with pytest.raises(
        ValueError, match=r"train\.activation_checkpointing: expected false with train\.compile = inductor"
    ):
        TrainConfig(compile="inductor", activation_checkpointing=True)
