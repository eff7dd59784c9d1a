"""What a folder of shards holds and how it was made: ``manifest.json``, written after everything else."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.files import atomic_write
from pipelines.shards.samples import Sample
from pipelines.shards.storage import Location, is_local, open_storage

NAME = "manifest.json"
FORMAT = 1
FILES = "files"


@dataclass(frozen=True)
class Schema:
    """What the numbers in the samples of a data set mean.

    Attributes:
        classes: Name of every class, or of every attribute if the labels are 0/1 attributes.
        super_categories: Coarse category of every class; empty if there are none.
        landmarks: Name of every landmark.
        parts: Name of every part; ``parts[p - 1]`` has index p in the part maps.
        absence: Probability that a sample lacks a part, averaged over the classes, for every part; empty if not known.
        multi_label: Whether a label is one 0/1 value per class instead of a class index.
        locations: Whether it is known of some samples where or when they were taken.
    """

    classes: tuple[str, ...]
    super_categories: tuple[str, ...] = ()
    landmarks: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    absence: tuple[float, ...] = ()
    multi_label: bool = False
    locations: bool = False

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"classes: expected at least 2, got {len(self.classes)}")
        if self.super_categories and len(self.super_categories) != len(self.classes):
            raise ValueError(
                f"super_categories: expected one for each of {len(self.classes)} classes, "
                f"got {len(self.super_categories)}"
            )
        if self.absence and len(self.absence) != len(self.parts):
            raise ValueError(f"absence: expected one for each of {len(self.parts)} parts, got {len(self.absence)}")
        if not all(0 <= probability <= 1 for probability in self.absence):
            raise ValueError(f"absence: expected probabilities, got {', '.join(map(str, self.absence))}")

    def violations(self, sample: Sample) -> list[str]:
        """In which ways a sample contradicts the schema; empty if in none."""
        violations = []
        if isinstance(sample.label, tuple) or self.multi_label:
            if not self.multi_label:
                violations.append(f"label {sample.label}, expected a class index")
            elif not isinstance(sample.label, tuple) or len(sample.label) != len(self.classes):
                violations.append(f"label {sample.label}, expected {len(self.classes)} values")
            elif not set(sample.label) <= {0, 1}:
                violations.append(f"label {sample.label}, expected values of 0 or 1")
        elif not 0 <= sample.label < len(self.classes):
            violations.append(f"label {sample.label}, expected 0 to {len(self.classes) - 1}")
        elif self.super_categories and sample.super_category != self.super_categories[sample.label]:
            expected = self.super_categories[sample.label]
            violations.append(f"super-category {sample.super_category!r}, expected {expected!r}")
        if sample.answers is not None and not all(0 <= answer < len(self.classes) for answer in sample.answers):
            violations.append(f"answers {sample.answers}, expected 0 to {len(self.classes) - 1}")
        landmarks = 0 if sample.landmarks is None else len(sample.landmarks)
        if landmarks != len(self.landmarks):
            violations.append(f"{landmarks} landmarks, expected {len(self.landmarks)}")
        for x0, y0, x1, y1 in sample.boxes.tolist() if sample.boxes is not None else ():
            if not (0 <= x0 <= x1 <= sample.width and 0 <= y0 <= y1 <= sample.height):
                violations.append(f"box {x0, y0, x1, y1} is not inside the {sample.width}x{sample.height} image")
        if sample.part_map is not None and sample.part_map.max() > len(self.parts):
            violations.append(f"part index {sample.part_map.max()}, expected 0 to {len(self.parts)}")
        if sample.place is not None and not self.locations:
            violations.append("a place or a date, expected none")
        return violations + self._absence_violations(sample)

    def _absence_violations(self, sample: Sample) -> list[str]:
        if sample.absent is None:
            return ["no list of absent parts"] if self.absence else []
        violations = []
        for part in sample.absent:
            if part not in self.parts:
                violations.append(f"absent part {part!r}, expected one of {', '.join(self.parts) or 'no parts'}")
                continue
            index = self.parts.index(part)
            if self.absence and not self.absence[index]:
                violations.append(f"absent part {part!r}, expected to be in every sample")
            if sample.part_map is not None and (sample.part_map == index + 1).any():
                violations.append(f"absent part {part!r} is in the part map")
        return violations


@dataclass(frozen=True)
class Shard:
    """The tar file ``<name>.tar`` with its index ``<name>.idx``.

    Attributes:
        name: Name of both files without the suffix.
        samples: Number of samples.
        bytes: Size of the tar.
        sha256: Digest of the tar.
        index_bytes: Size of the index.
        index_sha256: Digest of the index.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str

    @property
    def tar(self) -> str:
        """File name of the tar."""
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        """File name of the index."""
        return f"{self.name}.idx"


