"""One model that answers one request after the other."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipelines.formats import readable_formats
from rg import __version__
from rg.explain.colors import css, ink_on, palette
from rg.explain.explainer import Explainer
from rg.explain.pictures import bytes_uri
from rg.runs.inputs import evaluation_geometry
from rg.server.drawing import drawn
from rg.server.limits import Limits
from rg.server.question import Question
from rg.server.samples import Sample
from rg.server.uploads import Upload, decode, receive

RETRY_AFTER = {"Retry-After": "2"}  # seconds


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
        limits: Of uploads and of waiting requests.
        samples: Photographs to try the model with.
        part_pictures: What the parts look like, a WebP with a square for each; None if nobody knows.
    """

    def __init__(
        self,
        explainer: Explainer,
        name: str,
        limits: Limits,
        samples: Sequence[Sample] = (),
        part_pictures: bytes | None = None,
    ) -> None:
        self.explainer = explainer
        self.name = name
        self.limits = limits
        self.samples = samples
        self.part_pictures = part_pictures
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
        question = Question.from_query(request.query_params)
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
            explanation = self.explainer.explain(
                pixels, view=question.view, top_k=question.top_k, versus=question.versus, place=question.place
            )
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
            answer["choices"] = explanation.choices and explanation.choices.to_dict()
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
                "places": self.explainer.model.place is not None,
                "parts": [
                    {
                        "part": part.index,
                        "name": part.name,
                        "named": part.named,
                        "background": part.background,
                        "off": part.off,
                        "merged_into": part.merged_into,
                        "color": css(color),
                        "ink": css(ink_on(color)),
                    }
                    for part, color in zip(self.explainer.parts, colors, strict=True)
                ],
                "short_side": evaluation_geometry(self.explainer.config.input).short_side,
                "limits": dataclasses.asdict(self.limits),
                "formats": readable_formats(),
                "samples": [sample.label for sample in self.samples],
                "part_pictures": bytes_uri(self.part_pictures, "webp") if self.part_pictures else None,
            }
        )

    async def sample(self, request: Request) -> Response:
        """GET /samples/NUMBER."""
        number = request.path_params["number"]
        if number >= len(self.samples):
            raise HTTPException(
                404, f"expected 0 to {len(self.samples) - 1}" if self.samples else "there are no samples"
            )
        return Response(self.samples[number].jpeg, media_type="image/jpeg")
