"""CUDA graphs on a CPU: the operators of a step are recorded with their tensors, and called again on the same ones.

As in a CUDA graph, what is replayed finds its inputs and leaves its results where they were when it was captured,
whatever Python has done since. Nothing is computed by the capture itself, and the host may read nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.known: set[int] = set()
        self.before: list[tuple[Any, Any]] = []  # memory that was there, and what was in it

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in READS, f"{function}: the host reads what a graph computes"
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            if storage.data_ptr() not in self.known:
                self.before.append((storage, storage.clone()))
                self.known.add(storage.data_ptr())
        results = function(*args, **kwargs)
        self.known.update(storage.data_ptr() for storage in _storages(results))
        self.calls.append((function, args, kwargs, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, results in self.calls:
            again = function(*args, **kwargs)
            for place, value in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def recorded(step: Callable[[], Any], _pool: Any = None) -> tuple[Callable[[], None], Any]:
    """What ``rg.training.captured_step.graph_of`` does."""
    recorder, random = _Recorder(), torch.get_rng_state()
    with recorder:
        results = step()
    for storage, values in recorder.before:
        storage.copy_(values)
    torch.set_rng_state(random)
    return recorder.replay, results
