"""How the ranks of a run come together: who is missing is told while it is waited for."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from rg.distributed.ranks import Ranks

FIRST_WORD, NEXT_WORD = 5.0, 60.0  # seconds until it is told that ranks are missing, and until it is told again
CONNECTING = 60.0  # seconds to connect to a store that answers, or to open one
NAMED = 8  # missing ranks that are named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """What a rank tells the others when it comes.

    Attributes:
        name: The rank, for messages.
        host: Where it runs.
        gpu: UUID of its GPU, None if it computes on the CPU.
    """

    name: str
    host: str
    gpu: str | None


class _Patience:
    """Tells at intervals what is waited for, and ends the wait."""

    def __init__(self, ranks: Ranks, seconds: float, speaks: bool, setting: str) -> None:
        self._ranks, self._seconds, self._speaks = ranks, seconds, speaks
        self._setting = f" ({setting})" if setting else ""
        self._end = time.monotonic() + seconds
        self._next_word = time.monotonic() + FIRST_WORD

    def wait(self, missing: Callable[[], str]) -> None:
        if time.monotonic() > self._end:
            raise ConnectionError(
                f"{self._ranks.name} of {self._ranks.world_size} cannot join the others: waited {self._seconds:g} s"
                f"{self._setting} for {missing()}{self._reason()}"
            )
        if self._speaks and time.monotonic() > self._next_word:
            self._next_word += NEXT_WORD
            left = self._end - time.monotonic()
            logger.warning(
                "%s waits for %s, %.0f s at most%s%s",
                self._ranks.name,
                missing(),
                left,
                self._setting,
                self._reason(),
            )
        time.sleep(0.05)

    def _reason(self) -> str:
        if not self._ranks.variables:
            return ""
        return f"; the environment tells of {self._ranks.world_size} ranks: {self._ranks.variables}"


def meet(ranks: Ranks, gpu: str | None, seconds: float, setting: str = "") -> dist.Store:
    """Wait until all ranks are there.

    Args:
        ranks: Place of this process, among several.
        gpu: UUID of the GPU of this process, None if it computes on the CPU.
        seconds: To wait at most.
        setting: By which they can be changed, for messages.

    Returns:
        A store that all ranks share.

    Raises:
        ConnectionError: they do not come together.
        ValueError: two processes have one rank, two ranks have one GPU, or some have none.
    """
    assert ranks.master is not None
    patience = _Patience(ranks, seconds, speaks=ranks.rank == 0, setting=setting)
    store = _store(ranks, _Patience(ranks, seconds, speaks=ranks.local_rank == 0, setting=setting))
    try:
        arrivals = _gather(store, ranks, gpu, patience)
    except (dist.DistError, RuntimeError):  # of its store
        raise ConnectionError(
            f"{ranks.name} of {ranks.world_size} cannot join the others: rank 0 has given up or is lost"
        ) from None
    if message := conflict(arrivals):
        _stay_until_all_have_read(store, ranks)
        raise ValueError(message)
    return store


def _gather(store: dist.Store, ranks: Ranks, gpu: str | None, patience: _Patience) -> list[Arrival]:
    """What all ranks tell, once they are there."""
    own = Arrival(ranks.name, socket.gethostname(), gpu)
    if not _of_agent() and store.add(f"claims/{ranks.rank}", 1) > 1:  # torchrun numbers its ranks itself
        other = Arrival(**json.loads(store.get(_key(ranks.rank))))
        raise ValueError(
            f"{ranks.name}: a process on {other.host} has said that it is rank {ranks.rank}, too; give each process a "
            f"number of its own ({ranks.variables})"
        )
    store.set(_key(ranks.rank), json.dumps(asdict(own)))
    store.add("arrived", 1)
    while (count := store.add("arrived", 0)) < ranks.world_size:
        if ranks.rank == 0:
            patience.wait(partial(_ranks_and_place, store, ranks))
        else:
            patience.wait(partial("{} other ranks".format, ranks.world_size - count))
    arrivals = [Arrival(**json.loads(store.get(_key(rank)))) for rank in range(ranks.world_size)]
    store.add("read", 1)
    return arrivals


def conflict(arrivals: Sequence[Arrival]) -> str | None:
    """Why ranks with these devices cannot compute together, None if they can."""
    without = [arrival for arrival in arrivals if arrival.gpu is None]
    if 0 < len(without) < len(arrivals):
        return f"{without[0].name} sees no GPU, but others do; let the launcher give each rank a GPU, or none to any"
    owners: dict[tuple[str, str], Arrival] = {}
    for arrival in arrivals:
        if arrival.gpu is None:
            continue
        owner = owners.setdefault((arrival.host, arrival.gpu), arrival)
        if owner is not arrival:
            return (
                f"{owner.name} and {arrival.name} have one GPU ({arrival.gpu}); start no more ranks on a host than "
                "it has GPUs, and let the launcher show each rank all of them or one of its own"
            )
    return None


def _store(ranks: Ranks, patience: _Patience) -> dist.Store:
    """That of torchrun's agent, or one that rank 0 keeps."""
    assert ranks.master is not None
    address, port = ranks.master
    keeps = ranks.rank == 0 and not _of_agent()
    while True:
        try:
            # PyTorch prints a trace or a warning for every try.
            if keeps:
                socket.getaddrinfo(address, port)
            else:
                socket.create_connection((address, port), timeout=1).close()
            # The agent has a new one whenever it starts its ranks again.
            return dist.TCPStore(
                address, port, is_master=keeps, timeout=timedelta(seconds=CONNECTING), wait_for_workers=False
            )
        except (dist.DistError, RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0]
            if keeps and ("EADDRINUSE" in str(error) or "address already in use" in str(error)):
                raise ConnectionError(
                    f"MASTER_PORT: {port} is taken on this host, perhaps by another run or a second rank 0; set "
                    "MASTER_PORT to another one for all ranks"
                ) from None
            if keeps and not isinstance(error, socket.gaierror):
                raise ConnectionError(f"{ranks.name} cannot listen on {address}:{port}: {reason}") from None
            awaited = "its own address" if keeps else "rank 0 at"
            patience.wait(partial("{} {}:{} ({})".format, awaited, address, port, reason))


def _of_agent() -> bool:
    """Whether torchrun's agent keeps the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _ranks_and_place(store: dist.Store, ranks: Ranks) -> str:
    assert ranks.master is not None
    missing = [str(rank) for rank in range(ranks.world_size) if not store.check([_key(rank)])]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    noun = "rank" if len(missing) == 1 else "ranks"
    return f"{noun} {', '.join(missing[:NAMED])}{more} at {ranks.master[0]}:{ranks.master[1]}"


def _stay_until_all_have_read(store: dist.Store, ranks: Ranks) -> None:
    """The store ends with rank 0."""
    end = time.monotonic() + NEXT_WORD
    while ranks.rank == 0 and store.add("read", 0) < ranks.world_size and time.monotonic() < end:
        time.sleep(0.05)


def _key(rank: int) -> str:
    return f"rank/{rank}"
