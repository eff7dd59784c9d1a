"""Numbers as pages show them, in lines that do not break there; ``numbers.js`` writes the same in a browser."""

from __future__ import annotations

from rg.explain import contributions, numbers


def percent(value: float | None, digits: int = 1) -> str:
    """As everywhere, with spaces that do not break."""
    return numbers.percent(value, digits).replace(" ", "\N{NO-BREAK SPACE}")


def signed(value: float) -> str:
    """As in the pictures, with a true minus."""
    return contributions.signed(value).replace("-", "\N{MINUS SIGN}")
