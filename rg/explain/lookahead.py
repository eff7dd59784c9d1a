"""Results computed ahead of their use, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Like ``pool.map``, but takes no more items than are needed.

    Args:
        pool: Where the function runs; items are taken from the thread of the caller.
        function: What to do with every item. What it raises is raised here in its turn.
        items: Any number of them.
        ahead: Items in work, or done and not yet asked for, beside the one that is waited for.

    Yields:
        The results in the order of the items.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
