"""Where the time of a training step goes: backbone, grouping, head, forward and backward, loss and optimiser.

python -m benchmarks.step_parts [--recipe birds_lite0] [--batch 32] [--size 128] [--steps 20] [--record]
python -m benchmarks.step_parts --operators 12        # what PyTorch's profiler says of three of these steps

Clocks are read where one part hands over to the next: hooks of the modules going forward, of the tensors between them
going backward. On a GPU the clocks are events of its stream. Variants are those of ``bench_train``, in turns. What is
left of a step is ``rest``: its batch, its flags, and a copy of the statistics of batch norm, for a step that is undone.
Standardising features counts as grouping, and going back through the losses as going back through the head.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bench_train, world_sizes
from benchmarks.tools import comparison, ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.options import at_least
from rg import recipes
from rg.config import RunConfig
from rg.training.step_flags import StepFlags

RESULTS = ledger.RESULTS / "step_parts.csv"
WARM_UP = bench_train.WARM_UP
PROFILED = 3  # steps
# What ends with each mark, in the order of a step.
PARTS = (
    ("rest", "before"),
    ("backbone", "forward"),
    ("grouping", "forward"),
    ("head", "forward"),
    ("loss", "forward"),
    ("head", "backward"),
    ("grouping", "backward"),
    ("backbone", "backward"),
    ("rest", "between"),
    ("optimizer", "step"),
    ("rest", "after"),
)
WHOLE = ("step", "all")


class Clock:
    """Marks on the time line of the device.

    Attributes:
        marks: Name of what has just ended, and when.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[tuple[str, str], Any]] = []

    def mark(self, part: tuple[str, str] | None = None) -> None:
        """Note that a part has ended; None starts anew."""
        if part is None:
            self.marks.clear()
        now: Any = time.perf_counter()
        if torch.cuda.is_available():
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self.marks.append((part or ("", ""), now))

    def read(self) -> dict[tuple[str, str], float]:
        """Milliseconds of every part since the clock was started anew."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent: dict[tuple[str, str], float] = {}
        for (_, began), (part, ended) in itertools.pairwise(self.marks):
            lasted = began.elapsed_time(ended) if torch.cuda.is_available() else 1000 * (ended - began)
            spent[part] = spent.get(part, 0.0) + lasted
        first, last = self.marks[0][1], self.marks[-1][1]
        spent[WHOLE] = first.elapsed_time(last) if torch.cuda.is_available() else 1000 * (last - first)
        return spent


def attach(model: Any, clock: Clock) -> None:
    """Let a model say when its parts hand over, in forward and backward."""

    def on_gradient(tensor: Tensor, part: tuple[str, str]) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: clock.mark(part))

    def after_backbone(_: object, __: object, features: Tensor) -> None:
        clock.mark(("backbone", "forward"))
        on_gradient(features, ("grouping" if hasattr(model, "dictionary") else "head", "backward"))

    def after_grouping(_: object, __: object, grouped: tuple[Tensor, ...]) -> None:
        clock.mark(("grouping", "forward"))
        on_gradient(grouped[1], ("head", "backward"))

    model.backbone.register_forward_pre_hook(lambda *_: clock.mark(("rest", "before")))
    model.backbone.register_forward_hook(after_backbone)
    if hasattr(model, "dictionary"):
        model.dictionary.register_forward_hook(after_grouping)
    model.register_forward_hook(lambda *_: clock.mark(("head", "forward")))


def measure(config: RunConfig, data: Path, variant: str, operators: int) -> list[dict[tuple[str, str], float]]:
    """Milliseconds of the parts of every step after the first few, in this process."""
    from rg.training import engine
    from rg.training.loop import Loop

    clock = Clock()
    spent: list[dict[tuple[str, str], float]] = []
    take_step, backward, optimize = Loop._train_step, engine.Engine.backward, engine.Engine.step
    profiler = torch.profiler.profile() if operators else None

    def timed_step(loop: Loop) -> StepFlags:
        if not isinstance(loop.batches, bench_train.Reader):
            layout = bench_train.VARIANTS[variant].memory_format
            loop.batches = bench_train.Reader(loop.loader, cached=True, memory_format=layout)
            attach(loop.engine.model, clock)
        if profiler and len(spent) == WARM_UP:
            profiler.start()
        if profiler and len(spent) == WARM_UP + PROFILED:
            profiler.stop()
        clock.mark()
        result = take_step(loop)
        clock.mark(("rest", "after"))
        spent.append(clock.read())
        return result

    def timed_backward(self: engine.Engine, loss: Tensor) -> None:
        clock.mark(("loss", "forward"))
        backward(self, loss)
        clock.mark(("backbone", "backward"))

    def timed_optimizer(self: engine.Engine, *arguments: Any, **options: Any) -> None:
        clock.mark(("rest", "between"))
        optimize(self, *arguments, **options)
        clock.mark(("optimizer", "step"))

    Loop._train_step = timed_step  # type: ignore[method-assign, assignment]
    engine.Engine.backward = timed_backward  # type: ignore[method-assign]
    engine.Engine.step = timed_optimizer  # type: ignore[method-assign]
    bench_train.train_as(variant, config, data)
    if profiler:
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=operators, max_name_column_width=60))
        if torch.cuda.is_available():
            print(device_work(profiler.events()))
    return spent[WARM_UP:]


def device_work(events: Sequence[Any]) -> str:
    """What a GPU does in a profiled step, and how often the host waits for it, of the profiler's events."""
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_gpu if not event.is_user_annotation]  # such as the whole of an optimiser step
    busy = sum(event.device_time_total for event in kernels) / 1000 / PROFILED
    waits = collections.Counter(event.name for event in events if "Synchronize" in event.name)
    waiting = ", ".join(f"{name} {count / PROFILED:g}" for name, count in sorted(waits.items())) or "nothing"
    return (
        f"a step: the GPU works {busy:.1f} ms in {len(kernels) / PROFILED:.0f} kernels and copies; the host waits in "
        f"{waiting} (once in cudaDeviceSynchronize to read the clock)"
    )


