"""Shards in an object store or behind a web server, with faults on the way: the same batches as from disk."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Batch, Loader
from pipelines.shards import storage
from pipelines.shards.manifest import Manifest
from tests.support import forked
from tests.support.object_store import SECRET_KEY, environment, faulty_proxy, s3_server, upload, web_server
from tests.training.test_train import command

URL = "s3://birds/v1"
TEST, TRAIN = Geometry(64, 64), Geometry(72, 64, training=True)


@pytest.fixture(scope="module")
def endpoint(small_birds: Path) -> Iterator[str]:
    with s3_server() as endpoint:
        upload(endpoint, "birds", small_birds, "v1/")
        yield endpoint


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(storage, "LAST_BACKOFF", 0.01)
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.5)


def first(loader: Loader, count: int) -> list[Batch]:
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def check_equal(expected: list[Batch], found: list[Batch]) -> None:
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.landmarks, other.landmarks)


def test_batches_are_those_from_disk_though_requests_fail(small_birds, endpoint, monkeypatch):
    """5 % of the requests: dropped at once or in the body, refused as busy, or stalled."""
    with faulty_proxy(endpoint, 0.05) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        for split, geometry, count in (("train", TRAIN, 30), ("test", TEST, 99)):
            sources = [Loader(data, split, geometry, 8, annotations=True) for data in (small_birds, URL)]
            check_equal(*(first(source, count) for source in sources))
            assert sources[1].damaged == 0
        assert proxy.requests > 280
        assert len(proxy.injected) >= 3
        assert sum(proxy.injected.values()) > 5


def test_batches_from_a_web_server(small_birds):
    with web_server(small_birds) as url:
        check_equal(*(first(Loader(data, "test", TEST, 16, annotations=True), 9) for data in (small_birds, url)))


def test_what_is_not_there_is_one_line(endpoint, monkeypatch):
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"s3://birds/v2: not a shard folder \(no manifest.json\)"):
        Loader("s3://birds/v2", "train", TRAIN, 4)


def test_an_outage_ends_a_run_in_one_line_and_counts_nothing_as_damaged(endpoint, monkeypatch):
    monkeypatch.setattr(storage, "RETRIES", 2)
    monkeypatch.setattr(storage, "READ_TIMEOUT", 2.0)  # three answers in a row do not take longer before the outage
    with faulty_proxy(endpoint, 0) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        loader = Loader(URL, "train", TRAIN, 8)
        stream = iter(loader)
        next(stream)
        proxy.rate = 1
        # Whichever of the faults came last; what breaks off half-way does not say how often it was tried.
        reason = r"(.+, 2 retries|the server closed the connection|timed out)"
        with pytest.raises(OSError, match=rf"^s3://birds/v1/train-0000\d\.tar: {reason}$"):
            deque(itertools.islice(stream, 100), maxlen=0)
    assert loader.damaged == 0


def test_a_run_trains_and_is_measured_from_a_bucket(small_birds, endpoint, tmp_path, monkeypatch):
    """The same model as from disk, with a cache and without; no secret is written anywhere."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    cache = tmp_path / "cache"
    for name, data in (("disk", str(small_birds)), ("bucket", URL), ("cached", URL)):
        words = command(Path("DATA"), tmp_path / name, train__epochs=1)
        words += ["--input.cache", str(cache), "--input.cache_gib", "0.1"] if name == "cached" else []
        words[words.index("DATA")] = data
        result = forked.run(words)
        assert result.returncode == 0, result.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("disk", "bucket", "cached")]
    assert weights[0] == weights[1] == weights[2]
    splits = Manifest.load(small_birds).splits
    kept = {f"{shard.sha256}.tar" for split in ("train", "val") for shard in splits[split].shards}
    assert {path.name for path in cache.glob("*.tar*")} == kept
    for name in ("bucket", "cached"):
        for arguments in (["evaluate", tmp_path / name, "--data", URL], ["report", tmp_path / name]):
            result = forked.run(arguments)
            assert result.returncode == 0, result.stderr
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("bucket", "cached")]
    assert metrics[0] == metrics[1]
    kept |= {f"{shard.sha256}.tar" for shard in splits["test"].shards}
    assert {path.name for path in cache.glob("*.tar*")} == kept
    written = [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET_KEY.encode() in path.read_bytes()]