@dataclass(frozen=True)
class Quarantined:
    """A raw sample that was left out.

    Attributes:
        source: Where it came from.
        reason: Why it could not be used.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Split:
    """One split of the data set.

    Attributes:
        samples: Number of samples in the shards.
        class_counts: Samples of every class, or with every attribute.
        shards: The shards in reading order.
        quarantined: What was left out.
    """

    samples: int
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]
    quarantined: tuple[Quarantined, ...]

    @property
    def sha256(self) -> str:
        """Digest over those of the shards: the same for the same samples in the same order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest(Schema):
    """What a folder of shards holds and how it was made: a schema and the files that keep to it.

    Attributes:
        dataset: Name of the data set, for people; shards that differ in nothing else are the same.
        options: What the caller chose when making it (JSON values only). Under ``files``, if there, is what tells the
            raw files from others.
        seed: Seed of the order of the samples.
        samples_per_shard: Raw samples per shard; quarantine makes some shards smaller.
        fields: Extensions that every sample has, in the order of ``samples.FIELDS``.
        splits: Name of the split -> its content.
    """

    dataset: str
    options: dict[str, Any]
    seed: int
    samples_per_shard: int
    fields: tuple[str, ...]
    splits: dict[str, Split]

    @classmethod
    def load(cls, data: Location) -> Manifest:
        """Reads the manifest of a folder of shards, or of its URL.

        Raises:
            ValueError: there is none, or it cannot be understood.
            OSError: the storage does not answer.
        """
        try:
            content = open_storage(data).read(NAME)
        except FileNotFoundError:
            if is_local(data) and not os.path.isdir(data):
                raise ValueError(f"{data}: no such folder") from None
            raise ValueError(f"{data}: not a shard folder (no {NAME}); make one with `python -m rg prepare`") from None
        except NotADirectoryError:
            raise ValueError(f"{data}: expected a folder of shards, got a file; give the folder it lies in") from None
        try:
            return cls.from_json(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{data}: {NAME} is no manifest of shards ({type(error).__name__}: {error})") from None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """The inverse of ``to_json``.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it was written by another version, or by something else.
        """
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, this version reads {FORMAT}")
        fields = {name: _frozen(value) for name, value in content.items() if name not in ("format", "splits")}
        return cls(**fields, splits={name: _split(split) for name, split in content["splits"].items()})

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        content = {"format": FORMAT, "dataset": self.dataset, "options": self.options, **asdict(self)}
        if not self.locations:
            del content["locations"]  # which earlier manifests do not name
        return content

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``manifest.json``, all or nothing."""
        with atomic_write(Path(folder) / NAME) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())

    @property
    def num_classes(self) -> int:
        """Number of classes or attributes."""
        return len(self.classes)

    def split(self, name: str) -> Split:
        """One split.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self.splits:
            raise ValueError(f"split: {self.dataset} has {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]

    def differences(self, other: Manifest) -> list[str]:
        """How the making of two folders of shards differed, not counting their raw files.

        One line for each setting; empty if in nothing.
        """
        ours, theirs = self._recipe(), other._recipe()
        return [
            f"{name} {_short(ours.get(name))} instead of {_short(theirs.get(name))}"
            for name in sorted(set(ours) | set(theirs))
            if ours.get(name) != theirs.get(name)
        ]

    def _recipe(self) -> dict[str, Any]:
        """What was asked for when the shards were made, flat and as JSON values."""
        recipe = json.loads(json.dumps(asdict(self)))
        for name in ("dataset", "fields", "splits"):
            del recipe[name]
        options = recipe.pop("options")
        options.pop(FILES, None)
        return recipe | {f"options.{name}": value for name, value in options.items()}


def check_files(folder: Path, manifest: Manifest, split: str) -> None:
    """Checks that every shard and index of a split is there with its recorded size.

    Raises:
        ValueError: one is not; the message names the first.
    """
    for shard in manifest.split(split).shards:
        for problem in size_problems(folder, shard):
            raise ValueError(f"{folder}: {problem}")


def size_problems(folder: Path, shard: Shard) -> list[str]:
    """Which of the two files of a shard is missing or has the wrong size."""
    return size_problem(folder / shard.tar, shard.bytes) + size_problem(folder / shard.index, shard.index_bytes)


def size_problem(path: Path, size: int) -> list[str]:
    """Whether a file is missing or has the wrong size: at most one line."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    actual = path.stat().st_size
    return [] if actual == size else [f"{path.name}: expected {size} bytes, found {actual}"]


def _split(content: dict[str, Any]) -> Split:
    return Split(
        samples=content["samples"],
        class_counts=tuple(content["class_counts"]),
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        quarantined=tuple(Quarantined(**entry) for entry in content["quarantined"]),
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
