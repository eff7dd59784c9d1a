"""Freed memory that the process keeps, by the page faults that the system counts."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from rg.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    torch.zeros(16 * 2**20, dtype=torch.uint8).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(64 * 2**20, dtype=torch.uint8).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_a_block_that_is_freed_and_asked_for_again_is_faulted_in_once() -> None:
    faults = {}
    for how in ("as it comes", "keep"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True)
        faults[how] = int(done.stdout)
    # Twenty times as many, less what else the process does. Huge pages make fewer of both.
    assert faults["as it comes"] > 5 * faults["keep"]
