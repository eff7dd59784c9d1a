"""The test images of FunnyBirds without some of their parts, or without a thing in the background, as published.

test_interventions/<class>/<image>/body_beak_eye.png    with beak and eye only; names in alphabetical order
test_interventions/<class>/<image>/background_interventions/0.png    without the first thing in the background
"""

from __future__ import annotations

import io
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.datasets.funnybirds import THING, file_of, part_mask, read_classes, read_colours, read_images, unpacked
from pipelines.images import open_rgb
from pipelines.shards.samples import Sample

SPLIT = "test"  # of which there are interventions


class Interventions:
    """Of the test images of FunnyBirds.

    Args:
        raw: The folder that holds ``FunnyBirds``, or that folder.

    Attributes:
        part_names: Of every part.
        class_parts: Of every class how each part looks.

    Raises:
        ValueError: a file is missing or malformed.
    """

    def __init__(self, raw: Path) -> None:
        self.folder = unpacked(raw)
        self.part_names, self.class_parts = read_classes(self.folder)
        self._images = read_images(self.folder, SPLIT, len(self.class_parts))
        if not (self.folder / f"{SPLIT}_interventions").is_dir():
            raise ValueError(f"{self.folder}: {SPLIT}_interventions is missing")

    def scene(self, sample: Sample) -> RenderedScene:
        """A sample of the shards, of which parts and things can be taken away.

        Raises:
            ValueError: it is none of the test images.
        """
        _, _, number = sample.key.rpartition("-")
        place = int(number) if number.isdecimal() else -1
        if not 0 <= place < len(self._images) or sample.source != file_of(SPLIT, sample.label, place):  # type: ignore[arg-type]
            raise ValueError(f"{sample.key}: expected a test image of {self.folder}, got {sample.source}")
        things = [word for word in str(self._images[place].get("bg_objects", "")).split(",") if word]
        return RenderedScene(self, sample, place, len(things))


class RenderedScene:
    """One test image; it has the interface of ``pipelines.drawn.redraw.Scene``.

    Attributes:
        label: The class that it shows.
        part_names: Of all parts, seen or not.
        class_parts: Of every class how each part looks.
        pixels: uint8 [H, W, 3], the decoded image of the shard.
        bare: That the whole background cannot be taken away: no such image was published.

    Raises:
        ValueError: the image of the shard has another size than the published one.
    """

    def __init__(self, owner: Interventions, sample: Sample, number: int, things: int) -> None:
        assert isinstance(sample.label, int)
        self.label, self._number, self._folder = sample.label, number, owner.folder
        self.part_names, self.class_parts = owner.part_names, owner.class_parts
        self.bare = False
        self.pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg)).convert("RGB"))
        self._things = [f"background {thing}" for thing in range(things)]
        if self._whole.shape != self.pixels.shape:
            height, width, _ = self._whole.shape
            raise ValueError(
                f"{sample.key}: expected {width}x{height} pixels as published; prepare without --short-side"
            )

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The parts that can be seen, and where: bool [H, W]."""
        masks = {name: part_mask(self._colours, name) for name in self.part_names}
        return {name: mask for name, mask in masks.items() if mask.any()}

    @cached_property
    def things(self) -> dict[str, np.ndarray]:
        """All things in the background, and where: bool [H, W]; the paper counts those that cannot be seen, too."""
        red, green, blue = THING
        return {name: (self._colours == (red, green, blue + thing)).all(2) for thing, name in enumerate(self._things)}

    def without(self, hidden: Collection[str]) -> np.ndarray:
        """The image of the shard without some parts, or without one thing: uint8 [H, W, 3].

        Pixels that do not change are those of the shard; the others were never a JPEG.

        Raises:
            ValueError: no such image was published.
        """
        if set(hidden) <= set(self.part_names):
            name = f"body_{'_'.join(sorted({*self.part_names} - {*hidden}))}.png"
        elif len(hidden) == 1 and set(hidden) <= set(self._things):
            name = f"background_interventions/{self._things.index(next(iter(hidden)))}.png"
        else:
            raise ValueError(f"hidden: expected parts, or one thing in the background, got {', '.join(sorted(hidden))}")
        path = self._folder / f"{SPLIT}_interventions/{self.label}/{self._number:06d}" / name
        try:
            image = np.asarray(open_rgb(path))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        if image.shape != self.pixels.shape:
            raise ValueError(f"{path}: expected an image of {self.pixels.shape[1]}x{self.pixels.shape[0]} pixels")
        return np.where((image != self._whole).any(2)[..., None], image, self.pixels)

    @cached_property
    def _whole(self) -> np.ndarray:
        return np.asarray(open_rgb(self._folder / file_of(SPLIT, self.label, self._number)))

    @cached_property
    def _colours(self) -> np.ndarray:
        return read_colours(self._folder, SPLIT, self.label, self._number)
