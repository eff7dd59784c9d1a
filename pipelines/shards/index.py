"""The index of a shard: where every field of every sample lies in the tar, in the text format that DALI reads.

v1.2 <number of samples>
<extension> <offset> <size> <key>.<extension> <extension> <offset> <size> ...     one line for each sample
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

VERSION = "v1.2"
GAP = 3 * tarfile.BLOCKSIZE  # bytes between neighbours at most: what fills up a block, and the header of a field


@dataclass(frozen=True)
class Entry:
    """One sample in a shard: its key, and extension -> (offset, size) in bytes."""

    key: str
    fields: dict[str, tuple[int, int]]

    @property
    def span(self) -> tuple[int, int]:
        """First and past-the-last byte of all its fields."""
        return min(start for start, _ in self.fields.values()), max(sum(place) for place in self.fields.values())


def index_text(entries: Sequence[Entry]) -> str:
    """The index of a shard as a text."""
    lines = [
        " ".join(f"{field} {offset} {size} {entry.key}.{field}" for field, (offset, size) in entry.fields.items())
        for entry in entries
    ]
    return "\n".join([f"{VERSION} {len(entries)}", *lines, ""])


def parse_index(text: str) -> list[Entry]:
    """The samples of an index, in the order of the shard.

    Raises:
        ValueError: it is no index of the version that is written here.
    """
    header, *lines = text.splitlines() or [""]
    if header != f"{VERSION} {len(lines)}":
        raise ValueError(f"expected '{VERSION} {len(lines)}' in the first line, found {header[:40]!r}")
    return [parse_entry(line) for line in lines]


def parse_entry(line: str) -> Entry:
    """The sample of one line.

    Raises:
        ValueError: it is no line of an index.
    """
    words = line.split(" ")
    try:
        columns = list(zip(*[iter(words)] * 4, strict=True))
        key = columns[0][3].removesuffix("." + columns[0][0])
        return Entry(key, {field: (int(offset), int(size)) for field, offset, size, _ in columns})
    except (ValueError, IndexError):
        raise ValueError(f"expected extension, offset, size and name, found {line[:60]!r}") from None


def neighbours(entries: Iterable[Entry], longest: int) -> Iterator[list[Entry]]:
    """Entries in runs that lie side by side in a tar, in the order given.

    Args:
        entries: Of one tar.
        longest: Bytes of a run, of several entries, at most.
    """
    run: list[Entry] = []
    for entry in entries:
        start, end = entry.span
        if run and not (0 <= start - run[-1].span[1] <= GAP and end - run[0].span[0] <= longest):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def tar_entries(file: IO[bytes]) -> Iterator[Entry]:
    """Neighbouring members that share a key, straight from the headers of a tar; also the last before damage.

    Raises:
        tarfile.TarError: it is no tar, or is damaged further on.
    """
    key = ""
    places: dict[str, tuple[int, int]] = {}
    damage: tarfile.TarError | None = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            for member in tar:
                stem, _, extension = member.name.partition(".")
                if places and stem != key:
                    yield Entry(key, places)
                    places = {}
                key, places[extension] = stem, (member.offset_data, member.size)
        except tarfile.TarError as error:
            damage = error
    if places:
        yield Entry(key, places)
    if damage:
        raise damage
