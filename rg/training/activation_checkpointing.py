"""Activation checkpointing: what happens inside the blocks of a backbone is computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(backbone: nn.Module) -> int:
    """Let the blocks of a backbone keep their inputs alone for the backward pass.

    Gradients and running statistics are what they are otherwise, to the bit where the device computes the same twice.

    Args:
        backbone: Changed in place.

    Returns:
        How many blocks there are; 0 if the backbone is not made of blocks.
    """
    blocks = blocks_of(backbone)
    for block in blocks.values():
        block.forward = functools.partial(_forward, block, block.forward)
    return len(blocks)


def blocks_of(backbone: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a backbone by their names, from the images to the head.

    They are what its innermost rows of composed modules consist of: bottlenecks, inverted residuals, transformer
    layers.
    """
    rows = [(name, row) for name, row in backbone.named_modules() if _is_row_of_blocks(row)]
    return {f"{name}.{number}": block for name, row in rows for number, block in row.named_children()}


def _is_row_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a row of modules that are composed of others, but of no rows of blocks."""
    children = list(module.children()) if _is_row(module) else []
    return bool(children) and all(
        any(child.children()) and not _is_row(child) and not any(map(_is_row_of_blocks, child.modules()))
        for child in children
    )


def _is_row(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _forward(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _untracked(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms do not count what they see: they have seen it before."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm)]
    tracking = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, tracking, strict=True):
        # They must go on tracking, or autograd would find other tensors than those of the forward pass.
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, tracking, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
