"""Servers on the loopback for tests: an S3 store, a web server, and a proxy that fails on purpose.

Clients find the S3 store, or a proxy before it, by the variables of ``environment``.
"""

from __future__ import annotations

import http.client
import random
import re
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

boto3 = pytest.importorskip("boto3")
ThreadedMotoServer = pytest.importorskip("moto.server").ThreadedMotoServer

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIATESTACCESSKEY", "test/secret/key", "test-session-token"
REFUSE = "refuse"  # answers 403 and repeats what it was sent
FAULTS = (
    "close",  # closes the connection instead of an answer
    "cut",  # closes it after half of the body
    "busy",  # answers 503
    "stall",  # says nothing until the client gives up
    "stall in the body",  # says nothing more after half of the body
)


def environment(endpoint: str) -> dict[str, str]:
    """The variables by which a client finds an S3 store."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 store; gives its endpoint. Stores of one process share their buckets."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def upload(endpoint: str, bucket: str, folder: Path, prefix: str = "") -> None:
    """Makes a bucket, if it is not there, and puts every file of a folder into it."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    client.create_bucket(Bucket=bucket)
    for path in folder.iterdir():
        client.put_object(Bucket=bucket, Key=f"{prefix}{path.name}", Body=path.read_bytes())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def web_server(folder: Path, etags: bool = False) -> Iterator[str]:
    """A server of the files of a folder that answers byte ranges; gives its URL."""
    handler = type("Handler", (_FolderHandler,), {"folder": folder, "etags": etags})
    server = _Server(("127.0.0.1", 0), handler)
    with _running(server):
        yield f"http://127.0.0.1:{server.server_port}"


class FaultyProxy(_Server):
    """Passes requests on to another server; some of them, drawn from a seeded stream, fail.

    Args:
        upstream: URL of the other server.
        rate: Probability that a request fails.
        faults: In which ways; all are equally likely.
        seed: Seed of the stream. Equal seeds give equal sequences; which thread gets which is up to the threads.

    Attributes:
        url: URL of the proxy.
        requests: How many there were.
        injected: How often every fault happened.
        rate: May be changed while it runs.
    """

    def __init__(self, upstream: str, rate: float, faults: Sequence[str] = FAULTS, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.upstream = urlsplit(upstream).netloc
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self.rate = rate
        self._faults = faults
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self) -> str | None:
        """What is to happen to the next request; None for no fault."""
        with self._lock:
            self.requests += 1
            if self._random.random() >= self.rate:
                return None
            fault = self._random.choice(self._faults)
            self.injected[fault] += 1
            return fault


@contextmanager
def faulty_proxy(upstream: str, rate: float, faults: Sequence[str] = FAULTS, seed: int = 0) -> Iterator[FaultyProxy]:
    """A running ``FaultyProxy``."""
    proxy = FaultyProxy(upstream, rate, faults, seed)
    with _running(proxy):
        yield proxy


@contextmanager
def _running(server: _Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client gave up
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers |= {"Content_Length": str(len(body)), "Last_Modified": self.date_time_string(0)}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _FolderHandler(_Handler):
    folder: Path
    etags: bool

    def do_GET(self) -> None:
        path = self.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            return self.answer(404)
        content = path.read_bytes()
        etag = {"ETag": f'"{zlib.crc32(content)}"'} if self.etags else {}
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not requested:
            return self.answer(200, content, **etag)
        start = int(requested[1])
        body = content[start : int(requested[2]) + 1]
        if not body:
            return self.answer(416)
        extent = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        self.answer(206, body, Content_Range=extent, **etag)


class _ProxyHandler(_Handler):
    server: FaultyProxy

    def do_GET(self) -> None:
        fault = self.server.draw()
        if fault == "busy":
            return self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if fault == REFUSE:
            return self.answer(403, f"<Error><Code>AccessDenied</Code>\n{self.headers}</Error>".encode())
        if fault in ("close", "stall"):
            return self.end(fault)
        connection = http.client.HTTPConnection(self.server.upstream)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() != "connection":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault else body)
        if fault:
            self.end(fault)

    def end(self, fault: str) -> None:
        """Ends the connection, if the fault is a stall not before the client does."""
        self.close_connection = True
        if fault.startswith("stall"):
            self.connection.recv(1)
