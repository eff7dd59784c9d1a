"""How many photos a second ``explain`` takes, pictures and page included, and the memory that needs.

python -m benchmarks.bench_explain RUN [--files 300] [--jobs 2] [--pictures webp] [--device cpu] [--record]
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.tools import ledger
from benchmarks.tools.image_set import describe, image_set
from benchmarks.tools.options import at_least, image_parser
from benchmarks.tools.process import alone, missing
from pipelines.cores import usable_cores

RESULTS = ledger.RESULTS / "explain.csv"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and, with ``--record``, appends to ``results/explain.csv``."""
    parser = image_parser(__doc__, RESULTS)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--jobs", type=at_least(1), default=usable_cores(), help="threads")
    parser.add_argument("--pictures", choices=["webp", "png", "none"], default="webp", help="kind of the pictures")
    parser.add_argument("--view", choices=["auto", "whole", "crop"], default="auto", help="what the model sees")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="how often to explain them")
    arguments = parser.parse_args(argv)
    if reason := missing():
        parser.error(reason)

    photos = image_set(arguments.images, arguments.files) / "raw" / "train"
    options = {name: getattr(arguments, name) for name in ("jobs", "pictures", "view", "device")}
    measured = [alone(functools.partial(_explain, arguments.run, photos, options)) for _ in range(arguments.repeats)]
    rates = [arguments.files / seconds for seconds, _ in measured]
    peaks = [peak / 1e6 for _, peak in measured]
    mode = f"{arguments.device}, {arguments.jobs} jobs, {arguments.view} view, {arguments.pictures} pictures"
    for metric, unit, values in (("throughput", "images/s", rates), ("peak memory", "MB", peaks)):
        p20, p50, p80 = (round(float(value), 1) for value in np.percentile(values, (20, 50, 80)))
        print(f"{describe(arguments.files)}, {mode}: {p50} {unit} (p20 {p20}, p80 {p80}, {len(values)} repeats)")
        if arguments.record:
            row = {
                "case": describe(arguments.files),
                "provider": "rg explain",
                "mode": mode,
                "metric": metric,
                "unit": unit,
                "p20": p20,
                "p50": p50,
                "p80": p80,
                "n": len(values),
            }
            ledger.append(RESULTS, row, gpu=arguments.device != "cpu")


def _explain(run: Path, photos: Path, options: dict[str, object]) -> float:
    """Seconds from the loaded program to the finished page."""
    from rg.explain.files import explain_files
    from rg.malloc import keep_freed_memory
    from rg.pages import gallery

    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        explain_files(run, [photos], Path(out), write_page=gallery.write, **options)  # type: ignore[arg-type]
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
