"""A split is measured in pieces: files that the processes of a launch share, and that outlast one that is killed."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from pipelines.batches.loader import Batch, Loader
from pipelines.files import atomic_write, write_json
from pipelines.shards.manifest import Manifest
from rg.evaluation.tally import Answers
from rg.runs.folder import read_json
from rg.runs.peers import Peers
from rg.runs.progress import image_progress

BATCHES = 16  # of a piece
SETTINGS = "settings.json"
SUMS = ("overlap", "landmark_table", "part_map_table")  # over images; all else is one row for each

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Answers)
Load: TypeAlias = Callable[[str, str, Sequence[range]], Loader]  # split, view, ranges of its samples


class Pieces:
    """The pieces of one evaluation; see ``open_pieces``.

    What is measured does not depend on the number of processes: pieces and their batches stay the same, and so does the
    order in which they are brought together.

    Args:
        folder: That holds them.
        manifest: Of the data set.
        load: Makes loaders.
        batch_size: Images at once.
        peers: The processes that share the pieces.
    """

    def __init__(self, folder: Path, manifest: Manifest, load: Load, batch_size: int, peers: Peers) -> None:
        self._folder, self.manifest, self.load, self.peers = folder, manifest, load, peers
        self._size = BATCHES * batch_size

    @property
    def first(self) -> bool:
        """Whether this process brings together what all have measured."""
        return self.peers.ranks.rank == 0

    def tally(self, name: str, split: str, view: str, new: Callable[[], A], take: Callable[[A, Batch], None]) -> A:
        """One pass over a split.

        Args:
            name: Of the pass, for its files.
            split: Name of the split.
            view: Which loader.
            new: Makes what is empty.
            take: Takes note of a batch, of which it gets one piece's after the other.

        Returns:
            What all processes have taken note of, in the order of the samples; on all but the first what is empty.

        Raises:
            ValueError: too many samples are damaged, or a batch cannot be taken note of.
        """
        samples = self.manifest.split(split).samples
        every = [range(start, min(start + self._size, samples)) for start in range(0, samples, self._size)]
        missing: list[range] = self.peers.collect([piece for piece in every if not self._file(name, piece).is_file()])[
            0
        ]
        rank, processes = self.peers.ranks.rank, self.peers.ranks.world_size
        own = missing[len(missing) * rank // processes : len(missing) * (rank + 1) // processes]
        finished, before = self.peers.counter(), samples - sum(map(len, missing))
        loader = self.peers.together(lambda: self.load(split, view, own))
        problem: Exception | None = None
        with image_progress(split, shown=self.first) as progress:
            progress(before, samples)
            tally, pieces = new(), iter(own)
            piece = next(pieces, range(0))
            try:
                for batch in loader:
                    while batch.numbers[0] >= piece.stop:
                        _write(tally, self._file(name, piece))
                        tally, piece = new(), next(pieces)
                    take(tally, batch)
                    progress(before + finished(len(batch.keys)), samples)
                while piece:
                    _write(tally, self._file(name, piece))
                    tally, piece = new(), next(pieces, range(0))
            except (ValueError, OSError) as error:
                problem = error
            self.peers.wait(lambda: progress(before + finished(0), samples))

        def bring_together() -> A:
            merged = new()
            if problem:
                raise problem
            if not self.first:
                return merged
            if lost := self._missing(name, every):
                raise ValueError(
                    f"{self._file(name, lost[0])}: missing; expected a run folder that all processes share"
                )
            for piece in every:
                _read(merged, self._file(name, piece))
            merged.damaged = samples - len(merged.keys)
            loader.stop_if_too_many(merged.damaged, samples)
            return merged

        return self.peers.together(bring_together)

    def _missing(self, name: str, every: Sequence[range]) -> list[range]:
        return [piece for piece in every if not self._file(name, piece).is_file()]

    def _file(self, name: str, piece: range) -> Path:
        return self._folder / f"{name}-{piece.start:08d}.npz"


@contextlib.contextmanager
def open_pieces(
    folder: Path, settings: Mapping[str, Any], manifest: Manifest, load: Load, batch_size: int, peers: Peers
) -> Iterator[Pieces]:
    """The pieces in a folder, which is there until all is done: those that an evaluation left which was stopped count.

    Args:
        folder: It goes when the evaluation has succeeded.
        settings: What decides the pieces, as JSON values; those of other settings are dropped.
        manifest: See ``Pieces``, as for the others.
    """

    def prepare() -> None:
        if peers.ranks.rank:
            return
        if (folder / SETTINGS).is_file() and read_json(folder / SETTINGS) == settings:
            logger.info("%s: going on with what was measured before", folder)
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_json(folder / SETTINGS, settings)

    peers.together(prepare)
    yield Pieces(folder, manifest, load, batch_size, peers)
    if peers.ranks.rank == 0:
        shutil.rmtree(folder)


def _write(tally: Answers, file: Path) -> None:
    """A piece, its images in the order of the split."""
    order = np.argsort(torch.cat(tally.numbers).numpy()) if tally.numbers else np.arange(0)
    arrays: dict[str, Any] = {"keys": np.array(tally.keys, dtype=np.str_)[order], "logits": tally.logits[:][order]}
    for field in fields(tally):
        value = getattr(tally, field.name)
        if field.name in SUMS:
            arrays[field.name] = value
        elif field.name not in arrays and isinstance(value, list) and value:
            arrays[field.name] = torch.cat(value).numpy()[order]
    with atomic_write(file) as out:
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
