"""Uploads -> upright RGB pixels, in memory and within limits, or an HTTP status and one line of reason."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import python_multipart
from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from pipelines.formats import TooLargeError, open_image
from pipelines.images import forget, open_rgb
from rg.server.limits import Limits

MAX_FIELDS = 8  # of a form beside the picture
MAX_SCANS = 100  # of a JPEG; progressive ones have some 10, and every scan visits all pixels
LINGER = 5.0  # seconds in which the rest of a refused upload is thrown away, so that its sender reads the answer
MULTIPART = "multipart/form-data"
MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # of a segment of a JPEG; 00, 01 and restarts have no length
RUN_LENGTHS = (1, 2)  # compressions of BMP: before Pillow 13, 60 bytes of them could fill any memory


@dataclass(frozen=True)
class Upload:
    """A file as it was received.

    Attributes:
        data: Its bytes.
        name: Given by its sender, without folders; None if there is none.
    """

    data: bytes
    name: str | None = None


async def receive(request: Request, limits: Limits) -> Upload:
    """The one file of a request: a form with it (multipart/form-data), or nothing but its bytes.

    Nothing is written to disk.

    Raises:
        HTTPException: 400 not one file; 408 it takes too long; 413 it is too large.
    """
    try:
        body = await asyncio.wait_for(_body(request, limits), limits.upload_seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the picture did not arrive within {limits.upload_seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the upload was broken off") from None
    if request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return _file_of_form(body, request.headers["content-type"])
    return Upload(body)


async def _body(request: Request, limits: Limits) -> bytes:
    announced = request.headers.get("content-length", "")
    body = bytearray()
    if not (announced.isdecimal() and int(announced) > limits.bytes):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.bytes:
                break
        else:
            return bytes(body)
    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(_throw_away(request), LINGER)
    raise HTTPException(413, f"expected at most {limits.megabytes:g} MB")


async def _throw_away(request: Request) -> None:
    while (message := await request.receive())["type"] == "http.request":
        if not message.get("more_body", False):
            return


def _file_of_form(body: bytes, content_type: str) -> Upload:
    files: list[Upload] = []
    fields: list[Field] = []

    def keep(file: File) -> None:
        file.file_object.seek(0)
        files.append(Upload(file.file_object.read(), _name(file.file_name)))
        if len(files) > 1:
            raise FormParserError("more than one file")

    def ignore(field: Field) -> None:
        fields.append(field)
        if len(fields) > MAX_FIELDS:
            raise FormParserError(f"more than {MAX_FIELDS} fields")

    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = python_multipart.create_form_parser({"Content-Type": content_type}, ignore, keep, config)  # type: ignore[dict-item]
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise HTTPException(400, f"expected a form with one file ({error})") from None
    if not files:
        raise HTTPException(400, "expected a form with one file, got none")
    return files[0]


def _name(name: bytes | None) -> str | None:
    if not name:
        return None
    text = re.split(r"[/\\]", name.decode("utf-8", "replace"))[-1]
    return "".join(character for character in text if character.isprintable())[:120] or None


def decode(data: bytes, limits: Limits) -> np.ndarray:
    """Upright pixels of a picture, uint8 [H, W, 3], scaled down to the longest side of ``limits``.

    Raises:
        HTTPException: 400 it is no picture, or a damaged one; 413 it has too many pixels.
    """
    try:
        _check_header(data, limits)
        image = open_rgb(data)
    except TooLargeError as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    finally:
        forget()
    image.thumbnail((limits.side, limits.side), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.array(image)


def _check_header(data: bytes, limits: Limits) -> None:
    """Refuses what would take too long or too much memory to decode; open_rgb says what else is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(io.BytesIO(data)) as image:
                (width, height), info, form = image.size, image.info, image.format
        except Exception:
            return
    if form == "BMP" and info.get("compression") in RUN_LENGTHS:
        raise HTTPException(400, "expected no run-length encoding in a BMP")
    if width * height > limits.megapixels * 1e6:
        raise HTTPException(413, f"expected at most {limits.megapixels:g} megapixels, got {width}x{height}")
    if scans(data) > MAX_SCANS:
        raise HTTPException(413, f"expected at most {MAX_SCANS} scans in a JPEG")


def scans(data: bytes) -> int:
    """How many scans a JPEG has up to its end, or up to ``MAX_SCANS`` and one more; 0 for anything else."""
    count, position = 0, 2
    if not data.startswith(b"\xff\xd8"):
        return 0
    while count <= MAX_SCANS and (marker := MARKER.search(data, position)) and marker[1] != b"\xd9":
        if marker[1] == b"\xda":
            count += 1
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count
