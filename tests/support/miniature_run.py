"""A run folder as training leaves it, of a small network with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipelines.files import write_json
from pipelines.shards.manifest import Manifest
from rg.config import BackboneConfig, GroupingConfig, HeadConfig, InputConfig, ModelConfig, RunConfig
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.environment import environment
from rg.runs.folder import HISTORY, RECORD, Classes, save_config, save_weights

CONFIG = RunConfig(
    model=ModelConfig(
        BackboneConfig(name="resnet18", weights="none"),
        GroupingConfig(num_parts=4, smoothing_padding="same"),
        HeadConfig(region_channels=16, region_width=8, region_blocks=1, attention_width=8),
    ),
    input=InputConfig(short_side=64, crop=64),
)


def build(folder: Path, data: Path, config: RunConfig = CONFIG) -> Path:
    """Write the run folder of a model for the classes of shards; ``evaluate`` and ``report`` take it.

    Args:
        folder: To make.
        data: Folder of the shards.
        config: Of the run.

    Returns:
        The folder.
    """
    manifest = Manifest.load(data)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_config(folder, config, Classes(tuple(manifest.classes)))
    save_weights(folder, RegionGroupingModel(config.model, len(manifest.classes)))
    record = {
        "command": "python -m rg train",
        "recipe": "birds_lite0",
        "data": {"folder": str(data), "dataset": manifest.dataset, "options": manifest.options, "shards": []},
        "ranks": 1,
        "device": "cpu",
        "environment": environment(),
    }
    write_json(folder / RECORD, record)
    losses = {"loss": 2.0, "classification_loss": 1.5, "prior_loss": 0.5, "accuracy": 0.25, "lr": 0.01}
    lines = [json.dumps({"kind": "train", "step": step, **losses}) + "\n" for step in (1, 2)]
    (folder / HISTORY).write_text("".join(lines))
    return folder
