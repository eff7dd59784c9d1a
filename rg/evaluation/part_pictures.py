"""The pictures of parts: each cut out of the image in which it occurs most surely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from pipelines.images import open_rgb
from pipelines.shards import reader
from pipelines.shards.storage import Location
from rg.explain.explainer import Explainer
from rg.explain.explanation import Explanation
from rg.explain.facts import crop_to_window
from rg.explain.overlays import spotlight
from rg.runs.part_pictures import SIDE

AROUND = 1.3  # sides of a square, by the longer side of the part in it
LEAST = 0.15  # of the image, by its shorter side


def part_pictures(
    explainer: Explainer,
    data: Location,
    split: str,
    keys: Sequence[str],
    areas: np.ndarray,
    occurrences: np.ndarray,
) -> Iterator[Image.Image]:
    """A square for each part, grey where another part is the strongest.

    Args:
        explainer: The model.
        data: Folder of shards, or its URL.
        split: That was measured.
        keys: Of its n samples.
        areas: Share of the positions of each image at which each part is the strongest [n, K].
        occurrences: Of the parts [n, K].

    Yields:
        RGB of ``SIDE`` pixels, black for a part that no image shows.
    """
    chosen = [_surest(areas[:, part], occurrences[:, part]) for part in range(len(explainer.parts))]
    samples = reader.read(data, split, [keys[number] for number in chosen if number is not None])
    for part, number in enumerate(chosen):
        if number is None:
            yield Image.new("RGB", (SIDE, SIDE))
            continue
        image = open_rgb(next(samples).jpeg)
        yield _square(crop_to_window(explainer.explain(image, view="crop")), part)


def _surest(areas: np.ndarray, occurrences: np.ndarray) -> int | None:
    """Number of the image in which a part occurs most surely, of those in which it is not small; None if in none."""
    if not areas.any():
        return None
    large = areas >= np.median(areas[areas > 0])
    return int(np.where(large, occurrences, -1).argmax())


def _square(explanation: Explanation, part: int) -> Image.Image:
    """The largest connected piece of a part with a bit of what is around it."""
    height, width = explanation.image.shape[:2]
    mask = explanation.parts[part].mask
    pieces, count = ndimage.label(mask)
    if count == 0:  # decoded otherwise than in evaluation, so that another part wins by a hair
        return Image.fromarray(explanation.image).resize((SIDE, SIDE))
    largest = 1 + int(ndimage.sum_labels(mask, pieces, range(1, count + 1)).argmax())
    rows, columns = ndimage.find_objects(pieces)[largest - 1]
    side = AROUND * max(rows.stop - rows.start, columns.stop - columns.start)
    side = min(max(side, LEAST * min(width, height)), width, height)
    x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    left, top = min(max(x - side / 2, 0), width - side), min(max(y - side / 2, 0), height - side)
    shown = spotlight(explanation, part)
    return shown.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
