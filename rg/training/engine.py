"""The training engine: the only file that knows DeepSpeed.

It turns a model and a ``RunConfig`` into optimiser steps. The occurrence prior sees the images of all ranks
(``rg.distributed.group``), and so does batch norm if ``train.batch_norm`` says so.
"""

from __future__ import annotations

import atexit
import io
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from timm.utils import ModelEmaV3
from torch import Tensor

from pipelines import plan
from rg.config import OptimizerConfig, RunConfig
from rg.distributed import batch_norm
from rg.distributed.group import Group, collectives
from rg.distributed.ranks import exported
from rg.model.build import Model
from rg.training.parameters import parameter_groups

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # PyTorch's compiler of extensions, which DeepSpeed imports, warns of a CUDA toolkit without a GPU: no fault here.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: not record.getMessage().startswith("No CUDA runtime is found")
    )
os.environ.setdefault("DS_LOG_LEVEL", "error")
if not os.path.isabs(os.path.expanduser("~")):
    # A user without a home, as in containers: what libraries cache there would land in a folder called ~ right here.
    os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
# DeepSpeed compiles its collectives for CPUs with the first ninja on the path. Another one (another Python's, the
# system's) would not know what this one has built and take a minute to build it again, whichever comes next.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

import deepspeed
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

STATES: Mapping[str, Mapping[str, str]] = {  # of an optimiser, and what their names begin with in checkpoints
    "sgd": {"momentum_buffer": ""},
    "adamw": {"exp_avg": "exp_avg.", "exp_avg_sq": "exp_avg_sq."},
}
POLY_POWER = 0.9  # DeepLab (Chen et al., 2018)
STEP = "step"  # how many AdamW has taken, by which it corrects its moments
LARGEST_STAGE = 2
SECTIONS: Mapping[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "comms_logger": CommsLoggerConfig,
}
MEMORY_FORMAT = torch.channels_last
COMPILERS: Mapping[str, Mapping[str, str]] = {
    "inductor": {"backend": "inductor"},
    "cuda_graphs": {"backend": "cudagraphs"},
    "aot_eager": {"backend": "aot_eager"},
}


