"""Shards in a folder of a local disk, as many as fit, for all processes of a host.

A shard is the file ``<sha256>.tar``. While it is fetched it is ``<sha256>.tar.tmp``, of its whole size from the start,
so that all files together never exceed the limit. The kernel holds the locks, and a process that is killed leaves none:

* of the folder (``.lock``), while a file begins, takes its name or goes;
* of a file that is fetched, exclusive: without a lock, it is what a killed process left, and goes;
* of a file that is held, shared: it does not go.

Nothing is synchronised with the disk. Whoever finds a shard checks its sum first, after a power cut, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from pipelines.files import TEMPORARY, check_folder
from pipelines.locks import LOCK
from pipelines.shards.manifest import Shard
from pipelines.shards.storage import PART, RETRY_TIMEOUT

OUR_FILE = re.compile(rf"[0-9a-f]{{64}}\.tar({re.escape(TEMPORARY)})?")
FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class Held:
    """A shard that stays in the cache as long as this object lives. May be used from several threads.

    Args:
        descriptor: Of its file, with a shared lock; closed with this object.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._state = self._current()
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, size: int) -> bytes:
        """The bytes ``[start, start + size)``, fewer where the shard ends before.

        Raises:
            OSError: they cannot be read, or the file has been changed since it was opened.
        """
        content = os.pread(self._descriptor, size, start)
        if self._current() != self._state:
            raise OSError("its file in the cache was changed")
        return content

    def sha256(self) -> str:
        """Digest of the file.

        Raises:
            OSError: as of ``read``.
        """
        digest = sha256()
        for start in range(0, self._state[0], PART):
            digest.update(self.read(start, PART))
        return digest.hexdigest()

    def is_at(self, path: Path) -> bool:
        """Whether this is still the file of that name."""
        return path.exists() and os.path.samestat(os.fstat(self._descriptor), path.stat())

    def _current(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


class Cache:
    """Shards in a folder, up to a limit.

    Args:
        folder: Made if it is missing. Files of others in it are left alone and do not count.
        limit: Bytes of all shards together. Those beyond it go, the oldest first.

    Raises:
        ValueError: the limit is not positive, nothing can be written to the folder, or its disk has no locks.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: expected at least 1 byte, got {limit}")
        check_folder(folder, "input.cache")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limit = folder, limit
        try:
            self._shrink()
        except OSError as error:
            raise ValueError(f"input.cache: {folder} cannot be a cache ({error}); choose another place") from None

    def hold(self, shard: Shard, read: Callable[[int, int], bytes], order: Mapping[str, int]) -> Held:
        """A shard that is in the cache: found there and checked, or fetched.

        Args:
            shard: Which.
            read: First byte and size -> bytes of the tar from where it is fetched.
            order: sha256 -> place among the shards in the order in which they are needed. Shards that nobody holds make
                room: first those that are not in it, the oldest before the others; then those that are needed last,
                but none that is needed earlier than this one.

        Raises:
            BlockingIOError: another process is fetching it.
            ValueError: what was read is not the shard.
            OSError: there is no room, it cannot be read or written, or another process has stopped half-way.
        """
        path = self.folder / f"{shard.sha256}.tar"
        while True:
            with self._locked():
                opened = _open_shared(path) or self._begin(path, shard, order)
            if isinstance(opened, int):
                return self._fetch(opened, path, shard, read)
            if opened.sha256() == shard.sha256:
                return opened
            logger.warning("%s: %s is damaged in the cache and is fetched again", path, shard.tar)
            with self._locked():
                if opened.is_at(path):  # else another process has mended it
                    path.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _shrink(self) -> None:
        with self._locked():
            sizes = self._sizes()
            used = sum(sizes.values())
            for path, size in sizes.items():
                if used > self.limit and _remove(path):
                    used -= size

    def _begin(self, path: Path, shard: Shard, order: Mapping[str, int]) -> int:
        """The descriptor of a file to fill, of the size of a shard and locked."""
        temporary = _temporary(path)
        with contextlib.ExitStack() as undo:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.time() - os.fstat(descriptor).st_mtime > RETRY_TIMEOUT:
                    raise TimeoutError(f"{temporary}: another process has stopped to fetch it") from None
                raise
            undo.callback(temporary.unlink, missing_ok=True)
            os.ftruncate(descriptor, 0)  # what a killed process left
            if not self._reserve(descriptor, shard, order):
                limit = f"{self.limit / 2**30:.3g} GiB (input.cache_gib)"
                raise OSError(errno.ENOSPC, f"{shard.tar} has no room within {limit} or on the disk")
            undo.pop_all()
            return descriptor

    def _reserve(self, descriptor: int, shard: Shard, order: Mapping[str, int]) -> bool:
        """Gives a file the size of a shard, in place of others if need be. Whether that is possible."""
        if shard.bytes > self.limit:
            return False
        sizes = self._sizes()
        used = sum(sizes.values())
        evicted = self._evicted(sizes, shard, order)
        while used + shard.bytes > self.limit or not _allocate(descriptor, shard.bytes):
            path = next(evicted, None)
            if path is None:
                return False
            used -= sizes[path]
        return True

    def _sizes(self) -> dict[Path, int]:
        """Our files and their sizes, the oldest first; those that killed processes left are removed."""
        found = []
        for path in self.folder.iterdir():
            if OUR_FILE.fullmatch(path.name) and not (path.suffix == TEMPORARY and _remove(path)):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        return {path: size for _, path, size in sorted(found)}

    def _evicted(self, sizes: Mapping[Path, int], shard: Shard, order: Mapping[str, int]) -> Iterator[Path]:
        """Removes shards that nobody holds, one after the other, in place of another one; yields what is gone."""
        shards = [path for path in sizes if path.suffix != TEMPORARY]
        own = order.get(shard.sha256, len(order))
        later = [path for path in shards if order.get(path.stem, -1) > own]
        later.sort(key=lambda path: order[path.stem], reverse=True)
        for path in (*(path for path in shards if path.stem not in order), *later):
            if _remove(path):
                yield path

    def _fetch(self, descriptor: int, path: Path, shard: Shard, read: Callable[[int, int], bytes]) -> Held:
        """Fills a file that was begun, gives it its name and holds it."""
        try:
            digest = sha256()
            with open(descriptor, "wb", closefd=False) as file:
                for start in range(0, shard.bytes, PART):
                    part = read(start, min(PART, shard.bytes - start))
                    digest.update(part)
                    file.write(part)
            if digest.hexdigest() != shard.sha256:
                raise ValueError(f"{shard.tar}: its sha256 differs from that of the manifest; see rg verify")
            with self._locked():
                os.replace(_temporary(path), path)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, descriptor)
                with self._locked():
                    _temporary(path).unlink(missing_ok=True)
            raise
        return Held(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY)


def _open_shared(path: Path) -> Held | None:
    """A shard of the cache, None if it is not there; to be called while the folder is locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    held = Held(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return held


def _remove(path: Path) -> bool:
    """Removes a file unless somebody has locked it, or it cannot be removed. Whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _allocate(descriptor: int, size: int) -> bool:
    """Gives a file its size, and blocks of the disk where the system can. Whether the disk has them."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:  # macOS
            os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in FULL:
            raise
        os.ftruncate(descriptor, 0)
        return False
    return True