def table(spent: dict[str, list[dict[tuple[str, str], float]]]) -> str:
    """Medians of every part in milliseconds, a column for each variant, in Markdown."""
    lines = [f"| part | {' | '.join(spent)} |", "|---|" + "---|" * len(spent)]
    for part in (*PARTS, WHOLE):
        medians = [comparison.percentiles([step.get(part, 0.0) for step in steps])[1] for steps in spent.values()]
        cells = [f"{median:.1f}" for median in medians]
        if any(float(cell) for cell in cells):
            lines.append(f"| {', '.join(part)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and, with ``--record``, appends to ``results/step_parts.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", choices=sorted(recipes.RECIPES), default="birds_lite0", help="what is trained")
    parser.add_argument("--kind", choices=bench_train.KINDS, default="region grouping", help="which model")
    parser.add_argument("--batch", type=at_least(2), default=32, help="images")
    parser.add_argument("--size", type=at_least(32), default=128, help="pixels")
    parser.add_argument("--steps", type=at_least(1), default=10, help="steps of a turn that are measured")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often all take their turn")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network")
    usual, variants = bench_train.USUAL, (*bench_train.USUAL, "ddp")  # what is compiled or captured has no parts
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(usual), help="as in bench_train")
    parser.add_argument("--operators", type=at_least(1), default=0, help="print so many operators of the profiler")
    parser.add_argument("--record", action="store_true", help=f"append the results to results/{RESULTS.name}")
    options = parser.parse_args(arguments)
    if options.operators and options.steps < PROFILED + 1:
        parser.error(f"--operators: expected --steps {PROFILED + 1} or more, got {options.steps}")
    if options.operators and options.record:
        parser.error(
            "--operators: the profiler takes time of its own, of which nothing is recorded; leave out --record"
        )
    if process.missing():
        parser.error(process.missing())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = (options.recipe, bench_train.KINDS[options.kind], options.batch, options.size, options.precision)
    config = bench_train.settings(*words, "auto")
    spent: dict[str, list[dict[tuple[str, str], float]]] = {variant: [] for variant in options.variants}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "birds"
        world_sizes.draw(data, options.batch * (WARM_UP + options.steps), options.size)
        for _, variant in itertools.product(range(options.rounds), options.variants):
            spent[variant] += process.alone(measure, config, data, variant, options.operators)[0]
    case = f"{options.recipe}, {options.batch} images of {options.size} px"
    print(f"{case}, {options.kind}, {device}, {options.precision}, milliseconds\n{table(spent)}")
    for variant, part in itertools.product(spent, (*PARTS, WHOLE)) if options.record else ():
        values = [step.get(part, 0.0) for step in spent[variant]]
        row: dict[str, object] = {"case": case, "provider": options.kind, "metric": ", ".join(part), "unit": "ms"}
        row |= {"mode": f"{device}, {options.precision}, {variant}", "n": len(values)}
        row |= dict(zip(("p20", "p50", "p80"), (round(v, 2) for v in comparison.percentiles(values)), strict=True))
        ledger.append(RESULTS, row, gpu=device == "cuda")
    return 0


if __name__ == "__main__":
    run_main(main)