class _Skipping(torch.optim.Optimizer):
    """An optimiser that can leave out a step, whatever the gradients are.

    Attributes:
        skip: Leave out the next steps.
    """

    skip = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, unless it is to be left out."""
        if not self.skip:
            super().step(closure)


class SGD(_Skipping, torch.optim.SGD):
    """SGD that can leave out a step."""


class AdamW(_Skipping, torch.optim.AdamW):
    """AdamW that can leave out a step."""


def _optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> SGD | AdamW:
    if config.kind == "adamw":
        return AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    return SGD(groups, momentum=config.momentum, fused=True)


class Engine:
    """Forward, backward and step of one rank; all raise a ``PeerLostError`` if another one is lost.

    Args:
        model: On the CPU; moves to the device of the rank. DeepSpeed gets those parameters that require gradients.
        config: Of the run.
        group: All ranks.
        steps_per_epoch: Optimiser steps of an epoch, for the learning-rate schedule.
        deepspeed_settings: How the ranks share the work, see ``rg.training.deepspeed_file``.
        momentum: What ``momentum()`` returned, None at the start.
        averages: State of the moving average of ``train.ema``, None at the start.

    Attributes:
        model: The model that learns.
        evaluated: The model that is validated and saved: the moving average of ``model``, if there is one, else itself.
        lr: Learning rate of the backbone in the last step.
        sizes: Images of a micro batch for every rank.
    """

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        group: Group,
        steps_per_epoch: int,
        deepspeed_settings: Mapping[str, Any] | None = None,
        momentum: Mapping[str, Tensor] | None = None,
        averages: Mapping[str, Tensor] | None = None,
    ) -> None:
        ranks = group.ranks
        self.group, self.model = group, model
        self.sizes = micro_batches(config, ranks.world_size)
        self.lr = config.optimizer.lr
        self._config = config
        if config.train.batch_norm == "sync":
            batch_norm.synchronize(model, ranks.device)
        self._average = ModelEmaV3(model, config.train.ema, use_warmup=True) if config.train.ema else None
        self.evaluated: Model = self._average.module if self._average else model
        if averages and self._average:
            self.evaluated.load_state_dict(averages)
        if config.train.compile != "no":
            model.compile(**COMPILERS[config.train.compile], dynamic=False)
        self._learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._optimizer = _optimizer(parameter_groups(model, config.optimizer), config.optimizer)
        keeps_state = config.optimizer.kind == "adamw" or config.optimizer.momentum > 0
        self._states = STATES[config.optimizer.kind] if keeps_state else {}
        self._base_lrs = [group["lr"] for group in self._optimizer.param_groups]
        self._lr_scale = lr_scale(config.optimizer, config.train.epochs, steps_per_epoch)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        with exported(ranks), collectives():
            with redirect_stdout(io.StringIO()):  # "built successfully"; failures are raised
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
            self._engine, *_ = deepspeed.initialize(
                model=model.to(ranks.device),
                optimizer=self._optimizer,
                dist_init_required=False,
                config=_settings(config, max(self.sizes), ranks.world_size) | dict(deepspeed_settings or {}),
            )
        self.evaluated.to(ranks.device)
        self._sharded = self._engine.zero_optimization()
        if not self._sharded:
            # DeepSpeed 0.19.8 fails in initialize() on channels_last parameters, so the layout changes after it. Stages
            # from 1 on keep parameters as views of one flat tensor.
            model.to(memory_format=MEMORY_FORMAT)
            self.evaluated.to(memory_format=MEMORY_FORMAT)
            self._shorten_reduction()
        if self._states:
            self._start_momentum(momentum or {})
        # After the model has moved, which replaces buffers by new tensors (parameters stay).
        models = [model, self.evaluated] if self._average else [model]
        self._statistics = [value for each in models for value in each.buffers() if value.is_floating_point()]
        self._kept = self.statistics()
        self._let_learn()

    def train_mode(self) -> None:
        """Let the model learn if it has been in evaluation mode."""
        if not self.model.training:
            self._let_learn()

    def _let_learn(self) -> None:
        self.model.train()
        if self._config.train.batch_norm == "frozen":
            batch_norm.freeze(self.model)
        if self._config.model.backbone.frozen_statistics:
            batch_norm.freeze(self.model.backbone)
        if self._config.model.backbone.train == "none":
            self.model.backbone.eval()

    def __call__(self, images: Tensor, *inputs: Tensor, **told: Tensor) -> Any:
        """What the model returns for images [N, 3, H, W] on any device, and its other inputs on that of the rank."""
        with collectives():  # of batch norm
            return self._engine(images.to(self.group.ranks.device, non_blocking=True), *inputs, **told)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro batch; the loss is that of this rank's share, and is averaged over the ranks."""
        with collectives():
            self._engine.backward(loss)

    def step(self, number: int, last: bool, skip: bool = False) -> None:
        """Call after every micro batch; the last one ends optimiser step ``number`` (from 0), which may be left out."""
        if last:
            scale = self._lr_scale(number)
            for parameters, lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
                parameters["lr"] = lr * scale
            self.lr = self._config.optimizer.lr * scale
        self._optimizer.skip = skip
        with collectives():
            self._engine.step()
        if self._average and last and not skip:
            self._average.update(self.model, number + 1)

    @property
    def share(self) -> float:
        """What this rank's mean over its images counts in the mean over all."""
        return self.sizes[self.group.ranks.rank] / sum(self.sizes)

    def statistics(self) -> list[Tensor]:
        """A copy of what the models learn without gradients: running means and variances of this rank."""
        return [buffer.clone() for buffer in self._statistics]

    def set_statistics(self, values: list[Tensor]) -> None:
        """Go back to a copy."""
        torch._foreach_copy_(self._statistics, values)

    def keep_statistics(self) -> None:
        """Remember them in case a step has to be taken back."""
        torch._foreach_copy_(self._kept, self._statistics)  # one kernel on a GPU

    def take_back_statistics(self) -> None:
        """Go back to those that were kept."""
        self.set_statistics(self._kept)

    @contextmanager
    def averaged_statistics(self) -> Iterator[None]:
        """Inside, running means and variances are averages over the images of all ranks, which else keep their own."""
        if self.group.ranks.world_size == 1:
            yield
            return
        own = self.statistics()
        flat = self.group.sum(self.share * torch.cat([value.flatten() for value in own]))
        pieces = flat.split([value.numel() for value in own])
        self.set_statistics([piece.view_as(value) for piece, value in zip(pieces, own, strict=True)])
        yield
        self.set_statistics(own)

    def has_finite_weights(self) -> bool:
        """Whether no weight has become infinite or NaN."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the model that is evaluated, copied to the CPU."""
        return {name: _copy(value) for name, value in self.evaluated.state_dict().items()}

    def trained_weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the model that learns, copied to the CPU."""
        return {name: _copy(value) for name, value in self.model.state_dict().items()}

    def momentum(self) -> dict[str, Tensor]:
        """What the optimiser keeps of the parameters by their names, copied to the CPU; all ranks call this."""
        states = {
            f"{prefix}{name}": _copy(self._state(parameter, state))
            for state, prefix in self._states.items()
            for name, parameter in self._learning.items()
        }
        steps = [state[STEP] for state in self._optimizer.state.values() if STEP in state]
        return states | ({STEP: _copy(max(steps))} if steps else {})

    def _state(self, parameter: Tensor, state: str) -> Tensor:
        if not self._sharded:
            return self._optimizer.state[parameter][state]
        with collectives():
            return safe_get_full_optimizer_state(parameter, state)

    def _shorten_reduction(self) -> None:
        """Let DeepSpeed average gradients with fewer copies, and those of a single rank not at all.

        At stage 0 it makes every gradient contiguous, one tensor of all, and copies its pieces back one by one, for a
        single rank as well: of ResNet-101 that is more than half of the operations of a backward pass.
        """
        if self.group.ranks.world_size == 1:
            self._engine.enable_backward_allreduce = False
            return
        reduce = self._engine.allreduce_bucket

        def reduce_and_copy(gradients: list[Tensor], *options: Any) -> None:
            # As runs of numbers: autograd gives gradients the strides of their parameters, the same on all ranks.
            runs = [gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients]
            torch._foreach_copy_(runs, self._engine.unflatten(reduce(runs, *options), runs))

        self._engine.allreduce_and_copy = reduce_and_copy

    def _start_momentum(self, values: Mapping[str, Tensor]) -> None:
        """State of the optimiser from the start, because DeepSpeed can only tell and change what is there."""
        flat = self._engine.optimizer.single_partition_of_fp32_groups if self._sharded else self._learning.values()
        for parameter in flat:
            # In the layout of the parameter: the fused step takes all tensors of one for runs of numbers.
            own = {state: torch.zeros_like(parameter, memory_format=torch.preserve_format) for state in self._states}
            if self._config.optimizer.kind == "adamw":
                own[STEP] = values.get(STEP, torch.zeros(())).to(parameter.device, copy=True)
            self._optimizer.state[parameter].update(own)
        if self._sharded:
            # DeepSpeed itself links the states after the first step, when only those of the first parameters exist.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for state, prefix in self._states.items():
            for name, parameter in self._learning.items():
                if (value := values.get(f"{prefix}{name}")) is None:
                    continue
                if self._sharded:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), state)
                else:
                    self._optimizer.state[parameter][state].copy_(value)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


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


def check_compiler(config: RunConfig, device: torch.device) -> None:
    """Look for what ``train.compile`` needs before anything is computed.

    Raises:
        ValueError: there is no compiler: of C++ for a CPU, whose kernels inductor writes in it, of C for a GPU, where
            Triton makes what starts them. Or there is no GPU for CUDA graphs.
    """
    if config.train.compile == "cuda_graphs" and device.type == "cpu":
        raise ValueError("train.compile: expected no, inductor or aot_eager on a CPU, got cuda_graphs")
    if config.train.compile != "inductor":
        return
    usual = ("clang++" if sys.platform == "darwin" else "g++",) if device.type == "cpu" else ("gcc", "clang")
    name, language = ("CXX", "C++") if device.type == "cpu" else ("CC", "C")
    compilers = (os.environ[name],) if name in os.environ else usual
    if not any(map(shutil.which, compilers)):
        raise ValueError(
            f"train.compile: inductor needs a {language} compiler on a {device.type.upper().replace('CUDA', 'GPU')}, "
            f"expected {' or '.join(compilers)}, found none"
        )


def micro_batches(config: RunConfig, world_size: int) -> list[int]:
    """Images of a micro batch for every rank: equal, or different by one.

    Raises:
        ValueError: there are too few.
    """
    images = config.train.global_batch // config.train.accumulation
    shares = [plan.shard_range(images, rank, world_size) for rank in range(world_size)] if images >= world_size else []
    sizes = [end - first for first, end in shares] or [0]
    if min(sizes) < 1 or (min(sizes) < 2 and config.train.batch_norm == "local"):
        raise ValueError(
            f"train.global_batch: {config.train.global_batch} images leave {min(sizes)} for each of {world_size} ranks "
            f"x {config.train.accumulation} micro batches; batch norm needs at least 2"
        )
    if (config.input.mixup or config.input.cutmix) and any(size % 2 for size in sizes):
        accumulation = config.train.accumulation
        raise ValueError(
            f"train.global_batch: {config.train.global_batch} images leave an odd number for a rank, and neighbours "
            f"are mixed (input.mixup, input.cutmix); take a multiple of {2 * world_size * accumulation} = "
            f"2 x {world_size} ranks x {accumulation} micro batches"
        )
    return sizes


def lr_scale(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> Any:
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
