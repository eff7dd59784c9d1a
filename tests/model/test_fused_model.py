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
from rg.model.region_grouping import RegionGroupingModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not operators.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]


def test_a_few_steps_of_the_demo(small_birds, tmp_path):
    """What four steps change of the weights, kernels interpreted and not.

    Both round in float32, and training hands the difference on, the faster the higher the rate. At 0.001 the providers
    differ by 1.6e-3 of the whole change, one thread and two by as much, and in the dictionary by 3e-5.
    """
    weights, losses = {}, {}
    for name, interpreted, rate in (("fused", "1", 1e-3), ("plain", "0", 1e-3), ("start", "0", 1e-12)):
        settings = {
            "input.short_side": 72,
            "input.crop": 64,
            "input.test_crop": 64,
            "model.grouping.num_parts": 3,
            "train.epochs": 1,
            "train.global_batch": 10,
            "train.log_steps": 1,
            "train.validate_epochs": 0,
            "optimizer.lr": rate,
        }
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        out = tmp_path / name
        command = [sys.executable, "-m", "rg", "train", "birds_lite0", "--data", small_birds, "--out", out]
        environment = os.environ | {"TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        weights[name] = load_file(out / "model.safetensors")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = torch.tensor([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses["fused"]) == 4
    torch.testing.assert_close(losses["fused"], losses["plain"], rtol=1e-4, atol=0)

    buffers = ("running", "num_batches", "border", "attention_share")
    parameters = [name for name in weights["start"] if not any(word in name for word in buffers)]

    def difference(one, other, names):
        return torch.cat([(weights[one][name] - weights[other][name]).flatten() for name in names]).norm()

    for names, limit in ((parameters, 1e-2), (["dictionary.centers"], 1e-3), (["dictionary.raw_sigma"], 1e-3)):
        change = difference("plain", "start", names)
        assert change > 0
        assert difference("fused", "plain", names) <= limit * change


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
