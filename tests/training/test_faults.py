"""What happens to a run of two hosts when one of them fails: who notices, when, with what exit code, and what is lost.

Every test adds a row to a table, which is printed in the end (``pytest -s``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support import cluster, rank_process
from tests.support.rank_process import RankProcess
from tests.training.test_train import OPTIONS, metrics

STEPS = 12
TIMEOUT = 12  # train.peer_timeout in seconds
STOPPED, PEER_LOST = 75, 76
STEPWISE = OPTIONS | {"train.checkpoint_steps": 2, "train.log_steps": 1, "train.peer_timeout": TIMEOUT}
CLOCK = Path(__file__).with_name("clock_ahead.c")
reason = cluster.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(scope="module")
def hosts() -> Iterator[cluster.Hosts]:
    os.environ["OMP_NUM_THREADS"] = "1"
    with cluster.Hosts(2) as found:
        yield found


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple]]:
    rows: list[tuple] = []
    yield rows
    print("\n| fault | noticed after | exit codes | steps lost | resumed equals uninterrupted |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


@pytest.fixture
def start(hosts, small_birds, tmp_path):
    """Starts both ranks, or as many as asked for; all are gone after the test."""
    running: list[RankProcess] = []

    def start(
        out: Path | list[Path],
        fault: tuple[str, int] | None = None,
        on: int = 1,
        data: Path | None = None,
        ranks: int = 2,
        world_size: int | None = None,
        each: Sequence[Mapping] = (),
        **changed: object,
    ) -> list[RankProcess]:
        settings = STEPWISE | {name.replace("__", "."): value for name, value in changed.items()}
        begun = []
        for rank in range(ranks):
            folder = out[rank] if isinstance(out, list) else out
            words = arguments(data or small_birds, folder, settings | dict(each[rank] if each else {}))
            log = tmp_path / f"{len(running)}.log"
            variables = {"RG_TEST_FILL": str(folder), "RG_TEST_DATA": str(data), "RG_TEST_GO": str(tmp_path / "go")}
            fails = fault if rank == on else None
            begun.append(RankProcess(hosts, rank, world_size or ranks, words, log, fails, variables))
            running.append(begun[-1])
        return begun

    yield start
    for process in running:
        process.kill()


@pytest.fixture(scope="module")
def uninterrupted(hosts, small_birds, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    words = arguments(small_birds, out, STEPWISE)
    ranks = [RankProcess(hosts, rank, 2, words, out.parent / f"{rank}.log") for rank in range(2)]
    assert [rank.wait(300) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    return out


def arguments(data: Path, out: Path, settings: Mapping) -> list[object]:
    """Of ``python -m rg``."""
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["train", "birds_lite0", "--data", data, "--out", out, "--auto-resume", *words]


def newest(out: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def same(out: Path, other: Path) -> bool:
    """The same bits of weights, and the same records of all steps."""
    weights = [folder / "model.safetensors" for folder in (out, other)]
    return weights[0].read_bytes() == weights[1].read_bytes() and metrics(out) == metrics(other)


def seconds_between(ranks: list[RankProcess], first: int, second: int) -> float:
    """From the end of one rank to that of another."""
    ranks[first].wait(300)
    began = time.monotonic()
    ranks[second].wait(300)
    return time.monotonic() - began


def silence(output: str, rank: int) -> int:
    """Seconds for which a rank had not been heard of, in the words of who missed it; 0 if its store had gone."""
    found = re.search(rf"rank {rank} \([^)]*\) has (gone|not (?:been heard of|answered) for (\d+) s)", output)
    assert found, output
    return int(found[2] or 0)


def resume(start, out: Path, uninterrupted: Path) -> None:
    again = start(out)
    assert [rank.wait(300) for rank in again] == [0, 0], [rank.output for rank in again]
    assert "continue at" in again[0].output
    assert same(out, uninterrupted)


@pytest.mark.parametrize("on", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(start, uninterrupted, table, tmp_path, on):
    ranks = start(tmp_path / "run", ("SIGTERM", 5), on)
    assert [rank.wait() for rank in ranks] == [STOPPED, STOPPED], [rank.output for rank in ranks]
    step = newest(tmp_path / "run")
    assert step in (6, 7)  # at the end of the step of the signal, or of the next one
    assert f"stopped by SIGTERM at step {step} of {STEPS}" in ranks[0].output
    resume(start, tmp_path / "run", uninterrupted)
    table.append((f"SIGTERM to rank {on}", "next step", "75, 75", "0", "yes"))


@pytest.mark.parametrize("on", [0, 1])
def test_a_killed_rank_is_missed(start, uninterrupted, table, tmp_path, on):
    ranks = start(tmp_path / "run", ("SIGKILL", 5), on)
    after = seconds_between(ranks, on, 1 - on)
    assert ranks[on].wait() == -signal.SIGKILL
    assert ranks[1 - on].wait() == PEER_LOST, ranks[1 - on].output
    assert silence(ranks[1 - on].output, on) < TIMEOUT
    assert f"rank {1 - on} (node{2 - on}) ends at step 5 (training)" in ranks[1 - on].output
    lost = 5 - newest(tmp_path / "run")
    assert lost <= 3  # at most a checkpoint whose writing was not over
    resume(start, tmp_path / "run", uninterrupted)
    codes = ("-9, 76", "76, -9")[on]
    table.append((f"SIGKILL of rank {on} in a step", f"{after:.1f} s", codes, str(lost), "yes"))


@pytest.mark.parametrize("on", [0, 1])
def test_a_rank_killed_while_it_saves_leaves_the_checkpoint_before(start, uninterrupted, table, tmp_path, on):
    ranks = start(tmp_path / "run", ("SIGKILL in a save", 6), on)
    after = seconds_between(ranks, on, 1 - on)
    assert ranks[on].wait() == -signal.SIGKILL
    assert ranks[1 - on].wait() == PEER_LOST, ranks[1 - on].output
    assert newest(tmp_path / "run") == 4
    resume(start, tmp_path / "run", uninterrupted)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    codes = ("-9, 76", "76, -9")[on]
    table.append((f"SIGKILL of rank {on} in a save", f"{after:.1f} s", codes, "2", "yes"))


@pytest.mark.parametrize("on", [0, 1])
def test_a_stopped_rank_is_missed_within_the_timeout(start, uninterrupted, table, tmp_path, on):
    ranks = start(tmp_path / "run", ("SIGSTOP", 5), on)
    while Path(f"/proc/{ranks[on].pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.05)
    began = time.monotonic()
    assert ranks[1 - on].wait(3 * TIMEOUT) == PEER_LOST, ranks[1 - on].output
    after = time.monotonic() - began
    assert silence(ranks[1 - on].output, on) < TIMEOUT
    lost = 5 - newest(tmp_path / "run")
    ranks[on].kill()
    resume(start, tmp_path / "run", uninterrupted)
    codes = ("stopped, 76", "76, stopped")[on]
    table.append((f"SIGSTOP of rank {on}", f"{after:.1f} s", codes, str(lost), "yes"))


def test_a_short_cut_of_the_link_is_survived(start, hosts, uninterrupted, table, tmp_path):
    ranks = start(tmp_path / "run", ("wait", 4))
    ranks[0].wait_for(f"step 4/{STEPS}")
    hosts.cut("node2")
    (tmp_path / "go").touch()
    time.sleep(TIMEOUT / 4)
    hosts.restore("node2")
    assert [rank.wait(300) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert same(tmp_path / "run", uninterrupted)
    table.append((f"link cut for {TIMEOUT / 4:g} s", "", "0, 0", "0", "not interrupted, equal"))


def test_both_sides_of_a_cut_link_end_and_go_on_later(start, hosts, uninterrupted, table, tmp_path):
    ranks = start(tmp_path / "run", ("wait", 5))
    ranks[0].wait_for(f"step 5/{STEPS}")
    hosts.cut("node2")
    (tmp_path / "go").touch()
    began = time.monotonic()
    try:
        assert [rank.wait(4 * TIMEOUT) for rank in ranks] == [PEER_LOST, PEER_LOST], [rank.output for rank in ranks]
    finally:
        hosts.restore("node2")
    after = time.monotonic() - began
    assert "rank 1 (node2) has not been heard of" in ranks[0].output
    assert "rank 0 (10.0.0.1) has" in ranks[1].output
    assert max(silence(rank.output, other) for rank, other in zip(ranks, (1, 0), strict=True)) < TIMEOUT
    resume(start, tmp_path / "run", uninterrupted)
    table.append(("link cut, restored later", f"{after:.1f} s", "76, 76", "up to 3", "yes"))


def test_the_rest_goes_on_without_a_lost_host(start, uninterrupted, table, tmp_path):
    ranks = start(tmp_path / "run", ("SIGKILL", 7))
    assert ranks[0].wait() == PEER_LOST
    lost = 7 - newest(tmp_path / "run")
    (alone,) = start(tmp_path / "run", ranks=1)
    assert alone.wait(300) == 0, alone.output
    assert f"continue at step {7 - lost} of {STEPS} (" in alone.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["ranks"], [session["ranks"] for session in record["resumed"]]) == (2, [1])
    steps = [line["step"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert steps == [line["step"] for line in metrics(uninterrupted) if line["kind"] == "train"]
    table.append(("host lost for good, run goes on with one", "", "76, then 0", str(lost), "another world"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_clocks_that_differ_by_days_do_not_matter(start, hosts, small_birds, uninterrupted, table, tmp_path):
    """Rank 1 is a process of its own here: the library that changes its clock has to be there from the start."""
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    environment = rank_process.launch(hosts, 1, 2) | {"LD_PRELOAD": str(library)}
    ahead = subprocess.run(["date", "+%s"], env={"LD_PRELOAD": str(library)}, capture_output=True, check=True)
    assert int(ahead.stdout) - time.time() > 2 * 24 * 3600
    words = ["-m", "rg", *arguments(small_birds, tmp_path / "run", STEPWISE)]
    other = hosts.run("node2", [sys.executable, *words], environment)
    (rank,) = start(tmp_path / "run", ranks=1, world_size=2)
    assert (rank.wait(300), other.wait(120)) == (0, 0), (rank.output, other.output)
    assert same(tmp_path / "run", uninterrupted)
    table.append(("clock of host 2 three days ahead", "", "0, 0", "0", "not interrupted, equal"))


def test_a_full_disk_costs_a_checkpoint_not_the_run(start, uninterrupted, table, tmp_path):
    """Rank 1 has a run folder of its own, on a small disk that is full from step 5 to step 9."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", small], check=True)
    try:
        ranks = start([tmp_path / "run", small], ("disk full", 4))
        assert [rank.wait(300) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
        assert "the checkpoint cannot be written (rank 1 (node2): " in ranks[0].output
        assert "No space left on device" in ranks[0].output
        assert "the newest is step-00000004" in ranks[0].output
        assert newest(tmp_path / "run") == newest(small) == STEPS
        assert same(tmp_path / "run", uninterrupted)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
    table.append(("disk of rank 1 full for 4 steps", "at the save", "0, 0", "0", "not interrupted, equal"))


def test_a_corrupted_newest_checkpoint_gives_way_on_all_ranks(start, uninterrupted, table, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(uninterrupted, tmp_path / "other")
    with (tmp_path / "other" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    ranks = start([tmp_path / "run", tmp_path / "other"])
    assert [rank.wait(300) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    before = sorted(path.name for path in checkpoints.iterdir())[-2]
    assert f"its sha256 differs on rank 1 (node2)); continuing from {before} instead" in ranks[0].output
    assert same(tmp_path / "run", uninterrupted)
    lost = STEPS - int(before.removeprefix("step-"))
    table.append(("newest checkpoint corrupted on host 2", "at the start", "0, 0", str(lost), "yes"))


def test_a_deleted_shard_ends_the_run_with_its_name(start, small_birds, table, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_birds, data)
    ranks = start(tmp_path / "run", ("shard deleted", 3), data=data, input__max_damaged=0.0)
    codes = [rank.wait(300) for rank in ranks]
    assert 2 in codes, [rank.output for rank in ranks]
    assert set(codes) <= {2, PEER_LOST}, [rank.output for rank in ranks]
    assert any("train-0000" in rank.output for rank in ranks)
    for shard in small_birds.glob("train-*"):
        shutil.copy(shard, data)
    again = start(tmp_path / "run", data=data, input__max_damaged=0.0)
    assert [rank.wait(300) for rank in again] == [0, 0], [rank.output for rank in again]
    table.append(("shards deleted while training", "next read", ", ".join(map(str, codes)), "up to 2", "yes"))


def test_a_loss_that_is_no_number_costs_one_step(start, table, tmp_path):
    ranks = start(tmp_path / "run", ("loss not a number", 5))
    assert [rank.wait(300) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert "step 5: the loss is nan on rank 1 (node2), for train-0000" in ranks[1].output
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [0] * 5 + [1] * 7
    assert ["loss" in line for line in lines] == [True] * 5 + [False] + [True] * 6
    table.append(("loss not a number on rank 1", "that step", "0, 0", "1 left out", ""))


def test_losses_that_stay_no_numbers_end_the_run(start, tmp_path):
    ranks = start(tmp_path / "run", ("loss not a number", 5), train__max_skipped=0)
    assert [rank.wait(300) for rank in ranks] == [1, 1], [rank.output for rank in ranks]
    assert "rg: error: step 5: the loss was not finite in 1 step in a row (train.max_skipped)" in ranks[0].output
    assert newest(tmp_path / "run") <= 5


def test_hosts_with_other_settings_do_not_begin(start, table, tmp_path):
    ranks = start(tmp_path / "run", each=({}, {"optimizer.lr": 0.5}))
    assert [rank.wait() for rank in ranks] == [2, 2]
    for rank in ranks:
        (line,) = [line for line in rank.output.splitlines() if line.startswith("rg: error: ")]
        assert "the ranks are not the same: optimizer.lr is " in line
        assert "but 0.5 on rank 1 (node2)" in line
    assert not (tmp_path / "run").exists()
    table.append(("settings differ on host 2", "at the start", "2, 2", "", ""))
