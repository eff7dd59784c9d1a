"""One page with all explanations of a folder: ``gallery.html``, which opens from disk without a network.

It stays quick with many thousand images: the page holds their numbers only, and makes what is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.files import atomic_write
from rg.explain.colors import css, ink_on, palette
from rg.explain.folder import LEFT_OUT, SETTINGS, Line, read_lines
from rg.pages.templates import template
from rg.runs.folder import read_json

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
    settings = read_json(folder / SETTINGS)
    labels: dict[str, int] = {}
    for line in read_lines(folder):
        for label in (line["label"], line["truth"], (line["rival"] or {}).get("label")):
            if label is not None:
                labels.setdefault(label, len(labels))
    colors = palette(len(settings["parts"]))
    about = {
        "labels": list(labels),
        "answers": ANSWERS,
        "parts": [
            {
                "name": part["name"],
                "named": part["named"],
                "background": part["background"],
                "color": css(color),
                "ink": css(ink_on(color)),
            }
            for part, color in zip(settings["parts"], colors, strict=True)
        ],
        "suffix": settings["pictures"],
    }
    script = resources.files("rg.pages").joinpath(SCRIPT).read_text(encoding="utf-8")
    with (folder / LEFT_OUT).open("rb") as file:
        left_out = sum(1 for _ in file)
    page = template("rg.pages", GALLERY).generate(
        run=settings["run"],
        folder=folder.resolve().name,
        left_out=left_out,
        about=_embedded(about),
        rows=(_embedded(_row(line, labels)) for line in read_lines(folder)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    out = folder / GALLERY
    with atomic_write(out) as file:
        for piece in page:
            file.write(piece.encode())
    return out


def _row(line: Line, labels: dict[str, int]) -> list[Any]:
    """What the page needs to know of one image, in the order in which rg/gallery.js reads it."""
    rival = line["rival"]
    parts = line["parts"]
    return [
        os.fsencode(line["source"]).decode(errors="replace"),
        line["name"],
        labels[line["label"]],
        round(line["probability"], 4),
        ANSWERS.index(line["answer"]),
        -1 if line["truth"] is None else labels[line["truth"]],
        labels[rival["label"]] if rival else -1,
        round(rival["probability"], 4) if rival else 0,
        round(line["constant"], 3),
        [round(part["contribution"], 3) for part in parts],
        [round(100 * part["attention"]) for part in parts],
        [round(100 * part["occurrence"]) for part in parts],
    ]


def _embedded(value: Any) -> Markup:
    """JSON that neither ends the script element it stands in nor opens a comment there."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", r"\u003c"))
