"""launch/slurm.sbatch on a Slurm of two nodes: stopped ahead of its time, queued again by itself, done."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.test_launch import train
from tests.support.cluster import Slurm, missing


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    reason = missing(slurm=True)
    if reason:
        pytest.skip(reason)
    with Slurm(2) as slurm:
        yield slurm


def submit(slurm: Slurm, log: Path, arguments: list[str]) -> str:
    return slurm.command(
        "sbatch", "--parsable", "-N2", "--time=10", f"--output={log}", "launch/slurm.sbatch", *arguments
    )


def wait_for(slurm: Slurm, job: str, state: str, log: Path, seconds: float = 300) -> dict[str, str]:
    end = time.monotonic() + seconds
    while (fields := slurm.job(job))["JobState"] != state:
        over = fields["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        said = log.read_text() if log.exists() else "nothing"
        assert not over, (fields["JobState"], said)
        assert time.monotonic() < end, (fields["JobState"], said)
        time.sleep(0.2)
    return fields


def test_a_job_that_is_warned_of_its_end_goes_on_later(slurm, small_birds, tmp_path):
    """The warning of --signal=B:USR1@180 is sent by hand: the time limits of Slurm are whole minutes."""
    log, out = tmp_path / "job.log", tmp_path / "the run"
    job = submit(slurm, log, train(small_birds, out, train__epochs=5))
    end = time.monotonic() + 300
    while not (log.exists() and "step 2/20" in log.read_text()):
        assert time.monotonic() < end, log.read_text() if log.exists() else slurm.job(job)
        time.sleep(0.05)
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    fields = wait_for(slurm, job, "COMPLETED", log)
    assert fields["Restarts"] == "1"
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "train"] == list(range(1, 21))
    assert (out / "checkpoints" / "step-00000020").is_dir()
    said = log.read_text()
    assert "back into the queue" in said
    assert "over 2 ranks" in said


def test_a_job_that_gets_nowhere_is_not_queued_again(slurm, tmp_path):
    log = tmp_path / "job.log"
    job = submit(slurm, log, train(tmp_path / "no data", tmp_path / "run"))
    fields = wait_for(slurm, job, "FAILED", log)
    assert fields["Restarts"] == "0"
    assert "got nowhere; not queued again" in log.read_text()
