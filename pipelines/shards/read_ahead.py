"""Shards fetched into a cache before they are needed, and read there."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from pipelines.shards.cache import Cache, Held
from pipelines.shards.manifest import Shard
from pipelines.shards.storage import Storage, check_range

FETCHES = 8  # shards that a process fetches at once
MOST_HELD = 128  # shards that a process holds at once, each of them an open file
PAUSE = 0.05  # s, until it is looked again for a shard that another process is fetching

logger = logging.getLogger(__name__)


class ReadAhead:
    """A ``Storage`` that reads shards from a cache, as far as ``need`` has told of them.

    Reading waits for a shard that is on its way. A shard that has no room in the cache, cannot be written or is not the
    one of the manifest is read where it comes from. For each of these reasons there is one warning.

    Args:
        source: Where the shards come from.
        cache: Where they are kept.

    Attributes:
        location, concurrency: Those of the source.
    """

    def __init__(self, source: Storage, cache: Cache) -> None:
        self.location, self.concurrency = source.location, source.concurrency
        self._source, self._cache = source, cache
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._shards: dict[str, Future[Held]] = {}  # by the names of the tars, those that are needed
        self._order: dict[str, int] = {}
        self._said: set[object] = set()

    def read(self, name: str) -> bytes:
        """See ``Storage``."""
        return self._source.read(name)

    def size(self, name: str) -> int:
        """See ``Storage``."""
        return self._source.size(name)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """See ``Storage``."""
        check_range(start, size)
        with self._lock:
            shard = self._shards.get(name)
        content = self._read_held(shard, name, start, size) if shard else None
        return self._source.read_range(name, start, size) if content is None else content

    def need(self, shards: Sequence[Shard], count: int) -> None:
        """Says in which order shards are needed: the first ``count`` are fetched and held, the others may go.

        To be called as time goes on, also with the same shards: one that could not be had is tried again.
        """
        if count > MOST_HELD:
            self._warn(MOST_HELD, f"{count} shards are needed at once, of which {MOST_HELD} are held")
        wanted = {shard.tar: shard for shard in shards[: min(count, MOST_HELD)]}
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(FETCHES, thread_name_prefix="cache")
            self._order = {shard.sha256: rank for rank, shard in enumerate(shards)}
            for name in self._shards.keys() - wanted.keys():
                self._shards.pop(name).cancel()
            again = next((name for name in wanted if name in self._shards and _can_change(self._shards[name])), None)
            for name, shard in wanted.items():
                if name not in self._shards or name == again:
                    self._shards[name] = Future()
                    self._pool.submit(self._fetch, shard, self._shards[name])

    def rest(self) -> None:
        """Fetches and holds nothing any more, until something is needed again."""
        with self._lock:
            for shard in self._shards.values():
                shard.cancel()
            self._shards = {}
            if self._pool:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _fetch(self, shard: Shard, future: Future[Held]) -> None:
        if future.cancelled():  # while it waited for its turn; nothing is to make room for it
            return
        try:
            held = self._cache.hold(shard, functools.partial(self._part, future, shard.tar), self._order)
        except BlockingIOError:
            time.sleep(PAUSE)
            with self._lock:
                if self._pool and not future.cancelled():
                    self._pool.submit(self._fetch, shard, future)
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(held)

    def _part(self, future: Future[Held], name: str, start: int, size: int) -> bytes:
        """A part of a shard, unless nobody needs it any more."""
        if future.cancelled():
            raise CancelledError
        return self._source.read_range(name, start, size)

    def _read_held(self, shard: Future[Held], name: str, start: int, size: int) -> bytes | None:
        """Bytes of a shard when it is there; None if it cannot be had."""
        try:
            error = shard.exception()
            if error is None:
                return shard.result().read(start, size)
        except CancelledError:  # nobody needs it any more
            return None
        except OSError as unreadable:
            error = unreadable
            with self._lock:
                if self._shards.get(name) is shard:
                    self._shards[name] = Future()
                    self._shards[name].set_exception(error)
        if not isinstance(error, OSError | ValueError):
            raise error
        self._warn((type(error), getattr(error, "errno", None)), str(error))
        return None

    def _warn(self, kind: object, message: str) -> None:
        with self._lock:
            new = kind not in self._said
            self._said.add(kind)
        if new:
            logger.warning("%s: %s; read from %s instead", self._cache.folder, message, self.location)


def _can_change(shard: Future[Held]) -> bool:
    """Whether a shard could not be had for want of room, or because something did not answer."""
    return shard.done() and not shard.cancelled() and isinstance(shard.exception(), OSError)
