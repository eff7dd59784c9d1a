"""Checks a folder of shards against its manifest, down to the pixels, and replaces what is damaged."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipelines import images
from pipelines.files import sha256
from pipelines.peers import Alone, Peers
from pipelines.shards import samples
from pipelines.shards.index import Entry, index_text, tar_entries
from pipelines.shards.manifest import Manifest, Quarantined, Shard, Split, size_problem
from pipelines.shards.reader import read_fields, read_index
from pipelines.shards.samples import Sample
from pipelines.shards.storage import open_storage
from pipelines.shards.workers import run
from pipelines.shards.writer import Progress, count_labels, write_index, write_shard

REPAIRED_NAME = re.compile(r"(.+)-r(\d+)")  # of a shard that replaces a damaged one

Checked = TypeVar("Checked")


@dataclass(frozen=True)
class _Report:
    """What was found in one shard: problems of the tar, then of the index, and the keys in the tar."""

    tar_problems: tuple[str, ...]
    index_problems: tuple[str, ...]
    keys: tuple[str, ...]
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class _Repaired:
    """What became of one shard; None if nothing of it could be saved."""

    shard: Shard | None
    report: _Report
    repairs: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()


def verify(
    folder: str | os.PathLike,
    *,
    decode_images: bool = True,
    jobs: int = 1,
    progress: Progress | None = None,
    peers: Peers | None = None,
) -> list[str]:
    """Reads everything once: sizes, digests, indexes, labels and annotation, images, keys, counts, foreign shards.

    Args:
        folder: A folder of shards.
        decode_images: Whether to decode every JPEG, which takes most of the time.
        jobs: Number of processes.
        progress: Called with the number of finished samples and that of all samples, first with none.
        peers: Processes, each with ``jobs`` of its own, that share the shards.

    Returns:
        One line for each problem, naming the shard and where possible the key; empty if all is well.

    Raises:
        ValueError: there is no manifest, or it cannot be understood.
        OSError: a worker process died.
    """
    folder, peers = Path(folder), peers or Alone()
    manifest = peers.together(lambda: Manifest.load(folder))
    function = partial(_verify_shard, folder, manifest, decode_images)
    return _problems(folder, manifest, _check(function, manifest, jobs, progress, peers))


def repair(
    folder: str | os.PathLike, *, jobs: int = 1, progress: Progress | None = None
) -> tuple[list[str], list[str]]:
    """Mends a folder of shards as far as that is possible without the raw images.

    A missing or stale index is rebuilt. A shard whose tar is damaged is replaced by a new one, ``<name>-r1``, of those
    of its samples that are in order; the others go to the quarantine of the manifest, each with its reason. Shards in
    order are not touched. The manifest is written after everything else, then the replaced shards are removed: a
    repair that is interrupted can be repeated.

    A tar that is not the recorded one although all its samples are in order is replaced as well, with all of them:
    pixels that were changed and still decode cannot be told from others.

    Args:
        folder: A folder of shards.
        jobs: Number of processes.
        progress: Called with the number of finished samples and that of all samples, first with none.

    Returns:
        One line for everything that was done, and one for each problem that is left, as from ``verify``.

    Raises:
        ValueError: there is no manifest, it cannot be understood, or no sample of a split could be saved; then the
            manifest and its shards stay as they were.
        OSError: the folder cannot be written to, or a worker process died.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    repaired = _check(partial(_repair_shard, folder, manifest), manifest, jobs, progress, Alone())
    repairs = [line for result in repaired.values() for line in result.repairs]
    reports = {result.shard: result.report for result in repaired.values() if result.shard}
    splits = {}
    for name, split in manifest.splits.items():
        results = [repaired[shard] for shard in split.shards]
        if not any(result.shard for result in results):
            _remove(folder, _files(reports) - _files(repaired))
            raise ValueError(f"{folder}: no sample of the split {name!r} can be saved; prepare the data set again")
        splits[name] = _repaired_split(split, results)
        if splits[name] != split and not any(result.repairs for result in results):
            repairs.append(f"{name}: corrected the counts in the manifest")
    mended = replace(manifest, splits=splits)
    if mended != manifest:
        mended.save(folder)
    replaced = {file for shard in reports for name in _replaced(shard.name) for file in (f"{name}.tar", f"{name}.idx")}
    _remove(folder, replaced | _files(repaired) - _files(reports))
    return repairs, _problems(folder, mended, reports)


