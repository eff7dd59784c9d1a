"""Shares and probabilities as people read them: on a terminal, in pictures, and by ``rg.pages.numbers`` on pages."""

from __future__ import annotations


def percent(value: float | None, digits: int = 1) -> str:
    """0.5 -> 50.0 %; a dash for None; nothing but 0 and 1 is rounded to 0 % and 100 %."""
    if value is None:
        return "\N{EN DASH}"
    if value == 0:
        value = 0.0  # no -0.0
    text = f"{100 * value:.{digits}f}"
    if 0 < value < 1 and float(text) in (0, 100):
        least = 0.1**digits
        text = f"< {least:.{digits}f}" if value < 0.5 else f"> {100 - least:.{digits}f}"
    return f"{text} %"
