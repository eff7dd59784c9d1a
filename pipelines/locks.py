"""Folders and files that one process at a time writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pipelines.files import check_folder
from pipelines.peers import Peers

LOCK = ".lock"  # in a folder that is being written
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems answer that have no locks

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Keeps other processes from writing into a folder, or one file of it, meanwhile: also those of other hosts.

    The kernel holds the lock, on a file that says who took it. So a process that is killed leaves none, and the next
    one may run on any host. The file is opened for writing, as NFS makes a lock at its server of such files only; a
    server forgets the locks of a host that has died after its lease, a minute or two.

    Args:
        folder: That is there.
        name: Of the file to write, if it is not the whole folder.

    Raises:
        ValueError: another process is writing there; which, where and since when.
        OSError: the folder is missing or cannot be written to.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    lock = folder / (f".{name}{LOCK}" if name else LOCK)
    descriptor = _lock(
        lock, f"{folder / name}: another process is writing {'this file' if name else 'into this folder'}"
    )
    try:
        start = datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {start}\n".encode(), 0)
        os.fsync(descriptor)  # so that other hosts can read it
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def by_first(peers: Peers, context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """A lock, say, that the first process takes for all of them; all raise if it cannot."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            if peers.ranks.rank == 0:
                stack.enter_context(context)

        peers.together(enter)
        yield


def _lock(path: Path, refusal: str) -> int:
    """The descriptor of a lock file that nobody else holds."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
            os.close(descriptor)  # of a file that its owner has just removed
        except BlockingIOError:
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "it has just begun"
            os.close(descriptor)
            raise ValueError(f"{refusal} ({owner}); wait for it, stop it, or choose another place") from None
        except OSError as error:
            if error.errno not in LOCKLESS:
                os.close(descriptor)
                raise
            logger.warning("%s: this file system has no locks (%s); let no other process write there", path, error)
            return descriptor


@contextlib.contextmanager
def owned_folder(folder: Path, name: str = "") -> Iterator[None]:
    """``locked``, for an --out that may be missing; folders that are made here go again if they stay empty.

    Raises:
        ValueError: another process is writing there, or nobody can; see ``check_folder``.
    """
    check_folder(folder, "--out", name)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, name):
            yield
    finally:
        with contextlib.suppress(OSError):  # one holds something
            for path in made:
                path.rmdir()
