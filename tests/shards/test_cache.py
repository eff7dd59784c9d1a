"""Shards in a cache: whole and right or not there, within the limit, whatever happens to the processes and the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.shards import cache as cache_module
from pipelines.shards import read_ahead
from pipelines.shards.cache import Cache
from pipelines.shards.manifest import Shard
from pipelines.shards.read_ahead import ReadAhead

ROOT = Path(__file__).parents[2]
SIZE = 100_000
CONTENT = {f"shard-{number}.tar": random.Random(number).randbytes(SIZE) for number in range(6)}
SHARDS = [Shard(name[:-4], 1, SIZE, hashlib.sha256(data).hexdigest(), 0, "") for name, data in CONTENT.items()]

# Fetches a shard for ever: says so in the middle of it, and waits.
FILLER = """
import sys
from pathlib import Path
from pipelines.shards.cache import Cache
from pipelines.shards.manifest import Shard
folder, name, size, sha256 = sys.argv[1:]

def read(start, count):
    if start:
        print("half", flush=True)
        sys.stdin.read()
    return bytes(count)

import pipelines.shards.cache
pipelines.shards.cache.PART = int(size) // 2
Cache(Path(folder), 10**9).hold(Shard(name, 1, int(size), sha256, 0, ""), read, {})
"""

# Holds shards in random orders, checks every byte of them, and that the folder never exceeds the limit.
HOLDER = """
import random, sys, time
from pathlib import Path
from pipelines.shards.cache import Cache
from tests.shards.test_cache import CONTENT, SHARDS, SIZE, Source, used
folder, limit, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw, source, cache, seen = random.Random(seed), Source(), Cache(folder, limit), 0
while seen < 60:
    shard = draw.choice(SHARDS)
    order = {shard.sha256: rank for rank, shard in enumerate(draw.sample(SHARDS, len(SHARDS)))}
    try:
        held = cache.hold(shard, source.part(shard), order)
    except BlockingIOError:  # the other process is fetching it
        time.sleep(0.001)
        continue
    except OSError as error:  # the other process holds what is in the way
        assert "has no room" in str(error)
        continue
    assert held.read(0, SIZE) == CONTENT[shard.tar]
    with cache._locked():
        assert used(folder) <= limit, used(folder)
    seen += 1
