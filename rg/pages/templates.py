"""The templates of pages and model cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(package: str, name: str, **filters: Callable[..., Any]) -> Template:
    """A template of a package; everything that is put into it is escaped, and nothing may be missing.

    Names of files and folders may hold bytes that are no text: these become a mark, as no page could be written else.

    Args:
        package: Dotted name of the package that it lies in.
        name: File name.
        filters: By the names that the template calls them.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        return type(value)(value.encode(errors="surrogatepass").decode(errors="replace"))
    return value
