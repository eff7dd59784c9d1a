"""Optimiser steps from CUDA graphs: the host launches a whole step at once, not its kernels one by one.

A graph is captured of a step as it is: parameters, gradients, the state of the optimiser and running statistics stay
where they are, and nothing is copied but the inputs. What a step needs of the host must be in its inputs or in tensors
that the host changes between steps, such as the learning rates.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rg.training.micro_step import Inputs

WARM_UP = 3  # steps that are launched as usual before one is captured: libraries choose their kernels in them


class Outputs(NamedTuple):
    """What a step says of a micro batch: ``MicroStep.backward``, ``Losses.rows`` and ``Losses.flags``."""

    values: Tensor
    rows: Tensor
    flags: Tensor


Take = Callable[[Sequence[Inputs]], list[Outputs]]
Replay = Callable[[], None]


def graph_of(step: Callable[[], list[Outputs]], pool: Any) -> tuple[Replay, list[Outputs]]:
    """The CUDA graph of a step, captured on the current stream, which must not be the default one.

    Args:
        step: Is called once; what it launches is not computed yet.
        pool: Memory that graphs share, which never run at once.

    Returns:
        What computes it, and where its results will be.

    Raises:
        ValueError: a CUDA graph cannot hold it.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # By thread, as those of the loader call CUDA meanwhile.
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
            outputs = step()
    except RuntimeError as error:
        cause = error.__context__ or error  # the end of a capture that has failed says only that it has
        if not isinstance(cause, RuntimeError) or isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        place = traceback.extract_tb(cause.__traceback__)[-1]
        raise ValueError(
            f"train.capture: expected false for steps that no CUDA graph holds, got true; {cause} "
            f"({place.filename}:{place.lineno})"
        ) from error
    return graph.replay, outputs


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Inside, a GPU works on a stream that can be captured, behind what it was asked for before."""
    if device.type != "cuda":
        yield
        return
    stream, before = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


class CapturedStep:
    """Takes steps: the first few whose inputs have the same shapes as usual, all others from a graph.

    Args:
        take: One step of micro batches.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._pool: Any = None
        self._taken: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[Replay, Sequence[Inputs], list[Outputs]]] = {}
        self._idle: set[Hashable] = set()  # graphs that were not replayed since the last new kind came

    def __call__(self, inputs: Sequence[Inputs]) -> list[Outputs]:
        """One step of micro batches; what it returns is not overwritten by later ones."""
        kind = tuple(_form(value) for each in inputs for value in each)
        self._idle.discard(kind)
        if kind not in self._graphs:
            if kind not in self._taken:
                self._idle = set(self._graphs)
            self._taken[kind] += 1
            if self._taken[kind] <= WARM_UP:
                return self._take(inputs)
            self._drop_idle()
            own = [_own(each) for each in inputs]
            replay, outputs = graph_of(lambda: self._take(own), self._pool)
            self._graphs[kind] = replay, own, outputs
        replay, places, outputs = self._graphs[kind]
        for place, value in zip(_tensors(places), _tensors(inputs), strict=True):
            place.copy_(value)
        replay()
        return [Outputs(*(value.clone() for value in each)) for each in outputs]

    def _drop_idle(self) -> None:
        """Lets go of graphs whose inputs come no more, such as those of smaller crops, and of their memory."""
        for kind in self._idle:
            del self._graphs[kind], self._taken[kind]
        self._idle = set()
        if not self._graphs:  # what is too small for other graphs goes with the pool
            self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None


def _own(inputs: Inputs) -> Inputs:
    return Inputs(*(None if value is None else value.clone() for value in inputs))  # type: ignore[arg-type]


def _tensors(inputs: Sequence[Inputs]) -> list[Tensor]:
    return [value for each in inputs for value in each if value is not None]


def _form(value: Tensor | None) -> Hashable:
    return None if value is None else (value.shape, value.dtype, value.stride())
