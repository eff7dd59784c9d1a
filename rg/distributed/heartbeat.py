"""Notices ranks that die, hang, fail or cannot be reached, and ends the others, which would wait for ever.

Every rank tells a store, which rank 0 keeps, that it lives and what it is doing. Rank 0 judges all ranks, the others
judge rank 0 and read its verdict. Times are taken on the clock of the judge, so the clocks of hosts need not agree.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import torch.distributed as dist

from rg.distributed.group import Group

PEER_LOST = 76  # exit code of a rank that leaves because of another
INTERVAL = 5.0  # seconds between two signs of life, less where the time-out is short
VERDICT = "verdict"

logger = logging.getLogger(__name__)


@dataclass
class Beat:
    """A sign of life.

    Attributes:
        name: The rank, for messages.
        number: Signs of life so far.
        progress: Grows whenever the rank goes on with its work.
        stage: Grows whenever it goes on with something else; ranks that do the same things have the same.
        where: What it is doing.
        cut_off: A connection to another rank broke.
        failure: Why the rank ends.
    """

    name: str
    number: int = 0
    progress: int = 0
    stage: int = 0
    where: str = "at the start"
    cut_off: bool = False
    failure: str = ""


@dataclass
class _Seen:
    beat: Beat
    alive: float  # when the number last changed
    working: float  # when the progress last changed


@dataclass
class Watch:
    """Judges the ranks by their signs of life.

    Args:
        timeout: Seconds without a sign of life, or without progress of any rank, that are too long.
        patience: Seconds without a sign of life that are too long once a connection has broken.
        whole: All ranks are judged, so that the one that is behind can be told; before they work, none stalls.
    """

    timeout: float
    patience: float
    whole: bool = True
    seen: dict[int, _Seen] = field(default_factory=dict)
    broken: float | None = None  # since when

    def observe(self, now: float, beats: Mapping[int, Beat]) -> str | None:
        """Take note of the beats of all ranks at a time in seconds; returns what is wrong, None if nothing is."""
        for rank, beat in beats.items():
            before = self.seen.get(rank)
            alive = before.alive if before and before.beat.number == beat.number else now
            working = before.working if before and before.beat.progress == beat.progress else now
            self.seen[rank] = _Seen(beat, alive, working)
        for seen in self.seen.values():
            if seen.beat.failure:
                return f"{seen.beat.name} failed {seen.beat.where}: {seen.beat.failure}"
        return self._silent(now) or self._stalled(now) or self._parted(now)

    def _silent(self, now: float) -> str | None:
        limit = self.timeout if self.broken is None else min(self.timeout, self.patience)
        quiet = max(self.seen.values(), key=lambda seen: now - seen.alive)
        if now - quiet.alive <= limit:
            return None
        return f"{quiet.beat.name} has not been heard of for {now - quiet.alive:.0f} s, since it was {quiet.beat.where}"

    def _stalled(self, now: float) -> str | None:
        last = max(self.seen.values(), key=lambda seen: seen.working)
        if not self.whole or not last.beat.progress or now - last.working <= self.timeout:
            return None
        if any(now - seen.alive > self.patience for seen in self.seen.values()):
            return None  # the others wait for one that is about to be found silent
        behind = min((seen.beat for seen in self.seen.values()), key=lambda beat: beat.stage)
        together = behind.stage == max(seen.beat.stage for seen in self.seen.values())
        subject = "all are" if together else f"{behind.name} is"
        return f"no rank has gone on for {now - last.working:.0f} s; {subject} still {behind.where}"

    def _parted(self, now: float) -> str | None:
        cut_off = [seen.beat for seen in self.seen.values() if seen.beat.cut_off]
        if not cut_off:
            return None
        if self.broken is None:
            self.broken = now
        if now - self.broken <= 2 * self.patience:
            return None
        return f"{cut_off[0].name} lost a connection {cut_off[0].where}, though all ranks are alive"


class Heartbeat:
    """The signs of life of this rank, and its judge. Nothing happens in a run of one rank.

    Args:
        group: All ranks.
        timeout: Seconds within which the others have ended after a rank fell silent or all stopped working.
    """

    def __init__(self, group: Group, timeout: float) -> None:
        ranks = group.ranks
        self._ranks, self._timeout = ranks, timeout
        self._interval = min(INTERVAL, timeout / 12)
        self._beat = Beat(ranks.name)
        self._answered = time.monotonic()
        self._done, self._soon = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        if ranks.world_size == 1:
            return
        assert ranks.master is not None
        wait = timedelta(seconds=timeout)
        self._host, store = ranks.master[0], None
        if ranks.rank == 0:
            store = dist.TCPStore(self._host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        port = group.collect(store.port if store else 0)[0]
        store = store or dist.TCPStore(self._host, port, is_master=False, timeout=wait)
        self._send(store)
        group.barrier()
        for work in (self._exchange, self._judge):
            self._threads.append(threading.Thread(target=work, args=(store,), name=work.__name__, daemon=True))
            self._threads[-1].start()

    def at(self, where: str) -> None:
        """Say what this rank goes on with, such as ``at step 12 (reading data)``."""
        if where != self._beat.where:
            self._beat.stage += 1
        self._beat.where = where
        self._beat.progress += 1

    def cut_off(self) -> None:
        """A connection to another rank broke: wait until the judge knows what happened, and ends this process."""
        self._beat.cut_off = True
        self._soon.set()
        if self._threads:
            time.sleep(2 * self._timeout + 4 * self._interval)

    def fail(self, reason: str) -> None:
        """Tell the others that this rank ends, and why."""
        self._beat.failure = reason
        self._soon.set()
        if self._threads:
            time.sleep(2 * self._interval)

    def stop(self) -> None:
        """All ranks have come to their end."""
        self._done.set()
        self._soon.set()

    def _exchange(self, store: dist.TCPStore) -> None:
        """Send signs of life, and read those of the ranks that this one judges."""
        judged = range(self._ranks.world_size) if self._ranks.rank == 0 else range(1)
        watch = Watch(self._timeout - 4 * self._interval, 3 * self._interval, whole=self._ranks.rank == 0)
        try:
            while not self._done.is_set():
                self._send(store)
                beats = {rank: Beat(**json.loads(store.get(_key(rank)))) for rank in judged}
                self._answered = time.monotonic()
                verdict = watch.observe(self._answered, beats)
                if verdict and self._ranks.rank == 0:
                    store.set(VERDICT, verdict)
                    time.sleep(2 * self._interval)  # the others read it before the store ends with this rank
                elif store.check([VERDICT]):
                    verdict = store.get(VERDICT).decode()
                if verdict:
                    self._leave(verdict)
                self._soon.wait(self._interval)
                self._soon.clear()
        except (RuntimeError, OSError):  # the store has gone; at the end of the run, perhaps a moment before ``stop``
            self._done.wait(2 * self._interval)
            self._leave(f"rank 0 ({self._host}) has gone")

    def _send(self, store: dist.TCPStore) -> None:
        self._beat.number += 1
        store.set(_key(self._ranks.rank), json.dumps(asdict(self._beat)))

    def _judge(self, _: dist.TCPStore) -> None:
        """The store itself may not answer: its host is unreachable, or rank 0 is stopped."""
        while not self._done.wait(self._interval / 2):
            silent = time.monotonic() - self._answered
            if silent > self._timeout - 3 * self._interval:
                self._leave(f"rank 0 ({self._host}) has not answered for {silent:.0f} s")

    def _leave(self, verdict: str) -> None:
        if self._done.is_set() or self._beat.failure:
            return
        logger.error("%s; %s ends %s", verdict, self._beat.name, self._beat.where)
        os._exit(PEER_LOST)


def _key(rank: int) -> str:
    return f"beat/{rank}"
