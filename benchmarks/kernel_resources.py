"""What the Triton kernels compile to, for every architecture and without a GPU; exit code 1 if a gate is missed.

python -m benchmarks.kernel_resources [--architectures 80 90 100]

The launchers run on tensors without data and their launches are recorded, so that what is compiled is what would be
launched: a training step for the cases of ``benchmarks.tools.kernel_cases`` and some that the paper does not have, and
three of them for every operator alone, which is a part of what training launches. Of leaner tiles, cases of 1,024
channels in channels_last stand for all of the paper. Equal compilations are done once. The gates: shared memory fits
the architecture; at most 64 bytes of stack (spilled registers); matrix instructions where features are multiplied;
128-bit loads of bf16 and fp32 features in channels_last (fp16 and fp64 work, but are not what anyone should train in).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.tools.command import run_main
from benchmarks.tools.kernel_cases import CASES, LAYOUTS, Case
from kernels import grouping, image_grouping, image_kernels, occurrence, tile_kernels
from kernels.dispatch import fits_image

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
STACK_LIMIT = 64
KERNELS = [
    kernel
    for module in (tile_kernels, image_kernels, occurrence)
    for name, kernel in vars(module).items()
    if isinstance(kernel, JITFunction) and name.endswith("_kernel")
]
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}
POINTERS[torch.int32] = "*i32"

Launch = tuple[JITFunction, dict[str, Any]]


@dataclass(frozen=True)
class Compilation:
    """Everything that decides what a launch is compiled to. The kernel is an index into KERNELS."""

    kernel: int
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        kernel = KERNELS[self.kernel]
        family = kernel.__module__.rsplit(".", 1)[1].removesuffix("_kernels")
        return f"{family}_{kernel.__name__.strip('_').removesuffix('_kernel')}"

    def constant(self, name: str) -> Any:
        """The value of a constexpr, None if the kernel has none of this name."""
        return dict(self.constants).get(KERNELS[self.kernel].arg_names.index(name)) if self.has(name) else None

    def has(self, name: str) -> bool:
        return name in KERNELS[self.kernel].arg_names

    @property
    def blocks(self) -> str:
        sizes = [str(self.constant(name)) for name in ("BLOCK_P", "BLOCK_C", "BLOCK_K", "BLOCK") if self.has(name)]
        return "x".join(sizes) + f" w{dict(self.options)['num_warps']}"


@dataclass(frozen=True)
class Resources:
    """Registers per thread, bytes of stack per thread, bytes of shared memory per program, instructions."""

    registers: int
    stack: int
    shared: int
    matrix: int
    wide_loads: int
    narrow_loads: int
    descriptor_loads: int
    descriptor_stores: int


def launches(
    case: Case,
    capability: tuple[int, int],
    parameters: torch.dtype = torch.float32,
    every: bool = True,
    lean: bool = False,
) -> list[Launch]:
    """Every kernel with the arguments it is launched with, forward and backward.

    Args:
        case: Sizes, dtype and layout.
        capability: Of the device that is launched on.
        parameters: dtype of centres and bandwidths.
        every: All operators and mixtures of gradients, not only those of a training step.
        lean: Leaner tiles in place of today's, and of nothing else.
    """
    recorded: list[Launch] = []

    def recorder(kernel: JITFunction) -> Any:
        return lambda *_, grid, warmup, **arguments: recorded.append((kernel, arguments))  # noqa: ARG005

    dtype = {"fp16": torch.float16, "fp64": torch.float64, "bf16": torch.bfloat16, "fp32": torch.float32}[case.dtype]
    x = torch.empty((case.N, case.C, case.H, case.W + (case.layout == "cut_out")), dtype=dtype, device="meta")
    x = x[..., :-1] if case.layout == "cut_out" else x.contiguous(memory_format=LAYOUTS[case.layout])
    centers = torch.empty((case.K, case.C), dtype=parameters, device="meta")
    sigma = torch.empty((case.K,), dtype=parameters, device="meta")
    patches = [mock.patch.object(kernel, "run", recorder(kernel)) for kernel in KERNELS]
    patches += [
        mock.patch.object(module, "capability", return_value=capability) for module in (grouping, image_grouping)
    ]
    for patch in patches:
        patch.start()
    try:
        last = x.is_contiguous(memory_format=torch.channels_last)
        if fits_image(case.C, case.K, dtype, last, capability, forward=True):
            assign, regions, kept = image_grouping._forward(x, centers, sigma)
            for need_x in (True, False):
                image_grouping._backward(x, centers, sigma, assign, regions, kept, assign, regions, need_x)
        forward = functools.partial(grouping._forward, x, centers, sigma, lean=lean)
        assign, lse, regions, mass, norm = _some(forward(None, pool=True))
        backward = functools.partial(grouping.backward, x, centers, sigma, assign, lean=lean)
        pooled = regions, mass, norm, regions
        backward(lse, pooled, assign)
        if every:
            backward(lse, pooled, None)
            backward(lse, pooled, assign, need_x=False)
            forward(None, pool=False)
            backward(lse, None, assign)
            forward(assign, pool=True)
            backward(None, pooled, None)
        occurrences, winner = occurrence._forward(assign, 2, 0.4, "valid")
        occurrence._backward(occurrences, winner, case.H, case.W, case.layout == "channels_last", assign.dtype, 2, 0.4)
    finally:
        for patch in patches:
            patch.stop()
    return recorded


def _some(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def describe(kernel: JITFunction, arguments: dict[str, Any]) -> Compilation:
    """What Triton specialises a launch on: constants, None, integers that are 1 or multiples of 16, pointers."""
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        name, value, specialized = parameter.name, arguments[parameter.name], not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and isinstance(value, int) and value == 1):
            signature.append((name, "constexpr"))
            constants.append((index, value))
            continue
        if isinstance(value, Tensor):
            signature.append((name, POINTERS[value.dtype]))
        elif isinstance(value, TensorDescriptor):
            dtype = POINTERS[value.base.dtype].removeprefix("*")
            signature.append((name, f"tensordesc<{dtype}{list(value.block_shape)}>"))
        else:
            signature.append((name, "i32" if abs(value) < 2**31 else "i64"))
        if isinstance(value, Tensor) or (isinstance(value, int) and specialized and value % 16 == 0):
            divisible.append(index)
    options = tuple((name, arguments[name]) for name in ("num_warps", "num_stages") if name in arguments)
    return Compilation(KERNELS.index(kernel), tuple(signature), tuple(constants), tuple(divisible), options)


def compile(compilation: Compilation, architecture: int) -> Resources:
    """Compiles down to the machine code of an architecture (compute capability x 10) and reads what it uses.

    Instructions are counted in PTX, where Triton has decided on them; machine code takes as long to read as to make.
    """
    source = ASTSource(
        fn=KERNELS[compilation.kernel],
        signature=dict(compilation.signature),
        constexprs={(index,): value for index, value in compilation.constants},
        attrs={(index,): [["tt.divisibility", 16]] for index in compilation.divisible},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(compilation.options))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        dump = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    assert usage is not None
    code = compiled.asm["ptx"]
    loads = _count(code, r"ld\.global\b|cp\.async\.c[ag]\.shared")
    wide = _count(code, r"ld\.global\b\S*\.(v4\.\w32|v2\.\w64)\b|cp\.async\.cg\.shared.*, 0x10,")
    descriptor_loads = _count(code, r"cp\.async\.bulk\.tensor\.\dd\.shared")
    return Resources(
        registers=int(usage[1]),
        stack=int(usage[2]),
        shared=compiled.metadata.shared,
        matrix=_count(code, r"mma\.sync|wgmma\.mma_async|tcgen05\.mma\b"),
        wide_loads=wide + descriptor_loads,
        narrow_loads=loads - wide,
        descriptor_loads=descriptor_loads,
        descriptor_stores=_count(code, r"cp\.async\.bulk\.tensor\.\dd\.global"),
    )


def _count(code: str, instruction: str) -> int:
    """How often an instruction is in PTX, whatever its predicate."""
    return len(re.findall(rf"^\s*(?:@!?%p\d+\s+)?(?:{instruction})", code, re.MULTILINE))


def failures(compilation: Compilation, resources: Resources, architecture: int) -> list[str]:
    """The gates that are missed, in words."""
    missed = []
    if resources.shared > SHARED_LIMIT[architecture]:
        missed.append(f"shared memory {resources.shared} > {SHARED_LIMIT[architecture]}")
    if resources.stack > STACK_LIMIT:
        missed.append(f"stack {resources.stack} > {STACK_LIMIT}")
    if compilation.has("d_x"):
        if not resources.matrix:
            missed.append("no matrix instructions")
        if not resources.descriptor_loads:
            missed.append("no loads through a descriptor")
        if dict(compilation.signature).get("d_grad_x", "constexpr") != "constexpr" and not resources.descriptor_stores:
            missed.append("no stores through a descriptor")
    if compilation.name in ("tile_forward", "tile_backward"):
        signature = dict(compilation.signature)
        if not resources.matrix and signature["p_x"] != "*fp64":
            missed.append("no matrix instructions")
        if signature["x_c"] == "constexpr" and signature["p_x"] in ("*bf16", "*fp32"):
            expected = _wide_loads(compilation)
            if resources.wide_loads < expected:
                missed.append(f"128-bit loads {resources.wide_loads} < {expected}")
    return missed


def _wide_loads(compilation: Compilation) -> int:
    """128-bit loads of a thread if nothing but the features is loaded so, in every pass over a tile."""
    passes = bool(compilation.constant("ASSIGN")) + bool(compilation.constant("POOL"))
    size = {"*bf16": 2, "*fp32": 4}[dict(compilation.signature)["p_x"]]
    tile = compilation.constant("BLOCK_P") * compilation.constant("BLOCK_C") * size
    return passes * max(1, tile // (dict(compilation.options)["num_warps"] * 32 * 16))


def shipped(architecture: int) -> dict[Compilation, str]:
    """Every distinct compilation and the first case that needs it."""
    plain = Case(128, 1024, 14, 14, 8, "bf16", "channels_last")
    others = [replace(plain, dtype=dtype) for dtype in ("fp16", "fp64")]
    others += [replace(plain, K=64, dtype=dtype) for dtype in ("bf16", "fp32", "fp16")]
    others += [replace(plain, K=24, dtype=dtype) for dtype in ("bf16", "fp32")]
    others += [replace(plain, layout="cut_out"), replace(plain, N=1), Case(2, 70, 7, 7, 3, "bf16", "contiguous")]
    work = [(case, torch.float64 if case.dtype == "fp64" else torch.float32) for case in (*CASES, *others)]
    work += [(replace(plain, dtype=dtype), torch.bfloat16) for dtype in ("bf16", "fp32")]
    compilations: dict[Compilation, str] = {}
    for case, parameters in work:
        every = case in (plain, replace(plain, dtype="fp32"), replace(plain, layout="cut_out"))
        for kernel, arguments in launches(case, divmod(architecture, 10), parameters, every):
            compilations.setdefault(describe(kernel, arguments), case.name)
    for case in (replace(plain, C=C, K=K) for C, K in ((64, 16), (256, 64), (512, 16))):  # what one image may take
        for kernel, arguments in launches(case, divmod(architecture, 10), every=False):
            if kernel.__module__ == image_kernels.__name__:
                compilations.setdefault(describe(kernel, arguments), case.name)
    lean = [replace(plain, dtype=dtype) for dtype in ("bf16", "fp32", "fp16", "fp64")]
    lean += [replace(plain, K=64, dtype=dtype) for dtype in ("bf16", "fp32")]
    lean += [replace(plain, K=K) for K in (16, 24)] + [replace(plain, N=1, K=K) for K in (8, 64)]
    lean += [replace(plain, layout=layout) for layout in ("contiguous", "cut_out")]
    lean += [case for case in CASES if case.C == plain.C and case.layout == "channels_last"]
    work = [(case, torch.float64 if case.dtype == "fp64" else torch.float32) for case in lean]
    for case, parameters in [*work, (plain, torch.bfloat16)]:
        for kernel, arguments in launches(case, divmod(architecture, 10), parameters, every=case == plain, lean=True):
            if kernel.__module__ == tile_kernels.__name__:
                compilations.setdefault(describe(kernel, arguments), f"{case.name}, leaner")
    return compilations


def main() -> int:
    """Compiles everything and prints a line for each compilation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--architectures", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT), help="e.g. 90: sm_90"
    )
    arguments = parser.parse_args()
    if grouping.INTERPRETED:
        parser.error("TRITON_INTERPRET: expected to be unset, got 1; interpreted kernels cannot be compiled")
    work = [(item, case, sm) for sm in arguments.architectures for item, case in shipped(sm).items()]
    print(f"Triton {triton.__version__}: {len(work)} compilations")
    columns = f"{'blocks':<16}{'regs':>5}{'stack':>6}{'shared':>8}{'mma':>5}{'wide':>5}{'narrow':>7}  case"
    print(f"{'sm':>4} {'kernel':<26}{columns}")
    missed = 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        results = pool.map(compile, [item for item, _, _ in work], [sm for _, _, sm in work])
        for (item, case, sm), used in zip(work, results, strict=True):
            wrong = failures(item, used, sm)
            if wrong:
                missed += 1
            print(
                f"{sm:>4} {item.name:<26}{item.blocks:<16}{used.registers:>5}{used.stack:>6}{used.shared:>8}"
                f"{used.matrix:>5}{used.wide_loads:>5}{used.narrow_loads:>7}  {case}"
                + "".join(f"  MISSED: {reason}" for reason in wrong),
                flush=True,
            )
    print(f"{missed} of {len(work)} compilations miss a gate" if missed else "all gates passed")
    return int(missed > 0)


if __name__ == "__main__":
    run_main(main)
