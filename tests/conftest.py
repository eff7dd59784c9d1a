"""Fixtures. On a GPU host with torch, triton, numpy and pytest alone, only the tests of the kernels are collected."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipelines.drawn.birds import Birds
    from pipelines.shards.manifest import Schema

TESTS = Path(__file__).parent
OF_KERNELS = ("dispatch", "grouping", "image_grouping", "occurrence", "operators")
ALONE = [f"kernels/test_{name}.py" for name in OF_KERNELS]
LONGEST = ("export", "training", "launch", "benchmarks", "evaluation", "attribution", "package", "pages", "explain")
if not all(importlib.util.find_spec(name) for name in ("scipy", "timm", "webdataset", "jsonargparse")):
    names = (path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))
    collect_ignore = [name for name in names if name not in ALONE]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # A slow machine is no fault, and what is drawn depends on the test alone.
    settings.register_profile("checks", deadline=None, derandomize=True)
    settings.load_profile("checks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders whose files take longest come first, so that no worker is left alone with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(TESTS).parts[0], len(places)))


@pytest.fixture(autouse=True)
def log_levels() -> None:
    """Those of the command line, whatever the test before has left."""
    for name in ("rg", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)


def schema(birds: Birds) -> Schema:
    from pipelines.shards.manifest import Schema

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
    from pipelines.drawn.birds import Birds, BirdsConfig
    from pipelines.shards import writer

    folder = tmp_path_factory.mktemp("birds")
    config = BirdsConfig(species=4, size=64)
    sources = {split: Birds(config, split, count) for split, count in (("train", 8), ("val", 6), ("test", 10))}
    writer.write(
        folder,
        "birds",
        sources,
        schema=schema(sources["train"]),
        options={"made": "by the tests"},
        samples_per_shard=15,
    )
    return folder
