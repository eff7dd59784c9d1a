"""A page on which people ask a run about their photos, and the JSON API behind it. See docs/serve.md."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rg.explain.explainer import Explainer
from rg.pages.scripts import script
from rg.runs.folder import check_labelled, load_config
from rg.runs.part_pictures import read_part_pictures
from rg.server.headers import SecureHeaders
from rg.server.limits import Limits
from rg.server.protocol import Protocol
from rg.server.samples import Sample, samples
from rg.server.service import Service

logger = logging.getLogger(__name__)

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
MAX_CONNECTIONS = 512


def application(
    explainer: Explainer,
    name: str,
    hosts: Sequence[str],
    limits: Limits | None = None,
    samples: Sequence[Sample] = (),
    part_pictures: bytes | None = None,
) -> Starlette:
    """The page and the API of one model.

    Args:
        explainer: The model.
        name: What the page calls it.
        hosts: Names by which the server may be called (Host header); others may be a trick to reach it from a page of
            another site (DNS rebinding).
        limits: Of uploads and of waiting requests.
        samples: Photographs to try the model with.
        part_pictures: What the parts look like (see ``rg.runs.part_pictures``).
    """
    service = Service(explainer, name, limits or Limits(), samples, part_pictures)
    return Starlette(
        routes=[
            *(Route(path, _asset(*asset)) for path, asset in PAGE.items()),
            Route("/explain", service.explain, methods=["POST"]),
            Route("/model", service.model),
            Route("/samples/{number:int}", service.sample),
            Route("/healthz", _healthz),
        ],
        middleware=[
            Middleware(SecureHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},  # type: ignore[dict-item]
        lifespan=service.lifespan,
    )


def serve(run: Path, host: str, port: int, device: str, allow_host: Sequence[str], limits: Limits) -> None:
    """Serves until it is told to stop.

    Args:
        run: Run folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        device: cpu, cuda, cuda:1, ..., or auto.
        allow_host: Names by which the server may be called beside ``host`` and localhost.
        limits: Of uploads and of waiting requests.

    Raises:
        ValueError: the folder holds no finished run.
        OSError: the address is taken, or not of this machine.
    """
    check_labelled(run, load_config(run)[0])
    explainer = Explainer.load(run, device)
    names = {host, f"[{host}]" if ":" in host else host, "localhost", "127.0.0.1", "[::1]", *allow_host}
    shown = samples(run, explainer.classes), read_part_pictures(run, len(explainer.parts))
    app = application(explainer, run.resolve().name, sorted(names), limits, *shown)
    config = uvicorn.Config(
        app,
        host,
        port,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=10,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=config.backlog) as listening:
        logger.info("http://%s:%d (Ctrl-C ends it)", f"[{host}]" if ":" in host else host, listening.getsockname()[1])
        uvicorn.Server(config).run(sockets=[listening])


def _asset(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    if media_type == "text/javascript":
        content = script("rg.server", name, "choices.js")
    else:
        content = (Path(__file__).parent / name).read_text(encoding="utf-8")

    async def asset(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return asset


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refuse(_: Request, refused: HTTPException) -> Response:
    return JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)


async def _fail(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says how"}, 500)
