"""What the ranks of a run do together: collectives, and checks that either all pass or none.

Tensors travel by NCCL on GPUs and by Gloo on CPUs, everything else by Gloo.
"""

from __future__ import annotations

import atexit
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.cores import affinity
from rg.distributed.meeting import meet
from rg.distributed.ranks import Ranks

GLANCE = 0.1  # seconds between two things that are done while others are waited for
GLOO = re.compile(r"\[(enforce fail at )?\S*gloo/\S+:\d+\]")  # the place in its source that Gloo's errors begin with

T = TypeVar("T")

_store: dist.Store = dist.HashStore()  # of all ranks, once they are connected


class GroupError(ValueError):
    """Raised on all ranks alike."""


class PeerLostError(RuntimeError):
    """A collective failed: another rank, or the connection to it, is lost."""


@contextmanager
def collectives() -> Iterator[None]:
    """Inside, errors of torch.distributed become a ``PeerLostError``; all others pass.

    Those of NCCL and of stores have a class. Gloo raises plain RuntimeErrors, which the words they begin with tell.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or GLOO.match(str(error)):
            raise PeerLostError(str(error)) from error
        raise


def connect(
    ranks: Ranks, timeout: float, join_timeout: float = 300.0, setting: str = "", tensors: bool = True
) -> Group:
    """Join the other ranks.

    Args:
        ranks: Place of this process.
        timeout: Seconds after which a collective fails that nothing else has ended.
        join_timeout: Seconds to wait for the others.
        setting: By which these seconds can be changed, for messages.
        tensors: Whether tensors travel between GPUs, of which each rank then needs one of its own.

    Raises:
        ConnectionError: they do not come together.
        ValueError: they have not a GPU each, or none.
    """
    device = ranks.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" and tensors else "gloo"
    wait = timedelta(seconds=max(timeout, join_timeout))
    global _store
    host_group = None
    if not dist.is_initialized():
        store: dist.Store = dist.HashStore()  # in memory: takes no port
        if ranks.master:
            uuid = str(torch.cuda.get_device_properties(device).uuid) if backend == "nccl" else None
            store = dist.PrefixStore("group", meet(ranks, uuid, join_timeout, setting))
            store.set_timeout(wait)
        try:
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=wait)
        except (dist.DistError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConnectionError(f"{ranks.name} of {ranks.world_size} cannot join the others: {reason}") from None
        _store = store
        atexit.register(_disconnect)
    if backend == "nccl" and ranks.world_size > 1:
        host_group = dist.new_group(backend="gloo", timeout=wait)
    group = Group(ranks, host_group, _store)
    place = (socket.gethostname(), affinity())
    group.sharing = group.collect(place).count(place)
    return group


def _disconnect() -> None:
    """Threads of a process group that outlive the interpreter can abort a process that had done its work."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Group:
    """All ranks of a run. What they do together raises a ``PeerLostError`` if one is lost.

    Args:
        ranks: Place of this process.
        host_group: Process group for what is not on a GPU; None for the default group.
        store: What the ranks keep their counters in; None where there is one rank.

    Attributes:
        sharing: Ranks that may run on the cores of this one, itself included. Launchers may give each rank its own.
    """

    sharing = 1

    def __init__(self, ranks: Ranks, host_group: Any = None, store: dist.Store | None = None) -> None:
        self.ranks = ranks
        self._host_group = host_group
        self._store = store or dist.HashStore()
        self._counters = 0

    def gather(self, x: Tensor, flags: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows of all ranks on every rank, in one collective; rows with gradient, flags without.

        The gradient is scaled such that a loss that every rank computes from all rows has, after the engine has
        averaged the gradients of the ranks, the gradient of a single process.

        Args:
            x: [n, K], n = sizes[rank].
            flags: [F] of this rank, small numbers.
            sizes: Rows of every rank.

        Returns:
            rows [sum(sizes), K], flags [world, F] (float32).
        """
        if self.ranks.world_size == 1:
            return x, flags.float()[None]
        with collectives():
            return _Gather.apply(x, flags.float(), self.ranks.rank, tuple(sizes))

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks, in place."""
        if self.ranks.world_size > 1:
            with collectives():
                dist.all_reduce(values)
        return values

    def collect(self, value: T) -> list[T]:
        """What every rank gives, on every rank, in their order: plain values."""
        if self.ranks.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.ranks.world_size
        with collectives():
            dist.all_gather_object(values, value, group=self._host_group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.collect(None)

    def wait(self, meanwhile: Callable[[], object]) -> None:
        """Wait for all ranks, and call a function again and again until they are here."""
        if self.ranks.world_size == 1:
            return
        with collectives():
            here = torch.zeros(1)
            work = dist.all_reduce(here, group=self._host_group, async_op=True)
            while not work.is_completed():
                meanwhile()
                time.sleep(GLANCE)
            work.wait()

    def counter(self) -> Callable[[int], int]:
        """A number that all ranks share, 0 at first: adds to it, on any rank at any time, and tells what it is then."""
        self._counters += 1
        name = f"counter {self._counters}"

        def add(amount: int) -> int:
            with collectives():
                return self._store.add(name, amount)

        return add

    def together(self, check: Callable[[], T]) -> T:
        """Run a check on every rank; all raise if it fails on any.

        Args:
            check: Must not wait for other ranks.

        Returns:
            Its result on this rank.

        Raises:
            GroupError: the reasons, with the ranks that give them.
        """
        result, reason = None, None
        try:
            result = check()
        except (ValueError, OSError) as error:
            if self.ranks.world_size == 1:
                raise
            reason = str(error) or type(error).__name__
        self._stop_if_any(reason)
        return result  # type: ignore[return-value]  # of T, as no rank has a reason

    def _stop_if_any(self, reason: str | None) -> None:
        by_rank = self.collect((self.ranks.name, reason))
        reasons = {reason for _, reason in by_rank if reason}
        if not reasons:
            return
        if all(reason for _, reason in by_rank) and len(reasons) == 1:
            raise GroupError(reasons.pop())
        raise GroupError("; ".join(f"{name}: {reason}" for name, reason in by_rank if reason))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flags: Tensor, rank: int, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.rank, ctx.sizes = rank, sizes
        width, rows = x.shape[1], max(sizes)
        message = torch.zeros(
            rows * width + len(flags), dtype=torch.promote_types(x.dtype, flags.dtype), device=x.device
        )
        message[: x.numel()] = x.flatten()
        message[rows * width :] = flags
        messages = [torch.empty_like(message) for _ in sizes]
        dist.all_gather(messages, message)
        parts = [received[: size * width].view(size, width) for received, size in zip(messages, sizes, strict=True)]
        all_flags = torch.stack([received[rows * width :] for received in messages]).float()
        ctx.mark_non_differentiable(all_flags)
        return torch.cat(parts).to(x.dtype), all_flags

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        first = sum(ctx.sizes[: ctx.rank])
        own = grad[first : first + ctx.sizes[ctx.rank]]
        return own * len(ctx.sizes), None, None, None
