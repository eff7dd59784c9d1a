"""Optimisers that can leave out a step, what they keep, and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rg.config import OptimizerConfig

STATES: Mapping[str, Mapping[str, str]] = {  # of an optimiser, and what their names begin with in checkpoints
    "sgd": {"momentum_buffer": ""},
    "adamw": {"exp_avg": "exp_avg.", "exp_avg_sq": "exp_avg_sq."},
}
STEP = "step"  # how many AdamW has taken, by which it corrects its moments
POLY_POWER = 0.9  # DeepLab (Chen et al., 2018)


class _Skipping(torch.optim.Optimizer):
    """An optimiser that can leave out a step, whatever the gradients are.

    Attributes:
        skip: Leave out the next steps.
        found_inf: Leave them out on the device where this scalar is 1, which the host need not know. The name is that
            of PyTorch, whose gradient scaler asks for the same.
    """

    skip = False
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, unless it is to be left out."""
        if not self.skip:
            super().step(closure)


class SGD(_Skipping, torch.optim.SGD):
    """SGD that can leave out a step."""


class AdamW(_Skipping, torch.optim.AdamW):
    """AdamW that can leave out a step."""


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, rates_on: torch.device | None = None
) -> SGD | AdamW:
    """The optimiser of a run.

    Args:
        groups: As ``rg.training.parameters`` makes them.
        config: Of the optimiser.
        rates_on: Where learning rates are to be tensors, which a CUDA graph reads in every replay; None: they are
            plain numbers.
    """
    if rates_on is not None:
        groups = [group | {"lr": torch.tensor(group["lr"], device=rates_on)} for group in groups]
    if config.kind == "adamw":
        capturable = rates_on is not None
        return AdamW(groups, betas=config.betas, eps=config.eps, fused=True, capturable=capturable)
    return SGD(groups, momentum=config.momentum, fused=True)


def states(config: OptimizerConfig) -> Mapping[str, str]:
    """What the optimiser keeps of every parameter, and what its names begin with in checkpoints."""
    return STATES[config.kind] if config.kind == "adamw" or config.momentum > 0 else {}


def first_state(parameter: Tensor, config: OptimizerConfig, step: Tensor | None) -> dict[str, Tensor]:
    """State of a parameter before the first step: zeros; ``step`` is how many AdamW has taken, None for 0."""
    # In the layout of the parameter: the fused step takes all tensors of one for runs of numbers.
    state = {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in states(config)}
    if config.kind == "adamw":
        state[STEP] = torch.zeros((), device=parameter.device) if step is None else step.to(parameter.device, copy=True)
    return state


def lr_scale(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """step -> factor of the learning rate: linear warm-up, then to zero or in steps, anew after every restart."""
    warmup = config.warmup_epochs * steps_per_epoch
    begins = [epoch * steps_per_epoch for epoch in (0, *config.restarts)]
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        begin = max(begin for begin in begins if begin <= step)
        end = min((later for later in begins if later > step), default=epochs * steps_per_epoch)
        first = max(begin, warmup)
        progress = (step - first) / max(1, end - first)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if config.schedule == "poly":
            return max(0.0, 1 - progress) ** POLY_POWER
        return config.gamma ** sum(begin < milestone <= step for milestone in milestones)

    return scale
