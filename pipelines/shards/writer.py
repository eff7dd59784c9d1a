"""Writing WebDataset shards with the index that DALI reads, in parallel.

A folder of shards holds ``<split>-00000.tar``, ``<split>-00000.idx``, ... and, once everything else is complete,
``manifest.json``. The bytes depend on the samples, the options and the seed only, not on the number of processes or
on how often the writing was interrupted. Until then the file ``unfinished`` records the plan and the finished shards,
one JSON object in a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipelines.files import atomic_write, json_line, read_json_lines, sha256
from pipelines.locks import LOCK, locked
from pipelines.shards import samples
from pipelines.shards.index import Entry, index_text
from pipelines.shards.manifest import (
    FILES,
    NAME,
    Manifest,
    Quarantined,
    Schema,
    Shard,
    Split,
    check_files,
    size_problems,
)
from pipelines.shards.samples import Sample
from pipelines.shards.workers import run

SPLIT_NAME = re.compile(r"[a-z0-9_]+")
UNFINISHED = "unfinished"  # marks a folder that is being written, so that only our own remains are ever removed
OUR_FILE = re.compile(rf"([a-z0-9_]+-\d{{5}}\.(tar|idx)|manifest\.json)(\.tmp)?|{UNFINISHED}")

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """One split of a raw data set. It is pickled once for every worker process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Reads one sample; ValueError or OSError if that cannot be done."""
        ...

    def source(self, index: int, /) -> str:
        """Where a sample comes from, without reading it."""
        ...


@dataclass(frozen=True)
class _Task:
    """The raw samples of one shard."""

    split: str
    name: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class _Written:
    """What became of a task; the shard is None if all its samples are in quarantine."""

    shard: Shard | None
    class_counts: tuple[int, ...]
    part_maps: int
    quarantined: tuple[Quarantined, ...]


def write(
    out: str | os.PathLike,
    dataset: str,
    sources: Mapping[str, Source],
    *,
    schema: Schema,
    options: Mapping[str, Any],
    samples_per_shard: int = 1000,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a data set as shards.

    The samples of every split are shuffled before they are cut into shards. Samples that cannot be read or contradict
    the schema are left out, logged and listed in the manifest. A folder that is already complete is left as it is; an
    interrupted run is continued, its finished shards are kept.

    Args:
        out: The folder of the shards, made if missing.
        dataset: Name of the data set, for people.
        sources: Name of the split -> its raw samples.
        schema: What the numbers in the samples mean.
        options: Whatever else the samples depend on, as JSON values; kept in the manifest. What is under ``files``
            changes with the raw files.
        samples_per_shard: Raw samples per shard.
        seed: Decides the order of the samples.
        jobs: Number of processes. The bytes written are the same for any number.
        progress: Called with the number of finished raw samples and that of all: first with those that an interrupted
            run has left, then after every shard.

    Raises:
        ValueError: an argument is wrong, ``out`` holds foreign files or shards (of a complete or an interrupted run)
            that were made differently or of other raw samples, another process is writing into it, no sample of a
            split can be used, or only some samples of a split have a part map.
        OSError: the folder cannot be written to, or a worker process died. No manifest is left behind, nor any
            incomplete shard.
    """
    if samples_per_shard < 1 or jobs < 1:
        raise ValueError(f"samples_per_shard, jobs: expected at least 1, got {samples_per_shard}, {jobs}")
    if not sources:
        raise ValueError("sources: expected at least one split, got none")
    for split, source in sources.items():
        if not SPLIT_NAME.fullmatch(split):
            raise ValueError(f"sources: expected splits named by a-z, 0-9 and _, got {split!r}")
        if not len(source):
            raise ValueError(f"sources: the split {split!r} is empty")
    out = Path(out)
    plain_options = json.loads(json.dumps(options, sort_keys=True))
    plan = Manifest(
        **asdict(schema),
        dataset=dataset,
        options=plain_options,
        seed=seed,
        samples_per_shard=samples_per_shard,
        fields=(),
        splits={},
    )
    counts = {split: len(source) for split, source in sources.items()}
    complete = _complete(out, plan, counts)
    if complete:  # perhaps where nobody can write
        return complete
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        return _complete(out, plan, counts) or _write(out, plan, counts, sources, schema, jobs, progress)


