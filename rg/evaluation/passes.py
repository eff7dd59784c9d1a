"""Passes over splits: what a model says of all images of one, measured in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
import torch

from pipelines.batches.loader import Batch, Loader, check_damaged
from pipelines.shards.manifest import Manifest
from pipelines.shards.storage import Location
from rg.evaluation.tally import Answers
from rg.runs.pieces import Pieces

BATCHES = {"input": 16, "whole": 64}  # view -> of a piece; sizes of whole images share none
SUMS = ("overlap", "landmark_table", "part_map_table")  # over images; all else is one row for each

A = TypeVar("A", bound=Answers)
Load: TypeAlias = Callable[[str, str, Sequence[range]], Loader]  # split, view, ranges of its samples


class Passes:
    """The passes of one evaluation. A piece with damaged samples is made again when one that was stopped goes on.

    Args:
        pieces: Where they are written.
        data: Folder of shards, or its URL.
        manifest: Of the data set.
        load: Makes loaders.
        batch_size: Images at once.
        max_damaged: Share of the samples of a split, and of at least 1000, that may be damaged.
    """

    def __init__(
        self, pieces: Pieces, data: Location, manifest: Manifest, load: Load, batch_size: int, max_damaged: float
    ) -> None:
        self.pieces, self.manifest, self.load = pieces, manifest, load
        self._data = data
        self._batch_size, self._max_damaged = batch_size, max_damaged

    def tally(self, name: str, split: str, view: str, new: Callable[[], A], take: Callable[[A, Batch], None]) -> A:
        """One pass over a split.

        Args:
            name: Of the pass.
            split: Name of the split.
            view: Which loader.
            new: Makes what is empty.
            take: Takes note of a batch, of which it gets one piece's after the other.

        Returns:
            What all processes have taken note of, in the order of the samples; on all but the first what is empty.

        Raises:
            ValueError: too many samples are damaged, or a batch cannot be taken note of.
        """
        samples, size = self.manifest.split(split).samples, BATCHES[view] * self._batch_size
        ranges = [range(start, min(start + size, samples)) for start in range(0, samples, size)]
        damaged = 0  # of this process, which alone may be too many

        def done(tally: A, piece: range) -> A:
            nonlocal damaged
            damaged += len(piece) - len(tally.keys)
            check_damaged(damaged, samples, self._max_damaged, self._data, split)
            return tally

        def whole(number: int, file: Path) -> bool:
            with np.load(file) as arrays:
                return len(arrays["keys"]) == len(ranges[number])

        def work(numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[A]:
            pieces = iter([ranges[number] for number in numbers])
            piece, tally = next(pieces, range(0)), new()
            for batch in self.load(split, view, [ranges[number] for number in numbers]):
                while batch.numbers[0] >= piece.stop:
                    yield done(tally, piece)
                    piece, tally = next(pieces), new()
                take(tally, batch)
                advance(len(batch.keys))
            while piece:  # behind the last batch there may be pieces without any
                yield done(tally, piece)
                piece, tally = next(pieces, range(0)), new()

        files = self.pieces.make(f"{split}-{name}", list(map(len, ranges)), work, _write, whole)

        def bring_together() -> A:
            merged = new()
            for file in files:
                _read(merged, file)
            if self.pieces.first:
                merged.damaged = samples - len(merged.keys)
                check_damaged(merged.damaged, samples, self._max_damaged, self._data, split)
            return merged

        return self.pieces.peers.together(bring_together)


def _write(tally: Answers, out: IO[bytes]) -> None:
    """A piece, its images in the order of the split."""
    order = np.argsort(torch.cat(tally.numbers).numpy()) if tally.numbers else np.arange(0)
    arrays: dict[str, Any] = {"keys": np.array(tally.keys, dtype=np.str_)[order], "logits": tally.logits[:][order]}
    for field in fields(tally):
        value = getattr(tally, field.name)
        if field.name in SUMS:
            arrays[field.name] = value
        elif field.name not in arrays and isinstance(value, list) and value:
            arrays[field.name] = torch.cat(value).numpy()[order]
    np.savez(out, **arrays)


def _read(tally: Answers, file: Path) -> None:
    """Take what a piece holds into a tally."""
    with np.load(file) as arrays:
        if not len(arrays["keys"]):  # all of its samples are damaged
            return
        for name in arrays.files:
            value = arrays[name]
            if name == "keys":
                tally.keys += value.tolist()
            elif name == "logits":
                tally.logits.append(value)
            elif name in SUMS:
                setattr(tally, name, getattr(tally, name) + value)
            else:
                getattr(tally, name).append(torch.from_numpy(value))
