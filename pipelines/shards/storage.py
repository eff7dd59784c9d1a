"""Where the bytes of a shard folder come from: a local folder, an object store or a web server.

Object stores are read by ``obstore`` (``pip install 'region-grouping[remote]'``). Credentials and endpoints come from
the environment or from the instance's metadata service, never from the location, and are in no message:

* ``s3://bucket/prefix``: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION`` or
  ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, roles of containers and web identities;
  ``AWS_SKIP_SIGNATURE=true`` for public buckets. Profiles and the files in ``~/.aws`` are not read; ``aws configure
  export-credentials --format env`` turns them into variables.
* ``gs://bucket/prefix``: ``GOOGLE_APPLICATION_CREDENTIALS``, ``GOOGLE_SERVICE_ACCOUNT``; ``GOOGLE_SKIP_SIGNATURE=true``
  for public buckets.
* ``az://container/prefix``: ``AZURE_STORAGE_ACCOUNT_NAME``, and ``AZURE_STORAGE_ACCOUNT_KEY`` or
  ``AZURE_STORAGE_SAS_TOKEN``; ``AZURE_SKIP_SIGNATURE=true`` for public containers.
* ``https://host/path``, ``http://host/path``: a web server that answers byte ranges, without credentials.

A request is repeated after a dropped connection, a time-out, and an answer of 408, 429 or 5xx. An answer that breaks
off is resumed where it ended if the server names the version of the file (ETag), else asked for again. In a process
that was forked after the first request, requests hang: use threads, or spawn.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Location = str | os.PathLike

CONNECT_TIMEOUT = 5.0  # s, until a connection is there
READ_TIMEOUT = 10.0  # s, until the next bytes are there
REQUEST_TIMEOUT = 30.0  # s, until the whole answer is there
RETRIES = 10  # further attempts after the first
RETRY_TIMEOUT = 180.0  # s, after which no further attempt starts
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 15.0  # s, pause before the first further attempt, and its limit while it doubles
TOGETHER = 1 << 20  # bytes, samples side by side are read together up to this size: they arrive in about a latency
PART = 8 << 20  # bytes, whole files are read in parts of this size: 2.2 Mbit/s are enough for REQUEST_TIMEOUT

# Scheme -> class of obstore, and the variables by which another server can take the place of the usual one.
SCHEMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "s3": ("S3Store", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
    "gs": ("GCSStore", ("GOOGLE_BASE_URL",)),
    "az": ("AzureStore", ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")),
    "https": ("HTTPStore", ()),
    "http": ("HTTPStore", ()),
}
METADATA_SERVICES = ("/latest/", "/computeMetadata/", "/metadata/identity/")  # paths that AWS, Google and Azure ask


class Storage(Protocol):
    """Named files in one place. All methods may be called by many threads at once.

    Attributes:
        location: The place as it was given.
        concurrency: Reads at once that are worth while.
    """

    location: str
    concurrency: int

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read; the message is one line.
        """

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """The bytes ``[start, start + size)`` of a file, fewer or none where the file ends before.

        Raises:
            ValueError: ``start`` or ``size`` is negative.
            FileNotFoundError: there is no such file.
            OSError: it cannot be read; the message is one line.
        """

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: that cannot be found out; the message is one line.
        """


def open_storage(location: Location) -> Storage:
    """The storage at a location; makes no request and does not check that anything is there.

    Args:
        location: A folder, ``file:///folder``, or a URL with one of ``SCHEMES``.

    Raises:
        ValueError: the location is not understood or holds credentials, obstore is not installed, or the environment
            does not fit the location.
    """
    text = os.fspath(location)
    if "://" not in text:
        return _Folder(text, text)
    scheme = text.partition("://")[0].lower()
    if any(character in text for character in "@?#"):
        raise ValueError(
            f"location: expected {scheme}://host/path without user, password, '?' and '#'; "
            "credentials come from the environment"
        )
    if scheme == "file":
        if urlsplit(text).netloc not in ("", "localhost"):
            raise ValueError(f"location: expected file:///folder, got {text}")
        return _Folder(text, url2pathname(urlsplit(text).path))
    if scheme not in SCHEMES:
        raise ValueError(f"location: expected a folder or {', '.join(f'{known}://' for known in SCHEMES)}, got {text}")
    return _ObjectStore(text)


def is_local(location: Location) -> bool:
    """Whether a location is a folder of this machine."""
    text = os.fspath(location)
    return "://" not in text or text.lower().startswith("file://")


def resolve(location: Location) -> str:
    """A location that means the same from everywhere: an absolute path, or the URL."""
    return os.path.abspath(location) if "://" not in os.fspath(location) else os.fspath(location)


class _Folder:
    """Opening a file for every range costs less than the read itself, and leaves nothing to close."""

    concurrency = 8

    def __init__(self, location: str, path: str) -> None:
        self.location = location
        self._path = path

    def read(self, name: str) -> bytes:
        return Path(self._path, name).read_bytes()

    def read_range(self, name: str, start: int, size: int) -> bytes:
        check_range(start, size)
        descriptor = os.open(os.path.join(self._path, name), os.O_RDONLY)
        try:
            return os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        return os.stat(os.path.join(self._path, name)).st_size


class _ObjectStore:
    concurrency = 64  # an answer takes tens of milliseconds, most of which is waiting

    def __init__(self, location: str) -> None:
        try:
            import obstore.store
            from obstore.exceptions import BaseError
        except ImportError:
            raise ValueError(f"reading {location} needs obstore; pip install 'region-grouping[remote]'") from None
        kind, variables = SCHEMES[urlsplit(location).scheme]
        endpoints = {variable: os.environ[variable] for variable in variables if variable in os.environ}
        for variable, endpoint in endpoints.items():
            if not re.fullmatch(r"https?://[^@?#]+", endpoint):
                raise ValueError(
                    f"{variable}: expected http://host or https://host without user, password, '?' and '#'"
                )
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
            "read_timeout": timedelta(seconds=READ_TIMEOUT),
            "timeout": timedelta(seconds=REQUEST_TIMEOUT),
            "allow_http": any(url.startswith("http://") for url in (location.lower(), *endpoints.values())),
        }
        retry: RetryConfig = {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_TIMEOUT),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_BACKOFF),
                "max_backoff": timedelta(seconds=LAST_BACKOFF),
                "base": 2,
            },
        }
        store = getattr(obstore.store, kind)
        self.location = location
        try:
            self._store: Any = store.from_url(location.rstrip("/"), client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            raise ValueError(f"{location}: {_reason(error)}") from None

    def read(self, name: str) -> bytes:
        parts: list[bytes] = []
        while not parts or len(parts[-1]) == PART:
            parts.append(self.read_range(name, len(parts) * PART, PART))
        return b"".join(parts)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        check_range(start, size)
        with self._errors(name):
            return self._get(name, start, size) if size else b""

    def _get(self, name: str, start: int, size: int) -> bytes:
        """obstore repeats requests and resumes answers that have an ETag; what is repeated here is the rest."""
        from obstore.exceptions import BaseError

        deadline = time.monotonic() + RETRY_TIMEOUT
        pause = FIRST_BACKOFF
        retries = 0
        while True:
            try:
                answer = self._store.get(name, options={"range": (start, start + size)})
            except BaseError as error:
                if "status code: 416" in str(error):  # the range starts at the end of the file or after it
                    return b""
                raise
            resumed = answer.meta["e_tag"] is not None
            try:
                return bytes(answer.bytes())
            except BaseError:
                if resumed or retries == RETRIES or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LAST_BACKOFF)
            retries += 1

    def size(self, name: str) -> int:
        with self._errors(name):
            return self._store.head(name)["size"]

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turns errors of obstore, many lines of Rust, into an OSError of one line."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        url = f"{self.location.rstrip('/')}/{name}"
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{url}: {_reason(error)}") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(f"{url}: {_reason(error)}") from None
        except BaseError as error:
            raise OSError(f"{url}: {_reason(error)}") from None


def check_range(start: int, size: int) -> None:
    """Refuses a range that no file has.

    Raises:
        ValueError: ``start`` or ``size`` is negative.
    """
    if start < 0 or size < 0:
        raise ValueError(f"start, size: expected 0 or more, got {start} and {size}")


def _reason(error: Exception) -> str:
    """What an error of obstore says, without URLs, headers and bodies of answers: they may hold secrets."""
    summary, _, details = str(error).partition("\n\nDebug source:")
    request = re.search(r"Error performing \w+ (\w+://\S+)", summary)
    url = urlsplit(request[1]) if request else urlsplit("")
    retries = re.search(r"after (\d+) retries", summary)
    if status := re.search(r"status code: (\d+[A-Za-z -]*)", summary):
        code = re.search(r"<Code>(\w+)</Code>", summary)
        reason = f"the server answered {status[1].strip()}" + (f" ({code[1]})" if code else "")
    elif "TimedOut" in details:
        reason = "timed out"
    elif "Incomplete" in details:
        reason = "the server closed the connection"
    elif system := re.search(r'(?:message|error): "([^"]+)"', details):
        reason = system[1]
    else:
        first_line = summary.partition("\n")[0].rpartition(" - ")[2]
        reason = re.sub(r"\S+://\S+", "the URL", first_line)
    if url.hostname:
        reason = f"{url.hostname}{f':{url.port}' if url.port else ''}: {reason}"
    if url.path.startswith(METADATA_SERVICES):
        reason = f"no credentials in the environment, nor from the metadata service at {reason}"
    return f"{reason}, {retries[1]} retries" if retries else reason
