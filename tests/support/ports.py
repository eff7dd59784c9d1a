"""Ports for servers that start later."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, OWN = 20_000, 500  # of every worker of pytest-xdist
WORKERS = 24
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS

# Not from the first one on: other tests may run on this machine at the same time.
_numbers = itertools.count(os.getpid())


def free_port() -> int:
    """One on which nobody listens, and which nobody gets by chance.

    Below 32768 the kernel gives a port only to who asks for its number; the workers have numbers of their own, and the
    next call gives another one.
    """
    for number in itertools.islice(_numbers, OWN):
        port = FIRST + OWN * WORKER + number % OWN
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise OSError(f"no port is free from {FIRST + OWN * WORKER} on")
