"""One page about what each part of a run does and what becomes of the answers without it: ``parts.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.files import atomic_write, check_file
from pipelines.images import open_rgb
from pipelines.peers import Peers
from pipelines.shards import reader
from pipelines.shards.storage import Location
from rg.evaluation.metrics import DUPLICATE_ABOVE
from rg.evaluation.part_effects import Effects, part_effects
from rg.explain import overlays
from rg.explain.colors import css, ink_on, palette
from rg.explain.explainer import Explainer
from rg.explain.facts import crop_to_window
from rg.explain.pictures import data_uri
from rg.model.edits import Edits
from rg.pages import showcase
from rg.pages.numbers import percent, signed
from rg.pages.templates import template
from rg.runs.folder import PARTS_PAGE
from rg.runs.progress import progress_bar

SHEET, SIDE = 8, 176  # images of a contact sheet, and pixels of one
CLASSES = 5  # named for a part
LEAST_SHARE = 0.05  # of what all parts add to a class, from which on it rests on a part


@dataclass(frozen=True)
class ClassChange:
    """What a class loses without a part.

    Attributes:
        name: Of the class, or attribute.
        images: In the split.
        before: Accuracy with all parts.
        after: Accuracy without the part.
    """

    name: str
    images: int
    before: float
    after: float


@dataclass(frozen=True)
class PartRow:
    """One part on the page.

    Attributes:
        measured: What parts.json says of it.
        gain: Accuracy without it less the accuracy with all parts.
        losing: The classes that lose most without it.
        resting: Names of the classes that rest on it most, and the share of it.
        sheet: Pictures of it in images of different classes, data URIs, and the names of the classes.
    """

    measured: Mapping[str, Any]
    gain: float
    losing: list[ClassChange]
    resting: list[tuple[str, float]]
    sheet: list[tuple[str, str]]


def write_parts(
    run: Path,
    data: Location,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    peers: Peers | None = None,
) -> Path:
    """Look at a split and write RUN/parts.json and RUN/parts.html.

    See ``part_effects`` for the arguments and errors.

    Returns:
        Path of the page.
    """
    out = run / PARTS_PAGE
    check_file(out, "run")
    measured, seen = part_effects(run, data, split, batch_size, device, peers)
    if not measured:  # the first process writes
        return out
    explainer = Explainer.load(run, device)
    colors = palette(len(measured["parts"]))
    sheets = _sheets(explainer, data, measured, seen)
    page = template("rg.pages", PARTS_PAGE, percent=percent, signed=signed, points=points).render(
        run=run.resolve().name,
        measured=measured,
        edits=str(Edits.from_dict(measured["edits"])),
        rows=[
            part_row(measured, part, sheets[part["part"]])
            for part in measured["parts"]
            if not part["slot"] and part["merged_into"] is None
        ],
        parts=measured["parts"],
        colors=[css(color) for color in colors],
        inks=[css(ink_on(color)) for color in colors],
        side=SIDE,
        duplicate=DUPLICATE_ABOVE,
    )
    with atomic_write(out) as file:
        file.write(page.encode())
    return out


def part_row(measured: Mapping[str, Any], part: Mapping[str, Any], sheet: list[tuple[str, str]]) -> PartRow:
    """What the page says of a part.

    Args:
        measured: What parts.json holds.
        part: What it holds of the part.
        sheet: See ``PartRow``.
    """
    names = measured["classes"]
    changes = [
        ClassChange(names[c], images, before, after)
        for c, (images, before, after) in enumerate(
            zip(measured["class_images"], measured["class_accuracy"], part["class_accuracy_without"], strict=True)
        )
        if before is not None and after < before
    ]
    shares = [(names[c], share) for c, share in enumerate(part["class_shares"]) if share is not None]
    return PartRow(
        part,
        gain=part["accuracy_without"] - measured["accuracy"],
        losing=sorted(changes, key=lambda change: change.after - change.before)[:CLASSES],
        resting=[pair for pair in sorted(shares, key=lambda pair: -pair[1])[:CLASSES] if pair[1] >= LEAST_SHARE],
        sheet=sheet,
    )


def points(difference: float) -> str:
    """A difference of two shares, in percentage points."""
    return "±0.0" if abs(difference) < 0.0005 else f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _sheets(
    explainer: Explainer, data: Location, measured: Mapping[str, Any], seen: Effects
) -> list[list[tuple[str, str]]]:
    """For every part, pictures of it where it occurs most surely, in different classes, and the names of these."""
    sheets: list[list[tuple[str, str]]] = [[] for _ in measured["parts"]]
    labels, occurrence, areas = (torch.cat(rows).numpy() for rows in (seen.labels, seen.occurrence, seen.wins))
    wanted = [
        (part["part"], image)
        for part in measured["parts"]
        if not part["slot"]
        for image in surest(seen.keys, labels, occurrence[:, part["part"]], areas[:, part["part"]])[:SHEET]
    ]
    samples = reader.read(data, measured["split"], [seen.keys[image] for _, image in wanted])
    for sample, (k, image) in zip(progress_bar(samples, desc="draw", total=len(wanted)), wanted, strict=True):
        explanation = crop_to_window(explainer.explain(open_rgb(sample.jpeg), view="crop"))
        label = "" if measured["multi_label"] else measured["classes"][labels[image]]
        sheets[k].append((data_uri(overlays.spotlight(explanation, k, (SIDE, SIDE))), label))
    return sheets


def surest(keys: Sequence[str], labels: np.ndarray, occurrence: np.ndarray, areas: np.ndarray) -> list[int]:
    """Where a part occurs most surely, in different classes: numbers of the images where it is strongest somewhere.

    Args:
        keys: Of n samples.
        labels: int [n], or [n, L] of attributes.
        occurrence: Of the part [n].
        areas: Share of the positions at which it is the strongest [n].
    """
    ranked = sorted(np.flatnonzero(areas).tolist(), key=lambda image: (-occurrence[image], keys[image]))
    return showcase.take_turns(ranked, lambda image: labels[image].tobytes())