def _check(
    function: Callable[[Shard], Checked], manifest: Manifest, jobs: int, progress: Progress | None, peers: Peers
) -> dict[Shard, Checked]:
    """Calls a function for every shard; the results of all processes are in the order of the manifest."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    total = sum(shard.samples for shard in shards)
    finished = peers.counter()
    results: dict[Shard, Checked] = {}

    def tell(samples: int) -> None:
        if progress:
            progress(finished(samples), total)

    tell(0)
    problem: OSError | None = None
    try:
        for shard, result in run(function, shards[peers.ranks.rank :: peers.ranks.world_size], jobs):
            results[shard] = result
            tell(shard.samples)
    except OSError as error:
        problem = error
    peers.wait(lambda: tell(0))

    def check() -> None:
        if problem:
            raise problem

    peers.together(check)
    everyone = {shard: result for own in peers.collect(results) for shard, result in own.items()}
    return {shard: everyone[shard] for shard in shards}


def _problems(folder: Path, manifest: Manifest, reports: Mapping[Shard, _Report]) -> list[str]:
    """Everything that is wrong, given what was found in every shard."""
    problems = [problem for report in reports.values() for problem in report.tar_problems + report.index_problems]
    problems += _repeated_keys(reports)
    for name, split in manifest.splits.items() if not problems else ():
        if _sum_counts([reports[shard] for shard in split.shards]) != split.class_counts:
            problems.append(f"{name}: the labels do not add up to the class_counts of the manifest")
        if sum(shard.samples for shard in split.shards) != split.samples:
            problems.append(f"{name}: the shards do not add up to the samples of the manifest")
    files = set(os.listdir(folder)) - _files(reports)
    foreign = sorted(file for file in files if file.endswith((".tar", ".idx")))
    return problems + [f"{file}: not in the manifest" for file in foreign]


def _sum_counts(reports: Sequence[_Report]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(report.class_counts for report in reports), strict=True)))


def _verify_shard(folder: Path, manifest: Manifest, decode_images: bool, shard: Shard) -> _Report:
    tar, index = folder / shard.tar, folder / shard.index
    problems = _file_problems(tar, shard.bytes, shard.sha256)
    entries: list[Entry] = []
    counts = [0] * manifest.num_classes
    try:
        for entry in _entries(tar):
            entries.append(entry)
            sample, _, sample_problems = _checked(tar, entry, manifest, decode_images)
            if sample:
                count_labels(sample, counts)
            problems += [f"{shard.tar}: {entry.key}: {problem}" for problem in sample_problems]
    except FileNotFoundError:
        pass  # one of _file_problems
    except (OSError, tarfile.TarError) as error:
        problems.append(f"{shard.tar}: cannot be read ({error})")
    if len(entries) != shard.samples:
        problems.append(f"{shard.tar}: expected {shard.samples} samples, found {len(entries)}")
    index_problems = _file_problems(index, shard.index_bytes, shard.index_sha256)
    if index.is_file():
        index_problems += _index_problems(index.read_bytes(), entries, shard)
    return _Report(tuple(problems), tuple(index_problems), tuple(entry.key for entry in entries), tuple(counts))


def _repair_shard(folder: Path, manifest: Manifest, shard: Shard) -> _Repaired:
    tar, index = folder / shard.tar, folder / shard.index
    report = _verify_shard(folder, manifest, True, shard)
    if not report.tar_problems:
        if not report.index_problems:
            return _Repaired(shard, report)
        write_index(index, list(_entries(tar)))
        shard = replace(shard, index_bytes=index.stat().st_size, index_sha256=sha256(index))
        return _Repaired(shard, replace(report, index_problems=()), (f"{shard.index}: rebuilt",))

    entries = _salvageable(folder, shard)
    quarantined: list[Quarantined] = []

    def good() -> Iterator[tuple[str, dict[str, bytes]]]:
        for entry in entries:
            sample, fields, sample_problems = _checked(tar, entry, manifest, True)
            if sample:
                yield entry.key, fields
            else:
                quarantined.append(Quarantined(_source(entry.key, fields), "; ".join(sample_problems)))

    new = write_shard(folder, _successor(shard.name), good())
    lost = shard.samples - len(entries)
    quarantined += [Quarantined(shard.tar, "lost with all that told its name")] * lost
    done = f"replaced by {new.name} with {new.samples} of its samples" if new else "removed, nothing of it can be saved"
    repairs = [f"{shard.tar}: {done}", *(f"{shard.tar}: left out {bad.source}: {bad.reason}" for bad in quarantined)]
    report = _verify_shard(folder, manifest, True, new) if new else report
    return _Repaired(new, report, tuple(repairs), tuple(quarantined))


def _repaired_split(split: Split, results: Sequence[_Repaired]) -> Split:
    kept = [(result.shard, result.report) for result in results if result.shard]
    return Split(
        samples=sum(shard.samples for shard, _ in kept),
        class_counts=_sum_counts([report for _, report in kept]),
        shards=tuple(shard for shard, _ in kept),
        quarantined=split.quarantined + tuple(sample for result in results for sample in result.quarantined),
    )


def _salvageable(folder: Path, shard: Shard) -> list[Entry]:
    """Where the samples of a damaged tar should be: as its headers say, or its index if that is known to be good.

    The headers alone do not lead beyond a damaged one; the index alone misleads if the tar was made anew.
    """
    tar, index = folder / shard.tar, folder / shard.index
    places: dict[str, Entry] = {}
    if not _file_problems(index, shard.index_bytes, shard.index_sha256):
        places = {entry.key: entry for entry in read_index(open_storage(folder), shard.index)}
    try:
        for entry in _entries(tar) if tar.is_file() else ():
            if entry.key not in places or set(entry.fields) >= set(places[entry.key].fields):
                places[entry.key] = entry
    except tarfile.TarError:
        pass  # the tar is damaged here, which is why we came
    return list(places.values())


def _successor(name: str) -> str:
    """Name of the shard that replaces another."""
    match = REPAIRED_NAME.fullmatch(name)
    return f"{match[1]}-r{int(match[2]) + 1}" if match else f"{name}-r1"


def _replaced(name: str) -> list[str]:
    """Names of the shards that a shard has replaced, one after the other."""
    match = REPAIRED_NAME.fullmatch(name)
    return [match[1], *(f"{match[1]}-r{number}" for number in range(1, int(match[2])))] if match else []


def _files(shards: Iterable[Shard]) -> set[str]:
    return {file for shard in shards for file in (shard.tar, shard.index)}


def _remove(folder: Path, files: Iterable[str]) -> None:
    for file in files:
        (folder / file).unlink(missing_ok=True)


def _source(key: str, fields: Mapping[str, bytes]) -> str:
    """Where a damaged sample came from; its key if nothing else is left."""
    try:
        return str(samples.decode_annotation(fields[samples.ANNOTATION], key)["source"])
    except (ValueError, KeyError, TypeError):
        return key


def _file_problems(path: Path, size: int, digest: str) -> list[str]:
    problems = size_problem(path, size)
    if path.is_file() and sha256(path) != digest:
        problems.append(f"{path.name}: the content does not have the recorded sha256")
    return problems


def _entries(tar: Path) -> Iterator[Entry]:
    with tar.open("rb") as file:
        yield from tar_entries(file)


def _checked(
    path: Path, entry: Entry, manifest: Manifest, decode_images: bool
) -> tuple[Sample | None, dict[str, bytes], list[str]]:
    """One sample of a tar, None if it has problems; its fields as far as they can be read; its problems."""
    try:
        fields = read_fields(open_storage(path.parent), path.name, entry)
    except FileNotFoundError:
        return None, {}, ["the tar is missing"]
    except ValueError as error:
        return None, {}, [_reason(error, entry)]
    try:
        sample = samples.decode(entry.key, fields)
        sample_problems = _sample_problems(sample, tuple(fields), manifest, decode_images)
    except Exception as error:  # a damaged field can break its parser in any way
        return None, fields, [_reason(error, entry)]
    return (None if sample_problems else sample), fields, sample_problems


def _reason(error: Exception, entry: Entry) -> str:
    return " ".join(str(error).split()).removeprefix(f"{entry.key}: ") or type(error).__name__


def _sample_problems(sample: Sample, fields: tuple[str, ...], manifest: Manifest, decode_images: bool) -> list[str]:
    problems = manifest.violations(sample)
    if fields != manifest.fields:
        problems.append(f"has the fields {', '.join(fields)}, expected {', '.join(manifest.fields)}")
    if decode_images:
        jpeg, width, height = images.to_jpeg(sample.jpeg)
        if (width, height) != (sample.width, sample.height):
            problems.append(f"the image is {width}x{height}, its annotation says {sample.width}x{sample.height}")
        if jpeg != sample.jpeg:
            problems.append("the image is no upright RGB or grey-scale JPEG")
    return problems


def _index_problems(index: bytes, entries: list[Entry], shard: Shard) -> list[str]:
    expected, lines = index_text(entries).encode().splitlines(), index.splitlines()
    for number, (line, content) in enumerate(zip(lines, expected, strict=False)):
        if line != content:
            key = entries[number - 1].key if number else "first line"
            return [f"{shard.index}: {key}: the index does not fit the tar"]
    if index != index_text(entries).encode():
        return [f"{shard.index}: the index has {len(lines)} lines, expected {len(expected)}"]
    return []


def _repeated_keys(reports: Mapping[Shard, _Report]) -> list[str]:
    problems = []
    owner: dict[str, str] = {}
    for shard, report in reports.items():
        for key in report.keys:
            if key in owner:
                problems.append(f"{shard.tar}: {key}: the key is also in {owner[key]}")
            owner.setdefault(key, shard.tar)
    return problems
