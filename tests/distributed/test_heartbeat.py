"""Judging ranks by their signs of life: with made-up clocks, and with processes that really die, stop and hang."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rg.distributed import heartbeat
from rg.distributed.group import Group
from rg.distributed.heartbeat import PEER_LOST, Beat, Heartbeat, Watch
from rg.distributed.ranks import Ranks
from tests.support.forked import CONTEXT
from tests.support.world import join

STEP = "at step 3 (training)"


class Cast:
    """Three ranks that beat and go on once a second, but for what a test says of them; ``now`` is the judge's clock."""

    def __init__(self, watch: Watch, start: int = 1000) -> None:
        self.watch, self.now = watch, start
        self.beats = {rank: Beat(f"rank {rank} (host{rank})", where=STEP) for rank in range(3)}
        self.verdict: str | None = None

    def on(
        self, seconds: int, beating: tuple[int, ...] = (0, 1, 2), working: tuple[int, ...] = (0, 1, 2)
    ) -> str | None:
        """Let time pass; returns the first verdict."""
        for _ in range(seconds):
            self.now += 1
            for rank, beat in self.beats.items():
                beat.number += rank in beating
                beat.progress += rank in working and rank in beating
            seen = {rank: Beat(**vars(beat)) for rank, beat in self.beats.items()}
            self.verdict = self.verdict or self.watch.observe(self.now, seen)
        return self.verdict


def test_ranks_that_go_on_are_left_alone():
    assert Cast(Watch(10, 3)).on(500) is None


def test_a_silent_rank_is_named_with_what_it_was_doing():
    cast = Cast(Watch(10, 3))
    assert cast.on(5) is None
    assert cast.on(10, beating=(0, 1)) is None
    expected = f"rank 2 (host2) has not been heard of for 11 s, since it was {STEP}"
    assert cast.on(1, beating=(0, 1)) == expected


def test_the_rank_that_is_silent_for_longest_is_named():
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.on(3, beating=(0, 2))
    verdict = cast.on(9, beating=(0,))
    assert verdict is not None
    assert verdict.startswith("rank 1 (host1) has not been heard of for 11 s")


def test_a_failure_is_passed_on_at_once():
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.beats[1].failure = "disk on fire"
    assert cast.on(1) == f"rank 1 (host1) failed {STEP}: disk on fire"


def test_a_stall_names_the_rank_that_is_behind():
    """Even if it was the last to be seen at work: the others wait for it."""
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.beats[1].where = "at step 4 (reading data)"
    cast.beats[0].stage = cast.beats[2].stage = 1
    assert cast.on(2, working=(1,)) is None
    assert cast.on(10, working=()) is None
    verdict = cast.on(1, working=())
    assert verdict == "no rank has gone on for 11 s; rank 1 (host1) is still at step 4 (reading data)"


def test_a_stall_of_ranks_that_do_the_same_blames_none():
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.on(1, working=(1,))
    assert cast.on(11, working=()) == f"no rank has gone on for 11 s; all are still {STEP}"


def test_a_silent_rank_is_no_stall_though_it_went_on_before_it_fell_silent():
    """The others wait for it, and its last progress is older than its last sign of life."""
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.on(4, working=())
    assert cast.on(10, beating=(0, 1), working=()) is None
    verdict = cast.on(1, beating=(0, 1), working=())
    assert verdict == f"rank 2 (host2) has not been heard of for 11 s, since it was {STEP}"


def test_ranks_may_wait_for_one_that_goes_on():
    """As those do that have validated their smaller share."""
    cast = Cast(Watch(10, 3))
    cast.on(5)
    assert cast.on(200, working=(2,)) is None


def test_before_any_rank_works_none_stalls():
    """Reading a data set over a slow network, and building the model, may take their time."""
    cast = Cast(Watch(10, 3))
    assert cast.on(500, working=()) is None
    cast.on(1)
    assert cast.on(12, working=()) is not None


def test_a_rank_that_never_begins_is_behind():
    cast = Cast(Watch(10, 3))
    cast.beats[1].where = "at the start"
    cast.beats[0].stage = cast.beats[2].stage = 1
    cast.on(5, working=(0, 2))
    verdict = cast.on(12, working=())
    assert verdict == "no rank has gone on for 11 s; rank 1 (host1) is still at the start"