print(source.requests.total())
"""


class Source:
    """A storage of ``CONTENT`` that counts requests."""

    location, concurrency = "afar", 4

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        return CONTENT[name]

    def size(self, name: str) -> int:
        return len(CONTENT[name])

    def read_range(self, name: str, start: int, size: int) -> bytes:
        with self._lock:
            self.requests[name] += 1
        return CONTENT[name][start : start + size]

    def part(self, shard: Shard):
        return lambda start, size: self.read_range(shard.tar, start, size)


def used(folder: Path) -> int:
    """Bytes of all files of a cache."""
    return sum(path.stat().st_size for path in folder.glob("*.tar*"))


def names(folder: Path) -> list[str]:
    """Which shards a cache holds, and files that are not complete under their own names."""
    by_sum = {f"{shard.sha256}.tar": shard.name for shard in SHARDS}
    return sorted(by_sum.get(path.name, path.name) for path in folder.glob("*.tar*"))


def hold(cache: Cache, number: int, order: list[int] | None = None, source: Source | None = None):
    ranks = {SHARDS[index].sha256: rank for rank, index in enumerate(order or [])}
    return cache.hold(SHARDS[number], (source or Source()).part(SHARDS[number]), ranks)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for two shards and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE * 5 // 2}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_shard_is_fetched_once_for_all_who_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PART", 30_000)
    source = Source()
    first = hold(Cache(tmp_path / "deep" / "cache", 10**6), 0, source=source)
    second = hold(Cache(tmp_path / "deep" / "cache", 10**6), 0, source=source)
    assert source.requests == {"shard-0.tar": 4}
    for held in (first, second):
        for start, size in ((0, SIZE), (77, 1000), (SIZE - 5, 10), (SIZE, 1)):
            assert held.read(start, size) == CONTENT["shard-0.tar"][start : start + size]
    assert names(tmp_path / "deep" / "cache") == ["shard-0"]


def test_what_is_needed_last_goes_first(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    for number in (0, 1, 2):
        hold(cache, number)
    hold(cache, 3, order=[3, 1, 0, 2])
    assert names(tmp_path) == ["shard-0", "shard-1", "shard-3"]
    hold(cache, 4, order=[3, 4, 0])  # nobody has asked for 1
    assert names(tmp_path) == ["shard-0", "shard-3", "shard-4"]
    with pytest.raises(OSError, match=r"shard-5\.tar has no room within") as error:
        hold(cache, 5, order=[0, 3, 4, 5])  # all are needed earlier
    assert error.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["shard-0", "shard-3", "shard-4"]


def test_of_those_that_nobody_needs_the_oldest_goes_first(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    for number, age in ((2, 30), (0, 20), (1, 10)):
        hold(cache, number)
        os.utime(tmp_path / f"{SHARDS[number].sha256}.tar", (10**9 - age, 10**9 - age))
    hold(cache, 3)
    assert names(tmp_path) == ["shard-0", "shard-1", "shard-3"]


def test_what_is_held_stays(tmp_path):
    cache = Cache(tmp_path, 2 * SIZE)
    held = [hold(cache, 0), hold(Cache(tmp_path, 2 * SIZE), 1), hold(cache, 1)]
    del held[1]  # not the last who holds it
    with pytest.raises(OSError, match="has no room"):
        hold(cache, 2, order=[2, 0, 1])
    del held[0]
    hold(cache, 2, order=[2, 0, 1])
    assert names(tmp_path) == ["shard-1", "shard-2"]
    assert held[0].read(0, SIZE) == CONTENT["shard-1.tar"]


def test_a_shard_that_is_larger_than_the_limit_makes_nothing_go(tmp_path):
    hold(Cache(tmp_path, SIZE), 0)
    with pytest.raises(OSError, match="has no room"):
        Cache(tmp_path, SIZE).hold(Shard("large", 1, SIZE + 1, "0" * 64, 0, ""), lambda *_: b"", {})
    assert names(tmp_path) == ["shard-0"]


def test_a_smaller_limit_makes_the_oldest_go(tmp_path):
    for number, age in ((0, 10), (1, 30), (2, 20)):
        hold(Cache(tmp_path, 10**6), number)
        os.utime(tmp_path / f"{SHARDS[number].sha256}.tar", (10**9 - age, 10**9 - age))
    Cache(tmp_path, SIZE)
    assert names(tmp_path) == ["shard-0"]


@pytest.mark.parametrize("damage", ["a byte", "cut short", "empty"])
def test_a_damaged_file_is_found_and_fetched_again(tmp_path, caplog, damage):
    hold(Cache(tmp_path, 10**6), 0)
    (path,) = tmp_path.glob("*.tar")
    with path.open("r+b") as file:
        if damage == "a byte":
            file.seek(50_000)
            file.write(bytes([CONTENT["shard-0.tar"][50_000] ^ 1]))
        else:
            file.truncate(70_000 if damage == "cut short" else 0)
    source = Source()
    assert hold(Cache(tmp_path, 10**6), 0, source=source).read(0, SIZE) == CONTENT["shard-0.tar"]
    assert source.requests.total() == 1
    assert "shard-0.tar is damaged in the cache and is fetched again" in caplog.text


def test_what_is_not_the_shard_of_the_manifest_is_not_kept(tmp_path):
    for wrong in (bytes(SIZE), CONTENT["shard-0.tar"][:-1]):
        with pytest.raises(ValueError, match=r"shard-0\.tar: its sha256 differs from that of the manifest"):
            Cache(tmp_path, 10**6).hold(SHARDS[0], lambda start, size, wrong=wrong: wrong[start : start + size], {})
        assert names(tmp_path) == []


def test_files_of_others_stay_and_do_not_count(tmp_path):
    for name in ("notes.txt", "birds.tar", "birds.tar.tmp", f"{'0' * 63}.tar"):
        (tmp_path / name).write_bytes(bytes(10 * SIZE))
    cache = Cache(tmp_path, SIZE)
    for number in (0, 1):
        hold(cache, number)
    assert names(tmp_path) == sorted([f"{'0' * 63}.tar", "birds.tar", "birds.tar.tmp", "shard-1"])


def test_a_process_that_is_killed_half_way_leaves_nothing_that_counts(tmp_path):
    """One is killed while it fetches a shard; another one then fetches it, and what is left of a third goes."""
    fillers = []
    for number in (0, 1):
        words = [str(tmp_path), SHARDS[number].name, str(SIZE), SHARDS[number].sha256]
        command = [sys.executable, "-c", FILLER, *words]
        fillers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        assert fillers[-1].stdout.readline() == "half\n"
    cache = Cache(tmp_path, SIZE)
    assert used(tmp_path) == 2 * SIZE  # from the start
    with pytest.raises(BlockingIOError):
        hold(cache, 0)
    with pytest.raises(OSError, match="has no room"):
        hold(cache, 2)
    for filler in fillers:
        filler.send_signal(signal.SIGKILL)
        filler.wait()
        filler.stdin.close()
        filler.stdout.close()
    assert names(tmp_path) == sorted(f"{SHARDS[number].sha256}.tar.tmp" for number in (0, 1))
    held = hold(cache, 0)
    assert held.read(0, SIZE) == CONTENT["shard-0.tar"]
    assert names(tmp_path) == ["shard-0"]


def test_a_process_that_stopped_half_way_is_not_waited_for(tmp_path):
    command = [sys.executable, "-c", FILLER, str(tmp_path), SHARDS[0].name, str(SIZE), SHARDS[0].sha256]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as filler:
        assert filler.stdout.readline() == "half\n"
        (path,) = tmp_path.glob("*.tmp")
        os.utime(path, (path.stat().st_mtime - 1000,) * 2)
        with pytest.raises(TimeoutError, match="another process has stopped"):
            hold(Cache(tmp_path, 10**6), 0)
        filler.kill()


def test_several_processes_share_a_cache_within_the_limit(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path), str(3 * SIZE)]
    holders = [subprocess.Popen([*words, str(seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT) for seed in range(3)]
    fetched = [holder.communicate()[0] for holder in holders]
    assert [holder.returncode for holder in holders] == [0, 0, 0]
    assert sum(map(int, fetched)) < 3 * 60
    assert used(tmp_path) <= 3 * SIZE
    for path in tmp_path.glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_full_disk_holds_what_it_can(small_disk):
    """As if the limit were the disk: others make room, and no half file is left."""
    cache = Cache(small_disk, 10**9)
    first, second = hold(cache, 0), hold(cache, 1)
    with pytest.raises(OSError, match="has no room") as error:
        hold(cache, 2, order=[2, 0, 1])
    assert error.value.errno == errno.ENOSPC
    del second
    hold(cache, 2, order=[2, 0, 1])
    assert names(small_disk) == ["shard-0", "shard-2"]
    assert first.read(0, SIZE) == CONTENT["shard-0.tar"]


def test_a_file_that_cannot_grow_is_read_from_afar(tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = Source()
    ahead = ReadAhead(source, Cache(tmp_path, 10**6))
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, limits[1]))
    try:
        ahead.need(SHARDS, 2)
        for name in ("shard-0.tar", "shard-1.tar"):
            assert ahead.read_range(name, 10, 20) == CONTENT[name][10:30]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []
    (record,) = caplog.records
    assert record.getMessage().endswith("File too large; read from afar instead")
    ahead.need(SHARDS, 2)  # there is room now
    ahead.need(SHARDS, 2)
    assert ahead.read_range("shard-0.tar", 10, 20) == CONTENT["shard-0.tar"][10:30]
    assert ahead.read_range("shard-1.tar", 10, 20) == CONTENT["shard-1.tar"][10:30]
    ahead.rest()
    assert names(tmp_path) == ["shard-0", "shard-1"]


def test_needed_shards_are_read_from_the_cache_and_others_from_afar(tmp_path):
    source = Source()
    ahead = ReadAhead(source, Cache(tmp_path, 10**6))
    ahead.need(SHARDS, 3)
    with ThreadPoolExecutor(8) as threads:
        places = [(shard.tar, start, 500) for shard in SHARDS for start in range(0, SIZE, 10_000)]
        assert list(threads.map(lambda place: ahead.read_range(*place), places)) == [
            CONTENT[name][start : start + size] for name, start, size in places
        ]
    assert source.requests == dict.fromkeys(CONTENT, 10) | dict.fromkeys(list(CONTENT)[:3], 1)
    ahead.need(SHARDS[2:], 2)
    ahead.read_range("shard-3.tar", 0, 1)
    assert (source.requests["shard-2.tar"], source.requests["shard-3.tar"]) == (1, 11)
    with pytest.raises(ValueError, match="start, size: expected 0 or more, got -1 and 1"):
        ahead.read_range("shard-3.tar", -1, 1)
    ahead.rest()
    ahead.read_range("shard-2.tar", 0, 1)
    assert source.requests["shard-2.tar"] == 2


def test_what_is_not_needed_any_more_is_not_fetched_and_makes_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "FETCHES", 1)
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(Source):
        def read_range(self, name: str, start: int, size: int) -> bytes:
            begun.set()
            assert goes_on.wait(60)
            return super().read_range(name, start, size)

    cache = Cache(tmp_path, 2 * SIZE)
    hold(cache, 4)
    ahead = ReadAhead(Slow(), cache)
    ahead.need(SHARDS, 3)
    assert begun.wait(60)
    ahead.need(SHARDS[:1], 0)
    ahead.need(SHARDS[:1], 1)
    goes_on.set()
    assert ahead.read_range("shard-0.tar", 0, 9) == CONTENT["shard-0.tar"][:9]
    assert names(tmp_path) == ["shard-0", "shard-4"]


def test_what_has_no_room_is_read_from_afar_and_told_once(tmp_path, caplog):
    source = Source()
    ahead = ReadAhead(source, Cache(tmp_path, 2 * SIZE))
    for _ in range(3):
        ahead.need(SHARDS, 4)
        for name in list(CONTENT)[:4]:
            assert ahead.read_range(name, 5, 50) == CONTENT[name][5:55]
    assert len(names(tmp_path)) == 2
    assert sorted(source.requests.values()) == [1, 1, 3, 3]
    (record,) = caplog.records
    assert "has no room within 0.000186 GiB (input.cache_gib) or on the disk; read from afar" in record.getMessage()


@pytest.mark.parametrize("change", ["overwritten", "cut short"])
def test_a_file_that_changes_while_it_is_held_gives_no_wrong_byte(tmp_path, caplog, change):
    ahead = ReadAhead(Source(), Cache(tmp_path, 10**6))
    ahead.need(SHARDS, 1)
    assert ahead.read_range("shard-0.tar", 0, 9) == CONTENT["shard-0.tar"][:9]
    (path,) = tmp_path.glob("*.tar")
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.truncate(100) if change == "cut short" else file.write(b"something else")
    os.utime(path, ns=(before + 1, before + 1))  # whatever the resolution of the clock
    assert ahead.read_range("shard-0.tar", 0, 999) == CONTENT["shard-0.tar"][:999]
    ahead.need(SHARDS, 1)
    assert ahead.read_range("shard-0.tar", 0, 999) == CONTENT["shard-0.tar"][:999]
    messages = [record.getMessage() for record in caplog.records]
    assert "its file in the cache was changed; read from afar instead" in messages[0]
    assert "damaged in the cache and is fetched again" in messages[1]
    ahead.rest()
    assert path.read_bytes() == CONTENT["shard-0.tar"]


@pytest.mark.parametrize("limit,place", [(0, ""), (10, "file"), (10, "file/deeper")])
def test_places_that_are_refused(tmp_path, limit, place):
    (tmp_path / "file").touch()
    expected = f"input.cache: expected a folder, but {tmp_path / 'file'} is a file" if limit else "limit: expected at"
    with pytest.raises(ValueError, match=expected):
        Cache(tmp_path / place, limit)


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    with pytest.raises(ValueError, match=f"input.cache: {tmp_path} cannot be a cache .*No locks available"):
        Cache(tmp_path, 10)
