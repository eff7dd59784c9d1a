"""An S3 server of this machine, moto's, whose answers come late, and which counts them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BUCKET = "shards"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "AKIABENCHMARKACCESS",
    "AWS_SECRET_ACCESS_KEY": "benchmark/secret/key",
    "AWS_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]  # of WSGI


@dataclass(frozen=True)
class ObjectStore:
    """A running server.

    Attributes:
        url: Of the folder that it holds.
        answers: Counts them, and the bytes of their bodies: ``answers()``.
    """

    url: str
    answers: Callable[[], tuple[int, int]]


@contextlib.contextmanager
def object_store(folder: Path, latency: float) -> Iterator[ObjectStore]:
    """A server of the files of a folder, in a process of its own, found by the variables that are set meanwhile.

    Args:
        folder: Its files are put into a bucket.
        latency: Seconds that pass before an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, latency), daemon=True)
    server.start()
    before = {name: os.environ.get(name) for name in (*VARIABLES, "AWS_ENDPOINT_URL")}
    try:
        endpoint = ours.recv()
        os.environ.update(VARIABLES, AWS_ENDPOINT_URL=endpoint)
        _upload(endpoint, folder)

        def answers() -> tuple[int, int]:
            ours.send(None)
            requests, size = ours.recv()
            return requests, size

        yield ObjectStore(f"s3://{BUCKET}", answers)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.terminate()
        server.join()


def _upload(endpoint: str, folder: Path) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name=VARIABLES["AWS_REGION"])
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.iterdir()):
        client.put_object(Bucket=BUCKET, Key=path.name, Body=path.read_bytes())


def _serve(connection: Connection, latency: float) -> None:
    """Tells its endpoint, then the requests and bytes that were answered so far, whenever it is asked."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    counter = _Counter(DomainDispatcherApplication(create_backend_app), latency)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections stay, as those of a real store
    server = make_server("127.0.0.1", 0, counter, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection.send(f"http://127.0.0.1:{server.server_port}")
    with contextlib.suppress(EOFError):
        while True:
            connection.recv()
            connection.send((counter.requests, counter.bytes))


class _Counter:
    """An application before which latency lies; what it answers is counted."""

    def __init__(self, application: Application, latency: float) -> None:
        self.requests = self.bytes = 0
        self._application = application
        self._latency = latency
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            time.sleep(self._latency)
        body = list(self._application(environ, start_response))
        with self._lock:
            self.requests += 1
            self.bytes += sum(map(len, body))
        return body
