"""PyTorch's own distributed data parallel drives a model and its optimiser."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rg.config import RunConfig
from rg.distributed.group import Group
from rg.model.build import Model
from rg.training.optimizers import SGD, AdamW, first_state


class DdpDriver:
    """See ``rg.training.engine.Driver``.

    Args:
        model: On the CPU; moves to the device of the rank.
        optimizer: Of the model.
        config: Of the run.
        group: All ranks.
        memory_format: Of the parameters.
        step: How many steps AdamW has taken, None at the start.
    """

    sharded = False

    def __init__(
        self,
        model: Model,
        optimizer: SGD | AdamW,
        config: RunConfig,
        group: Group,
        memory_format: torch.memory_format,
        step: Tensor | None,
    ) -> None:
        device = group.ranks.device
        model.to(device).to(memory_format=memory_format)
        self._optimizer = optimizer
        self._accumulation, self._micro = config.train.accumulation, 0
        self._clip_norm = config.optimizer.clip_norm
        self._autocast = (device.type, torch.bfloat16, config.train.precision == "bf16")
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._learning:
            optimizer.state[parameter].update(first_state(parameter, config.optimizer, step))
        self._model: nn.Module = model
        if group.ranks.world_size > 1:
            self._model = _parallel(model)

    def __call__(self, *inputs: Tensor, **told: Tensor) -> Any:
        """What the model returns."""
        with self._apart(), torch.autocast(*self._autocast):
            return self._model(*inputs, **told)

    def _apart(self) -> AbstractContextManager[None]:
        """Ranks add up gradients on their own, before the last micro batch of a step."""
        if self._micro + 1 == self._accumulation or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro batch."""
        (loss / self._accumulation).backward()

    def step(self) -> None:
        """End a micro batch, and with the last one of a step clip the gradients and let the optimiser step."""
        self._micro = (self._micro + 1) % self._accumulation
        if self._micro:
            return
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._learning, self._clip_norm, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self, parameter: Tensor, name: str) -> Tensor:
        """What the optimiser keeps of a parameter under a name."""
        return self._optimizer.state[parameter][name]

    def set_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Replace that."""
        self._optimizer.state[parameter][name].copy_(value)


def _parallel(model: Model) -> DistributedDataParallel:
    """Ranks average gradients in buckets that stay what they are, so that a resumed run sums in the same order.

    Without a look for unused parameters, DDP makes other buckets after the first step.
    """
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    with warnings.catch_warnings():
        # PyTorch 2.14 wants a new word that earlier ones do not know, and says that this one stays right for this.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
        )
