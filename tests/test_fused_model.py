"""The model and its training on the fused kernels: on a CPU under TRITON_INTERPRET=1, against plain PyTorch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from kernels import operators
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, ModelConfig
from rg.model import RegionGroupingModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not operators.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]


def test_a_few_steps_of_the_demo(small_birds, tmp_path):
    """Weights and losses after three steps, kernels interpreted and not.

    Both round in float32, 2^-24; the loss of a step of rate 0.04 hands the difference on. Three steps leave 1e-4 of the
    largest weight of a tensor, a wrong term in a gradient far more (see the last assertion).
    """
    out, weights, losses = {}, {}, {}
    for name, interpreted, seed in (("fused", "1", 0), ("plain", "0", 0), ("other", "0", 1)):
        out[name] = tmp_path / name
        settings = {
            "input.short_side": 72,
            "input.crop": 64,
            "input.test_crop": 64,
            "model.grouping.num_parts": 3,
            "train.epochs": 1,
            "train.global_batch": 10,
            "train.log_steps": 1,
            "train.validate_epochs": 0,
            "seed": seed,
        }
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "rg", "train", "birds_lite0", "--data", small_birds, "--out", out[name]]
        environment = os.environ | {"TRITON_INTERPRET": interpreted}
        done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        weights[name] = load_file(out[name] / "model.safetensors")
        lines = [json.loads(line) for line in (out[name] / "metrics.jsonl").read_text().splitlines()]
        losses[name] = torch.tensor([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses["fused"]) >= 3
    torch.testing.assert_close(losses["fused"], losses["plain"], rtol=1e-3, atol=0)

    def distance(one, other):
        floats = [name for name, tensor in weights[one].items() if tensor.is_floating_point() and tensor.any()]
        return max(
            ((weights[one][name] - weights[other][name]).abs().max() / weights[other][name].abs().max()).item()
            for name in floats
        )

    assert distance("fused", "plain") < 1e-3
    assert distance("other", "plain") > 1e-2


def test_the_whole_model_is_one_graph():
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name="tf_efficientnet_lite0", weights="none"),
        grouping=GroupingConfig(num_parts=3, smoothing_padding="same"),
        head=HeadConfig(region_channels=32, region_width=16, region_blocks=1, attention_width=8),
    )
    model = RegionGroupingModel(config, num_classes=5)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    calls = []

    def backend(graph, _):
        calls.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    expected = model.eval()(images)
    found = torch.compile(model, fullgraph=True, backend=backend)(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert len(calls) == 1
    assert [name for name in calls[0] if name.startswith("region_grouping")] == [
        "region_grouping.region_grouping.default",
        "region_grouping.part_occurrence.default",
    ]
