"""Shards of small creatures with places."""

from __future__ import annotations

from pathlib import Path

from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.shards import writer
from pipelines.shards.manifest import Schema


def write(folder: Path, **counts: int) -> Path:
    """Write 16 species at 64 px; ``counts`` is split -> images of a species."""
    config = CreaturesConfig(species=4, size=64, places=True)
    sources = {split: Creatures(config, split, count) for split, count in counts.items()}
    first = next(iter(sources.values()))
    schema = Schema(
        classes=tuple(first.class_names),
        super_categories=tuple(first.super_categories),
        landmarks=tuple(first.landmark_names),
        parts=tuple(first.part_names),
        absence=tuple(first.absence),
        locations=True,
    )
    writer.write(folder, "creatures", sources, schema=schema, options={"made": "by the tests"}, samples_per_shard=20)
    return folder
