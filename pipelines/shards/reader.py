"""Samples out of shards, by number or one after the other: plain reading without DALI."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np

from pipelines.plan import SHUFFLED
from pipelines.shards import samples
from pipelines.shards.cache import Cache
from pipelines.shards.index import Entry, index_text, neighbours, parse_entry, parse_index, tar_entries
from pipelines.shards.manifest import Manifest, Shard
from pipelines.shards.read_ahead import ReadAhead
from pipelines.shards.samples import Sample
from pipelines.shards.storage import TOGETHER, Location, Storage, open_storage

logger = logging.getLogger(__name__)


class DamagedSampleError(ValueError):
    """One sample that is not as it was written; the message names shard, key and what is wrong."""


class Reader:
    """The fields of the samples of one split, in any order.

    Only a few indexes are kept, and shards in a cache only, so that memory does not grow with the data set. May be used
    from several threads.

    Args:
        data: A folder of shards, or its URL.
        split: Name of the split.
        cache: Where shards are read that ``need`` has told of; without, all samples are read by range.

    Attributes:
        manifest: Of the whole folder.
        shards: Of the split, in reading order.
        size: Number of samples.
        together: Number of samples that one request reads where they lie side by side.
        cached: Whether there is a cache.

    Raises:
        ValueError: no such folder or split.
        OSError: the manifest cannot be read.
    """

    def __init__(self, data: Location, split: str, cache: Cache | None = None) -> None:
        source = open_storage(data)
        self.cached = cache is not None
        self.storage: Storage = ReadAhead(source, cache) if cache else source
        self.manifest = Manifest.load(data)
        self.shards = self.manifest.split(split).shards
        self._ends = np.cumsum([shard.samples for shard in self.shards])
        self.size = int(self._ends[-1])
        self.together = max(1, TOGETHER * self.size // sum(shard.bytes for shard in self.shards))
        self._index_locks = {shard: threading.Lock() for shard in self.shards}  # one thread reads an index for all
        at_once = 4 * SHUFFLED * len(self.shards) // self.size + 4  # of an epoch's end and the next's beginning
        self._kept_lines = functools.lru_cache(maxsize=at_once)(self._read_lines)

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """Key and fields (extension -> bytes) of a sample, which is one contiguous read.

        Raises:
            DamagedSampleError: the tar ends before it, or the index has no such line.
            OSError: the storage does not answer.
        """
        shard, entry = self._entry(number)
        try:
            return entry.key, read_fields(self.storage, shard.tar, entry)
        except ValueError as error:
            raise DamagedSampleError(f"{shard.tar}: {error}") from None

    def read_together(self, numbers: Iterable[int]) -> dict[int, tuple[str, dict[str, bytes]]]:
        """``read`` for several samples, number -> key and fields; those that lie side by side are one read.

        Damaged samples are left out.

        Raises:
            OSError: the storage does not answer.
        """
        found = {}
        for shard, group in itertools.groupby(sorted(set(numbers)), key=lambda number: self._place(number)[0]):
            entries: dict[int, Entry] = {}
            for number in group:
                with contextlib.suppress(DamagedSampleError):
                    entries[number] = self._entry(number)[1]
            runs = (_read_run(self.storage, shard.tar, run) for run in neighbours(entries.values(), TOGETHER))
            for (number, entry), fields in zip(entries.items(), itertools.chain.from_iterable(runs), strict=True):
                if fields:
                    found[number] = entry.key, fields
        return found

    def need(self, order: Sequence[int], count: int) -> None:
        """Says in which order the shards are needed, of which a cache holds the first ``count``: see ``ReadAhead``."""
        if isinstance(self.storage, ReadAhead):
            self.storage.need([self.shards[number] for number in order], count)

    def rest(self) -> None:
        """Lets go of what a cache holds, until something is needed again."""
        if isinstance(self.storage, ReadAhead):
            self.storage.rest()

    def labels(self) -> np.ndarray:
        """The class of every sample, int64 [size]; -1 where it cannot be read. Reads a few bytes of each."""
        with ThreadPoolExecutor(self.storage.concurrency) as pool:
            return np.concatenate([*pool.map(self._labels, self.shards)])

    def _labels(self, shard: Shard) -> np.ndarray:
        labels = np.full(shard.samples, -1)
        for number, line in enumerate(self._lines(shard)[: shard.samples]):
            with contextlib.suppress(ValueError):
                entry = parse_entry(line)
                if samples.LABEL in entry.fields:
                    label = self.storage.read_range(shard.tar, *entry.fields[samples.LABEL])
                    labels[number] = samples.decode_label(label, entry.key)
        return labels

    def lost(self) -> int:
        """Checks that all files are there, and counts the samples of tars that are cut short.

        Raises:
            ValueError: a file is missing.
            OSError: the storage does not answer.
        """
        with ThreadPoolExecutor(self.storage.concurrency) as pool:
            return sum(pool.map(self._lost, self.shards))

    def _lost(self, shard: Shard) -> int:
        lost = 0
        for file, size in ((shard.tar, shard.bytes), (shard.index, shard.index_bytes)):
            try:
                actual = self.storage.size(file)
            except FileNotFoundError:
                raise ValueError(f"{self.storage.location}: {file} is missing") from None
            if actual != size:
                logger.warning("%s: expected %d bytes, found %d; see rg verify", file, size, actual)
                ends = [parse_entry(line).span[1] for line in self._lines(shard)]
                lost = shard.samples - sum(end <= self.storage.size(shard.tar) for end in ends)
        return lost

    def name(self, number: int) -> str:
        """Shard and key of a sample, or its line in the shard if the index is gone."""
        shard, line = self._place(number)
        lines = self._lines(shard)
        try:
            return f"{shard.tar}: {parse_entry(lines[line]).key}"
        except (IndexError, ValueError):
            return f"{shard.tar}: sample {line}"

    def _place(self, number: int) -> tuple[Shard, int]:
        index = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.shards[index]
        return shard, number - int(self._ends[index]) + shard.samples

    def _entry(self, number: int) -> tuple[Shard, Entry]:
        shard, line = self._place(number)
        lines = self._lines(shard)
        if line >= len(lines):
            raise DamagedSampleError(f"{shard.tar}: sample {line}: lost, {len(lines)} samples can be found in the tar")
        try:
            return shard, parse_entry(lines[line])
        except ValueError as error:
            raise DamagedSampleError(f"{shard.tar}: {error}") from None

    def _lines(self, shard: Shard) -> list[str]:
        with self._index_locks[shard]:
            return self._kept_lines(shard)

    def _read_lines(self, shard: Shard) -> list[str]:
        """The lines of an index without the first; made from the tar if the index is not the one that was written."""
        content = self.storage.read(shard.index)
        if sha256(content).hexdigest() != shard.index_sha256:
            logger.warning("%s: its sha256 differs, the tar itself is searched instead; see rg verify", shard.index)
            content = index_text(_found(self.storage.read(shard.tar))).encode()
        return content.decode().splitlines()[1:]


def read(data: Location, split: str, keys: Sequence[str] | None = None) -> Iterator[Sample]:
    """Reads samples one by one.

    Args:
        data: A folder of shards, or its URL.
        split: Name of the split.
        keys: Which samples, in this order; all of them in the order of the shards if None.

    Raises:
        ValueError: the folder, the split, a key or the content of a shard is not as expected.
        OSError: a file cannot be read.
    """
    storage = open_storage(data)
    shards = Manifest.load(data).split(split).shards
    entries = ((shard.tar, entry) for shard in shards for entry in read_index(storage, shard.index))
    if keys is not None:
        by_key = {entry.key: (tar, entry) for tar, entry in entries}
        unknown = [key for key in keys if key not in by_key]
        if unknown:
            raise ValueError(f"keys: {data} has no {unknown[0]!r} in the split {split!r}")
        entries = (by_key[key] for key in keys)
    return _read(storage, entries)


def _read(storage: Storage, entries: Iterable[tuple[str, Entry]]) -> Iterator[Sample]:
    for tar, group in itertools.groupby(entries, key=lambda pair: pair[0]):
        for run in neighbours((entry for _, entry in group), TOGETHER):
            content, start = _span(storage, tar, run)
            for entry in run:
                yield samples.decode(entry.key, _fields(content, start, entry))


def read_index(storage: Storage, name: str) -> list[Entry]:
    """The samples of an index, in the order of the shard.

    Raises:
        ValueError: it is no index of the version that is written here.
        OSError: it cannot be read.
    """
    try:
        return parse_index(storage.read(name).decode())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def read_fields(storage: Storage, tar: str, entry: Entry) -> dict[str, bytes]:
    """Extension -> bytes of one sample of a tar.

    Raises:
        ValueError: the tar is too short to hold them.
        OSError: the tar cannot be read.
    """
    return _fields(*_span(storage, tar, [entry]), entry)


def _span(storage: Storage, tar: str, run: Sequence[Entry]) -> tuple[bytes, int]:
    """The bytes of neighbours, and where they begin in the tar."""
    start = run[0].span[0]
    return storage.read_range(tar, start, run[-1].span[1] - start), start


def _read_run(storage: Storage, tar: str, run: Sequence[Entry]) -> Iterator[dict[str, bytes] | None]:
    """The fields of neighbours; None for a sample that is damaged."""
    try:
        content, start = _span(storage, tar, run)
    except ValueError:  # the index names a place before the tar
        yield from [None] * len(run)
        return
    for entry in run:
        try:
            yield _fields(content, start, entry)
        except ValueError:
            yield None


def _fields(content: bytes, start: int, entry: Entry) -> dict[str, bytes]:
    fields = {}
    for field, (offset, size) in entry.fields.items():
        fields[field] = content[offset - start : offset - start + size]
        if len(fields[field]) < size:
            raise ValueError(f"{entry.key}: field .{field} is cut short")
    return fields


def _found(tar: bytes) -> list[Entry]:
    """The samples that the headers of a tar lead to."""
    entries = []
    with contextlib.suppress(tarfile.TarError):
        for entry in tar_entries(io.BytesIO(tar)):
            entries.append(entry)
    return entries
