"""One page with all explanations of a folder: ``gallery.html``, which opens from disk without a network.

It stays quick with many thousand images: the page holds their numbers only, and makes what is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.files import atomic_write
from rg.explain import pictures
from rg.explain.colors import css, ink_on, palette
from rg.explain.facts import MOSTLY, PlaceExplanation, share_seen
from rg.explain.files import LONGEST_SIDE
from rg.explain.folder import LEFT_OUT, SETTINGS, Line, read_lines
from rg.explain.image_files import distinct_names
from rg.pages.numbers import percent
from rg.pages.scripts import script
from rg.pages.templates import template
from rg.runs.confidence import LEAST, MOST, Confidence, basis
from rg.runs.folder import PART_PICTURES, read_json

GALLERY, SCRIPT = "gallery.html", "gallery.js"
ANSWERS = ("label", "unsure", "unknown")


def write(folder: Path) -> Path:
    """Write the page of a folder that ``explain`` has written, all or nothing.

    Args:
        folder: With settings.json and explanations.jsonl.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder is none of ``explain``.
    """
    settings = read_json(folder / SETTINGS, "parts")
    labels: dict[str, int] = {}
    sources, partly_seen = [], 0
    for line in read_lines(folder):
        sources.append(Path(line["source"]))
        partly_seen += _seen(line) < MOSTLY
        others = (line["truth"], (line["rival"] or {}).get("label"), (line.get("place") or {}).get("label_without"))
        for label in (line["label"], *others):
            if label is not None:
                labels.setdefault(label, len(labels))
    colors = palette(len(settings["parts"]))
    facts = {
        "labels": list(labels),
        "answers": ANSWERS,
        "parts": [
            {
                "name": part["name"],
                "named": part["named"],
                "background": part["background"],
                "off": part.get("off", False),
                "merged": part.get("merged_into") is not None,
                "color": css(color),
                "ink": css(ink_on(color)),
            }
            for part, color in zip(settings["parts"], colors, strict=True)
        ],
        "suffix": settings["pictures"],
        "panel": {
            "longest": LONGEST_SIDE,
            "tall": pictures.PANEL_HEIGHT,
            "wide": pictures.PANEL_MAX_WIDTH,
            "column": pictures.COLUMN_MIN_WIDTH,
            "margin": pictures.MARGIN,
            "gap": pictures.GAP,
            "top": pictures.HEAD + pictures.CAPTION,
        },
    }
    part_pictures = folder / PART_PICTURES
    source = script("rg.pages", SCRIPT)
    with (folder / LEFT_OUT).open("rb") as file:
        left_out = sum(1 for _ in file)
    titles = distinct_names(sources)
    page = template("rg.pages", GALLERY, percent=percent).generate(
        run=settings["run"],
        folder=folder.resolve().name,
        left_out=left_out,
        trust=_trust(settings.get("confidence")),
        partly_seen=partly_seen,
        mostly=MOSTLY,
        facts=_embedded(facts),
        count=len(colors),
        part_pictures=part_pictures.is_file() and pictures.bytes_uri(part_pictures.read_bytes(), "webp"),
        rows=(_embedded(_row(line, labels, titles[Path(line["source"])])) for line in read_lines(folder)),
        script=Markup(source),
        script_hash=base64.b64encode(hashlib.sha256(source.encode()).digest()).decode(),
    )
    out = folder / GALLERY
    with atomic_write(out) as file:
        for piece in page:
            file.write(piece.encode())
    return out


def _trust(confidence: dict[str, Any] | None) -> str:
    """What the probabilities rest on, in words."""
    if confidence is None:
        return "Probabilities are not calibrated, and no answer is withheld: the run has no confidence.json."
    fitted = Confidence(**confidence)
    return f"Confidence: {basis(fitted.images, fitted.too_few)}."


def _seen(line: Line) -> float:
    """Share of the image that the model saw, also in a line of an earlier version."""
    return share_seen(line["window"], line["width"], line["height"])


def _row(line: Line, labels: dict[str, int], title: str) -> list[Any]:
    """What the page needs to know of one image, in the order in which ``gallery.js`` reads it."""
    rival = line["rival"]
    parts = line["parts"]
    return [
        os.fsencode(line["source"]).decode(errors="replace"),
        line["name"],
        labels[line["label"]],
        _probability(line["probability"]),
        ANSWERS.index(line["answer"]),
        -1 if line["truth"] is None else labels[line["truth"]],
        labels[rival["label"]] if rival else -1,
        _probability(rival["probability"]) if rival else 0,
        _logit(line["constant"]),
        [_logit(part["contribution"]) for part in parts],
        [_share(part["attention"], 2) for part in parts],
        [_share(part["occurrence"], 2) for part in parts],
        line["width"],
        line["height"],
        _logit(rival["constant"]) if rival else 0,
        [_logit(part["rival_contribution"]) for part in parts] if rival else [],
        title,
        round(_seen(line), 3),
        line.get("summary", ""),  # which a line of an earlier version lacks
        _place(line, labels),
    ]


def _place(line: Line, labels: dict[str, int]) -> list[Any] | None:
    """What was told of the place, what it adds to the label and the rival, and the label without it."""
    place = line.get("place")  # of which lines of earlier versions say nothing
    if not place:
        return None
    named = PlaceExplanation(**place).name
    adds = (_logit(place[name]) for name in ("contribution", "rival_contribution"))
    return [named, *adds, labels[place["label_without"]]]


def _probability(value: float) -> float:
    """In five digits; neither 0 nor 1, which an earlier version wrote where a softmax was rounded."""
    return _share(min(max(value, LEAST), MOST), 5)


def _share(value: float, digits: int) -> float:
    """Rounded, for a small page; nothing but 0 and 1 becomes 0 and 1, which the page shows in another way."""
    if value in (0, 1):
        return value
    least = 0.1 ** (digits + 1)
    return round(min(max(round(value, digits), least), 1 - least), digits + 1)


def _logit(value: float) -> float:
    """In five digits, for a small page, which shows two or three of them."""
    return float(f"{value:.5g}")


def _embedded(value: Any) -> Markup:
    """JSON that neither ends the script element it stands in nor opens a comment there."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", r"\u003c"))
