"""How long the operators take on a GPU, next to eager PyTorch, torch.compile and a copy of the same bytes.

python -m benchmarks.bench_kernels --dispatch            the kernels of every case and device
python -m benchmarks.bench_kernels --dry-run             bytes, operations and floor of every case, on any machine
python -m benchmarks.bench_kernels [--record]            the table, on a GPU; --record appends to results/kernels.csv
python -m benchmarks.bench_kernels --table               the recorded rows as a Markdown table

Providers take turns in every round, so that clocks and temperature favour no one. Cold means that 256 MB are written
between two calls, more than any L2 cache; warm means that the same call came just before. ``graph`` calls are replayed
from a CUDA graph, so that what is timed is the device and not Python. ``launched`` calls come from Python to an idle
GPU, and ``host`` is what such a call takes of the host, which waits for nothing, with what autograd needs. Fused is
what everyone gets, ``lean`` what ``kernels.prefer("lean")`` asks for, ``image`` what ``kernels.prefer("image")`` does,
where it fits. Eager is the reference in float32, autocast the same formulas under bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.kernel_accuracy import autocast, errors, lean
from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from benchmarks.tools.kernel_cases import CASES, DTYPES, LAYOUTS, Case
from kernels import image_grouping, operators, reference
from kernels.blocks import choose_blocks, choose_image_blocks
from kernels.dispatch import WAYS, Way, fits_image

DIRECTIONS = ("forward", "backward")
MODES = ("graph cold", "graph warm", "launched cold", "host")
PROVIDERS = ("fused", "lean", "image", "eager", "autocast", "compile", "copy")
RESULTS = ledger.RESULTS / "kernels.csv"
FLUSHED = 256 * 2**20
LAUNCHED = 20  # calls whose host time is taken together; the GPU has room for their kernels in its queue
# Where the dry run has no device to measure: the copy bandwidth of an H100 SXM, in GB/s.
ASSUMED_BANDWIDTH = 3000.0
CAPABILITIES = ((8, 0), (9, 0), (10, 0), (12, 0))

Call = Callable[[], object]
Calls = dict[tuple[str, str], Call]  # by provider and direction


def dry_run(cases: list[Case]) -> None:
    """Prints what must move and how long that takes at the assumed bandwidth."""
    print(f"floor: compulsory bytes at {ASSUMED_BANDWIDTH:.0f} GB/s")
    print(f"{'case':<44}{'direction':<10}{'MB':>8}{'GFLOP':>8}{'FLOP/byte':>11}{'floor us':>10}")
    for case, direction in itertools.product(cases, DIRECTIONS):
        size, work = case.bytes(direction), case.flops(direction)
        print(
            f"{case.name:<44}{direction:<10}{size / 1e6:>8.1f}{work / 1e9:>8.2f}{work / size:>11.1f}"
            f"{size / ASSUMED_BANDWIDTH / 1e3:>10.1f}"
        )


def dispatch(cases: list[Case]) -> None:
    """Prints which kernels every case takes and how they are cut, for everything that can be preferred."""
    print("kernels: tile POSITIONSxCHANNELSxPARTS, lean likewise, or image likewise in SPANS programs an image")
    print("+ CHANNELS: so many in every program of a second pass")
    columns = "".join(f"{f'sm_{major}{minor}':<30}" for major, minor in CAPABILITIES)
    print(f"{'case':<44}{'direction':<10}{'prefer':<8}{columns}")
    for case, direction, way in itertools.product(cases, DIRECTIONS, WAYS):
        taken = "".join(f"{_kernels(case, direction, way, capability):<30}" for capability in CAPABILITIES)
        print(f"{case.name:<44}{direction:<10}{way:<8}{taken}".rstrip())


def _kernels(case: Case, direction: str, way: Way, capability: tuple[int, int]) -> str:
    dtype, positions, forward = DTYPES[case.dtype], case.H * case.W, direction == "forward"
    last = case.layout == "channels_last"
    if way == "image" and fits_image(case.C, case.K, dtype, last, capability, forward):
        image = choose_image_blocks(case.N, positions, case.C, case.K, forward)
        second = f" + {image.second}" if image.passes == 2 else ""
        return f"image {image.positions}x{image.channels}x{image.parts} in {image.spans}{second}"
    lean = way == "lean"
    tile = choose_blocks(case.N, positions, case.C, case.K, dtype, capability, flat=True, lean=lean)
    return f"{'lean' if lean else 'tile'} {tile.positions}x{tile.channels}x{tile.parts}"


def calls(case: Case) -> tuple[Calls, Calls]:
    """One call for every provider and direction, warmed up: compiled, and with its libraries' workspaces allocated.

    To be called on the stream of the captures: autograd runs every node on the stream of its forward.

    Returns:
        The calls, forward for inference, and those of training.
    """
    prepared: Calls = {}
    forward: Calls = {}
    for direction in DIRECTIONS:
        words = torch.empty(case.bytes(direction) // 8, dtype=torch.int32, device="cuda")  # read, and written as often
        prepared["copy", direction] = functools.partial(torch.Tensor.copy_, torch.empty_like(words), words)
    torch.compiler.reset()
    compiled = torch.compile(reference.region_grouping, fullgraph=True)
    functions = {
        "fused": operators.region_grouping,
        "lean": lean,
        "eager": reference.region_grouping,
        "autocast": autocast,
        "compile": compiled,
    }
    if _fits(case, "forward"):
        functions["image"] = image_grouping.region_grouping
    for provider, function in functions.items():
        x, centers, sigma = (tensor.requires_grad_() for tensor in case.draw("cuda"))
        outputs = function(x, centers, sigma)
        grads = [torch.randn_like(output) for output in outputs]
        prepared[provider, "forward"] = functools.partial(function, x.detach(), centers.detach(), sigma.detach())
        forward[provider, "forward"] = functools.partial(function, x, centers, sigma)
        prepared[provider, "backward"] = functools.partial(
            torch.autograd.grad, outputs, (x, centers, sigma), grads, retain_graph=True
        )
    if not _fits(case, "backward"):
        prepared.pop(("image", "backward"), None)  # which would be that of tiles
    trained = prepared | forward
    for _, call in itertools.product(range(3), (*prepared.values(), *trained.values())):
        call()
    return prepared, trained


def _fits(case: Case, direction: str) -> bool:
    last, forward = case.layout == "channels_last", direction == "forward"
    return fits_image(case.C, case.K, DTYPES[case.dtype], last, torch.cuda.get_device_capability(), forward)


def peak_memory(call: Call) -> int:
    """Bytes that a call holds at most, over what was held before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def captured(call: Call) -> Call:
    """The call as a CUDA graph, captured on the current stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    return graph.replay


def times(wanted: Calls, rounds: int, cold: bool, idle: bool) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds of every call in every round; all calls take turns, each on a GPU that is idle if asked for."""
    scratch = torch.empty(FLUSHED // 4, dtype=torch.int32, device="cuda")
    events = {key: [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(rounds)] for key in wanted}
    for index in range(rounds):
        for key, call in wanted.items():
            if cold:
                scratch.zero_()
            else:
                call()
            if idle:
                torch.cuda.synchronize()
            start, end = events[key][index]
            start.record()
            call()
            end.record()
    torch.cuda.synchronize()
    return {key: np.array([start.elapsed_time(end) for start, end in pairs]) for key, pairs in events.items()}


def host_times(wanted: Calls, rounds: int) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds of the host for every call in every round, from an idle GPU on; all calls take turns."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in wanted}
    for _, (key, call) in itertools.product(range(rounds), wanted.items()):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(LAUNCHED):
            call()
        taken[key].append(1000 * (time.perf_counter() - began) / LAUNCHED)
    torch.cuda.synchronize()
    return {key: np.array(values) for key, values in taken.items()}


def measure(case: Case, rounds: int, record: bool) -> None:
    """Times, memory and errors of a case: printed, and recorded if asked for."""
    launched, trained = calls(case)
    memory = {key: peak_memory(call) for key, call in launched.items()}
    graphs = {key: captured(call) for key, call in launched.items()}
    print(case.name)
    columns = f"{'ms':>9}{'GB/s':>7}{'of copy':>9}{'x fused':>9}{'peak MB':>9}"
    print(f"  {'direction':<10}{'mode':<13}{'provider':<10}{columns}")
    for mode in MODES:
        if mode == "host":
            taken = host_times(trained, rounds)
        else:
            idle = mode.startswith("launched")
            taken = times(launched if idle else graphs, rounds, mode.endswith("cold"), idle)
        for direction, provider in itertools.product(DIRECTIONS, PROVIDERS):
            if (provider, direction) not in taken:
                continue
            p20, p50, p80 = np.percentile(taken[provider, direction], (20, 50, 80))
            copy, fused = (float(np.median(taken[other, direction])) for other in ("copy", "fused"))
            peak = memory[provider, direction]
            print(
                f"  {direction:<10}{mode:<13}{provider:<10}{p50:>9.4f}{case.bytes(direction) / p50 / 1e6:>7.0f}"
                f"{copy / p50:>9.1%}{p50 / fused:>9.2f}{peak / 1e6:>9.1f}"
            )
            if record:
                _record(case, provider, f"{direction} {mode}", "time", "ms", (p20, p50, p80), rounds)
                if mode == MODES[0]:
                    _record(case, provider, direction, "peak memory", "MB", (peak / 1e6,) * 3, 1)
    exact = {"fused": operators.region_grouping, "lean": lean, "eager": reference.region_grouping, "autocast": autocast}
    if _fits(case, "forward"):
        exact["image"] = image_grouping.region_grouping
    for provider, function in exact.items():
        largest = errors(function, case, "cuda")
        print(f"  error of {provider:<9}" + ", ".join(f"{name} {error:.1e}" for name, error in largest.items()))
        if record:
            for name, error in largest.items():
                _record(case, provider, name, "error against float64", "1", (error,) * 3, 1)


def _record(
    case: Case, provider: str, mode: str, metric: str, unit: str, values: tuple[float, float, float], n: int
) -> None:
    row = {"case": case.name, "provider": provider, "mode": mode, "metric": metric, "unit": unit, "n": n}
    percentiles = dict(zip(("p20", "p50", "p80"), (f"{value:.4g}" for value in values), strict=True))
    ledger.append(RESULTS, row | percentiles, gpu=True)


def table() -> str:
    """The newest recorded times in Markdown: cold, from CUDA graphs, as multiples of a copy of the same bytes."""
    if not RESULTS.exists():
        raise ValueError(f"{RESULTS}: nothing is recorded yet; run with --record on a GPU")
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "time"]
    newest = {(row["case"], row["mode"], row["provider"]): row for row in rows}
    head = (
        "| case | direction | fused ms | of a copy | lean | image | eager | autocast | torch.compile | device, commit |"
    )
    lines = [head, "|---" * 10 + "|"]
    for case, direction in itertools.product(CASES, DIRECTIONS):
        mode = f"{direction} graph cold"
        measured = {provider: newest.get((case.name, mode, provider)) for provider in PROVIDERS}
        if any(measured[provider] is None for provider in PROVIDERS if provider not in ("lean", "image")):
            continue
        ms = {provider: float(row["p50"]) for provider, row in measured.items() if row}
        fused = newest[case.name, mode, "fused"]
        asked = [f"{ms[way] / ms['copy']:.2f}x of a copy" if way in ms else "" for way in ("lean", "image")]
        lines.append(
            f"| {case.name} | {direction} | {ms['fused']:.3f} | {ms['fused'] / ms['copy']:.2f}x | "
            f"{' | '.join(asked)} | "
            f"{ms['eager'] / ms['fused']:.1f}x slower | {ms['autocast'] / ms['fused']:.1f}x slower | "
            f"{ms['compile'] / ms['fused']:.1f}x slower | "
            f"{fused['device']}, {fused['commit']} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dispatch", action="store_true", help="print the kernels of every case and device only")
    parser.add_argument("--dry-run", action="store_true", help="print bytes, operations and floors only")
    parser.add_argument("--table", action="store_true", help="print the recorded rows as a Markdown table")
    parser.add_argument("--record", action="store_true", help="append the results to results/kernels.csv")
    parser.add_argument("--rounds", type=int, default=30, help="how often every provider takes its turn")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="of the features")
    parser.add_argument("--layout", choices=LAYOUTS, nargs="+", default=list(LAYOUTS), help="of the features")
    parser.add_argument("--channels", type=int, nargs="+", default=[1024, 2048], help="1024, 2048 or both")
    arguments = parser.parse_args()
    cases = [
        case
        for case in CASES
        if case.dtype in arguments.dtype and case.layout in arguments.layout and case.C in arguments.channels
    ]
    if not cases:
        parser.error(f"--channels: expected 1024 or 2048, got {arguments.channels}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {arguments.rounds}")
    if arguments.dispatch:
        dispatch(cases)
    elif arguments.dry_run:
        dry_run(cases)
    elif arguments.table:
        try:
            print(table())
        except ValueError as error:
            parser.error(str(error))
    elif not torch.cuda.is_available():
        parser.error("no GPU; --dry-run works without one")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.rounds} rounds")
        with torch.cuda.stream(torch.cuda.Stream()):  # the default stream cannot be captured
            for case in cases:
                measure(case, arguments.rounds, arguments.record)
    return 0


if __name__ == "__main__":
    run_main(main)
