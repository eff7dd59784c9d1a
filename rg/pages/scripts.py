"""The scripts of pages."""

from __future__ import annotations

from importlib import resources


def script(package: str, name: str, *before: str) -> str:
    """A script of a package, behind the formats of numbers that all scripts share (``numbers.js``).

    Args:
        package: Dotted name of the package that it lies in.
        name: File name.
        before: Names of other scripts of ``rg.pages`` that it needs.
    """
    shared = [resources.files("rg.pages") / other for other in ("numbers.js", *before)]
    files = (*shared, resources.files(package) / name)
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