def test_a_broken_connection_shortens_the_patience():
    for cut_off, expected in ((True, "rank 2 (host2) has not been heard of for 4 s"), (False, None)):
        cast = Cast(Watch(100, 3))
        cast.on(5)
        cast.beats[0].cut_off = cut_off
        verdict = cast.on(5, beating=(0, 1))
        assert (verdict and verdict.partition(",")[0]) == expected


def test_a_short_timeout_is_not_stretched_by_a_broken_connection():
    cast = Cast(Watch(4, 30))
    cast.on(5)
    cast.beats[0].cut_off = True
    verdict = cast.on(5, beating=(0, 1))
    assert verdict is not None
    assert verdict.startswith("rank 2 (host2) has not been heard of for 5 s")


def test_a_broken_connection_between_living_ranks_is_told_after_a_while():
    cast = Cast(Watch(100, 3))
    cast.on(5)
    cast.beats[1].cut_off = True
    assert cast.on(7) is None, "six seconds after it was seen, the first of them"
    assert cast.on(1) == f"rank 1 (host1) lost a connection {STEP}, though all ranks are alive"


def test_those_who_judge_rank_0_alone_leave_stalls_to_it():
    watch = Watch(10, 3, whole=False)
    beat = Beat("rank 0 (host0)", progress=5, where=STEP)
    for now in range(500):
        beat = Beat(**vars(beat) | {"number": now})
        assert watch.observe(now, {0: beat}) is None
    assert watch.observe(509, {0: beat}) is None
    assert watch.observe(510, {0: beat}) == f"rank 0 (host0) has not been heard of for 11 s, since it was {STEP}"


def test_a_judge_that_was_suspended_blames_nobody():
    """Its clock went on meanwhile, and so did the ranks."""
    cast = Cast(Watch(10, 3))
    cast.on(5)
    cast.now += 1000
    assert cast.on(20) is None


RANK_SETS = st.lists(st.integers(0, 2), unique=True).map(tuple)


@given(
    st.integers(-(10**6), 10**6),
    st.lists(st.tuples(st.integers(1, 8), RANK_SETS, RANK_SETS, st.one_of(st.none(), st.integers(0, 2))), max_size=8),
)
def test_only_the_clock_of_the_judge_counts_and_only_its_differences(start, scenes):
    """Whatever happens, the verdict does not depend on what time it is."""
    casts = Cast(Watch(10, 3)), Cast(Watch(10, 3), start)
    for seconds, beating, working, cut_off in scenes:
        for cast in casts:
            if cut_off is not None:
                cast.beats[cut_off].cut_off = True
            cast.on(seconds, beating, working)
    assert casts[0].verdict == casts[1].verdict


def test_a_single_rank_neither_tells_nor_waits(monkeypatch):
    """A message of a single process may speak of a connection, such as that to the storage."""
    monkeypatch.setattr(heartbeat.time, "sleep", pytest.fail)
    alone = Heartbeat(Group(Ranks()), 600)
    alone.at(STEP)
    alone.cut_off()
    alone.fail("no such file")
    alone.stop()


# Real processes.
SIZE = 3
Act = Callable[[Group, Heartbeat], None]


def doze(_: Group, __: Heartbeat) -> None:
    time.sleep(60)


def meet(group: Group, heart: Heartbeat, missing: int) -> None:
    """A collective that one rank does not come to; the others treat its error as training does."""
    if group.ranks.rank == missing:
        time.sleep(60)
    heart.at("at step 7 (training)")
    try:
        group.barrier()
    except RuntimeError:
        heart.cut_off()


def fail(group: Group, heart: Heartbeat) -> None:
    if group.ranks.rank == 1:
        heart.fail("disk on fire")
        raise SystemExit(1)
    time.sleep(60)


def end(group: Group, heart: Heartbeat) -> None:
    """Rank 0, with the store, is gone a moment before the others are done."""
    group.barrier()
    if group.ranks.rank == 0:
        heart.stop()
        os._exit(0)
    time.sleep(1.1)  # longer than an interval of the twelve in a time-out
    heart.stop()


