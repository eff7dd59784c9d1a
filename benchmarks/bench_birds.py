"""How many bird images one core draws per second, annotation and JPEG encoding included.

python -m benchmarks.bench_birds [--images 400] [--size 128] [--repeats 7] [--record]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.tools import ledger
from pipelines.drawn.birds import Birds, BirdsConfig


def main() -> None:
    """Measures, prints and, with ``--record``, appends to ``results/birds.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=400, help="images per repeat")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--repeats", type=int, default=7, help="how often to draw them")
    parser.add_argument("--record", action="store_true", help="append the result to the ledger")
    arguments = parser.parse_args()

    config = BirdsConfig(size=arguments.size)
    birds = Birds(config, "train", per_species=-(-arguments.images // config.species))
    for label in range(config.species):  # build the puppets
        birds[label]
    rates = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        for index in range(arguments.images):
            birds[index]
        rates.append(arguments.images / (time.perf_counter() - start))
    p20, p50, p80 = (round(float(rate), 1) for rate in np.percentile(rates, (20, 50, 80)))
    print(f"{arguments.size} px: {p50} images/s on one core (p20 {p20}, p80 {p80}, {arguments.repeats} repeats)")
    if arguments.record:
        ledger.append(
            ledger.RESULTS / "birds.csv",
            {
                "case": f"{arguments.size}px",
                "provider": "Birds.__getitem__",
                "mode": "one core",
                "metric": "throughput",
                "unit": "images/s",
                "p20": p20,
                "p50": p50,
                "p80": p80,
                "n": arguments.repeats,
            },
        )


if __name__ == "__main__":
    main()
