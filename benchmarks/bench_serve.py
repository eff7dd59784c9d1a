"""How the server of explanations holds up: many clients, some of whom send files made to do harm.

python -m benchmarks.bench_serve RUN [--seconds 300] [--clients 32] [--hostile 0.1] [--record]

A server of its own on the loopback interface; every client asks again as soon as it has its answer. Ends with exit code
1 if a hostile file gets another answer than it should, or if any answer is a 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import httpx
import numpy as np

from benchmarks.tools import ledger, process
from benchmarks.tools.command import run_main
from benchmarks.tools.hostile import HONEST, HOSTILE, MEGABYTES, MEGAPIXELS, encoded, noise
from benchmarks.tools.options import at_least, duration

RESULTS = ledger.RESULTS / "serve.csv"
SAMPLES = 30  # looks at the memory of the server
PHOTOS = [encoded(noise(width, height), quality=75) for width, height in ((640, 480), (480, 640), (1600, 1200))]


class Load:
    """What clients have seen so far.

    Attributes:
        seconds: Latencies of answers to photos.
        statuses: Of all answers.
        hostile: Statuses and first lines of the answers, by kind of file.
        odd: Statuses, by kind of honest but odd file.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.hostile: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.odd: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def ask(self, client: httpx.AsyncClient, content: bytes) -> tuple[str, str]:
        """One request: its status, or the error of the connection, and what was wrong."""
        try:
            answer = await client.post("/explain", content=content)
        except httpx.TransportError as error:
            status, reason = type(error).__name__, ""
        else:
            status = str(answer.status_code)
            reason = answer.json()["error"] if answer.is_error else ""
        self.statuses[status] += 1
        return status, reason

    async def client(self, address: str, until: float, share: float, seed: int) -> None:
        """One client, until that time."""
        chance = random.Random(seed)
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:
            while time.perf_counter() < until:
                if chance.random() < share:
                    kind = chance.choice([*HOSTILE, *HONEST])
                    if kind in HOSTILE:
                        self.hostile[kind][" ".join(await self.ask(client, HOSTILE[kind][0]))] += 1
                    else:
                        self.odd[kind]["".join(await self.ask(client, HONEST[kind]))] += 1
                else:
                    start = time.perf_counter()
                    await self.ask(client, chance.choice(PHOTOS))
                    self.seconds.append(time.perf_counter() - start)

    def wrong(self) -> list[str]:
        """What should not have been answered so."""
        bad = [f"{count} answers {status}" for status, count in self.statuses.items() if status[0] not in "24"]
        for kind, answers in self.hostile.items():
            bad += [f"{kind}: {answer}" for answer in answers if not answer.startswith(str(HOSTILE[kind][1]))]
        for kind, answers in self.odd.items():
            bad += [f"{kind}: {answer}" for answer in answers if answer != "200"]
        return bad


async def _load(address: str, pid: int, seconds: float, clients: int, share: float) -> tuple[Load, list[float]]:
    load, memory = Load(), []
    until = time.perf_counter() + seconds
    asking = [asyncio.create_task(load.client(address, until, share, seed)) for seed in range(clients)]
    while time.perf_counter() < until:
        await asyncio.sleep(seconds / SAMPLES)
        memory.append(process.memory(pid) / 2**20)
    await asyncio.gather(*asking)
    return load, memory


def main() -> int:
    """Measures, prints and, with ``--record``, appends to ``results/serve.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--seconds", type=duration, default=300.0, help="how long to ask")
    parser.add_argument("--clients", type=at_least(1), default=32, help="that ask at once")
    parser.add_argument("--hostile", type=float, default=0.1, help="share of odd and hostile files, 0 to 1")
    parser.add_argument("--record", action="store_true", help="append the results to results/serve.csv")
    options = parser.parse_args()
    if process.missing():
        parser.error(process.missing())
    command = [sys.executable, "-m", "rg", "serve", str(options.run), "--port", "0"]
    command += [f"--limits.megabytes={MEGABYTES}", f"--limits.megapixels={MEGAPIXELS}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            first = server.stderr.readline()
            if (match := re.match(r"http://\S+", first)) is None:
                parser.error(first.strip())
            load, memory = asyncio.run(_load(match[0], server.pid, options.seconds, options.clients, options.hostile))
        finally:
            server.terminate()
    rate = sum(load.statuses.values()) / options.seconds
    p20, p50, p80, p99 = (1000 * float(value) for value in np.percentile(load.seconds, (20, 50, 80, 99)))
    print(f"{options.clients} clients, {options.seconds:g} s: {rate:.1f} requests/s; {p50:.0f} ms (p99 {p99:.0f} ms)")
    print("statuses: " + ", ".join(f"{status} {count}" for status, count in sorted(load.statuses.items())))
    print("memory of the server in MB over time: " + " ".join(f"{value:.0f}" for value in memory))
    for kind, answers in sorted((load.hostile | load.odd).items()):
        print(f"  {kind:<40} " + "; ".join(f"{count} x {answer}" for answer, count in answers.items()))
    if options.record:
        case = f"{options.clients} clients, {options.hostile:.0%} hostile"
        for metric, unit, values, n in (
            ("latency", "ms", (p20, p50, p80), len(load.seconds)),
            ("latency p99", "ms", (p99,) * 3, len(load.seconds)),
            ("throughput", "requests/s", (rate,) * 3, 1),
            ("memory", "MB", np.percentile(memory, (20, 50, 80)).tolist(), len(memory)),
        ):
            measured = {name: round(value, 1) for name, value in zip(("p20", "p50", "p80"), values, strict=True)}
            row = {"case": case, "provider": "rg serve", "mode": "cpu", "metric": metric, "unit": unit, "n": n}
            ledger.append(RESULTS, row | measured)
    for line in load.wrong():
        print(f"wrong: {line}")
    return 1 if load.wrong() else 0


if __name__ == "__main__":
    run_main(main)
