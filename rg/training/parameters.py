"""Which parameters of a model learn, and how fast."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rg.config import BackboneConfig, OptimizerConfig
from rg.model.build import Model
from rg.training.activation_checkpointing import blocks_of

# Class, register and distillation tokens, and position embeddings and biases, by the names that timm gives them.
TOKEN = re.compile(r"\w+_token$|(\w*pos_emb\w*|\w*position\w*|rel_pos\w*)(\.|$)")


def choose_learning(model: Model, config: BackboneConfig) -> None:
    """Let those parameters of the backbone learn that ``model.backbone.train`` names; new layers always do.

    Nothing is computed backwards for the others: autograd records what a learning parameter or pixel needs alone.

    Raises:
        ValueError: tokens are to learn, and the backbone has none.
    """
    if config.train == "all":
        return
    names = {name for name, _ in model.backbone.named_parameters()}
    tokens = {name for name in names if TOKEN.search(name)}
    if config.train == "tokens" and not tokens:
        raise ValueError(
            f"model.backbone.train: expected all or none, as {config.name} has no tokens or positions, got tokens"
        )
    learning = tokens | _of_norms(model.backbone) if config.train == "tokens" else set()
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name in learning)


def _of_norms(backbone: nn.Module) -> set[str]:
    """Names of the weights and biases of normalisation layers."""
    norms = [(name, module) for name, module in backbone.named_modules() if "Norm" in type(module).__name__]
    return {f"{name}.{own}" for name, module in norms for own, _ in module.named_parameters(recurse=False)}


def parameter_groups(model: Model, config: OptimizerConfig) -> list[dict[str, Any]]:
    """What learns, in groups with a learning rate (``lr``) and a ``weight_decay`` each, as optimisers take them.

    Raises:
        ValueError: a pattern of ``optimizer.rates`` matches nothing, or ``optimizer.depth_decay`` finds no blocks.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = _rates(list(names.values()), config)
    if config.depth_decay < 1:
        by_depth = _depth_factors(model, config)
        factors = {name: factor * by_depth[name] for name, factor in factors.items()}
    groups: dict[tuple[int, float, float], dict[str, Any]] = {}
    scales = (1.0, config.new_layer_lr_scale)
    for place, (parameters, scale) in enumerate(zip(model.parameter_groups(), scales, strict=True)):
        for parameter in parameters:
            if name := names.get(id(parameter)):
                shrinks = config.kind == "sgd" or (parameter.ndim > 1 and not TOKEN.search(name))
                lr, decay = config.lr * scale * factors[name], config.weight_decay if shrinks else 0.0
                group = groups.setdefault((place, lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
                group["params"].append(parameter)
    return list(groups.values())


def _rates(names: list[str], config: OptimizerConfig) -> dict[str, float]:
    """Factors of the learning rates of parameters by ``optimizer.rates``."""
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in config.rates.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.0)
            raise ValueError(
                f"optimizer.rates: {pattern!r} matches no parameter that learns; there are such as {', '.join(near)}"
            )
        for name in matching:
            factors[name] *= factor
    return factors


def _depth_factors(model: Model, config: OptimizerConfig) -> dict[str, float]:
    """Factors of the learning rates of parameters by ``optimizer.depth_decay``; 1 behind the last block."""
    blocks = [f"backbone.{name}." for name in blocks_of(model.backbone)]
    if not blocks:
        raise ValueError(
            f"optimizer.depth_decay: expected 1, as the backbone is not made of blocks, got {config.depth_decay}"
        )
    factors, depth = {}, 0
    for name, _ in model.named_parameters():
        inside = [number for number, block in enumerate(blocks, 1) if name.startswith(block)]
        if inside:
            depth = inside[0]
        elif depth == len(blocks) or not name.startswith("backbone."):
            factors[name] = 1.0
            continue
        factors[name] = config.depth_decay ** (len(blocks) + 1 - depth)
    return factors
