"""How far a walk over many images is: a bar on a terminal, a line from time to time in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOG_SECONDS = 30  # between two lines about progress in a log

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def image_progress() -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number of finished images and that of all, first before any work is done.

    It shows images/s and the time left, on a terminal in a bar, in a log in a line from time to time.
    """
    hidden = not sys.stderr.isatty()
    first: int | None = None
    began = logged = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal first, logged
        if first is None:
            first = bar.initial = bar.n = done
            bar.total = total
        bar.update(done - bar.n)
        now = time.monotonic()
        if hidden and done > first and (now - logged >= LOG_SECONDS or done == total):
            rate = (done - first) / max(now - began, 1e-9)
            left = tqdm.format_interval((total - done) / rate)
            logger.info("%d/%d images %.0f img/s eta %s", done, total, rate, left)
            logged = now

    with logging_redirect_tqdm(), tqdm(unit="image", smoothing=0, disable=hidden, leave=False) as bar:
        yield advance
