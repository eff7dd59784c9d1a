"""Checkpoints of the authors' public code (zxhuang1698/interpretability-by-parts), made into runs and back.

Both programs compute the same outputs; what differs is how the tensors are named and stored:

their names                                  ours
conv1, bn1, layer1, layer2, layer3           backbone.features.*
grouping.weight [K, C, 1, 1]                 dictionary.centers [K, C]
grouping.smooth_factor [K]                   dictionary.raw_sigma [K]; in both, 2 sigma^2 is its sigmoid
post_block.{b}                               region_transform.blocks.{b}
groupingbn                                   classifier.norm
one label per image (CUB-200)
    attconv.{0, 1, 2, 3}                     attention.layers.{0, 1, 2, 3}
    mylinear                                 classifier.linear
attributes (CelebA), for every attribute i
    attconv.{i}.{3 j}, .{3 j + 1}            attention.layers.{j}, attention.norms.{j}
    nonlinear.{i}.conv{j + 1}, .bn{j + 1}    classifier.layers.{j}, classifier.norms.{j}
    mylinear.{i}                             classifier.weight, classifier.bias

A 1x1 convolution [out, in, 1, 1] of theirs is a linear layer here, and the layers of all attributes are one tensor.
Names start with ``module.`` where the authors' model was wrapped in DataParallel. They normalise pixels before the
model, with the mean and standard deviation of ImageNet; here the backbone does. Two statistics of the training images,
``PartDictionary.border`` and ``attention_share``, are not in their files: a run made from one calls no part background,
and a file made from a run has lost them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipelines.files import atomic_write, check_file, check_folder, sha256, write_json
from rg.config import ModelConfig, RunConfig, flatten
from rg.model.backbones import RESNETS
from rg.model.region_grouping import RegionGroupingModel
from rg.model.weights import load_weights
from rg.runs.environment import environment
from rg.runs.folder import (
    PART_NAMES,
    RECORD,
    Classes,
    check_labelled,
    load_config,
    load_region_grouping,
    save_config,
    save_weights,
)

logger = logging.getLogger(__name__)

PREFIX = "module."
SETTINGS = {
    "model.kind": "region_grouping",
    "model.sampler.kind": "none",
    "model.place.on": False,
    "model.backbone.stride": 16,
    "model.backbone.fused_strides": [],
    "model.backbone.dilated": False,
    "model.grouping.background": False,
    "model.grouping.centered": False,
    "model.grouping.standardize": False,
    "model.head.attention": True,
    "model.head.region_channels": 2048,
    "model.head.region_width": 512,
    "model.head.region_blocks": 4,
    "model.head.attention_width": 256,
}
OURS_ALONE = ("attention_share", "dictionary.border", "backbone.pixel_mean", "backbone.pixel_std")
RENAMED = {
    "backbone.features.": "",
    "dictionary.centers": "grouping.weight",
    "dictionary.raw_sigma": "grouping.smooth_factor",
    "region_transform.blocks.": "post_block.",
    "attention.layers.": "attconv.",
    "classifier.norm.": "groupingbn.",
    "classifier.linear.": "mylinear.",
}
OF_AN_ATTRIBUTE = {
    "attention.layers.0": "attconv.{}.0",
    "attention.norms.0": "attconv.{}.1",
    "attention.layers.1": "attconv.{}.3",
    "attention.norms.1": "attconv.{}.4",
    "attention.layers.2": "attconv.{}.6",
    "attention.norms.2": "attconv.{}.7",
    "classifier.layers.0": "nonlinear.{}.conv1",
    "classifier.norms.0": "nonlinear.{}.bn1",
    "classifier.layers.1": "nonlinear.{}.conv2",
    "classifier.norms.1": "nonlinear.{}.bn2",
    "classifier.layers.2": "nonlinear.{}.conv3",
    "classifier.norms.2": "nonlinear.{}.bn3",
    "classifier": "mylinear.{}",
}


def import_checkpoint(
    path: Path,
    config: RunConfig,
    classes: Classes,
    out: Path,
    command: str | None = None,
    recipe: str | None = None,
) -> None:
    """Make a run folder from a checkpoint, for ``evaluate`` and ``explain``.

    The number of parts is that of the checkpoint, whatever the configuration says.

    Args:
        path: ``.pth.tar`` of the authors' code, or a bare state dict; nothing that could run code is unpickled.
        config: Of the run; it has to name the backbone of the checkpoint.
        classes: What the outputs mean, in the order of the labels that it was trained with.
        out: Run folder to write, new or empty.
        command: For the record.
        recipe: Where the configuration comes from, for the record.

    Raises:
        ValueError: the folder is not empty; the file cannot be read; the configuration is not of the authors'
            architecture; or a tensor is missing, of another shape or dtype, or not of this model.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out: expected a new or an empty folder, but {out} holds {min(out.iterdir()).name}")
    check_folder(out, "out")
    _check_architecture(config.model)
    state = load_weights(path, "checkpoint")
    if all(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    config = _with_parts_of(state, config, path)
    _check_classes(state, classes, path)
    model = RegionGroupingModel(config.model, len(classes.names), classes.multi_label, pretrained=False)
    _fill(model, state, path)

    record = {
        "recipe": recipe,
        "command": command,
        "imported": {"file": str(path.resolve()), "sha256": sha256(path)},
        "environment": environment(),
    }
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_config(partial, config, classes)
        save_weights(partial, model)
        write_json(partial / RECORD, record)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def export_checkpoint(run: Path, path: Path) -> None:
    """Write the model of a run as a checkpoint that the authors' code loads: ``{"state_dict": ...}``, all or nothing.

    Args:
        run: Run folder with the authors' architecture.
        path: File to write.

    Raises:
        ValueError: the run cannot be loaded or has another architecture, or the file exists.
    """
    if path.exists():
        raise ValueError(f"out: {path} exists; choose another file")
    check_file(path, "out")
    config, _ = load_config(run)
    check_labelled(run, config)
    _check_architecture(config.model)
    model, _, _ = load_region_grouping(run)
    if model.edits:
        raise ValueError(f"{run / PART_NAMES}: the authors' code has no such thing as {model.edits}; take it out first")
    state = {
        PREFIX + name: value.clone(memory_format=torch.contiguous_format)
        for name, value in authors_state(model).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        # The file format before PyTorch 1.6, which is younger than the authors' code.
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)


def authors_state(model: RegionGroupingModel) -> dict[str, Tensor]:
    """The tensors of a model under the names and in the shapes of the authors' code.

    They are views: what is copied into them is in the model. The count of batches of a batch norm that all attributes
    share is there once for each of them.

    Args:
        model: With the authors' architecture.
    """
    views: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        owner, _, tensor = name.rpartition(".")
        if name in OURS_ALONE:
            continue
        if model.multi_label and owner in OF_AN_ATTRIBUTE:
            pieces = value.chunk(model.num_classes) if value.ndim else [value] * model.num_classes
            for attribute, piece in enumerate(pieces):
                # Weights of a convolution are [1, in, out] here.
                view = piece.permute(2, 1, 0).unsqueeze(3) if piece.ndim == 3 else piece
                views[f"{OF_AN_ATTRIBUTE[owner].format(attribute)}.{tensor}"] = view
        else:
            ours = next(prefix for prefix in RENAMED if name.startswith(prefix))
            is_convolution = value.ndim == 2 and owner != "classifier.linear"
            views[RENAMED[ours] + name.removeprefix(ours)] = value[:, :, None, None] if is_convolution else value
    return views


def _check_architecture(config: ModelConfig) -> None:
    """Refuse a model that the authors' code does not build."""
    if config.backbone.name not in RESNETS:
        raise ValueError(
            f"model.backbone.name: the authors' code has {' and '.join(RESNETS)}, got {config.backbone.name!r}"
        )
    got = flatten(dataclasses.asdict(config), "model.")
    for name, expected in SETTINGS.items():
        if got[name] != expected:
            raise ValueError(f"{name}: the authors' code has {expected!r}, got {got[name]!r}")


def _with_parts_of(state: Mapping[str, Tensor], config: RunConfig, path: Path) -> RunConfig:
    grouping = config.model.grouping
    factors = state.get("grouping.smooth_factor")
    if factors is None or factors.ndim != 1 or len(factors) == grouping.num_parts:
        return config
    logger.info("model.grouping.num_parts: %d as in %s instead of %d", len(factors), path, grouping.num_parts)
    grouping = dataclasses.replace(grouping, num_parts=len(factors))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, grouping=grouping))


