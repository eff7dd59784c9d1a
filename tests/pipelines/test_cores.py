"""The cores that a process counts as its own."""

import os
import subprocess
import sys

import pytest
import torch

from pipelines.cores import usable_cores
from rg.runs.threads import limit_threads

PRINT = "from pipelines.cores import usable_cores; print(usable_cores())"


@pytest.fixture
def _many(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux has affinities")
def test_the_affinity_counts():
    first = str(min(os.sched_getaffinity(0)))
    bound = subprocess.run(["taskset", "-c", first, sys.executable, "-c", PRINT], capture_output=True, check=True)
    assert int(bound.stdout) == 1


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize(
    "membership,files,cores",
    [
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"}, 4),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/seen/on/the/host\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, 64),
        (
            "3:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "600000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            6,
        ),
        (
            "4:cpu,cpuacct:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "600000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            6,
        ),
        ("0::/job\n", {"job/cpu.max": "", "cpu.max": "300000 100000\n"}, 3),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_quotas_of_all_groups_count(tmp_path, membership, files, cores):
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path, tmp_path / "membership") == cores


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "variable,cores,processes,expected",
    [
        (None, 6, 1, 6),
        (None, 6, 2, 3),
        (None, 6, 9, 1),
        (None, 64, 1, 8),
        ("8", 6, 1, 8),
        (" 8,2", 6, 1, 8),
        ("", 6, 1, 6),
        ("0", 6, 1, 6),
        ("1.5", 6, 1, 6),
    ],
)
def test_pytorch_computes_with_the_cores_that_are_ours(monkeypatch, variable, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(8)
    limit_threads(processes)
    assert torch.get_num_threads() == expected
