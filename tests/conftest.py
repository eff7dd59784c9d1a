from pathlib import Path

import pytest

from pipelines import shards
from pipelines.birds import Birds, BirdsConfig
from pipelines.manifest import Schema


def schema(birds: Birds) -> Schema:
    return Schema(
        classes=tuple(birds.class_names),
        super_categories=tuple(birds.super_categories),
        landmarks=tuple(birds.landmark_names),
        parts=tuple(birds.part_names),
    )


@pytest.fixture(scope="session")
def small_birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 4 species at 64 px: 32 training, 6 x 4 validation and 10 x 4 test images."""
    folder = tmp_path_factory.mktemp("birds")
    config = BirdsConfig(species=4, size=64)
    sources = {split: Birds(config, split, count) for split, count in (("train", 8), ("val", 6), ("test", 10))}
    shards.write(
        folder,
        "birds",
        sources,
        schema=schema(sources["train"]),
        options={"made": "by the tests"},
        samples_per_shard=15,
    )
    return folder
