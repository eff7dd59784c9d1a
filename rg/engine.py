"""The training engine: the only file that knows DeepSpeed.

It turns a model and a ``RunConfig`` into optimiser steps and into checkpoints that are published whole or not at all;
``files.json`` of a checkpoint holds the sha256 of its other files, so that damage done later is found.
The occurrence prior sees the images of all ranks; batch norm sees those of its own rank.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.manifest import sha256
from rg.config import OptimizerConfig, RunConfig
from rg.model import Model, ModelOutput
from rg.plain import PlainOutput
from rg.run_folder import write_json

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import deepspeed
import torch.distributed as dist

logger = logging.getLogger(__name__)

LATEST, FILES = "latest", "files.json"


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def connect() -> Ranks:
    """Join the process group that the launcher describes in RANK, WORLD_SIZE, LOCAL_RANK, or a group of one.

    Returns:
        The place of this process.

    Raises:
        ValueError: some of the variables are missing.
    """
    ranks = Ranks(0, 1, 0, 1) if "RANK" not in os.environ else _launched_ranks()
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    if "RANK" not in os.environ and not dist.is_initialized():
        # A store in memory takes no port. DeepSpeed wants LOCAL_RANK even then.
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    atexit.register(_disconnect)
    if ranks.rank:
        logging.getLogger("rg").setLevel(logging.WARNING)
    return ranks


def _disconnect() -> None:
    """Threads of a process group that outlive the interpreter can abort a process that had done its work."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _launched_ranks() -> Ranks:
    missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ValueError(f"RANK is set in the environment but not {', '.join(missing)}; start with a launcher")
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    # torchrun says LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE.
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size
    return Ranks(rank, world_size, local_rank, int(local_world_size))


