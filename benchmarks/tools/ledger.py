"""The one table that all benchmarks append to: a CSV of percentiles with what they were measured on."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
MEASURED = ("case", "provider", "mode", "metric", "unit", "p20", "p50", "p80", "n")
COLUMNS = ("date", "commit", "dirty", "device", "driver", "python", "torch", "triton", *MEASURED)


def append(path: Path, row: Mapping[str, object], gpu: bool = False) -> None:
    """Appends one row, completed by date, commit, device and versions; the file is created if there is none.

    Args:
        path: The CSV file.
        row: A value for each of ``MEASURED``: what was measured (case, provider, mode), the metric with its unit,
            three percentiles over n repeats.
        gpu: Whether the device is the first GPU and not the CPU.

    Raises:
        ValueError: the row has not exactly the columns of ``MEASURED``, or the file has other columns.
    """
    if set(row) != set(MEASURED):
        raise ValueError(f"row: expected the columns {', '.join(MEASURED)}, got {', '.join(row)}")
    header = ",".join(COLUMNS) + "\n"
    text = path.read_text() if path.exists() else header
    if not text.startswith(header):
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {text.splitlines()[:1]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        file.write(text)
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow({**_surroundings(gpu), **row})
    os.replace(temporary, path)


def _surroundings(gpu: bool) -> dict[str, object]:
    device, driver = _gpu() if gpu else (_cpu(), "")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "dirty": int(bool(changes())),
        "device": device,
        "driver": driver,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
    }


def commit() -> str:
    """The commit of this checkout, 12 digits."""
    return _git("rev-parse", "--short=12", "HEAD")


def code_commit() -> str:
    """The newest commit that changed something else than rows of the ledger, 12 digits."""
    return _git("log", "-1", "--format=%h", "--abbrev=12", "--", ".", _exclusion())


def changes() -> str:
    """What differs from the commit in tracked files, rows of the ledger apart; empty if nothing does."""
    return _git("diff", "HEAD", "--", ".", _exclusion())


def _exclusion() -> str:
    return f":(exclude){RESULTS.relative_to(RESULTS.parent.parent)}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"


def _gpu() -> tuple[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return name, driver


def _git(*arguments: str) -> str:
    """Output of a git command in this checkout; empty where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parent.parent, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
