"""What the drawn data sets share: an image with its ground truth, a split of such images, and the steps of drawing one.

A data set adds a config of its own, the species, and a function that draws one image of a species from a generator.
Every image has a generator of its own, seeded with the data set's seed, the split and the index, so any image can be
drawn alone, by any worker, byte for byte.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from pipelines.alike import answers
from pipelines.drawn import scenes
from pipelines.drawn.scenes import OVERSAMPLING, SCENERY, Canvas
from pipelines.drawn.shapes import rotation
from pipelines.drawn.species import Variant
from pipelines.shards.samples import Sample

if TYPE_CHECKING:
    from pipelines.drawn import bird_shapes, creature_shapes

SPLITS = ("train", "val", "test")
JPEG_QUALITY = 92
_MISSING_STREAM = 1_000_033  # keeps the generator of what is missing apart from that of the image
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


def check_config(
    *, size: int, seed: int, absent: float, occlusion: float, clutter: float, own_scenery: float, missing: float
) -> None:
    """Checks the fields that the configs of all drawn data sets have.

    Raises:
        ValueError: a field is out of its range.
    """
    if not 64 <= size <= 1024:
        raise ValueError(f"size: expected 64 to 1024 pixels, got {size}")
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    probabilities = {"absent": absent, "occlusion": occlusion, "own_scenery": own_scenery, "missing": missing}
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a probability, got {value}")
    if not 0 <= clutter <= 4:
        raise ValueError(f"clutter: expected 0 to 4, got {clutter}")


@dataclass(frozen=True)
class Drawing:
    """One drawn image with its ground truth, for P parts and L landmarks.

    Attributes:
        image: RGB, size x size.
        part_map: uint8 [size, size]; 0 is background, p is the p-th part.
        landmarks: float32 [L, 2], x and y in continuous pixels.
        visibility: bool [L]: the landmark's part can be seen where the landmark is.
        absent: The parts that were not drawn.
        things: Names of the things that make the scenery, drawn or hidden, from back to front.
    """

    image: Image.Image
    part_map: np.ndarray
    landmarks: np.ndarray
    visibility: np.ndarray
    absent: tuple[str, ...]
    things: tuple[str, ...]

    def box(self) -> np.ndarray:
        """Tight box of all that is visible of the parts: float32 [1, 4], x0, y0, x1, y1; [0, 4] if nothing is."""
        if not self.part_map.any():
            return np.empty((0, 4), np.float32)
        ys, xs = (np.flatnonzero(self.part_map.any(axis=axis)) for axis in (1, 0))
        return np.array([[xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]], dtype=np.float32)


class DrawnSplit(ABC):
    """A split of a drawn data set; index i is image ``i // len(class_names)`` of species ``i % len(class_names)``.

    Attributes:
        name: Name of the data set.
        class_names: One per class.
        super_categories: One per class.
        part_names: Value p of a part map is ``part_names[p - 1]``.
        class_parts: Of each class the parts in which classes differ, and how they look.
        own_parts: Of each class all parts that it can have.
        landmark_names: In the order of ``Sample.landmarks``.
        absence: Exact probability that an image of the split lacks a part, one per part.
        locations: Whether images have a place and a date.
        missing: Probability that parts are taken away from an image of the split, though they may tell its class.
    """

    name: ClassVar[str]
    class_names: list[str]
    super_categories: list[str]
    part_names: list[str]
    class_parts: list[dict[str, Variant]]
    own_parts: list[Sequence[str]]
    landmark_names: list[str]
    absence: list[float]
    locations: bool = False
    missing: float = 0.0

    def __init__(self, size: int, seed: int, split: str, per_species: int) -> None:
        """Keeps what an image depends on; the subclass adds the other attributes.

        Raises:
            ValueError: unknown split, or no image asked for.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if per_species < 1:
            raise ValueError(f"per_species: expected at least 1 image, got {per_species}")
        self.size = size
        self.seed = seed
        self.split = split
        self.per_species = per_species

    def __len__(self) -> int:
        return self.per_species * len(self.class_names)

    def __getitem__(self, index: int) -> Sample:
        drawing = self.drawing(index)
        buffer = io.BytesIO()
        drawing.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        label = index % len(self.class_names)
        return Sample(
            key=f"{self.split}-{index:06d}",
            jpeg=buffer.getvalue(),
            label=label,
            width=self.size,
            height=self.size,
            source=self.source(index),
            super_category=self.super_categories[label],
            landmarks=drawing.landmarks,
            visibility=drawing.visibility,
            boxes=drawing.box(),
            part_map=drawing.part_map,
            absent=drawing.absent,
            answers=answers(self.class_parts, label, drawing.absent) if self.missing else None,
        )

    def source(self, index: int) -> str:
        """What image ``index`` is drawn from."""
        return f"{self.name} seed={self.seed} split={self.split} index={index}"

    def index_of(self, key: str) -> int:
        """The index of a sample.

        Raises:
            ValueError: the split has no such sample.
        """
        split, _, number = key.rpartition("-")
        if split != self.split or not number.isdecimal() or int(number) >= len(self):
            raise ValueError(f"key: expected {self.split}-000000 to {self.split}-{len(self) - 1:06d}, got {key!r}")
        return int(number)

    def drawing(self, index: int, hidden: Collection[str] = ()) -> Drawing:
        """Image ``index`` before it is encoded.

        Args:
            index: Number of the image.
            hidden: Parts that are not drawn, though the image has them; ``SCENERY`` for all that grows and lies behind
                the object, or names of single ``things`` of it. Nothing that is random changes: every other pixel stays
                as it is, shadows included, and where something was there is now what was behind it.

        Raises:
            IndexError: no such image.
            ValueError: no such part, or no such thing in this image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        drawing = self._draw(index % len(self.class_names), rng, {*hidden, *self._taken(index)})
        if unknown := sorted({*hidden} - {*self.part_names, SCENERY, *drawing.things}):
            names = f"{', '.join(self.part_names)}, {SCENERY} or {SCENERY} 1 to {len(drawing.things)}"
            raise ValueError(f"hidden: expected {names}, got {', '.join(unknown)}")
        return drawing

    def _taken(self, index: int) -> list[str]:
        """The parts that are taken away from an image: any number of them, but not all."""
        if not self.missing:
            return []
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index, _MISSING_STREAM])
        own = self.own_parts[index % len(self.own_parts)]
        return rng.permutation(own)[: rng.integers(1, len(own))].tolist() if rng.random() < self.missing else []

    @abstractmethod
    def _draw(self, label: int, rng: np.random.Generator, hidden: Collection[str]) -> Drawing:
        """One image of a class, in which the generator decides all that is random."""


def lacking(absent: float, missing: float) -> float:
    """Probability that an image lacks a part: absent, or among those that are taken away, of which half are."""
    return absent + (1 - absent) * missing / 2


def skip(rates: Mapping[str, float], rng: np.random.Generator) -> tuple[str, ...]:
    """Draws the parts that an image lacks, each with a probability of its own."""
    return tuple(part for (part, rate), u in zip(rates.items(), rng.random(len(rates)), strict=True) if u < rate)


def bend(puppet: bird_shapes.Puppet | creature_shapes.Puppet, turns: Iterable[float], whole: np.ndarray) -> np.ndarray:
    """Turns every joint of a puppet, in degrees, and then maps all of it: its points, float [N, 2].

    Args:
        puppet: N points on J joints.
        turns: J angles.
        whole: float [2, 2], a linear map.
    """
    joints = np.stack([rotation(turn) for turn in turns])
    shifts = puppet.pivots - np.einsum("jab,jb->ja", joints, puppet.pivots)
    turned = np.einsum("nab,nb->na", (whole @ joints)[puppet.joints], puppet.points)
    return turned + (shifts @ whole.T)[puppet.joints]


def render(canvas: Canvas, frame: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Scales a canvas down to the size of the image, and lights it.

    Args:
        canvas: ``OVERSAMPLING`` times as large as the image; its fourth channel is the part.
        frame: float [F, 2], points in image pixels that span what is drawn, which is shaded from their top down.
        rng: Decides the light.

    Returns:
        The image, RGB, size x size, and its part map, uint8 [size, size].
    """
    small = (canvas.width // OVERSAMPLING, canvas.height // OVERSAMPLING)
    part_map = np.array(canvas.resize(small, Image.Resampling.NEAREST).getchannel(3))
    field, tint = scenes.light(part_map > 0, frame[:, 1].min(), frame[:, 1].max(), rng)
    red, green, blue = (
        Image.fromarray(np.minimum(np.asarray(channel) * (field * gain), 255).astype(np.uint8))
        for channel, gain in zip(canvas.reduce(OVERSAMPLING).split()[:3], tint, strict=True)
    )
    return Image.merge("RGB", (red, green, blue)), part_map


def visible(landmarks: np.ndarray, parts: Iterable[int], part_map: np.ndarray) -> np.ndarray:
    """Whether a landmark's part shows in the landmark's pixel or in one of the four beside it: bool [L].

    Args:
        landmarks: float [L, 2], x and y in continuous pixels.
        parts: L values of the part map.
        part_map: uint8 [size, size].
    """
    size = len(part_map)
    padded = np.pad(part_map, 1)
    shows = []
    for (x, y), part in zip(landmarks.tolist(), parts, strict=True):
        column, row = math.floor(x), math.floor(y)
        inside = 0 <= column < size and 0 <= row < size
        shows.append(inside and part in padded[row : row + 3, column : column + 3][_CROSS])
    return np.array(shows)
