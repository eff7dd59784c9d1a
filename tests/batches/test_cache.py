"""Batches by way of a cache: the same as without, for fewer requests."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipelines import plan
from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Batch, Loader
from pipelines.shards import reader, storage
from pipelines.shards.cache import Cache
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from tests.batches.test_damage import KINDS, damaged_copy, some
from tests.support.object_store import environment, faulty_proxy, s3_server, upload

TEST, TRAIN = Geometry(64, 64), Geometry(72, 64, training=True)
BATCHES = 15  # of 8 of 32 images


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data: pieces of 12 samples, of shards of 15."""
    monkeypatch.setattr(plan, "SHUFFLED", 12)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many ranges of every file were read from local folders."""
    counted, lock = Counter[str](), threading.Lock()
    read_range = storage._Folder.read_range

    def counting(self: storage._Folder, name: str, start: int, size: int) -> bytes:
        with lock:
            counted[name] += 1
        return read_range(self, name, start, size)

    monkeypatch.setattr(storage._Folder, "read_range", counting)
    return counted


def load(data: object, geometry: Geometry, **options: object) -> Loader:
    split = "train" if geometry.training else "test"
    return Loader(data, split, geometry, 8, decoding=Decoding("pillow", 1), annotations=True, **options)  # type: ignore[arg-type]


def first(loader: Loader, count: int = BATCHES) -> list[Batch]:
    return [*itertools.islice(loader, count)]


def wait_for_readers() -> None:
    """Until the threads of training loaders that are closed have ended; they finish what they began."""
    for thread in threading.enumerate():
        if thread.name.startswith("reader"):
            thread.join(60)


def check_equal(expected: Sequence[Batch], found: Sequence[Batch]) -> None:
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert one.keys == other.keys
        for name in ("images", "labels", "landmarks", "visibility"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@contextlib.contextmanager
def stopped(cache: Path) -> Iterator[None]:
    """Holds the lock without which no file of a cache begins, takes its name or goes."""
    with (cache / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def largest(data: Path, split: str) -> int:
    return max(shard.bytes for shard in Manifest.load(data).split(split).shards)


@pytest.mark.parametrize("shards", [0.5, 1, 2, 10])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("geometry", [TRAIN, TEST], ids=["training", "testing"])
@pytest.mark.usefixtures("pieces")
def test_batches_are_the_same_with_a_cache_of_any_size_at_every_world_size(
    small_birds, tmp_path, geometry, world, shards
):
    limit = int(shards * largest(small_birds, "train" if geometry.training else "test"))
    for rank in range(world):
        options = {"rank": rank, "world_size": world}
        expected = first(load(small_birds, geometry, **options))
        check_equal(expected, first(load(small_birds, geometry, cache=Cache(tmp_path, limit), **options)))
        with stopped(tmp_path):  # threads of the loader may still finish what they began
            assert sum(path.stat().st_size for path in tmp_path.glob("*.tar*")) <= limit


@pytest.mark.usefixtures("pieces")
def test_a_balanced_stream_is_the_same_with_a_cache(small_birds, tmp_path):
    expected = first(load(small_birds, TRAIN, balance=0.5))
    check_equal(expected, first(load(small_birds, TRAIN, balance=0.5, cache=Cache(tmp_path, 10**9))))


@pytest.mark.usefixtures("pieces")
def test_a_stream_goes_on_with_a_cache_where_it_stopped_without(small_birds, tmp_path):
    whole, stopped = load(small_birds, TRAIN), load(small_birds, TRAIN)
    expected = first(whole)
    first(stopped, 6)
    resumed = load(small_birds, TRAIN, cache=Cache(tmp_path, 10**9))
    resumed.resume(stopped.state())
    check_equal(expected[6:], first(resumed, BATCHES - 6))


def test_a_shard_is_read_once_for_all_ranks_runs_and_epochs(small_birds, tmp_path, requests):
    """Four ranks and another run at the same time, for four epochs; then testing, twice."""
    expected = first(load(small_birds, TRAIN))
    alone = [first(load(small_birds, TRAIN, rank=rank, world_size=4)) for rank in range(4)]
    wait_for_readers()
    requests.clear()
    loaders = [load(small_birds, TRAIN, rank=rank, world_size=4, cache=Cache(tmp_path, 10**9)) for rank in range(4)]
    loaders.append(load(small_birds, TRAIN, cache=Cache(tmp_path, 10**9)))
    streams = [iter(loader) for loader in loaders]  # which stay open, and read ahead
    with ThreadPoolExecutor(5) as runs:
        found = list(runs.map(lambda stream: [next(stream) for _ in range(BATCHES)], streams))
    for one, other in zip([*alone, expected], found, strict=True):
        check_equal(one, other)
    assert requests == {shard.tar: 1 for shard in Manifest.load(small_birds).split("train").shards}
    requests.clear()
    tests = load(small_birds, TEST, cache=Cache(tmp_path, 10**9))
    check_equal(first(tests), first(tests))
    assert requests == {shard.tar: 1 for shard in Manifest.load(small_birds).split("test").shards}


@pytest.mark.usefixtures("pieces")
def test_two_runs_share_a_cache_that_is_too_small_for_both(small_birds, tmp_path):
    expected = [first(load(small_birds, TRAIN, seed=seed)) for seed in range(2)]
    limit = 2 * largest(small_birds, "train")
    runs = [load(small_birds, TRAIN, seed=seed, cache=Cache(tmp_path, limit)) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for one, other in zip(expected, threads.map(first, runs), strict=True):
            check_equal(one, other)


@pytest.mark.usefixtures("pieces")
def test_a_damaged_file_of_the_cache_changes_no_batch(small_birds, tmp_path, caplog):
    expected = first(load(small_birds, TRAIN))
    first(load(small_birds, TRAIN, cache=Cache(tmp_path, 10**9)))
    for path in tmp_path.glob("*.tar"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size // 2))
    loader = load(small_birds, TRAIN, cache=Cache(tmp_path, 10**9))
    check_equal(expected, first(loader))
    assert loader.damaged == 0
    assert "is damaged in the cache and is fetched again" in caplog.text


@pytest.mark.usefixtures("pieces")
def test_damaged_samples_are_the_same_with_a_cache(small_birds, tmp_path, caplog):
    data = damaged_copy(small_birds, tmp_path / "data", some(small_birds, "train"), KINDS["all zero bytes"])
    without, cached = (
        load(data, TRAIN, max_damaged=1.0),
        load(data, TRAIN, max_damaged=1.0, cache=Cache(tmp_path / "cache", 10**9)),
    )
    check_equal(first(without), first(cached))
    assert without.state() == cached.state()
    assert without.damaged > 0
    assert caplog.text.count("its sha256 differs from that of the manifest") == 1


@pytest.mark.parametrize("together,most", [(1, 40), (20_000, 20), (1 << 20, 5)])
def test_testing_reads_neighbours_in_one_request(small_birds, requests, monkeypatch, together, most):
    """40 samples in shards of 15, 15 and 10, in batches of 8: three batches lie in one shard, two in two."""
    expected = {number: Reader(small_birds, "test").read(number) for number in range(40)}
    monkeypatch.setattr(reader, "TOGETHER", together)
    requests.clear()
    assert Reader(small_birds, "test").read_together(range(40)) == expected
    assert 0 < requests.total() <= (40 if together == 1 else most)
    requests.clear()
    batches = first(load(small_birds, TEST))
    assert [key for batch in batches for key in batch.keys] == [key for key, _ in expected.values()]
    assert 0 < requests.total() <= (40 if together == 1 else most + 2)
    requests.clear()
    assert [sample.key for sample in reader.read(small_birds, "test")] == [key for key, _ in expected.values()]
    assert 0 < requests.total() <= (40 if together == 1 else most)


def test_samples_in_any_order_are_those_that_are_read_alone(small_birds, requests):
    found = Reader(small_birds, "train")
    numbers = [31, 3, 7, 4, 14, 15, 5, 3, 0]
    together = found.read_together(numbers)
    assert requests.total() == 6  # 0, 3 to 5, 7, 14, 15, 31
    assert together == {number: found.read(number) for number in numbers}


@pytest.fixture(scope="module")
def endpoint(small_birds: Path) -> Iterator[str]:
    with s3_server() as endpoint:
        upload(endpoint, "cached", small_birds)
        yield endpoint


def test_batches_from_a_bucket_by_way_of_a_cache_though_requests_fail(small_birds, endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(storage, "LAST_BACKOFF", 0.01)
    monkeypatch.setattr("pipelines.shards.cache.PART", 4_000)  # many requests
    expected = first(load(small_birds, TRAIN))
    with monkeypatch.context() as patch, faulty_proxy(endpoint, 0.3) as proxy:
        patch.setattr(storage, "READ_TIMEOUT", 0.5)  # not where requests are counted, as one more would be made
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        check_equal(expected, first(load("s3://cached", TRAIN, cache=Cache(tmp_path, 10**9))))
        assert proxy.injected.total() > 5
    with faulty_proxy(endpoint, 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        loader = load("s3://cached", TRAIN, cache=Cache(tmp_path, 10**9))
        before = proxy.requests
        stream = iter(loader)
        check_equal(expected, [next(stream) for _ in range(BATCHES)])
        assert proxy.requests - before == len(loader.manifest.split("train").shards)  # their indexes


def test_an_outage_ends_a_run_with_a_cache_as_without(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(storage, "LAST_BACKOFF", 0.01)
    monkeypatch.setattr(storage, "RETRIES", 1)
    with faulty_proxy(endpoint, 0, faults=["busy"]) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        loader = load("s3://cached", TRAIN, cache=Cache(tmp_path, 10**9))
        loader._reader.name(0)
        proxy.rate = 1
        with pytest.raises(OSError, match=r"^s3://cached/train-0000\d\.(tar|idx): .*503 Service Unavailable"):
            first(loader)
    assert loader.damaged == 0
    assert not [*tmp_path.glob("*.tar")]
