"""A table as text or Markdown: its title, a header and rows, and the lines below."""

from __future__ import annotations

import re
from collections.abc import Sequence

Grid = Sequence[Sequence[str]]  # header and rows, of equal length
FORMS = ("text", "markdown")


def render_text(title: str, grid: Grid, below: Sequence[str]) -> str:
    """Columns below each other, all lines but the title indented by two."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in grid]
    return "\n  ".join([title, *lines, *below])


def render_markdown(title: str, grid: Grid, below: Sequence[str]) -> str:
    """A pipe table and a list below it; the cells are escaped here, title and list are Markdown already."""
    header, *rows = ([escape(cell) for cell in line] for line in grid)
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
    return "\n".join([title, "", *lines, "", *(f"- {line}" for line in below)]).rstrip()


def escape(text: str) -> str:
    """Text that Markdown takes as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_\[\]|<>&~#$])", r"\\\1", text)
