"""Rows of numbers, such as the logits of all images, that need not fit into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np

IN_MEMORY = 1 << 28  # bytes that are kept there
BLOCK = 1 << 20  # numbers of a block


class Rows:
    """Rows float32 [N, C] that are added one batch after another; what is much lies in a file without a name.

    They read like an array: by slices of rows.

    Attributes:
        shape: N and C; 0 and 0 at first.
    """

    ndim = 2

    def __init__(self) -> None:
        self.shape = (0, 0)
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # goes with the object

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.shape[0] * self.shape[1]

    def append(self, rows: np.ndarray) -> None:
        """Add rows float32 [n, C].

        Raises:
            ValueError: they are of another width, or of another dtype.
            OSError: they do not fit on the disk of temporary files.
        """
        if rows.dtype != np.float32 or rows.ndim != 2 or (self.shape[0] and rows.shape[1] != self.shape[1]):
            width = self.shape[1] if self.shape[0] else "C"
            raise ValueError(f"rows: expected float32 [n, {width}], got {rows.dtype} {list(rows.shape)}")
        self._file.seek(4 * self.size)
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self.shape = (self.shape[0] + len(rows), rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows: expected neighbours, got steps of {step}")
        count = max(0, last - first)
        self._file.seek(4 * first * self.shape[1])
        return np.frombuffer(self._file.read(4 * count * self.shape[1]), np.float32).reshape(count, self.shape[1])


def slices(rows: np.ndarray | Rows) -> Iterator[slice]:
    """Neighbouring rows, which cover all: blocks of equal height, or one more, and of about a million numbers."""
    height, more = divmod(len(rows), 1 + rows.size // BLOCK)
    first = 0
    for number in range(1 + rows.size // BLOCK):
        last = first + height + (number < more)
        yield slice(first, last)
        first = last


def check_finite(logits: np.ndarray | Rows) -> None:
    """Refuse what is not a number, or infinite.

    Raises:
        ValueError: a logit is not finite.
    """
    for rows in slices(logits):
        lowest, highest = logits[rows].min(initial=0), logits[rows].max(initial=0)
        if not np.isfinite([lowest, highest]).all():
            raise ValueError(f"logits: expected finite values, got {lowest} to {highest}")