def _write(
    out: Path,
    plan: Manifest,
    counts: Mapping[str, int],
    sources: Mapping[str, Source],
    schema: Schema,
    jobs: int,
    progress: Progress | None,
) -> Manifest:
    tasks = [task for split, count in counts.items() for task in _cut(split, count, plan)]
    written = _continue(out, plan, counts)
    if written:
        logger.info("%s: continuing an interrupted run, %d of %d shards are kept", out, len(written), len(tasks))
    done, total = sum(len(task.indices) for task in tasks if task.name in written), sum(counts.values())
    if progress:
        progress(done, total)
    todo = [task for task in tasks if task.name not in written]
    try:
        with (
            (out / UNFINISHED).open("ab") as record,
            contextlib.closing(run(partial(_write_shard, out, sources, schema), todo, jobs)) as results,
        ):
            for task, result in results:
                record.write(json_line({"name": task.name} | asdict(result)))
                record.flush()
                os.fsync(record.fileno())
                written[task.name] = result
                for sample in result.quarantined:
                    logger.warning("%s left out: %s: %s", task.split, sample.source, sample.reason)
                done += len(task.indices)
                if progress:
                    progress(done, total)
        splits = {
            split: _summary(split, [written[task.name] for task in tasks if task.split == split]) for split in sources
        }
        manifest = replace(plan, fields=_fields(splits, written.values()), splits=splits)
        manifest.save(out)
        (out / UNFINISHED).unlink()
    finally:
        for path in out.glob("*.tmp"):  # of workers that were killed
            path.unlink()
    return manifest


