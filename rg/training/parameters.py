"""Which parameters of a model learn."""

from __future__ import annotations

import re

from torch import nn

from rg.config import BackboneConfig
from rg.model.build import Model

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
