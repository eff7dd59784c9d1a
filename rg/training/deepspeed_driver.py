"""DeepSpeed drives a model and its optimiser: the only file that knows it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from rg.config import RunConfig
from rg.distributed.group import Group, collectives
from rg.distributed.ranks import exported
from rg.model.build import Model
from rg.training.optimizers import SGD, AdamW, first_state, states

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # PyTorch's compiler of extensions, which DeepSpeed imports, warns of a CUDA toolkit without a GPU: no fault here.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: not record.getMessage().startswith("No CUDA runtime is found")
    )
os.environ.setdefault("DS_LOG_LEVEL", "error")
# DeepSpeed compiles its collectives for CPUs with the first ninja on the path. Another one (another Python's, the
# system's) would not know what this one has built and take a minute to build it again, whichever comes next.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

import deepspeed
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

LARGEST_STAGE = 2
SECTIONS: Mapping[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "comms_logger": CommsLoggerConfig,
}


class DeepSpeedDriver:
    """See ``rg.training.engine.Driver``.

    Args:
        model: On the CPU; moves to the device of the rank. DeepSpeed gets those parameters that require gradients.
        optimizer: Of the model.
        config: Of the run.
        group: All ranks.
        micro_batch: Images of a rank, at most; for DeepSpeed's own log.
        memory_format: Of the parameters at stage 0.
        settings: How the ranks share the work, see ``rg.training.deepspeed_file``.
        step: How many steps AdamW has taken, None at the start.
    """

    def __init__(
        self,
        model: Model,
        optimizer: SGD | AdamW,
        config: RunConfig,
        group: Group,
        micro_batch: int,
        memory_format: torch.memory_format,
        settings: Mapping[str, Any],
        step: Tensor | None,
    ) -> None:
        self._optimizer = optimizer
        self._world_size = group.ranks.world_size
        backend = "nccl" if group.ranks.device.type == "cuda" else "gloo"
        with exported(group.ranks), collectives():
            with redirect_stdout(io.StringIO()):  # "built successfully"; failures are raised
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
            self._engine, *_ = deepspeed.initialize(
                model=model.to(group.ranks.device),
                optimizer=optimizer,
                dist_init_required=False,
                config=_settings(config, micro_batch, self._world_size) | dict(settings),
            )
        self.sharded = bool(self._engine.zero_optimization())
        if not self.sharded:
            # DeepSpeed 0.19.8 fails in initialize() on channels_last parameters, so the layout changes after it. Stages
            # from 1 on keep parameters as views of one flat tensor.
            model.to(memory_format=memory_format)
            self._shorten_reduction()
        if states(config.optimizer):
            self._start_state(model, config, step)

    def __call__(self, *inputs: Tensor, **told: Tensor) -> Any:
        """What the model returns."""
        return self._engine(*inputs, **told)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro batch."""
        self._engine.backward(loss)

    def step(self) -> None:
        """End a micro batch, and with the last one of a step clip the gradients and let the optimiser step."""
        self._engine.step()

    def state(self, parameter: Tensor, name: str) -> Tensor:
        """What the optimiser keeps of a parameter under a name, whole; all ranks call this."""
        if not self.sharded:
            return self._optimizer.state[parameter][name]
        return safe_get_full_optimizer_state(parameter, name)

    def set_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Replace that."""
        if self.sharded:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)
        else:
            self._optimizer.state[parameter][name].copy_(value)

    def _shorten_reduction(self) -> None:
        """Let DeepSpeed average gradients with fewer copies, and those of a single rank not at all.

        At stage 0 it makes every gradient contiguous, one tensor of all, and copies its pieces back one by one, for a
        single rank as well: of ResNet-101 that is more than half of the operations of a backward pass.
        """
        if self._world_size == 1:
            self._engine.enable_backward_allreduce = False
            return
        reduce = self._engine.allreduce_bucket

        def reduce_and_copy(gradients: list[Tensor], *options: Any) -> None:
            # As runs of numbers: autograd gives gradients the strides of their parameters, the same on all ranks.
            runs = [gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients]
            torch._foreach_copy_(runs, self._engine.unflatten(reduce(runs, *options), runs))

        self._engine.allreduce_and_copy = reduce_and_copy

    def _start_state(self, model: Model, config: RunConfig, step: Tensor | None) -> None:
        """State of the optimiser from the start, because DeepSpeed can only tell and change what is there."""
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = self._engine.optimizer.single_partition_of_fp32_groups if self.sharded else learning
        for parameter in flat:
            self._optimizer.state[parameter].update(first_state(parameter, config.optimizer, step))
        if self.sharded:
            # DeepSpeed itself links the states after the first step, when only those of the first parameters exist.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()


def _settings(config: RunConfig, micro_batch: int, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is told of the run. It uses the batch sizes for its own log only."""
    return {
        "train_batch_size": micro_batch * config.train.accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.train.accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "torch_autocast": {"enabled": config.train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31 - 1,
        "zero_allow_untested_optimizer": True,  # SGD, and AdamW that can leave out a step
    }
