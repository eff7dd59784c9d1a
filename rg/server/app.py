"""A page on which people ask a run about their photos, and the JSON API behind it. See docs/serve.md."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rg import __version__
from rg.explain import pictures
from rg.explain.colors import css, ink_on, palette
from rg.explain.explainer import Explainer
from rg.explain.explanation import Explanation
from rg.explain.facts import at_image_size, covering, scaled
from rg.explain.pictures import data_uri
from rg.pages.scripts import script
from rg.runs.inputs import evaluation_geometry
from rg.server.uploads import Limits, Upload, decode, receive

logger = logging.getLogger(__name__)

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
MAP_SIDE, PHOTO_SIDE = 480, 1280  # pixels of the longest side of what a page draws
MAX_CONNECTIONS = 512
HEAD_SECONDS = 10.0  # in which whoever connects must have asked
RETRY_AFTER = {"Retry-After": "2"}  # seconds
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What a request asks for.

    Attributes:
        top_k: Number of best classes to name.
        versus: The class that the label is compared with; the runner-up if None.
        pictures: Whether pictures are part of the answer.
        format: json, or png for one picture that shows everything.
    """

    top_k: int = 5
    versus: str | None = None
    pictures: bool = False
    format: str = "json"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Question:
        """From the query of an address.

        Raises:
            HTTPException: 400, it does not say what it may.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(query) - known):
            raise HTTPException(400, f"query: expected {', '.join(sorted(known))}, got {unknown[0]!r}")
        top_k, shown, form = query.get("top_k", "5"), query.get("pictures", "false"), query.get("format", "json")
        if not (top_k.isascii() and top_k.isdecimal() and len(top_k) <= 4 and 1 <= int(top_k) <= 1000):
            raise HTTPException(400, f"top_k: expected 1 to 1000, got {top_k[:20]!r}")
        if shown not in ("true", "false"):
            raise HTTPException(400, f"pictures: expected true or false, got {shown!r}")
        if form not in ("json", "png"):
            raise HTTPException(400, f"format: expected json or png, got {form!r}")
        return cls(int(top_k), query.get("versus"), shown == "true", form)


@dataclasses.dataclass
class Job:
    """A question on its way.

    Attributes:
        question: What is asked.
        queued: Whether the picture has arrived and waits for the model.
        given_up: Whether nobody waits for the answer any more.
    """

    question: Question
    queued: bool = False
    given_up: bool = False


class Service:
    """One model that answers one request after the other, in a thread of its own.

    Args:
        explainer: The model.
        name: What the page calls it.
        limits: What it takes on.
    """

    def __init__(self, explainer: Explainer, name: str, limits: Limits) -> None:
        self.explainer = explainer
        self.name = name
        self.limits = limits
        self.waiting = 0
        self.worker = ThreadPoolExecutor(1, "explainer")

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends the thread with the server."""
        yield
        self.worker.shutdown(wait=True, cancel_futures=True)

    async def explain(self, request: Request) -> Response:
        """POST /explain."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "pages of other sites may not ask")
        question = Question.of(request.query_params)
        if self.waiting >= self.limits.waiting:
            raise HTTPException(503, "too many requests at once; try again soon", RETRY_AFTER)
        self.waiting += 1
        job = Job(question)
        try:
            return await asyncio.wait_for(self._explain(request, job), self.limits.answer_seconds)
        except asyncio.TimeoutError:
            raise HTTPException(504, "the answer took too long") from None
        finally:
            job.given_up = True
            if not job.queued:
                self.waiting -= 1

    async def _explain(self, request: Request, job: Job) -> Response:
        upload = await receive(request, self.limits)
        loop = asyncio.get_running_loop()
        future = self.worker.submit(self._answer, upload, job)
        job.queued = True
        # A request counts, and its upload takes memory, until the thread is done with it, whoever still waits.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.shield(asyncio.wrap_future(future))

    def _leave(self) -> None:
        self.waiting -= 1

    def _answer(self, upload: Upload, job: Job) -> Response:
        if job.given_up:
            return Response()
        question = job.question
        pixels = decode(upload.data, self.limits)
        try:
            explanation = self.explainer.explain(pixels, top_k=question.top_k, versus=question.versus)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        explanation = dataclasses.replace(explanation, source=upload.name)
        if question.format == "png":
            buffer = io.BytesIO()
            explanation.picture().save(buffer, "PNG")
            return Response(buffer.getvalue(), media_type="image/png")
        answer = explanation.to_dict()
        if question.pictures:
            answer["pictures"] = drawn(explanation)
        return JSONResponse(answer)

    async def model(self, _: Request) -> Response:
        """GET /model."""
        colors = palette(len(self.explainer.parts))
        return JSONResponse(
            {
                "name": self.name,
                "version": __version__,
                "classes": list(self.explainer.classes.names),
                "multi_label": self.explainer.classes.multi_label,
                "parts": [
                    {
                        "part": part.index,
                        "name": part.name,
                        "named": part.named,
                        "background": part.background,
                        "color": css(color),
                        "ink": css(ink_on(color)),
                    }
                    for part, color in zip(self.explainer.parts, colors, strict=True)
                ],
                "short_side": evaluation_geometry(self.explainer.config.input).short_side,
                "limits": dataclasses.asdict(self.limits),
            }
        )


class Protocol(H11Protocol):
    """HTTP that hangs up on who connects and does not ask: uvicorn itself waits for the first request for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio says."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """As uvicorn says."""
        answered = self.cycle
        super().on_response_complete()
        self._expect_request(answered)

    def _expect_request(self, answered: object = None) -> None:
        self.loop.call_later(HEAD_SECONDS, self._hang_up, answered)

    def _hang_up(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()


class SecureHeaders:
    """Adds the headers that keep a browser from doing anything but showing the page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, secured)


