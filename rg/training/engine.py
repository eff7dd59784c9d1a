"""The training engine: turns a model and a ``RunConfig`` into optimiser steps.

Forward, backward and the step itself are left to a driver, DeepSpeed's or PyTorch's own (``train.engine``). The
occurrence prior sees the images of all ranks (``rg.distributed.group``), and so does batch norm if ``train.batch_norm``
says so.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from pipelines import plan
from rg.config import RunConfig
from rg.distributed import batch_norm
from rg.distributed.group import Group, collectives
from rg.distributed.ranks import Ranks
from rg.model.build import Model
from rg.training.optimizers import STEP, build_optimizer, lr_scale, states
from rg.training.parameters import parameter_groups

if not os.path.isabs(os.path.expanduser("~")):
    # A user without a home, as in containers: what libraries cache there would land in a folder called ~ right here.
    os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)

MEMORY_FORMAT = torch.channels_last
COMPILERS: Mapping[str, Mapping[str, str]] = {
    "inductor": {"backend": "inductor"},
    "cuda_graphs": {"backend": "cudagraphs"},
    "aot_eager": {"backend": "aot_eager"},
}


class Driver(Protocol):
    """What steps of a model and its optimiser are taken with.

    Attributes:
        sharded: Whether the ranks share out what the optimiser keeps, and parameters are views of flat tensors.
    """

    sharded: bool

    def __call__(self, *inputs: Tensor, **told: Tensor) -> Any:
        """What the model returns for inputs on its device, under autocast if the run asks for that."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro batch; with the last one of a step they are averages over the ranks."""

    def step(self) -> None:
        """End a micro batch, and with the last one of a step clip the gradients and let the optimiser step."""

    def state(self, parameter: Tensor, name: str) -> Tensor:
        """What the optimiser keeps of a parameter under a name, whole; all ranks call this."""

    def set_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Replace that."""


class Engine:
    """Forward, backward and step of one rank; all raise a ``PeerLostError`` if another one is lost.

    Args:
        model: On the CPU; moves to the device of the rank.
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
        groups = parameter_groups(model, config.optimizer)
        self._base_lrs = [group["lr"] for group in groups]
        rates_on = ranks.device if config.train.capture else None
        self._optimizer = build_optimizer(groups, config.optimizer, rates_on)
        self._states = states(config.optimizer)
        self._lr_scale = lr_scale(config.optimizer, config.train.epochs, steps_per_epoch)
        momentum = momentum or {}
        self._driver = self._drive(deepspeed_settings or {}, momentum.get(STEP))
        self.evaluated.to(ranks.device)
        if not self._driver.sharded:
            self.evaluated.to(memory_format=MEMORY_FORMAT)
        for state, prefix in self._states.items():
            for name, parameter in self._learning.items():
                if (value := momentum.get(f"{prefix}{name}")) is not None:
                    self._driver.set_state(parameter, state, value)
        # After the model has moved, which replaces buffers by new tensors (parameters stay).
        models = [model, self.evaluated] if self._average else [model]
        self._statistics = [value for each in models for value in each.buffers() if value.is_floating_point()]
        self._averages = (_numbers(self.evaluated), _numbers(model))
        self._kept = self.statistics()
        self._let_learn()

    def _drive(self, deepspeed_settings: Mapping[str, Any], step: Tensor | None) -> Driver:
        common = (self.model, self._optimizer, self._config, self.group)
        if self._config.train.engine == "ddp":
            from rg.training.ddp_driver import DdpDriver

            with collectives():
                return DdpDriver(*common, MEMORY_FORMAT, step)
        from rg.training.deepspeed_driver import DeepSpeedDriver

        return DeepSpeedDriver(*common, max(self.sizes), MEMORY_FORMAT, deepspeed_settings, step)

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
            return self._driver(images.to(self.group.ranks.device, non_blocking=True), *inputs, **told)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro batch; the loss is that of this rank's share, and is averaged over the ranks."""
        with collectives():
            self._driver.backward(loss)

    def step(self, number: int, last: bool, skip: bool = False) -> None:
        """Call after every micro batch; the last one ends optimiser step ``number`` (from 0), which may be left out."""
        if last:
            self.set_rates(number)
        self._optimizer.skip, self._optimizer.found_inf = skip, None
        with collectives():
            self._driver.step()
        if last and not skip:
            self.follow(number)

    def set_rates(self, number: int) -> None:
        """Let the optimiser have the learning rates of a step."""
        scale = self._lr_scale(number)
        for parameters, lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            if isinstance(parameters["lr"], Tensor):
                parameters["lr"].fill_(lr * scale)
            else:
                parameters["lr"] = lr * scale
        self.lr = self._config.optimizer.lr * scale

    def end_micro_batch(self, not_finite: Tensor) -> None:
        """``step`` inside a CUDA graph: with the rates that were set, and left out where ``not_finite`` is 1."""
        self._optimizer.skip, self._optimizer.found_inf = False, not_finite
        with collectives():
            self._driver.step()

    @torch.no_grad()
    def follow(self, number: int) -> None:
        """Let the moving average follow a step that was taken."""
        if self._average:
            (averages, counts), (weights, own_counts) = self._averages
            torch._foreach_lerp_(averages, weights, 1 - self._average.get_decay(number + 1))
            if counts:  # of batch norm
                torch._foreach_copy_(counts, own_counts)

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
        with collectives():
            kept = {
                f"{prefix}{name}": _copy(self._driver.state(parameter, state))
                for state, prefix in self._states.items()
                for name, parameter in self._learning.items()
            }
        steps = [state[STEP] for state in self._optimizer.state.values() if STEP in state]
        return kept | ({STEP: _copy(max(steps))} if steps else {})


def _numbers(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    """What a model learns, of which there are averages, and what it counts."""
    values = [*model.parameters(), *model.buffers()]
    return [value for value in values if value.is_floating_point()], [v for v in values if not v.is_floating_point()]


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def check_engine(config: RunConfig, ranks: Ranks) -> None:
    """Look for what ``train.engine``, ``train.capture`` and ``train.compile`` need before anything is computed.

    Raises:
        ValueError: there is no DeepSpeed. There is no GPU for CUDA graphs, or there are several for captured steps,
            which hold no communication. There is no compiler: of C++ for a CPU, whose kernels inductor writes in it, of
            C for a GPU, where Triton makes what starts them.
    """
    device = ranks.device
    if config.train.engine == "deepspeed" and not importlib.util.find_spec("deepspeed"):
        raise ValueError(
            "train.engine: DeepSpeed is not installed; pip install 'region-grouping[train]' on Linux, or take ddp"
        )
    if config.train.capture and device.type == "cpu":
        raise ValueError("train.capture: expected false on a CPU, got true")
    if config.train.capture and ranks.world_size > 1:
        raise ValueError(f"train.capture: expected false on {ranks.world_size} ranks, got true")
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
