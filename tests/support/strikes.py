"""Signals that a process sends itself at a place of its work, which no test can hit from outside."""

from __future__ import annotations

import os
import pkgutil
import signal


def strike(place: str, call: int, number: int) -> None:
    """Let this process send itself a signal.

    Args:
        place: A function, such as ``rg.explain.folder:ExplainedFolder.append``.
        call: Which call of it is struck before it begins, from 1 on.
        number: Of the signal.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has inherited to ignore it
    module, _, path = place.partition(":")
    *classes, name = path.split(".")
    owner = pkgutil.resolve_name(f"{module}:{'.'.join(classes)}")
    function, calls = getattr(owner, name), 0

    def struck(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return function(*args, **options)

    setattr(owner, name, struck)
