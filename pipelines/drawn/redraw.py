"""Drawn images once more, from the manifest of their shards: as they are, or without some of what is in them."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from pipelines.drawn.birds import Birds, BirdsConfig
from pipelines.drawn.creatures import Creatures, CreaturesConfig
from pipelines.drawn.split import DrawnSplit
from pipelines.shards.manifest import Manifest
from pipelines.shards.samples import Sample

DRAWN: dict[str, tuple[Any, type[DrawnSplit]]] = {
    "birds": (BirdsConfig, Birds),
    "creatures": (CreaturesConfig, Creatures),
}
# What earlier manifests do not say, and was so.
LATER: dict[str, Any] = {"own_scenery": 0.0, "places": False, "missing": 0.0}


def redraw(manifest: Manifest, split: str) -> DrawnSplit:
    """The split that shards of drawn images were written from.

    Raises:
        ValueError: the data set is not drawn, or its manifest does not say how.
    """
    if manifest.dataset not in DRAWN:
        raise ValueError(f"{manifest.dataset} is not drawn ({', '.join(DRAWN)} are), so no part can be left out")
    config_class, split_class = DRAWN[manifest.dataset]
    options = LATER | dict(manifest.options)
    wanted = [field.name for field in fields(config_class)]
    if missing := [name for name in (*wanted, split) if name not in options]:
        raise ValueError(f"{manifest.dataset}: the manifest does not say how it was drawn (no {', '.join(missing)})")
    config = config_class(**{name: options[name] for name in wanted})
    return split_class(config, split, manifest.options[split])  # type: ignore[call-arg]


class Scene:
    """One drawn image of a shard, from which parts and scenery can be taken away.

    Args:
        drawn: The split that the shards were written from.
        sample: One of its samples.

    Attributes:
        label: The class that was drawn.
        part_names: Of all parts, seen or not.
        class_parts: See ``DrawnSplit``.
        bare: That the whole ``SCENERY`` can be left out.
        pixels: uint8 [H, W, 3], the decoded image of the shard.
        part_map: uint8 [H, W], see ``Drawing``.

    Raises:
        ValueError: the image is drawn differently than when the shard was written.
    """

    def __init__(self, drawn: DrawnSplit, sample: Sample) -> None:
        self._drawn = drawn
        self.bare = True
        self._index = drawn.index_of(sample.key)
        if drawn[self._index].jpeg != sample.jpeg:
            raise ValueError(
                f"{sample.key}: is drawn differently now than it is in the shard, so no part of it can be left out; "
                f"make the shards again with `python -m rg prepare {drawn.name}`"
            )
        self._whole = drawn.drawing(self._index)
        self.label = self._index % len(drawn.class_names)
        self.part_names = drawn.part_names
        self.class_parts = drawn.class_parts
        self.pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg)).convert("RGB"))
        self.part_map = self._whole.part_map

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The parts that can be seen, and where: bool [H, W]."""
        masks = {name: self.part_map == p for p, name in enumerate(self._drawn.part_names, 1)}
        return {name: mask for name, mask in masks.items() if mask.any()}

    @cached_property
    def things(self) -> dict[str, np.ndarray]:
        """The things of the scenery that can be seen, and where: bool [H, W]."""
        behind = self.part_map == 0
        masks = {
            name: self._changed(self._drawn.drawing(self._index, [name]).image) & behind for name in self._whole.things
        }
        return {name: mask for name, mask in masks.items() if mask.any()}

    def without(self, hidden: Collection[str]) -> np.ndarray:
        """The image of the shard without some parts or things, or without ``SCENERY``: uint8 [H, W, 3].

        Pixels that do not change are those of the shard; the others are drawn, and were never a JPEG.
        """
        image = self._drawn.drawing(self._index, hidden).image
        return np.where(self._changed(image)[..., None], np.asarray(image), self.pixels)

    def _changed(self, image: Image.Image) -> np.ndarray:
        return (np.asarray(image) != np.asarray(self._whole.image)).any(2)