def write_shard(folder: Path, name: str, content: Iterable[tuple[str, Mapping[str, bytes]]]) -> Shard | None:
    """Writes one shard with its index.

    Args:
        folder: The folder of the shards.
        name: Name of both files without the suffix.
        content: Key and fields (extension -> bytes) of every sample; read one by one while writing.

    Returns:
        What the manifest has to say about it; None, and no file is left, if there are no samples.
    """
    path, index = folder / f"{name}.tar", folder / f"{name}.idx"
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entries = [_add(tar, key, fields) for key, fields in content]
    if not entries:
        path.unlink()
        return None
    write_index(index, entries)
    return Shard(name, len(entries), path.stat().st_size, sha256(path), index.stat().st_size, sha256(index))


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the index of a shard, all or nothing."""
    with atomic_write(path) as file:
        file.write(index_text(entries).encode())


def count_labels(sample: Sample, counts: list[int]) -> None:
    """Adds a sample to the number of samples of every class, or with every attribute."""
    if isinstance(sample.label, tuple):
        for attribute, value in enumerate(sample.label):
            counts[attribute] += value
    else:
        counts[sample.label] += 1


def _complete(out: Path, plan: Manifest, counts: Mapping[str, int]) -> Manifest | None:
    """The manifest of a folder that holds what is planned already; None if nothing is complete."""
    if not (out / NAME).exists():
        return None
    manifest = Manifest.load(out)
    counted = {split: content.samples + len(content.quarantined) for split, content in manifest.splits.items()}
    _refuse_changes(out, manifest, counted, plan, counts)
    for split in manifest.splits:
        check_files(out, manifest, split)
    if (out / UNFINISHED).exists():
        (out / UNFINISHED).unlink()
    logger.info("%s: already complete", out)
    return manifest


def _continue(out: Path, plan: Manifest, counts: Mapping[str, int]) -> dict[str, _Written]:
    """Makes the folder ready to be written to.

    Removes what an interrupted run has left, except for the shards that it has finished.

    Returns:
        Name of a finished shard -> what became of it. A shard without any usable sample is tried again: that is soon
        done, and the reason may have been an unmounted disk.
    """
    names = sorted({*os.listdir(out)} - {LOCK})
    started = UNFINISHED in names
    foreign = [name for name in names if name != f"{UNFINISHED}.tmp" and not (started and OUR_FILE.fullmatch(name))]
    if foreign:
        raise ValueError(f"{out}: holds {foreign[0]}, which this program did not write; choose an empty folder")
    written: dict[str, _Written] = {}
    lines = list(read_json_lines(out / UNFINISHED, drop_half_line=True)) if started else []
    if lines:
        try:
            made, counted = Manifest.from_json(lines[0]["plan"]), dict(lines[0]["counts"])
            written = {line["name"]: _written(line) for line in lines[1:]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{out / UNFINISHED}: not a record of this version ({reason}); delete the folder"
            ) from None
        _refuse_changes(out, made, counted, plan, counts)
    kept = {name: done for name, done in written.items() if done.shard and not size_problems(out, done.shard)}
    with atomic_write(out / UNFINISHED) as record:
        record.write(json_line({"plan": plan.to_json(), "counts": counts}))
        record.writelines(json_line({"name": name} | asdict(done)) for name, done in kept.items())
    files = {file for done in kept.values() if done.shard for file in (done.shard.tar, done.shard.index)}
    for name in set(names) - files - {UNFINISHED}:
        (out / name).unlink(missing_ok=True)
    return kept


def _refuse_changes(
    out: Path, made: Manifest, counted: Mapping[str, int], plan: Manifest, wanted: Mapping[str, int]
) -> None:
    """Checks that a folder was made, as far as it was, in the way and of the raw samples that are wanted now."""
    differences = made.differences(plan)
    way_out = "delete the folder or choose another --out"
    if differences:
        raise ValueError(f"{out}: holds shards that were made differently ({'; '.join(differences)}); {way_out}")
    if counted != wanted or made.options.get(FILES) != plan.options.get(FILES):
        counts = [f"{name}: {counted.get(name, 0)} then, {wanted.get(name, 0)} now" for name in {**counted, **wanted}]
        raise ValueError(
            f"{out}: the images have changed since these shards were written ({'; '.join(counts)}); {way_out}"
        )


def _written(line: Mapping[str, Any]) -> _Written:
    return _Written(
        shard=Shard(**line["shard"]) if line["shard"] else None,
        class_counts=tuple(line["class_counts"]),
        part_maps=line["part_maps"],
        quarantined=tuple(Quarantined(**sample) for sample in line["quarantined"]),
    )


def _cut(split: str, count: int, plan: Manifest) -> Iterator[_Task]:
    order = list(range(count))
    random.Random(f"{plan.seed}/{split}").shuffle(order)
    for number, start in enumerate(range(0, count, plan.samples_per_shard)):
        yield _Task(split, f"{split}-{number:05d}", tuple(order[start : start + plan.samples_per_shard]))


def _write_shard(out: Path, sources: Mapping[str, Source], schema: Schema, task: _Task) -> _Written:
    counts = [0] * len(schema.classes)
    part_maps = 0
    quarantined: list[Quarantined] = []

    def usable() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        nonlocal part_maps
        for number in task.indices:
            try:
                sample = sources[task.split][number]
                _check(sample, schema)
            except (ValueError, OSError) as error:
                source = sources[task.split].source(number)
                quarantined.append(Quarantined(source, _reason(error).removeprefix(f"{source}: ")))
                continue
            count_labels(sample, counts)
            part_maps += sample.part_map is not None
            yield sample.key, samples.encode(sample)

    shard = write_shard(out, task.name, usable())
    return _Written(shard, tuple(counts), part_maps, tuple(quarantined))


def _add(tar: tarfile.TarFile, key: str, content: Mapping[str, bytes]) -> Entry:
    """Appends a sample; nothing but its key and content decides about the bytes."""
    places = {}
    for field, data in content.items():
        member = tarfile.TarInfo(f"{key}.{field}")
        member.size = len(data)
        member.mode = 0o644
        places[field] = (tar.offset + tarfile.BLOCKSIZE, len(data))
        tar.addfile(member, io.BytesIO(data))
    return Entry(key, places)


def _check(sample: Sample, schema: Schema) -> None:
    for violation in schema.violations(sample):
        raise ValueError(violation)


def _reason(error: Exception) -> str:
    """One line without the path of an OSError, which is absolute."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _summary(split: str, written: Sequence[_Written]) -> Split:
    shards = tuple(result.shard for result in written if result.shard)
    quarantined = tuple(sample for result in written for sample in result.quarantined)
    if not shards:
        first = quarantined[0]
        raise ValueError(f"{split}: none of {len(quarantined)} samples can be used; {first.source}: {first.reason}")
    return Split(
        samples=sum(shard.samples for shard in shards),
        class_counts=tuple(map(sum, zip(*(result.class_counts for result in written), strict=True))),
        shards=shards,
        quarantined=quarantined,
    )


def _fields(splits: Mapping[str, Split], written: Iterable[_Written]) -> tuple[str, ...]:
    count = sum(split.samples for split in splits.values())
    part_maps = sum(result.part_maps for result in written)
    if part_maps not in (0, count):
        raise ValueError(f"sources: expected part maps for all samples or for none, got {part_maps} for {count}")
    return samples.FIELDS if part_maps else samples.FIELDS[:-1]
