"""Freed memory that the process keeps, by the page faults that the system counts."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading, torch
from rg.malloc import keep_freed_memory

def blocks(size, count):
    for _ in range(count):
        torch.zeros(size * 2**20, dtype=torch.uint8).add_(1)

def measure():
    blocks(16, 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks(64, 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
if sys.argv[2] == "main":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")


def run(*words: str, **variables: str) -> tuple[str, int]:
    """Whether it was set, and page faults of twenty blocks of 64 MiB, one after the other."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings)
    was_set, faults = done.stdout.split()
    return was_set, int(faults)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_block_that_is_freed_and_asked_for_again_is_faulted_in_once(where: str) -> None:
    (_, as_it_comes), (was_set, kept) = run("no", where), run("keep", where)
    assert was_set == "True"
    # Twenty times as many, less what else the process does. Huge pages make fewer of both.
    assert as_it_comes > 5 * kept


def test_what_the_user_has_set_stays() -> None:
    was_set, faults = run("keep", "main", MALLOC_TRIM_THRESHOLD_="131072")
    assert was_set == "False"
    assert faults > 5 * run("keep", "main")[1]
