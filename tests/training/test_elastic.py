"""An elastic run of DDP on three hosts: it goes on with two when one is lost, and with three when that comes back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.test_launch import train
from tests.support.cluster import Hosts, Process, missing


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Hosts(3) as hosts:
        yield hosts


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_lost_host_is_done_without_until_it_comes_back(hosts, small_birds, tmp_path):
    out = tmp_path / "run"
    settings = {"train.engine": "ddp", "train.epochs": 2000, "train.checkpoint_steps": 5, "train.peer_timeout": 30}
    words = train(small_birds, out) + [str(word) for item in settings.items() for word in (f"--{item[0]}", item[1])]

    def agent(rank: int) -> Process:
        variables = {"NODES": "2:3", "NODE_RANK": str(rank), "MASTER_ADDR": "node1", "RESTARTS": "3"}
        return hosts.run(f"node{rank + 1}", ["launch/torchrun.sh", *words], variables)

    first, second, leaves = agent(0), agent(1), agent(2)
    first.wait_for("over 3 ranks", 180)
    first.wait_for("step 20/", 120)
    for pid in [leaves.pid, *hosts.pids("node3", "torchrun"), *hosts.pids("node3", "rg train")]:
        os.kill(pid, signal.SIGKILL)
    first.wait_for("over 2 ranks", 180)
    back = agent(2)
    end = time.monotonic() + 180
    while first.output.count("over 3 ranks") < 2:
        assert time.monotonic() < end, first.output
        time.sleep(0.2)
    for process in (first, second, back):
        process.send_signal(signal.SIGTERM)
    for process in (first, second, back):
        process.wait(120)
    resumed = json.loads((out / "run.json").read_text())["resumed"]
    assert [session["ranks"] for session in resumed] == [2, 3]
    steps = [record["step"] for record in records(out)]
    assert steps == list(range(1, len(steps) + 1))  # every step once, whoever took it