class Engine:
    """Forward, backward, step and checkpoints of one rank.

    Args:
        model: On the CPU; moves to the device of the rank.
        config: Of the run.
        ranks: From ``connect()``.
        steps_per_epoch: Optimiser steps of an epoch, for the learning-rate schedule.

    Attributes:
        lr: Learning rate of the backbone in the last step.
    """

    def __init__(self, model: Model, config: RunConfig, ranks: Ranks, steps_per_epoch: int) -> None:
        self.ranks = ranks
        self.model = model
        self.micro_batch = micro_batch(config, ranks)
        self.lr = config.optimizer.lr
        backbone, new = model.parameter_groups()
        optimizer = torch.optim.SGD(
            [
                {"params": backbone, "lr": config.optimizer.lr},
                {"params": new, "lr": config.optimizer.lr * config.optimizer.new_layer_lr_scale},
            ],
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        scale = lr_scale(config.optimizer, config.train.epochs, steps_per_epoch)
        self.engine, *_ = deepspeed.initialize(
            model=model.to(ranks.device),
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, scale),
            dist_init_required=False,
            config={
                "train_batch_size": config.train.global_batch,
                "train_micro_batch_size_per_gpu": self.micro_batch,
                "gradient_accumulation_steps": config.train.accumulation,
                "gradient_clipping": config.optimizer.clip_norm,
                "torch_autocast": {"enabled": config.train.precision == "bf16", "dtype": "bfloat16"},
                "steps_per_print": 2**31 - 1,
            },
        )
        # DeepSpeed 0.19.8 fails in initialize() on channels_last parameters, so the layout changes after it.
        model.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> ModelOutput | PlainOutput:
        """Images [N, 3, H, W] on any device -> output of the model."""
        return self.engine(images.to(self.ranks.device, non_blocking=True))

    def step(self, loss: Tensor) -> None:
        """Backward; then, once all micro batches of the step have been seen, the optimiser and its schedule."""
        self.engine.backward(loss)
        self.lr = self.engine.optimizer.param_groups[0]["lr"]
        self.engine.step()

    def gather(self, x: Tensor) -> Tensor:
        """[N, ...] of every rank -> [world * N, ...] on every rank, with gradient.

        The gradient is scaled such that a loss that every rank computes from the gathered tensor has, after the engine
        has averaged the gradients of the ranks, the gradient of a single process.
        """
        return _Gather.apply(x, self.ranks) if self.ranks.world_size > 1 else x

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks."""
        if self.ranks.world_size > 1:
            dist.all_reduce(values)
        return values

    def total(self, count: int) -> int:
        """Sum of a whole number over the ranks."""
        return int(self.sum(torch.tensor(count, device=self.ranks.device)).item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.total(int(flag)) > 0

    def average_buffers(self) -> None:
        """Give all ranks the mean of their batch-norm and border statistics, which each keeps for its own images."""
        if self.ranks.world_size > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.ranks.world_size

    def save(self, folder: Path, step: int, rank_state: dict[str, Any], keep: int) -> None:
        """Publish a checkpoint: written beside the others, renamed when complete, then named in ``latest``.

        Args:
            folder: Folder of checkpoints.
            step: Optimiser steps taken.
            rank_state: What this rank alone needs to go on: tensors, bytes, numbers and text.
            keep: Newest checkpoints that stay. Those of later steps, which a resumed run did not go on from, go.
        """
        tag, partial = f"step-{step:08d}", f".step-{step:08d}.partial"
        if self.ranks.rank == 0:
            shutil.rmtree(folder / partial, ignore_errors=True)
        self._barrier()
        try:
            self.engine.save_checkpoint(str(folder), tag=partial, client_state={"step": step}, save_latest=False)
            torch.save(rank_state, folder / partial / f"rank-{self.ranks.rank}.pt")
            self._barrier()
            if self.ranks.rank == 0:
                files = sorted((folder / partial).iterdir())
                write_json(folder / partial / FILES, {file.name: sha256(file) for file in files})
        except BaseException as error:
            shutil.rmtree(folder / partial, ignore_errors=True)
            if isinstance(error, RuntimeError):  # what torch.save makes of a full disk
                reason = str(error).splitlines()[0]
                raise OSError(f"{folder}: the checkpoint cannot be written, is the disk full? ({reason})") from None
            raise
        if self.ranks.rank == 0:
            shutil.rmtree(folder / tag, ignore_errors=True)
            os.replace(folder / partial, folder / tag)
            temporary = folder / f".{LATEST}"
            temporary.write_text(tag)
            os.replace(temporary, folder / LATEST)
            kept = _tags(folder, tag)[:keep]
            for path in folder.glob("step-*"):
                if path.name not in kept:
                    shutil.rmtree(path)
        self._barrier()

    def load(self, folder: Path) -> tuple[int, dict[str, Any]]:
        """Continue from the latest checkpoint, or from the newest before it whose files are all as they were written.

        Returns:
            The optimiser steps taken, and the ``rank_state`` of this rank.

        Raises:
            ValueError: there is no checkpoint, none is whole, or it was made with another number of ranks.
        """
        try:
            latest = (folder / LATEST).read_text()
        except FileNotFoundError:
            raise ValueError(f"{folder}: there is no checkpoint to resume from") from None
        tag = self._newest_whole(folder, latest)
        saved = len(list((folder / tag).glob("rank-*.pt")))
        if saved != self.ranks.world_size:
            raise ValueError(f"{folder / tag}: was made by {saved} ranks and cannot go on with {self.ranks.world_size}")
        _, client_state = self.engine.load_checkpoint(str(folder), tag=tag)
        rank_state = torch.load(folder / tag / f"rank-{self.ranks.rank}.pt", weights_only=True)
        return client_state["step"], rank_state

    def _newest_whole(self, folder: Path, latest: str) -> str:
        damaged: list[str] = []
        for tag in _tags(folder, latest):
            damage = _damage(folder / tag)
            if not self.any(damage is not None):
                if damaged and self.ranks.rank == 0:
                    logger.warning("%s; continuing from %s instead", "; ".join(damaged), tag)
                return tag
            damaged.append(f"checkpoint {tag} is damaged ({damage or 'on another rank'})")
        raise ValueError(f"{folder}: no checkpoint to resume from is whole: {'; '.join(damaged)}")

    def _barrier(self) -> None:
        if self.ranks.world_size > 1:
            dist.barrier()


def _tags(folder: Path, latest: str) -> list[str]:
    """The latest checkpoint and those of earlier steps, newest first."""
    earlier = {path.name for path in folder.glob("step-*") if path.name < latest}
    return [latest, *sorted(earlier, reverse=True)]


def _damage(checkpoint: Path) -> str | None:
    """Which file of a checkpoint is not as it was written, None if all are."""
    try:
        sums = json.loads((checkpoint / FILES).read_bytes())
    except (FileNotFoundError, ValueError):
        return f"{FILES} is missing or no JSON"
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256(checkpoint / name) != expected:
            return f"{name} is not the file that was written, its sha256 differs"
    return None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.size = ranks, len(x)
        gathered = [torch.empty_like(x) for _ in range(ranks.world_size)]
        dist.all_gather(gathered, x.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad[ctx.ranks.rank * ctx.size : (ctx.ranks.rank + 1) * ctx.size]
        return own * ctx.ranks.world_size, None


def micro_batch(config: RunConfig, ranks: Ranks) -> int:
    """Images that one rank sees at once.

    Raises:
        ValueError: the global batch cannot be divided into micro batches of at least 2.
    """
    pieces = ranks.world_size * config.train.accumulation
    if config.train.global_batch % pieces:
        raise ValueError(
            f"train.global_batch: {config.train.global_batch} images cannot be split over {ranks.world_size} ranks x "
            f"{config.train.accumulation} micro batches"
        )
    size = config.train.global_batch // pieces
    if size < 2:
        raise ValueError(
            f"train.global_batch: {config.train.global_batch} images leave {size} for each of {ranks.world_size} ranks "
            f"x {config.train.accumulation} micro batches; batch norm needs at least 2"
        )
    return size


def lr_scale(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> Any:
    """step -> factor of the learning rate: linear warm-up, then a cosine to zero or steps."""
    warmup, total = config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        return config.gamma ** sum(step >= milestone * steps_per_epoch for milestone in config.milestones)

    return scale
