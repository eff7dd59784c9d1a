"""A verb that several processes of a launch do together."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from pipelines.peers import Alone, Peers

PATIENCE = 7 * 86400.0  # seconds that a process which is done waits for the others
BAD_INPUT = 2  # exit code, see ``main``


@contextlib.contextmanager
def joined() -> Iterator[Peers]:
    """The processes that torchrun, srun or mpirun have started with this one, and this one alone where nobody has.

    The first tells what is to be told. Errors of all are said once on every host.
    """
    from rg.distributed.group import GroupError, PeerLostError, connect
    from rg.distributed.heartbeat import PEER_LOST
    from rg.distributed.ranks import discover
    from rg.runs.threads import limit_threads

    ranks = discover()
    if ranks.world_size == 1:
        yield Alone()
        return
    group = connect(ranks, PATIENCE)
    limit_threads(group.sharing)
    if ranks.rank:
        logging.getLogger("rg").setLevel(logging.WARNING)
    try:
        yield group
    except GroupError:
        if ranks.local_rank == 0:
            raise
        raise SystemExit(BAD_INPUT) from None
    except PeerLostError as error:
        print(f"rg: error: another process is lost ({error}); the same command goes on from here", file=sys.stderr)
        raise SystemExit(PEER_LOST) from None
