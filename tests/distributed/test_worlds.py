"""Worlds of 1 to 8 ranks, a process each: exact counts, equal batches, exact resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from pipelines.shards import reader

WORLDS = (1, 2, 3, 4, 8)
RANK = """
import hashlib, itertools, json, sys
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader

data, rank, worlds = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
GLOBAL_BATCH, STEPS = 24, 4

def digests(loader, steps):
    batches = itertools.islice(loader, steps)
    return [[key, hashlib.sha256(image.numpy().tobytes()).hexdigest(), int(label)]
            for batch in batches for key, image, label in zip(batch.keys, batch.images, batch.labels)]

found = {}
for world in worlds:
    if rank >= world:
        continue
    place = {"rank": rank, "world_size": world}
    def train(): return Loader(data, "train", Geometry(72, 64, training=True), GLOBAL_BATCH, **place)
    stopped = train()
    whole, before = digests(train(), STEPS), digests(stopped, STEPS // 2)
    resumed = train()
    resumed.resume(json.loads(json.dumps(stopped.state())))
    test = Loader(data, "test", Geometry(64, 64), 5, **place)
    found[world] = {
        "test": [key for batch in test for key in batch.keys],
        "whole": whole,
        "resumed": before + digests(resumed, STEPS - STEPS // 2),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(small_birds) -> dict[int, list[dict]]:
    """World -> what every rank saw."""
    worlds = json.dumps(WORLDS)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(small_birds), str(rank), worlds], stdout=subprocess.PIPE, text=True
        )
        for rank in range(max(WORLDS))
    ]
    ranks = [json.loads(process.communicate()[0]) for process in processes]
    return {world: [rank[str(world)] for rank in ranks[:world]] for world in WORLDS}


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
