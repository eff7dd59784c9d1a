"""What is wrong with the parts of an evaluated run, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BACKGROUND_ABOVE = 2 / 3  # share of the parts
SHOWN_ABOVE = 0.6  # share of the pixels of a part on true parts, at which it shows these
ADVICE = {
    "dead": "It is the strongest part in less than 1 % of the images. Start from k-means centres "
    "(model.grouping.init=kmeans), train longer, or ask for fewer parts (model.grouping.num_parts).",
    "duplicate": "It covers the same places as an earlier part. Ask for fewer parts (model.grouping.num_parts), or "
    "start from k-means centres (model.grouping.init=kmeans).",
    "everywhere": "It covers most of most images, so it tells nothing apart. Standardise the features "
    "(model.grouping.standardize=true), start from k-means centres (model.grouping.init=kmeans), or give the "
    "occurrence prior more weight (loss.prior_weight).",
    "background": "Few parts are left to tell the classes apart. Ask for fewer parts (model.grouping.num_parts), give "
    "the occurrence prior more weight (loss.prior_weight), or start from k-means centres (model.grouping.init=kmeans). "
    "If parts of the object are among them, say so in part_names.json.",
}


def problems(parts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What is wrong with the parts that metrics.json describes, and what to do."""
    wrong = []
    for kind in ("dead", "duplicate", "everywhere"):
        names = [part["name"] for part in parts if part["state"].startswith(kind)]
        if names:
            wrong.append((f"{kind.capitalize()}: {', '.join(names)}.", ADVICE[kind]))
    standing = [part for part in parts if not part["state"].startswith(("background slot", "merged"))]
    return wrong + mostly_background([part["background"] for part in standing])


def mostly_background(background: Sequence[bool]) -> list[tuple[str, str]]:
    """The same of all parts together, of which some are background."""
    if sum(background) <= BACKGROUND_ABOVE * len(background):
        return []
    return [(f"{sum(background)} of {len(background)} parts are background.", ADVICE["background"])]


def shows(table: np.ndarray | int, names: Sequence[str], count: int) -> list[list[str]]:
    """Which true parts each part shows: the one or two that most of it lies on, most first; none if it lies on many.

    Args:
        table: At how many pixels of each true part each part was the strongest [P, K]; 0 without part maps.
        names: Of the true parts.
        count: K.
    """
    if not np.sum(table):
        return [[] for _ in range(count)]
    shares = np.asarray(table).T / np.maximum(np.sum(table, axis=0), 1)[:, None]
    shown = []
    for row in shares:
        most = np.argsort(-row, kind="stable").tolist()
        enough = (number for number in (1, 2) if row[most[:number]].sum() >= SHOWN_ABOVE)
        shown.append([names[index] for index in most[: next(enough, 0)]])
    return shown
