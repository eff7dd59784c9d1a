"""A work in pieces: files that the processes of a launch share, and that outlast a process that is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pipelines.files import atomic_write, write_json
from pipelines.peers import Peers
from rg.runs.agreement import agree, difference, software
from rg.runs.folder import read_json
from rg.runs.progress import image_progress

SETTINGS = "settings.json"
NFS_SECONDS = 70  # after which a host that shares a folder sees at last what another one has written

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
        good: Callable[[int, Path], bool] = lambda _number, _file: True,
    ) -> list[Path]:
        """Make all pieces that are not there yet. What is in them does not depend on the number of processes.

        Args:
            name: Of this work, for its files and for people.
            sizes: Images of each piece.
            work: Makes pieces, given their numbers, one after the other, and tells of images as they are done.
            write: Writes a piece into its file.
            good: Whether a piece that is there already, given its number, need not be made again.

        Returns:
            The files of all pieces in their order; on all processes but the first, none.

        Raises:
            ValueError: a piece cannot be made.
        """
        files = [self._folder / f"{name}-{number:06d}" for number in range(len(sizes))]
        agree(self.peers, {f"pieces of {name}": hashlib.sha256(repr(list(sizes)).encode()).hexdigest()[:12]})
        missing = self.peers.collect(self._missing(files, good) if self.first else [])[0]
        rank, processes = self.peers.ranks.rank, self.peers.ranks.world_size
        first, end = (-(-len(missing) * place // processes) for place in (rank, rank + 1))  # the first has one, if any
        own = missing[first:end]
        finished, failed = self.peers.counter(), self.peers.counter()
        total = sum(sizes)
        before = total - sum(sizes[number] for number in missing)
        problem: Exception | None = None
        with image_progress(name, shown=self.first) as progress:
            progress(before, total)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)  # a host sees it then, whoever has made it
                pieces = work(own, lambda images: progress(before + finished(images), total)) if own else iter(())
                for number, piece in zip(own, pieces, strict=False):
                    with atomic_write(files[number]) as out:
                        write(piece, out)
                    if failed(0):
                        break
            except (ValueError, OSError) as error:
                problem = error
                failed(1)
            self.peers.wait(lambda: progress(before + finished(0), total))

        def check() -> None:
            if problem:
                raise problem

        self.peers.together(check)
        self.peers.together(lambda: self._wait_for(files) if self.first else None)
        return files if self.first else []

    def _missing(self, files: Sequence[Path], good: Callable[[int, Path], bool]) -> list[int]:
        there = set(os.listdir(self._folder))
        return [n for n, file in enumerate(files) if file.name not in there or not good(n, file)]

    def _wait_for(self, files: Sequence[Path]) -> None:
        """Until all are there; their folder is listed, as hosts remember for a while that a file was not there."""
        end = time.monotonic() + NFS_SECONDS
        while lost := [file for file in files if file.name not in set(os.listdir(self._folder))]:
            if self.peers.ranks.world_size == 1 or time.monotonic() > end:
                raise ValueError(f"{lost[0]}: missing; expected a folder that all processes share")
            time.sleep(1)


@contextlib.contextmanager
def open_pieces(folder: Path, settings: Mapping[str, Any], peers: Peers) -> Iterator[Pieces]:
    """The pieces in a folder, which is there until the work is done: what one that was stopped has left counts.

    Args:
        folder: It goes when the context ends without an error.
        settings: What decides the pieces beside code and versions, as JSON values. Those of others are dropped.
        peers: The processes that share them, with the same settings, code and versions.

    Raises:
        ValueError: the processes differ in what decides the pieces.
    """
    given: dict[str, Any] = json.loads(json.dumps({**settings, **software()}))  # lists where there are tuples

    def prepare() -> None:
        if peers.ranks.rank:
            return
        if (folder / SETTINGS).is_file():
            change = difference(("now", "before"), (given, read_json(folder / SETTINGS)))
            if not change:
                logger.info("%s: going on with what was done before", folder)
                return
            logger.warning("%s: begun anew; %s", folder, change.partition(": ")[2])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_json(folder / SETTINGS, given)

    agree(peers, given)
    peers.together(prepare)
    finished = False
    try:
        yield Pieces(folder, peers)
        finished = True
    except KeyboardInterrupt:
        logger.info("stopped; the same command goes on where it stopped")
        raise
    finally:
        if peers.ranks.rank == 0 and (finished or os.listdir(folder) == [SETTINGS]):
            shutil.rmtree(folder)
