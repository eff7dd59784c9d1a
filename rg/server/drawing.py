"""What the page draws an explanation with."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from rg.explain.explanation import Explanation
from rg.explain.facts import Size, at_image_size, covering, scaled
from rg.explain.overlays import attribution_overlay, zoom_overlay
from rg.explain.pictures import data_uri

MAP_SIDE, PHOTO_SIDE = 480, 1280  # pixels of the longest side


def drawn(explanation: Explanation) -> dict[str, Any]:
    """The pictures of an answer, as JSON values.

    Returns:
        photo, attribution, zoom: data URIs of JPEGs; zoom is None without a sampler. part_map: which part is strongest
        where, in rows from the top left, as pairs of a part (-1 where the model saw nothing) and how many pixels in a
        row it takes.
    """
    height, width = explanation.image.shape[:2]
    photo_size = _fit(width, height, PHOTO_SIDE)
    strongest = part_map(explanation)
    rows, columns = strongest.shape
    strongest = strongest.ravel()
    starts = np.flatnonzero(np.diff(strongest, prepend=-2))
    lengths = np.diff(starts, append=strongest.size)
    zoom = None if explanation.zoom is None else data_uri(zoom_overlay(explanation, photo_size), "jpeg")
    return {
        "photo": data_uri(Image.fromarray(explanation.image).resize(photo_size, Image.Resampling.BICUBIC), "jpeg"),
        "attribution": data_uri(attribution_overlay(explanation, photo_size), "jpeg"),
        "zoom": zoom,
        "part_map": {
            "width": columns,
            "height": rows,
            "runs": np.stack([strongest[starts], lengths], axis=1).ravel().tolist(),
        },
    }


def part_map(explanation: Explanation) -> np.ndarray:
    """The strongest part of every position: int [h, w], -1 where the model saw nothing.

    Its longest side is ``MAP_SIDE`` whatever the size of the image, so that edges are smooth in a small one, too.
    """
    height, width = explanation.image.shape[:2]
    scale = MAP_SIDE / max(width, height)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    window = covering(scaled(explanation.window, scale, scale), shape)
    attention = np.array([part.attention for part in explanation.parts])
    return at_image_size(explanation.assign, attention, window, shape)[0].astype(int)


def _fit(width: int, height: int, side: int) -> Size:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
