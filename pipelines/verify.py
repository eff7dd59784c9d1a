"""Checks a folder of shards against its manifest, down to the pixels."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines import images, samples
from pipelines.manifest import Manifest, Shard, sha256, size_problems
from pipelines.samples import Sample
from pipelines.shards import Entry, Progress, count_labels, index_text, run


@dataclass(frozen=True)
class _Report:
    """What was found in one shard."""

    problems: tuple[str, ...]
    keys: tuple[str, ...]
    class_counts: tuple[int, ...]


def verify(
    folder: str | os.PathLike, *, decode_images: bool = True, jobs: int = 1, progress: Progress | None = None
) -> list[str]:
    """Reads everything once: sizes, digests, indexes, labels and annotation, images, keys, counts, foreign shards.

    Args:
        folder: A folder of shards.
        decode_images: Whether to decode every JPEG, which takes most of the time.
        jobs: Number of processes.
        progress: Called with the number of finished shards and that of all shards.

    Returns:
        One line for each problem, naming the shard and where possible the key; empty if all is well.

    Raises:
        ValueError: there is no manifest, or it cannot be understood.
        OSError: a worker process died.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    found: dict[Shard, _Report] = {}
    for shard, report in run(partial(_verify_shard, folder, manifest, decode_images), shards, jobs):
        found[shard] = report
        if progress:
            progress(len(found), len(shards))
    reports = {shard: found[shard] for shard in shards}
    problems = [problem for report in reports.values() for problem in report.problems]
    problems += _repeated_keys(reports)
    for name, split in manifest.splits.items() if not problems else ():
        counts = (reports[shard].class_counts for shard in split.shards)
        if tuple(map(sum, zip(*counts, strict=True))) != split.class_counts:
            problems.append(f"{name}: the labels do not add up to the class_counts of the manifest")
        if sum(shard.samples for shard in split.shards) != split.samples:
            problems.append(f"{name}: the shards do not add up to the samples of the manifest")
    known = {file for shard in shards for file in (shard.tar, shard.index)}
    foreign = sorted(file for file in os.listdir(folder) if file.endswith((".tar", ".idx")) and file not in known)
    return problems + [f"{file}: not in the manifest" for file in foreign]


def _verify_shard(folder: Path, manifest: Manifest, decode_images: bool, shard: Shard) -> _Report:
    problems = size_problems(folder, shard)
    for name, digest in ((shard.tar, shard.sha256), (shard.index, shard.index_sha256)):
        if (folder / name).is_file() and sha256(folder / name) != digest:
            problems.append(f"{name}: the content does not have the recorded sha256")
    entries: list[Entry] = []
    counts = [0] * manifest.num_classes
    try:
        for entry, fields in _tar_samples(folder / shard.tar):
            entries.append(entry)
            try:
                sample = samples.decode(entry.key, fields)
                found = _sample_problems(sample, tuple(fields), manifest, decode_images)
                if not found:
                    count_labels(sample, counts)
            except Exception as error:  # a damaged field can break its parser in any way
                found = [" ".join(str(error).split()).removeprefix(f"{entry.key}: ") or type(error).__name__]
            problems += [f"{shard.tar}: {entry.key}: {problem}" for problem in found]
    except FileNotFoundError:
        pass  # one of size_problems
    except (OSError, tarfile.TarError) as error:
        problems.append(f"{shard.tar}: cannot be read ({error})")
    if len(entries) != shard.samples:
        problems.append(f"{shard.tar}: expected {shard.samples} samples, found {len(entries)}")
    if (folder / shard.index).is_file():
        problems += _index_problems((folder / shard.index).read_bytes(), entries, shard)
    return _Report(tuple(problems), tuple(entry.key for entry in entries), tuple(counts))


def _tar_samples(path: Path) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """Neighbouring members that share a key, straight from the tar."""
    with tarfile.open(path, "r:") as tar:
        key = ""
        places: dict[str, tuple[int, int]] = {}
        fields: dict[str, bytes] = {}
        for member in tar:
            stem, _, extension = member.name.partition(".")
            if fields and stem != key:
                yield Entry(key, places), fields
                places, fields = {}, {}
            file = tar.extractfile(member)
            key, places[extension] = stem, (member.offset_data, member.size)
            fields[extension] = file.read() if file else b""
        if fields:
            yield Entry(key, places), fields


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
    expected, found = index_text(entries).encode().splitlines(), index.splitlines()
    for number, (line, content) in enumerate(zip(found, expected, strict=False)):
        if line != content:
            key = entries[number - 1].key if number else "first line"
            return [f"{shard.index}: {key}: the index does not fit the tar"]
    if index != index_text(entries).encode():
        return [f"{shard.index}: the index has {len(found)} lines, expected {len(expected)}"]
    return []


def _repeated_keys(reports: dict[Shard, _Report]) -> list[str]:
    problems = []
    owner: dict[str, str] = {}
    for shard, report in reports.items():
        for key in report.keys:
            if key in owner:
                problems.append(f"{shard.tar}: {key}: the key is also in {owner[key]}")
            owner.setdefault(key, shard.tar)
    return problems