def _check_classes(state: Mapping[str, Tensor], classes: Classes, path: Path) -> None:
    """Refuse names of something else; a file without a classifier is left to the check of its tensors."""
    attributes = sum(bool(re.fullmatch(r"mylinear\.\d+\.weight", name)) for name in state)
    count = attributes or state.get("mylinear.bias", torch.empty(0)).numel()
    expected = f"{count} {'attributes' if attributes else 'classes'}"
    got = f"{len(classes.names)} {'attributes' if classes.multi_label else 'classes'}"
    if count and expected != got:
        raise ValueError(f"classes: {path} was trained on {expected}, got the names of {got}")


def _fill(model: RegionGroupingModel, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy every tensor to its place."""
    views = authors_state(model)
    grouping, backbone = model.config.grouping, model.config.backbone
    misfit = f"{path}: does not fit {backbone.name} with {grouping.num_parts} parts and {model.num_classes} outputs"
    for name, view in views.items():
        if name not in state:
            raise ValueError(f"{misfit}: lacks {name}, expected {_form(view)}")
        if _form(state[name]) != _form(view):
            raise ValueError(f"{misfit}: {name}: expected {_form(view)}, got {_form(state[name])}")
    for name, value in state.items():
        if name not in views:
            raise ValueError(f"{misfit}: did not expect {name}, which is {_form(value)}")
    for name, view in views.items():
        view.copy_(state[name])
    for name, view in views.items():
        if name.endswith("num_batches_tracked") and view != state[name]:
            raise ValueError(f"{path}: {name}: expected {view} as for the last attribute, got {state[name]}")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
