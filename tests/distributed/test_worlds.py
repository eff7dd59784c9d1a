"""Worlds of 1 to 8 ranks, a process each: exact counts, equal batches, exact resumption."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.shards import reader
from tests.support.forked import CONTEXT

WORLDS = (1, 2, 3, 4, 8)
GLOBAL_BATCH, STEPS = 24, 4


def digests(loader, steps):
    batches = itertools.islice(loader, steps)
    return [
        (key, hashlib.sha256(image.numpy().tobytes()).hexdigest(), int(label))
        for batch in batches
        for key, image, label in zip(batch.keys, batch.images, batch.labels, strict=True)
    ]


def see(data: Path, rank: int) -> dict[int, dict]:
    """World -> what a rank of it sees."""
    seen = {}
    for world in WORLDS:
        if rank >= world:
            continue
        place = {"rank": rank, "world_size": world}
        whole, stopped, resumed = (
            Loader(data, "train", Geometry(72, 64, training=True), GLOBAL_BATCH, **place) for _ in range(3)
        )
        before = digests(stopped, STEPS // 2)
        resumed.resume(json.loads(json.dumps(stopped.state())))
        seen[world] = {
            "test": [key for batch in Loader(data, "test", Geometry(64, 64), 5, **place) for key in batch.keys],
            "whole": digests(whole, STEPS),
            "resumed": before + digests(resumed, STEPS - STEPS // 2),
        }
    return seen


@pytest.fixture(scope="module")
def found(small_birds) -> dict[int, list[dict]]:
    """World -> what every rank saw."""
    ranks = range(max(WORLDS))
    with ProcessPoolExecutor(len(ranks), CONTEXT) as pool:
        seen = list(pool.map(see, [small_birds] * len(ranks), ranks))
    return {world: [rank[world] for rank in seen[:world]] for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_evaluation_sees_every_sample_exactly_once(small_birds, found, world):
    seen = Counter(key for rank in found[world] for key in rank["test"])
    assert seen == Counter(sample.key for sample in reader.read(small_birds, "test"))


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_take_equally_many_equal_batches(found, world):
    assert {len(rank["whole"]) for rank in found[world]} == {4 * 24 // world}


@pytest.mark.parametrize("world", WORLDS)
def test_a_resumed_stream_is_the_uninterrupted_one(found, world):
    for rank in found[world]:
        assert rank["resumed"] == rank["whole"]


@pytest.mark.parametrize("world", WORLDS[1:])
def test_every_step_sees_what_a_single_rank_sees(found, world):
    """Keys, labels and pixels of every global batch, augmentation included."""
    own = 24 // world
    for step in range(4):
        shared = [image for rank in found[world] for image in rank["whole"][step * own : (step + 1) * own]]
        assert shared == found[1][0]["whole"][step * 24 : (step + 1) * 24]
