"""Fixtures. On a GPU host with torch, triton, numpy and pytest alone, only the tests of the kernels are collected."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipelines.birds import Birds
    from pipelines.manifest import Schema

KERNEL_TESTS = ("test_grouping.py", "test_occurrence.py")
if not all(importlib.util.find_spec(name) for name in ("scipy", "timm", "webdataset", "jsonargparse")):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in KERNEL_TESTS]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("no speed", deadline=None)  # a slow machine is no fault
    settings.load_profile("no speed")


def schema(birds: Birds) -> Schema:
    from pipelines.manifest import Schema

    return Schema(
        classes=tuple(birds.class_names),
        super_categories=tuple(birds.super_categories),
        landmarks=tuple(birds.landmark_names),
        parts=tuple(birds.part_names),
        absence=tuple(birds.absence),
    )


@pytest.fixture(scope="session")
def small_birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 4 species at 64 px: 32 training, 6 x 4 validation and 10 x 4 test images."""
    from pipelines import shards
    from pipelines.birds import Birds, BirdsConfig

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
