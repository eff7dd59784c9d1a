"""What the benchmarks count of a process and its children."""

import os
import subprocess
import sys

import pytest

from benchmarks.tools import process

pytestmark = pytest.mark.skipif(not process.PROC.exists(), reason="no /proc")


def test_living_children_count():
    """A process whose child holds 200 MB and has computed for half a second, while both wait.

    What other tests have left running below this process may end at any time, so it is not what is measured.
    """
    child = (
        "import time; held = bytearray(b'x') * 200_000_000\n"
        "while time.process_time() < 0.5: pass\n"
        "print(time.process_time(), flush=True); input()"
    )
    code = (
        "import subprocess, sys, time; print(time.process_time(), flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = sum(float(parent.stdout.readline()) for _ in range(2))
    held = process.memory(parent.pid)
    spent = process.processor_seconds(parent.pid)
    parent.communicate("\n")
    # Two interpreters take some 10 MB each on top.
    assert 195e6 < held < 250e6
    # Clock ticks are 10 ms; a process's user and system time are each cut to whole ones. Since it spoke, one of the two
    # has started the other.
    assert said >= 0.5
    assert said - 0.05 <= spent <= said + 0.25


def test_the_result_of_a_function_in_another_process():
    pid, _ = process.alone(os.getpid)
    assert pid != os.getpid()
    assert process.alone(divmod, 17, 5)[0] == (3, 2)


def test_the_peak_counts_what_was_freed(monkeypatch):
    monkeypatch.setattr(process, "POLL", 0.01)
    code = (
        "import time; held = bytearray(b'x') * 200_000_000\n"
        "start = time.process_time()\n"
        "while time.process_time() < start + 0.3: pass\n"
        "del held"
    )
    _, peak = process.alone(exec, code)
    # The interpreter and what the tests' own main module imports come on top.
    assert 195e6 < peak < 350e6


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match=r"_exit\(3,\): the process ended with code 3"):
        process.alone(os._exit, 3)


def test_systems_without_proc_are_told(monkeypatch, tmp_path):
    assert process.missing() == ""
    monkeypatch.setattr(process, "PROC", tmp_path / "proc")
    assert process.missing().startswith(f"CPU time and memory are read from {tmp_path / 'proc'}")


def refuse(value):
    raise ValueError(f"value: expected another, got {value}")


def test_what_a_function_in_another_process_refuses():
    with pytest.raises(ValueError, match=r"^value: expected another, got 3$"):
        process.alone(refuse, 3)
