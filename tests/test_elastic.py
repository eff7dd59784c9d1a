"""An elastic run on two hosts: it goes on with one when the other is lost, and with both when that is back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Hosts, Process, missing
from tests.test_launch import train


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Hosts(2) as hosts:
        yield hosts


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_lost_host_is_done_without_and_taken_back(hosts, small_birds, tmp_path):
    out = tmp_path / "run"
    settings = {"train.epochs": 2000, "train.checkpoint_steps": 5, "train.peer_timeout": 12}
    words = train(small_birds, out) + [str(word) for item in settings.items() for word in (f"--{item[0]}", item[1])]

    def agent(rank: int) -> Process:
        variables = {"NODES": "1:2", "NODE_RANK": str(rank), "MASTER_ADDR": "node1", "RESTARTS": "3"}
        return hosts.run(f"node{rank + 1}", ["launch/torchrun.sh", *words], variables)

    stays, leaves = agent(0), agent(1)
    stays.wait_for("over 2 ranks", 120)
    stays.wait_for("step 20/", 120)
    for pid in [leaves.pid, *hosts.pids("node2", "torchrun"), *hosts.pids("node2", "rg train")]:
        os.kill(pid, signal.SIGKILL)
    stays.wait_for("over 1 ranks", 180)
    comes_back = agent(1)
    wait_for_count(stays, "over 2 ranks", 2)
    stays.send_signal(signal.SIGTERM)
    stays.wait(120)
    comes_back.wait(120)
    resumed = json.loads((out / "run.json").read_text())["resumed"]
    assert [session["ranks"] for session in resumed] == [1, 2]
    steps = [record["step"] for record in records(out)]
    assert steps == list(range(1, len(steps) + 1))  # every step once, whoever took it


def wait_for_count(process: Process, text: str, count: int) -> None:
    """Until its output contains the text that often."""
    end = time.monotonic() + 180
    while process.output.count(text) < count:
        assert process.poll() is None, process.output
        assert time.monotonic() < end, process.output
        time.sleep(0.1)
