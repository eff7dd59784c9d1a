"""What pages and cards are made of: their templates in this folder, and colours and pictures in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from rg.pictures import Color


def template(name: str, **filters: Callable[..., Any]) -> Template:
    """A template of this package; everything that is put into it is escaped, and nothing may be missing.

    Args:
        name: File name.
        filters: By the names that the template calls them.
    """
    environment = Environment(
        loader=PackageLoader("rg", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def css(color: Color) -> str:
    """Such as #0072b2."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def data_uri(picture: Image.Image, form: str = "webp", quality: int = 85) -> str:
    """A picture as part of a page.

    Args:
        picture: RGB.
        form: webp, jpeg or png, which has no quality.
        quality: 1 to 100.
    """
    buffer = io.BytesIO()
    picture.save(buffer, form.upper(), quality=quality)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