class Scene(NamedTuple):
    """What the ranks do, and who is struck how; what the others have to say. Time-outs are in seconds, and long beside
    what a busy machine makes a thread wait."""

    act: Act
    struck: int = 0
    by: int = 0
    line: str = ""
    codes: tuple[int, ...] = (PEER_LOST,) * SIZE
    timeout: float = 6


SILENT = r"rank {} \(.*\) has not been heard of for \d+ s, since it was at step 7 \(reading data\)"
KILLED, GONE = -signal.SIGKILL, r"rank 0 \(127.0.0.1\) has (gone|not answered for \d+ s)"
SCENES = {
    "a rank is killed": Scene(
        partial(meet, missing=2), 2, signal.SIGKILL, SILENT.format(2), (PEER_LOST, PEER_LOST, KILLED)
    ),
    "a rank is stopped": Scene(
        partial(meet, missing=1), 1, signal.SIGSTOP, SILENT.format(1), (PEER_LOST, KILLED, PEER_LOST)
    ),
    "rank 0 is killed": Scene(doze, 0, signal.SIGKILL, GONE, (KILLED, PEER_LOST, PEER_LOST)),
    "rank 0 is stopped": Scene(doze, 0, signal.SIGSTOP, GONE, (KILLED, PEER_LOST, PEER_LOST)),
    "a rank hangs": Scene(
        partial(meet, missing=1),
        line=r"no rank has gone on for \d+ s; rank 1 \(.*\) is still at step 7 \(reading data\)",
    ),
    "a rank fails": Scene(
        fail,
        line=r"rank 1 \(.*\) failed at step 7 \(reading data\): disk on fire",
        codes=(PEER_LOST, 1, PEER_LOST),
    ),
    "all come to their end": Scene(end, codes=(0, 0, 0), timeout=12),
}


def perform(scene: Scene, rank: int, folder: Path) -> None:
    os.dup2(os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY), 2)
    group = join(rank, SIZE, folder / "store")
    heart = Heartbeat(group, scene.timeout)
    heart.at("at step 7 (reading data)")
    time.sleep(scene.timeout / 6)  # two intervals, so that it has been said
    (folder / f"{rank}.ready").touch()
    scene.act(group, heart)


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Iterator[dict[str, tuple[list[int | None], list[str]]]]:
    """All scenes at once: name -> exit codes and logs of the ranks; ranks that were stopped are killed in the end."""
    folders = {name: tmp_path_factory.mktemp("scene") for name in SCENES}
    processes = {
        name: [CONTEXT.Process(target=perform, args=(scene, rank, folders[name])) for rank in range(SIZE)]
        for name, scene in SCENES.items()
    }
    everyone = [process for each in processes.values() for process in each]
    with contextlib.ExitStack() as stack:
        for process in everyone:
            process.start()
            stack.callback(process.kill)
        waiting = {name for name, scene in SCENES.items() if scene.by}
        while waiting:
            assert all(process.is_alive() for name in waiting for process in processes[name])
            for name in [name for name in waiting if len(list(folders[name].glob("*.ready"))) == SIZE]:
                os.kill(processes[name][SCENES[name].struck].pid or 0, SCENES[name].by)
                waiting.remove(name)
            time.sleep(0.02)
        found = {}
        for name, scene in SCENES.items():
            for rank, process in enumerate(processes[name]):
                if not scene.by or rank != scene.struck:
                    process.join(40)
            if scene.by:
                processes[name][scene.struck].kill()
                processes[name][scene.struck].join()
            logs = [(folders[name] / f"{rank}.log").read_text() for rank in range(SIZE)]
            found[name] = [process.exitcode for process in processes[name]], logs
        yield found


@pytest.mark.parametrize("name", SCENES)
def test_the_others_end_with_one_line_that_says_why(played, name):
    codes, logs = played[name]
    assert tuple(codes) == SCENES[name].codes, logs
    for code, log in zip(codes, logs, strict=True):
        verdicts = [line for line in log.splitlines() if re.search(r"; rank \d \(.*\) ends at step 7 \(.*\)$", line)]
        assert len(verdicts) == (code == PEER_LOST), log
        assert all(re.match(SCENES[name].line + ";", line) for line in verdicts), log
        assert "Traceback" not in log