def application(explainer: Explainer, name: str, hosts: Sequence[str], limits: Limits | None = None) -> Starlette:
    """The page and the API of one model.

    Args:
        explainer: The model.
        name: What the page calls it.
        hosts: Names by which the server may be called (Host header); others may be a trick to reach it from a page of
            another site (DNS rebinding).
        limits: What it takes on.
    """
    service = Service(explainer, name, limits or Limits())
    return Starlette(
        routes=[
            *(Route(path, _asset(*asset)) for path, asset in PAGE.items()),
            Route("/explain", service.explain, methods=["POST"]),
            Route("/model", service.model),
            Route("/healthz", _healthz),
        ],
        middleware=[
            Middleware(SecureHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},  # type: ignore[dict-item]
        lifespan=service.lifespan,
    )


def drawn(explanation: Explanation) -> dict[str, Any]:
    """What a page draws with.

    Returns:
        photo, attribution: data URIs of JPEGs. part_map: which part is strongest where, in rows from the top left, as
        pairs of a part (-1 where the model saw nothing) and how many pixels in a row it takes.
    """
    height, width = explanation.image.shape[:2]
    photo_size = _fit(width, height, PHOTO_SIDE)
    strongest = part_map(explanation)
    rows, columns = strongest.shape
    strongest = strongest.ravel()
    starts = np.flatnonzero(np.diff(strongest, prepend=-2))
    lengths = np.diff(starts, append=strongest.size)
    return {
        "photo": data_uri(Image.fromarray(explanation.image).resize(photo_size, Image.Resampling.BICUBIC), "jpeg"),
        "attribution": data_uri(pictures.attribution_overlay(explanation, photo_size), "jpeg"),
        "part_map": {
            "width": columns,
            "height": rows,
            "runs": np.stack([strongest[starts], lengths], axis=1).ravel().tolist(),
        },
    }


def part_map(explanation: Explanation) -> np.ndarray:
    """The strongest part of every spot: int [h, w], -1 where the model saw nothing.

    Its longest side is ``MAP_SIDE`` whatever the size of the image, so that edges are smooth in a small one, too.
    """
    height, width = explanation.image.shape[:2]
    scale = MAP_SIDE / max(width, height)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    window = covering(scaled(explanation.window, scale, scale), shape)
    attention = np.array([part.attention for part in explanation.parts])
    return at_image_size(explanation.assign, attention, window, shape)[0].astype(int)


def serve(run: Path, host: str, port: int, device: str, allow_host: Sequence[str], limits: Limits) -> None:
    """Serves until it is told to stop.

    Args:
        run: Run folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        device: cpu, cuda, cuda:1, ..., or auto.
        allow_host: Names by which the server may be called beside ``host`` and localhost.
        limits: What it takes on.

    Raises:
        ValueError: the folder holds no finished run.
        OSError: the address is taken, or not of this machine.
    """
    explainer = Explainer.load(run, device)
    names = {host, f"[{host}]" if ":" in host else host, "localhost", "127.0.0.1", "[::1]", *allow_host}
    app = application(explainer, run.resolve().name, sorted(names), limits)
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


def _asset(name: str, media_type: str) -> Any:
    is_script = media_type == "text/javascript"
    content = script("rg.server", name) if is_script else (Path(__file__).parent / name).read_text(encoding="utf-8")

    async def asset(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return asset


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refuse(_: Request, refused: HTTPException) -> Response:
    return JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)


async def _fail(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says how"}, 500)


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
