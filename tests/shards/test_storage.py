"""Bytes of local folders, object stores and web servers, also when connections fail."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import storage
from pipelines.shards.storage import Storage, is_local, open_storage
from tests.support.object_store import (
    ACCESS_KEY,
    FAULTS,
    REFUSE,
    SECRET_KEY,
    SESSION_TOKEN,
    environment,
    faulty_proxy,
    s3_server,
    upload,
    web_server,
)

CONTENT = {"a.tar": random.Random(0).randbytes(100_000), "with space.json": b"{}", "empty.idx": b""}
S3 = "s3://storage/some shards"
CLOSED = "http://127.0.0.1:1"  # nobody listens there


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "some shards"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    with s3_server() as endpoint:
        upload(endpoint, "storage", folder, "some shards/")
        yield endpoint


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    with web_server(folder) as url:
        yield url


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables but those of the test, and short pauses."""
    for variable in list(os.environ):
        if variable.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(storage, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(storage, "LAST_BACKOFF", 0.01)


def setenv(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def check_content(found: Storage) -> None:
    """All ways to read every file, at and beyond its end too."""
    for name, content in CONTENT.items():
        size = len(content)
        assert found.read(name) == content
        assert found.size(name) == size
        for start, count in ((0, 1), (0, size), (size // 2, size), (size, 1), (size + 1000, 10), (1, 0)):
            assert found.read_range(name, start, count) == content[start : start + count]
    with pytest.raises(ValueError, match="start, size: expected 0 or more, got -1 and 1"):
        found.read_range("a.tar", -1, 1)
    with pytest.raises(ValueError, match="start, size: expected 0 or more, got 0 and -1"):
        found.read_range("a.tar", 0, -1)


def check_missing(found: Storage, name: str) -> None:
    for attempt in (found.read, found.size, lambda name: found.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError, match=name) as error:
            attempt(name)
        assert "\n" not in str(error.value)


def check_threads(found: Storage, count: int) -> None:
    """Many ranges, read by 16 threads."""
    name, size = "a.tar", 3000
    draw = random.Random(1)
    starts = [draw.randrange(len(CONTENT[name])) for _ in range(count)]
    with ThreadPoolExecutor(16) as threads:
        ranges = list(threads.map(lambda start: found.read_range(name, start, size), starts))
    assert ranges == [CONTENT[name][start : start + size] for start in starts]


@given(content=st.binary(max_size=200), start=st.integers(0, 300), size=st.integers(0, 300))
def test_local_ranges_are_slices(tmp_path_factory, content, start, size):
    path = tmp_path_factory.getbasetemp() / "slices"
    path.write_bytes(content)
    assert open_storage(path.parent).read_range("slices", start, size) == content[start : start + size]


def test_local_folder(folder):
    for location in (folder, str(folder), folder.as_uri()):
        found = open_storage(location)
        assert found.location == str(location)
        check_content(found)
        check_missing(found, "b.tar")
    check_threads(open_storage(folder), 2000)


def test_object_store(endpoint, monkeypatch):
    setenv(monkeypatch, environment(endpoint))
    for location in (S3, "s3://storage/some%20shards/"):
        found = open_storage(location)
        assert found.location == location
        check_content(found)
        check_missing(found, "b.tar")
    check_threads(open_storage(S3), 100)
    with pytest.raises(FileNotFoundError, match=r"^s3://no-bucket/a\.tar: .* 404 Not Found \(NoSuchBucket\)$"):
        open_storage("s3://no-bucket").read("a.tar")


def test_web_server(web):
    for location in (web, web + "/"):
        check_content(open_storage(location))
        check_missing(open_storage(location), "b.tar")


def test_google_and_azure(folder, monkeypatch):
    # both ask for <endpoint>/<bucket>/<prefix>/<name>, which a web server can answer
    bucket = folder.parent
    with web_server(bucket.parent, etags=True) as url:
        monkeypatch.setenv("GOOGLE_BASE_URL", url)
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        for scheme in ("gs", "az"):
            found = open_storage(f"{scheme}://{bucket.name}/{folder.name}")
            check_content(found)
            check_missing(found, "b.tar")


def test_endpoint_of_the_service_comes_first(endpoint, monkeypatch):
    setenv(monkeypatch, environment(CLOSED) | {"AWS_ENDPOINT_URL_S3": endpoint})
    assert open_storage(S3).read("with space.json") == b"{}"


@pytest.mark.parametrize("part", [40_000, 50_000])  # the file does not and does end with a part
def test_whole_files_are_read_in_parts(endpoint, monkeypatch, part):
    monkeypatch.setattr(storage, "PART", part)
    with faulty_proxy(endpoint, rate=0) as proxy:
        setenv(monkeypatch, environment(proxy.url))
        assert open_storage(S3).read("a.tar") == CONTENT["a.tar"]
    assert proxy.requests == 3


def test_faults_of_an_object_store_change_no_byte(endpoint, monkeypatch):
    monkeypatch.setattr(storage, "READ_TIMEOUT", 1.0)
    with faulty_proxy(endpoint, rate=0.05) as proxy:
        setenv(monkeypatch, environment(proxy.url))
        check_threads(open_storage(S3), 400)
    assert set(proxy.injected) == set(FAULTS)
    assert proxy.requests >= 400 + proxy.injected.total()


def test_faults_of_a_web_server_change_no_byte(web, monkeypatch):
    monkeypatch.setattr(storage, "READ_TIMEOUT", 1.0)
    with faulty_proxy(web, rate=0.1) as proxy:
        check_threads(open_storage(proxy.url), 200)
    assert set(proxy.injected) == set(FAULTS)
    assert proxy.requests >= 200 + proxy.injected.total()


REASONS = {
    "close": "the server closed the connection",
    "cut": "the server closed the connection",
    "busy": "the server answered 503 Service Unavailable (SlowDown)",
    "stall": "timed out",
    "stall in the body": "timed out",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["object store", "web server"])
def test_a_server_that_always_fails(endpoint, web, monkeypatch, kind, fault):
    monkeypatch.setattr(storage, "RETRIES", 1)
    if fault.startswith("stall"):
        monkeypatch.setattr(storage, "READ_TIMEOUT", 0.3)
    upstream = endpoint if kind == "object store" else web
    with faulty_proxy(upstream, rate=1, faults=[fault]) as proxy:
        setenv(monkeypatch, environment(proxy.url))
        location = S3 if kind == "object store" else proxy.url
        with pytest.raises(OSError, match=f"^{re.escape(location)}/a.tar: .*{re.escape(REASONS[fault])}") as error:
            open_storage(location).read("a.tar")
        end = time.monotonic() + 60
        while proxy.requests < 2 and time.monotonic() < end:  # the proxy may get to one when it is given up
            time.sleep(0.01)
    assert "\n" not in str(error.value)
    assert proxy.requests == 2


@pytest.mark.parametrize("fault", ["busy", "cut"])  # repeated by obstore, and here
def test_retries_end(web, monkeypatch, fault):
    monkeypatch.setattr(storage, "RETRIES", 1_000_000)
    monkeypatch.setattr(storage, "RETRY_TIMEOUT", 1.0)
    with faulty_proxy(web, rate=1, faults=[fault]) as proxy, pytest.raises(OSError, match=f"^{proxy.url}/a.tar: "):
        open_storage(proxy.url).read("a.tar")
    assert proxy.requests > 2


def test_refused(endpoint, monkeypatch):
    with faulty_proxy(endpoint, rate=1, faults=[REFUSE]) as proxy:
        setenv(monkeypatch, environment(proxy.url))
        found = open_storage(S3)
        with pytest.raises(PermissionError, match=r"403 Forbidden \(AccessDenied\)$") as error:
            found.read("a.tar")
    assert proxy.requests == 1
    assert "\n" not in str(error.value)
    shown = "".join(traceback.format_exception(error.value)) + repr(error.value) + repr(found) + str(vars(found))
    for secret in (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, "Signature"):
        assert secret not in shown


def test_no_credentials(monkeypatch):
    monkeypatch.setattr(storage, "RETRIES", 1)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", CLOSED)
    with pytest.raises(OSError, match=r"^s3://bucket/a\.tar: no credentials in the environment.*refused") as error:
        open_storage("s3://bucket").read("a.tar")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:9000", "ftp://127.0.0.1", "http://me:password@127.0.0.1"])
def test_endpoints_that_are_refused(monkeypatch, endpoint):
    setenv(monkeypatch, environment(endpoint))
    with pytest.raises(ValueError, match=r"^AWS_ENDPOINT_URL: expected http://host or https://host") as error:
        open_storage(S3)
    assert "password@" not in str(error.value)


@pytest.mark.parametrize("location", ["/folder", "folder", "file:///folder", Path("folder")])
def test_local_locations(location):
    assert is_local(location)


@pytest.mark.parametrize("location", ["s3://a/b", "gs://a", "az://a", "https://a", "http://a", "ftp://a"])
def test_remote_locations(location):
    assert not is_local(location)


@pytest.mark.parametrize(
    "location, message",
    [
        ("ftp://host/a", "location: expected a folder or s3://, gs://, az://, https://, http://, got ftp://host/a"),
        ("file://host/a", "location: expected file:///folder, got file://host/a"),
        ("s3://", "s3://: "),
        ("http://", "http://: "),
        ("https://me:password@host/a", "location: expected https://host/path without user, password"),
        ("https://me:pass/word@host/a", "location: expected https://host/path without user, password"),
        ("ftp://me:password@host/a", "location: expected ftp://host/path without user, password"),
        ("https://host/a?signature=password", "location: expected https://host/path without user, password"),
    ],
)
def test_locations_that_are_refused(location, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        open_storage(location)
    assert "word@" not in str(error.value)
    assert "=password" not in str(error.value)
    assert "\n" not in str(error.value)


def test_without_obstore(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert open_storage(folder).size("with space.json") == 2
    with pytest.raises(ValueError, match=r"^reading s3://a needs obstore; pip install 'region-grouping\[remote\]'$"):
        open_storage("s3://a")


def test_import_does_not_import_obstore():
    code = "import sys, pipelines.shards.storage; print('obstore' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
