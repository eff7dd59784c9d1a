"""Procedurally drawn fine-grained birds with exact parts, landmarks and boxes: a data set that needs no download.

A class is a species, that is a tuple of part variants. Every species has near-duplicates that differ from it in exactly
one part: of the head, of the trunk, or the tail. Pose, size, place, light and surroundings vary from image to image and
know nothing of the species. Every image has a random generator of its own, so any image can be drawn alone, by any
worker, byte for byte.

    >>> birds = Birds(BirdsConfig(species=48), "train", per_species=50)
    >>> sample = birds[17]
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from . import bird_scenes
from .bird_scenes import OVERSAMPLING, SCENES
from .bird_shapes import JOINTS, Puppet, puppet, rotation
from .bird_species import LANDMARKS, MAX_SPECIES, PARTS, Species, draw_names, draw_species
from .samples import Sample

SPLITS = ("train", "val", "test")
OPTIONAL = ("crest", "wing", "tail", "legs")
JPEG_QUALITY = 92
_SPECIES_STREAM = 1_000_003  # keeps the generator of the species apart from those of the images
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


@dataclass(frozen=True)
class BirdsConfig:
    """What to draw.

    Attributes:
        species: Number of classes, 2 to 500.
        size: Side of the square images in pixels, 64 to 1024.
        seed: Chooses the species and, with the split and the index, each image.
        absent: Probability that the crest, wing, tail or legs of a bird are not drawn, independently per part and
            image. A part that tells the species from a near-duplicate is always drawn: the tail wherever a genus is
            full, that is always if ``species`` is a multiple of 8. The manifest records what this makes of each part.
        occlusion: Probability that a leaf, a reed or a twig covers a bit of the bird.
        clutter: Density of everything that distracts from the bird, 0 to 4.
    """

    species: int = 48
    size: int = 128
    seed: int = 0
    absent: float = 0.05
    occlusion: float = 0.15
    clutter: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.species <= MAX_SPECIES:
            raise ValueError(f"species: expected 2 to {MAX_SPECIES}, got {self.species}")
        if not 64 <= self.size <= 1024:
            raise ValueError(f"size: expected 64 to 1024 pixels, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {self.seed}")
        for name in ("absent", "occlusion"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability, got {getattr(self, name)}")
        if not 0 <= self.clutter <= 4:
            raise ValueError(f"clutter: expected 0 to 4, got {self.clutter}")


@dataclass(frozen=True)
class Drawing:
    """One drawn image with its ground truth.

    Attributes:
        image: RGB, size x size.
        part_map: uint8 [size, size]; 0 is background, p is ``PARTS[p - 1]``.
        landmarks: float32 [len(LANDMARKS), 2], x and y in continuous pixels.
        visibility: bool [len(LANDMARKS)]: the landmark's part can be seen where the landmark is.
        absent: The parts that were not drawn.
    """

    image: Image.Image
    part_map: np.ndarray
    landmarks: np.ndarray
    visibility: np.ndarray
    absent: tuple[str, ...]

    def box(self) -> np.ndarray:
        """Tight box of the visible bird: float32 [1, 4], x0, y0, x1, y1."""
        ys, xs = (np.flatnonzero(self.part_map.any(axis=axis)) for axis in (1, 0))
        return np.array([[xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]], dtype=np.float32)


class Birds:
    """A split of the bird data set; index i is image ``i // len(class_names)`` of species ``i % len(class_names)``.

    The parts that tell a species from its near-duplicates are always drawn, or the label could not be decided; all
    other parts of ``OPTIONAL`` are absent with the configured probability.

    Attributes:
        class_names: One per class.
        super_categories: Name of the family, one per class.
        part_names: Value p of a part map is ``part_names[p - 1]``.
        landmark_names: In the order of ``Sample.landmarks``.
        near_duplicates: Pairs of classes with the only part in which they differ.
        species: The part variants, one tuple per class.
        telling: The parts that tell a class from its near-duplicates, one set per class.
        absence: Exact probability that an image of the split lacks a part, one per part.
    """

    def __init__(self, config: BirdsConfig, split: str, per_species: int) -> None:
        """Draws the species; the same for all splits.

        Raises:
            ValueError: unknown split, or no image asked for.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if per_species < 1:
            raise ValueError(f"per_species: expected at least 1 image, got {per_species}")
        self.config = config
        self.split = split
        self.per_species = per_species
        rng = np.random.default_rng([config.seed, _SPECIES_STREAM])
        self.species, self.near_duplicates = draw_species(config.species, rng)
        self.class_names = draw_names(self.species, self.near_duplicates, rng)
        self.super_categories = [species.family for species in self.species]
        self.part_names = list(PARTS)
        self.landmark_names = list(LANDMARKS)
        self.telling: list[set[str]] = [set() for _ in self.species]
        for a, b, part in self.near_duplicates:
            self.telling[a].add(part)
            self.telling[b].add(part)
        rates = [absence(config, always) for always in self.telling]  # every class has equally many images
        self.absence = [statistics.mean(rate.get(part, 0.0) for rate in rates) for part in PARTS]

    def __len__(self) -> int:
        return self.per_species * self.config.species

    def __getitem__(self, index: int) -> Sample:
        drawing = self.drawing(index)
        buffer = io.BytesIO()
        drawing.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        label = index % self.config.species
        size = self.config.size
        return Sample(
            key=f"{self.split}-{index:06d}",
            jpeg=buffer.getvalue(),
            label=label,
            width=size,
            height=size,
            source=self.source(index),
            super_category=self.super_categories[label],
            landmarks=drawing.landmarks,
            visibility=drawing.visibility,
            boxes=drawing.box(),
            part_map=drawing.part_map,
            absent=drawing.absent,
        )

    def source(self, index: int) -> str:
        """What image ``index`` is drawn from."""
        return f"birds seed={self.config.seed} split={self.split} index={index}"

    def drawing(self, index: int) -> Drawing:
        """Image ``index`` before it is encoded.

        Raises:
            IndexError: no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        label = index % self.config.species
        rng = np.random.default_rng([self.config.seed, SPLITS.index(self.split), index])
        return draw(self.species[label], self.config, rng, always=self.telling[label])


def absence(config: BirdsConfig, always: Collection[str] = ()) -> dict[str, float]:
    """The probability that a part is not drawn, for each of ``OPTIONAL``; 0 for those in ``always``."""
    return {part: 0.0 if part in always else config.absent for part in OPTIONAL}


def draw(species: Species, config: BirdsConfig, rng: np.random.Generator, always: Collection[str] = ()) -> Drawing:
    """Draws one image of a species.

    All that is random depends on the generator and on the family, so that with equal generators two species of one
    family differ in the pixels of their differing parts only.

    Args:
        species: What to draw.
        config: Size and density of the image.
        rng: Decides everything else.
        always: Parts that are never absent.
    """
    rates = absence(config, always)
    skipped = tuple(part for (part, rate), u in zip(rates.items(), rng.random(len(rates)), strict=True) if u < rate)
    absent = {PARTS.index(part) + 1 for part in skipped}
    bird = puppet(species)
    points, extent = _pose(bird, config.size, rng)
    on_canvas = OVERSAMPLING * points - 0.5  # Pillow's integer coordinates are the centres of pixels

    side = OVERSAMPLING * config.size
    scene = list(SCENES.values())[rng.integers(len(SCENES))]
    silhouette = [on_canvas[polygon.start : polygon.stop] for polygon in bird.silhouette]
    canvas = bird_scenes.backdrop(config.size, scene, config.clutter, rng, silhouette)
    brush = ImageDraw.Draw(canvas)
    bird_scenes.growth(brush, side, scene, config.clutter, rng)
    bird_scenes.things(brush, side, round(7 * config.clutter), rng)
    if rng.random() < 0.6:
        foot = on_canvas[bird.landmarks][-1]
        reach = rotation(rng.uniform(-14, 14))[:, 0] * rng.uniform(0.3, 0.8) * side
        bird_scenes.twig(brush, foot - reach, foot + reach, side, 4, scene.greens, rng, 0.03)
    flat = on_canvas.ravel().tolist()
    for polygon in bird.polygons:
        if polygon.fill[3] not in absent:
            brush.polygon(flat[2 * polygon.start : 2 * polygon.stop], fill=polygon.fill)
    if rng.random() < config.occlusion:
        target = on_canvas[bird.frame][rng.integers(bird.frame.stop - bird.frame.start)]
        bird_scenes.occluder(brush, side, target, OVERSAMPLING * extent, scene, rng)

    small = (config.size, config.size)
    part_map = np.array(canvas.resize(small, Image.Resampling.NEAREST).getchannel(3))
    top, bottom = points[bird.frame, 1].min(), points[bird.frame, 1].max()
    field, tint = bird_scenes.light(part_map > 0, top, bottom, rng)
    red, green, blue = (
        Image.fromarray(np.minimum(np.asarray(channel) * (field * gain), 255).astype(np.uint8))
        for channel, gain in zip(canvas.reduce(OVERSAMPLING).split()[:3], tint, strict=True)
    )
    landmarks = points[bird.landmarks].astype(np.float32)
    return Drawing(
        image=Image.merge("RGB", (red, green, blue)),
        part_map=part_map,
        landmarks=landmarks,
        visibility=_visible(landmarks, part_map),
        absent=skipped,
    )


def _pose(bird: Puppet, size: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Bends, turns, mirrors, scales and places a puppet: its points in image pixels, and the bird's extent."""
    tilt = bird.stance + rng.uniform(-12, 12)
    flying = rng.random() < 0.15
    raised = rng.uniform(25, 70) if flying else rng.uniform(-6, 14)
    turns = {
        "body": 0.0,
        "head": -0.6 * tilt + rng.uniform(-14, 14),
        "wing": raised,
        "far wing": raised * rng.uniform(0.9, 1.3),
        "tail": rng.uniform(-10, 10),
        "legs": -0.8 * tilt + rng.uniform(-8, 8) + (40 if flying else 0),
    }
    squeeze, mirror = rng.uniform(0.86, 1.0), rng.choice((-1.0, 1.0))
    whole = np.diag([mirror, 1.0]) @ rotation(tilt) @ np.diag([squeeze, 1.0])
    joints = np.stack([rotation(turns[joint]) for joint in JOINTS])
    shifts = bird.pivots - np.einsum("jab,jb->ja", joints, bird.pivots)
    posed = np.einsum("nab,nb->na", (whole @ joints)[bird.joints], bird.points) + (shifts @ whole.T)[bird.joints]
    low, high = posed[bird.frame].min(axis=0), posed[bird.frame].max(axis=0)
    extent = size * rng.uniform(0.6, 0.92)
    scale = extent / (high - low).max()
    box = (high - low) * scale
    corner = -0.02 * box + rng.random(2) * (size - 0.96 * box)
    return (posed - low) * scale + corner, float(extent)


def _visible(landmarks: np.ndarray, part_map: np.ndarray) -> np.ndarray:
    """Whether a landmark's part shows in the landmark's pixel or in one of the four beside it."""
    size = len(part_map)
    padded = np.pad(part_map, 1)
    visible = []
    for (x, y), part in zip(landmarks.tolist(), LANDMARKS.values(), strict=True):
        column, row = math.floor(x), math.floor(y)
        inside = 0 <= column < size and 0 <= row < size
        near = padded[row : row + 3, column : column + 3] if inside else np.zeros((3, 3), dtype=np.uint8)
        visible.append(PARTS.index(part) + 1 in near[_CROSS])
    return np.array(visible)
