"""A verb that several processes of a launch do together."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from pipelines.peers import Alone, Peers

PATIENCE = 7 * 86400.0  # seconds that a process which is done waits for the others, as long as they live
SILENCE = 180.0  # seconds after which one that is not heard of is lost
BAD_INPUT = 2  # exit code, see ``main``


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Peers]:
    """The processes that torchrun, srun or mpirun have started with this one, and this one alone where nobody has.

    The first tells what is to be told. Errors of all are said once on every host. They share its cores.

    Args:
        device: That was asked for. Of several GPUs each process takes its own, so one of them cannot be named.
    """
    from rg.distributed.group import GroupError, PeerLostError, connect
    from rg.distributed.heartbeat import PEER_LOST, Heartbeat
    from rg.distributed.ranks import discover
    from rg.runs.threads import limit_threads

    ranks = discover()
    if ranks.world_size == 1:
        limit_threads()
        yield Alone()
        return
    group = connect(ranks, PATIENCE, tensors=False)
    limit_threads(group.sharing)
    if ranks.rank:
        for name in ("rg", "pipelines"):
            logging.getLogger(name).setLevel(logging.WARNING)
    heartbeat = Heartbeat(group, SILENCE)

    def check() -> None:
        if ":" in device:
            raise ValueError(f"--device: expected auto, cpu or cuda for {ranks.world_size} processes, got {device}")

    try:
        group.together(check)
        yield group
        group.barrier()
    except GroupError:
        if ranks.local_rank == 0:
            raise
        raise SystemExit(BAD_INPUT) from None
    except PeerLostError as error:
        print(f"rg: error: another process is lost ({error}); start the same command again", file=sys.stderr)
        raise SystemExit(PEER_LOST) from None
    finally:
        heartbeat.stop()
