"""A work in pieces: files that the processes of a launch share, and that outlast a process that is killed."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pipelines.files import atomic_write, write_json
from pipelines.peers import Peers
from rg.runs.folder import read_json
from rg.runs.progress import image_progress

SETTINGS = "settings.json"

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Pieces:
    """The pieces in a folder; see ``open_pieces``.

    Args:
        folder: That holds them.
        peers: The processes that share them.
    """

    def __init__(self, folder: Path, peers: Peers) -> None:
        self._folder, self.peers = folder, peers

    @property
    def first(self) -> bool:
        """Whether this process brings together what all have made."""
        return self.peers.ranks.rank == 0

    def make(
        self,
        name: str,
        sizes: Sequence[int],
        work: Callable[[Sequence[int], Callable[[int], None]], Iterator[T]],
        write: Callable[[T, IO[bytes]], object],
    ) -> list[Path]:
        """Make all pieces that are not there yet. What is in them does not depend on the number of processes.

        Args:
            name: Of this work, for its files and for people.
            sizes: Images of each piece.
            work: Makes pieces, given their numbers, one after the other, and tells of images as they are done.
            write: Writes a piece into its file.

        Returns:
            The files of all pieces in their order; on all processes but the first, none.

        Raises:
            ValueError: a piece cannot be made.
        """
        files = [self._folder / f"{name}-{number:06d}" for number in range(len(sizes))]
        missing = self.peers.collect([number for number, file in enumerate(files) if not file.is_file()])[0]
        rank, processes = self.peers.ranks.rank, self.peers.ranks.world_size
        own = missing[len(missing) * rank // processes : len(missing) * (rank + 1) // processes]
        finished = self.peers.counter()
        total = sum(sizes)
        before = total - sum(sizes[number] for number in missing)
        problem: Exception | None = None
        with image_progress(name, shown=self.first) as progress:
            progress(before, total)
            try:
                pieces = work(own, lambda images: progress(before + finished(images), total))
                for number, piece in zip(own, pieces, strict=True):
                    with atomic_write(files[number]) as out:
                        write(piece, out)
            except (ValueError, OSError) as error:
                problem = error
            self.peers.wait(lambda: progress(before + finished(0), total))

        def check() -> None:
            if problem:
                raise problem
            lost = [file for file in files if self.first and not file.is_file()]
            if lost:
                raise ValueError(f"{lost[0]}: missing; expected a run folder that all processes share")

        self.peers.together(check)
        return files if self.first else []


@contextlib.contextmanager
def open_pieces(folder: Path, settings: Mapping[str, Any], peers: Peers) -> Iterator[Pieces]:
    """The pieces in a folder, which is there until the work is done: what one that was stopped has left counts.

    Args:
        folder: It goes when the context ends without an error.
        settings: What decides the pieces, as JSON values; those of other settings are dropped.
        peers: The processes that share them.
    """

    def prepare() -> None:
        if peers.ranks.rank:
            return
        given = json.loads(json.dumps(settings))  # lists where there are tuples
        if (folder / SETTINGS).is_file() and read_json(folder / SETTINGS) == given:
            logger.info("%s: going on with what was done before", folder)
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_json(folder / SETTINGS, given)

    peers.together(prepare)
    try:
        yield Pieces(folder, peers)
    except KeyboardInterrupt:
        logger.info("stopped; the same command goes on where it stopped")
        raise
    if peers.ranks.rank == 0:
        shutil.rmtree(folder)
