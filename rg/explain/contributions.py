"""What every part adds to a logit, as rows that are drawn or written."""

from __future__ import annotations

from dataclasses import dataclass

from rg.explain.colors import Color, palette
from rg.explain.facts import Facts, PartExplanation, PlaceExplanation

NOTABLE = 0.05  # of a logit: a part that adds or takes less does not stand out


@dataclass(frozen=True)
class Bar:
    """One row of a chart of contributions.

    Attributes:
        number: Of the part, or in words what else the row stands for.
        value: What it adds to the logit, or to the difference of two.
        attention: Weight of the part; None for the constant and for the place.
        color: Of the part; None for the rest.
        background: Whether it is a background part: surroundings, or one that hardly counts; or one that is off.
        name: What people call the part; empty if they do not.
    """

    number: str
    value: float
    attention: float | None
    color: Color | None = None
    background: bool = False
    name: str = ""


def _name(part: PartExplanation) -> str:
    name = "" if part.name == f"part {part.index}" else part.name
    return f"{name} (off)".lstrip() if part.off else name


def signed(value: float) -> str:
    """With its sign and two decimals, or two digits where those would be zeros."""
    if value == 0:
        return "+0.00"
    text = f"{value:+.2f}"
    return text if float(text) else f"{value:+#.2g}"


def stands_out(explanation: Facts) -> bool:
    """Whether any part adds or takes a notable share of a logit."""
    return max(abs(part.contribution) for part in explanation.parts) >= NOTABLE


def bars(explanation: Facts, limit: int, versus_rival: bool = False) -> list[Bar]:
    """The contributions in at most ``limit`` rows (3 or more), largest first, the place and the constant last.

    Parts that do not fit, those that matter least, are added up in one row.

    Args:
        explanation: Of one image.
        limit: Rows.
        versus_rival: Contributions to the logit of the label minus those to that of the rival.
    """
    colors = palette(len(explanation.parts))
    rival = explanation.rival if versus_rival else None
    values = [part.contribution - (part.rival_contribution if rival else 0) for part in explanation.parts]
    parts = [part for part in explanation.parts if part.merged_into is None]
    by_weight = sorted(parts, key=lambda part: -abs(values[part.index]))
    place = [_of_place(explanation.place, rival is not None)] if explanation.place else []
    room = limit - 1 - len(place)
    singles = len(by_weight) if len(by_weight) <= room else room - 1
    strongest, rest = by_weight[:singles], by_weight[singles:]
    rows = [
        Bar(
            str(part.index),
            values[part.index],
            part.attention,
            colors[part.index],
            part.background or part.off,
            _name(part),
        )
        for part in sorted(strongest, key=lambda part: -values[part.index])
    ]
    if rest:
        total, attention = sum(values[part.index] for part in rest), sum(part.attention for part in rest)
        rows.append(Bar(f"{len(rest)} more", total, attention))
    return [*rows, *place, Bar("constant", explanation.constant - (rival.constant if rival else 0), None)]


def _of_place(place: PlaceExplanation, versus_rival: bool) -> Bar:
    return Bar(place.name, place.contribution - (place.rival_contribution if versus_rival else 0), None)
