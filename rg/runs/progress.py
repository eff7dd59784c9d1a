"""How far a walk over many images is: a bar on a terminal, a line from time to time in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOG_SECONDS = 30  # between two lines about progress in a log

logger = logging.getLogger(__name__)


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    unit: str = "image",
    leave: bool = False,
    shown: bool = True,
    **options: Any,
) -> tqdm:
    """A bar on a terminal, where a person is watching; elsewhere it shows nothing.

    Args:
        items: What the bar passes on while it advances; None where the caller advances it.
        unit: What it counts.
        leave: Whether it stays when everything is done.
        shown: False for a bar that is not to be seen on a terminal either.
        options: Others of ``tqdm``.
    """
    return tqdm(items, unit=unit, leave=leave, disable=not (shown and sys.stderr.isatty()), **options)


@contextlib.contextmanager
def image_progress(name: str = "", *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number of finished images and that of all, first before any work is done.

    It shows images/s and the time left, on a terminal in a bar, in a log in a line from time to time.

    Args:
        name: Of the walk, where there are several; then what is over soon leaves no line in a log.
        shown: False on a process for which another one speaks.
    """
    first: int | None = None
    began = logged = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal first, logged
        if first is None:
            first = bar.initial = bar.n = done
            bar.total = total
        bar.update(done - bar.n)
        now = time.monotonic()
        last = done == total and (not name or logged > began)
        if shown and bar.disable and done > first and (now - logged >= LOG_SECONDS or last):
            rate = (done - first) / max(now - began, 1e-9)
            eta = tqdm.format_interval((total - done) / rate)
            prefix, digits = f"{name}: " if name else "", 2 if rate < 1 else 0
            logger.info("%s%d/%d images %.*f img/s eta %s", prefix, done, total, digits, rate, eta)
            logged = now

    with logging_redirect_tqdm(), progress_bar(smoothing=0, desc=name or None, shown=shown) as bar:
        yield advance
