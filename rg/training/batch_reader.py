"""Batches of training, which may be read before their step comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.batches.loader import Batch, Loader


class Read(NamedTuple):
    """A batch, the seconds that it was waited for, and ``Loader.state`` behind it."""

    batch: Batch
    waited: float
    position: dict[str, Any]


class BatchReader:
    """Takes the batches of a loader one after the other.

    Args:
        loader: Of training images.

    Attributes:
        position: ``Loader.state`` behind the last batch that was taken, whatever has been read ahead.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._stream: Any = iter(loader)  # a generator
        self._ahead: deque[Read | Exception] = deque()
        self.position = loader.state()

    def take(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that the device waited for it, at most."""
        read = self._ahead.popleft() if self._ahead else self._read()
        if isinstance(read, Exception):
            raise read
        batch, waited, self.position = read
        return batch, waited

    def read_ahead(self, count: int, is_busy: Callable[[], bool]) -> None:
        """Reads the batches that are taken next. What goes wrong is raised when they are taken.

        Args:
            count: How many.
            is_busy: Whether the device still computes; a batch that is there by then is not waited for.
        """
        while len(self._ahead) < count:
            try:
                read = self._read()
                self._ahead.append(read._replace(waited=0.0) if is_busy() else read)
            except Exception as error:  # the step before has not ended yet, and is to be kept
                self._ahead.append(error)
                return

    def close(self) -> None:
        """Ends what the loader does in the background."""
        self._ahead.clear()
        self._stream.close()

    def _read(self) -> Read:
        began = time.perf_counter()
        batch = next(self._stream)
        return Read(batch, time.perf_counter() - began, self._loader.state())
