"""What a call of the fused operators costs the host, without a GPU: nothing is launched.

python -m benchmarks.bench_host [--record]

Triton compiles the kernels for an H100 and believes that it launches them; what it hands the driver goes nowhere. The
tensors are small and on the CPU. So what is timed is PyTorch's dispatch, the allocations and Triton's Python: the CPU
time of one thread, the best of many rounds of 20 calls. A GPU's allocator and driver come on top, and of images what
Triton's launcher does with tensor descriptors. ``registered`` is the operator that ``torch.compile`` sees, ``eager``
what eager calls take.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver

import kernels
from benchmarks.kernel_resources import KERNELS
from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.kernel_cases import Case
from kernels import dispatch, grouping, image_grouping, operators

RESULTS = ledger.RESULTS / "host.csv"
CASE = Case(132, 1024, 4, 4, 8, "bf16", "channels_last")
CALLS = 20


class _Driver:
    """A GPU of compute capability 9.0 that is not there."""

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _hopper(_x: Tensor) -> tuple[int, int]:
    return 9, 0


def _triton(_x: Tensor, _fused: ModuleType) -> ModuleType:
    return grouping


def _never(*_: Tensor) -> bool:
    return False


@dataclass(frozen=True)
class Launched:
    """What the driver would have been handed."""

    kernel: str
    compilation: str
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


@contextlib.contextmanager
def nothing_launched() -> Iterator[list[Launched]]:
    """Kernels are compiled, and their launches only listed."""
    launched: list[Launched] = []
    loaded: list[CompiledKernel] = []

    def load(kernel: CompiledKernel) -> None:
        kernel.module = kernel.function = 0
        loaded.append(kernel)

    def run(kernel: CompiledKernel) -> Callable[..., None]:
        load(kernel)
        # Grid, stream, function, two kinds of metadata and two hooks come before the arguments.
        return lambda *handed: launched.append(Launched(kernel.name, kernel.hash, handed[:3], handed[9:]))

    before, preferred = driver._active, dispatch.preferred()
    driver.set_active(_Driver())
    plans = [plan for module in (grouping, image_grouping) for plan in (module._plan_forward, module._plan_backward)]
    try:
        with contextlib.ExitStack() as patches:
            for plan in plans:
                plan.cache_clear()
            for kernel in KERNELS:  # what is compiled here is nothing that a real device may launch
                patches.enter_context(mock.patch.object(kernel, "device_caches", defaultdict(kernel.create_binder)))
            for module in (operators, grouping, image_grouping):
                patches.enter_context(mock.patch.object(module, "capability", _hopper))
            patches.enter_context(mock.patch.object(operators, "_provider", _triton))
            patches.enter_context(mock.patch.object(CompiledKernel, "_init_handles", load))
            patches.enter_context(mock.patch.object(CompiledKernel, "run", property(run)))
            yield launched
    finally:
        driver._active = before
        kernels.prefer(preferred)
        for kernel in loaded:
            kernel.module = None
        for plan in plans:
            plan.cache_clear()


def measure(call: Callable[[], object], rounds: int, launched: list[Launched]) -> float:
    """Microseconds of CPU time of one call."""
    best = float("inf")
    for _ in range(rounds):
        launched.clear()
        start = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time_ns() - start) / CALLS / 1e3)
    return best


def calls() -> dict[str, Callable[[], object]]:
    """Forward and backward of the public operator, compiled and called once."""
    inputs = [tensor.requires_grad_() for tensor in CASE.draw("cpu")]

    def forward() -> tuple[Tensor, Tensor]:
        return kernels.region_grouping(*inputs, check_values=False)

    outputs = forward()
    grads = [torch.ones_like(output) for output in outputs]

    def backward() -> object:
        return torch.autograd.grad(outputs, inputs, grads, retain_graph=True)

    backward()
    return {"forward": forward, "backward": backward}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Calls take the registered operators, as under a compiler."""
    with contextlib.ExitStack() as patches:
        for module in (grouping, image_grouping):
            patches.enter_context(mock.patch.object(module, "is_eager", _never))
        yield


def main() -> int:
    """Prints the table and records it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", action="store_true", help="append the results to results/host.csv")
    parser.add_argument("--rounds", type=int, default=150, help=f"rounds of {CALLS} calls")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {arguments.rounds}")
    if grouping.INTERPRETED:
        parser.error("TRITON_INTERPRET: expected to be unset, got 1; interpreted kernels are not launched")
    torch.set_num_threads(1)
    print(f"{CASE.name}, Triton {triton.__version__}, torch {torch.__version__}: us of the host a call")
    print(f"{'kernels':<8}{'call':<12}{'direction':<10}{'us':>7}  launches")
    with nothing_launched() as launched:
        for way, call in itertools.product(dispatch.WAYS, ("registered", "eager")):
            kernels.prefer(way)
            with registered() if call == "registered" else contextlib.nullcontext():
                for direction, function in calls().items():
                    launched.clear()
                    function()
                    count, taken = len(launched), measure(function, arguments.rounds, launched)
                    print(f"{way:<8}{call:<12}{direction:<10}{taken:>7.1f}  {count}", flush=True)
                    if arguments.record:
                        row = {"case": CASE.name, "provider": f"{way}, {call}", "mode": direction}
                        values = dict.fromkeys(("p20", "p50", "p80"), f"{taken:.4g}")
                        measured = {"metric": "host time", "unit": "us", "n": arguments.rounds}
                        ledger.append(RESULTS, row | measured | values)
        node = torch.zeros(1, requires_grad=True) * 1
        one = torch.ones_like(node)
        engine = measure(lambda: torch.autograd.grad(node, node, one, retain_graph=True), arguments.rounds, launched)
    print(f"of a backward, {engine:.1f} us are the autograd engine itself: that of a node that does nothing")
    return 0


if __name__ == "__main__":
    run_main(main)
