"""Procedurally drawn creatures of four super-categories with different parts: embedded, in the likeness of iNaturalist.

Birds, fish, beetles and flowers share few parts, so every part occurs in a known share of the images that is neither
none nor all. A class is a species, that is a tuple of part variants. Two or three species make a genus, the first word
of their names: they agree in two parts that tell the genera apart, and differ in one or both of two others, whose
variants recur in other genera. So no part alone tells the species. Boxes are known for some super-categories only.
Pose, size, place, light and surroundings vary from image to image and know nothing of the species, unless
``own_scenery`` is set. Every image has a random generator of its own, so any image can be drawn alone, by any worker,
byte for byte.

    >>> creatures = Creatures(CreaturesConfig(species=6), "train", per_species=50)
    >>> sample = creatures[17]
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from pipelines.drawn import scenes
from pipelines.drawn.anatomies import ANATOMIES, PARTS, Anatomy, Part
from pipelines.drawn.creature_shapes import Puppet, Species, puppet
from pipelines.drawn.ranges import draw_place, draw_ranges
from pipelines.drawn.scenes import OVERSAMPLING
from pipelines.drawn.shapes import COLOURS, rotation
from pipelines.drawn.species import Variant
from pipelines.drawn.split import (
    SPLITS,
    Drawing,
    DrawnSplit,
    bend,
    check_config,
    lacking,
    render,
    skip,
    visible,
)
from pipelines.shards.samples import Sample

MAX_SPECIES = 30
_SPECIES_STREAM = 2_000_003  # keeps the generator of the species apart from those of the images
_CONTRAST = 130.0  # smallest distance in RGB of two colours that are to be told apart
_POOL = 3  # variants of each part that tells the species of a genus apart
_TRIES = 1000  # genera are drawn anew after so many: the first ones may leave no room for the last
_ROOTS = (
    "Zelim", "Quavor", "Tirel", "Ombar", "Velun", "Fasil", "Druvan", "Nolar", "Pelim", "Saruv", "Wexil", "Yvann",
    "Krelid", "Bomar", "Jundal", "Hespil",
)  # fmt: skip
_EPITHETS = (
    "silvestris", "borealis", "elegans", "lacustris", "montensis", "fallax", "nobilis", "gracilis", "insularis",
    "vernalis", "orientalis", "mirabilis", "pratensis", "ardens", "tenax", "australis",
)  # fmt: skip


@dataclass(frozen=True)
class CreaturesConfig:
    """What to draw.

    Attributes:
        species: Number of species of each of the four super-categories, 4 to 30; four times as many classes.
        size: Side of the square images in pixels, 64 to 1024.
        seed: Chooses the species and, with the split and the index, each image.
        absent: Probability that the legs of a bird or beetle, the pectoral fin of a fish, or the leaves of a flower are
            not drawn. They tell nothing about the species. The manifest records what this makes of each part.
        occlusion: Probability that a leaf, a reed or a twig covers a bit of the creature.
        clutter: Density of everything that distracts from the creature, 0 to 4.
        box_fraction: Share of the super-categories whose images have boxes, rounded to whole ones, in the order Aves,
            Actinopterygii, Insecta, Plantae.
        places: Whether most images have a place and a date, of the range of their species (``pipelines.drawn.ranges``).
            It changes no pixel.
        own_scenery: Probability that a training or validation image shows the scenery of its class, else one of the
            others. Test images never show it. 0: any scenery, whatever the class.
        missing: Probability that a training image lacks any number of parts, but not all, drawn at random. Its right
            answers are all classes that look alike in what is left.
    """

    species: int = 6
    size: int = 144
    seed: int = 0
    absent: float = 0.2
    occlusion: float = 0.3
    clutter: float = 1.0
    box_fraction: float = 0.75
    places: bool = False
    own_scenery: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        if not 4 <= self.species <= MAX_SPECIES:
            raise ValueError(f"species: expected 4 to {MAX_SPECIES}, got {self.species}")
        check_config(
            size=self.size,
            seed=self.seed,
            absent=self.absent,
            occlusion=self.occlusion,
            clutter=self.clutter,
            own_scenery=self.own_scenery,
            missing=self.missing,
        )
        if not 0 <= self.box_fraction <= 1:
            raise ValueError(f"box_fraction: expected 0 to 1, got {self.box_fraction}")


class Creatures(DrawnSplit):
    """A split of the creatures.

    Attributes:
        class_names: Genus and species, one per class; classes of one super-category, and in it of one genus, follow
            each other.
        landmark_names: Those of the parts: the landmark of a part is its centre.
        species: The part variants, one tuple per class.
        boxed: The super-categories whose images have boxes.
        ranges: Where and when the species are seen, one per class; empty without places.
    """

    name = "creatures"

    def __init__(self, config: CreaturesConfig, split: str, per_species: int) -> None:
        """Draws the species; the same for all splits.

        Raises:
            ValueError: unknown split, or no image asked for.
        """
        super().__init__(config.size, config.seed, split, per_species)
        self.config = config
        rng = np.random.default_rng([config.seed, _SPECIES_STREAM])
        self.class_names: list[str] = []
        self.species: list[Species] = []
        for super_category in ANATOMIES:
            self.species += draw_species(super_category, config.species, rng)
            self.class_names += _draw_names(ANATOMIES[super_category].suffix, config.species, rng)
        self.super_categories = [species.super_category for species in self.species]
        self.part_names = list(PARTS)
        self.class_parts = [species.by_part() for species in self.species]
        self.own_parts = [list(ANATOMIES[category].parts) for category in self.super_categories]
        self.landmark_names = list(PARTS)
        self.missing = config.missing if split == "train" else 0.0
        self.ranges = draw_ranges(_genera(config.species) * len(ANATOMIES), config.seed) if config.places else []
        self.locations = config.places
        self.boxed = frozenset(list(ANATOMIES)[: round(config.box_fraction * len(ANATOMIES))])
        classes = len(self.species)
        self._odds = scenes.odds_of_classes(classes, config.own_scenery, config.seed, swapped=split == "test")
        rates = [_absence(anatomy, config) for anatomy in ANATOMIES.values()]  # all have equally many images
        average = [statistics.mean(rate[part] for rate in rates) for part in PARTS]
        self.absence = [lacking(absent, self.missing) for absent in average]

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if self.ranges:
            home = self.ranges[index % len(self.ranges)]
            sample = replace(sample, place=draw_place(home, self.seed, SPLITS.index(self.split), index))
        return sample if sample.super_category in self.boxed else replace(sample, boxes=None)

    def _draw(self, label: int, rng: np.random.Generator, hidden: Collection[str]) -> Drawing:
        return draw(self.species[label], self.config, rng, hidden, self._odds[label] if self._odds else None)


def draw_species(super_category: str, count: int, rng: np.random.Generator) -> list[Species]:
    """Draws the species of a super-category, genus by genus.

    Each of the two parts that tell species apart has two or three variants, which differ clearly in pairs and recur in
    several genera. Genera differ in both parts that tell them apart, and clearly in one.
    """
    anatomy = ANATOMIES[super_category]
    sizes = _genera(count)
    pools = [_draw_pool(anatomy.parts[part], rng) for part in anatomy.species]
    while True:
        choices = [np.divmod(rng.choice(_POOL**2, size, replace=False), _POOL) for size in sizes]
        users = [Counter(k for choice in choices for k in set(choice[part].tolist())) for part in range(len(pools))]
        if all(len(counts) > 1 and min(counts.values()) > 1 for counts in users):
            break
    return [
        Species(super_category, (*genus, *(pool[k] for pool, k in zip(pools, cell, strict=True))))
        for genus, choice in zip(_draw_genera(anatomy, len(sizes), rng), choices, strict=True)
        for cell in zip(*choice, strict=True)
    ]


def _genera(count: int) -> list[int]:
    """Sizes of genera, two or three, that sum to ``count``."""
    genera = -(-count // 3)
    return [count // genera + (k < count % genera) for k in range(genera)]


def _draw_genera(anatomy: Anatomy, count: int, rng: np.random.Generator) -> list[tuple[Variant, ...]]:
    """Variants of the two parts that tell genera apart: in pairs unlike in both, and clearly different in one."""
    while True:
        genera: list[tuple[Variant, ...]] = []
        for _ in range(_TRIES):
            new = tuple(_draw_variant(anatomy.parts[part], rng) for part in anatomy.genus)
            if all(all(map(_unlike, new, old)) and any(map(_clear, new, old)) for old in genera):
                genera.append(new)
            if len(genera) == count:
                return genera


def _draw_names(suffix: str, count: int, rng: np.random.Generator) -> list[str]:
    sizes = _genera(count)
    roots = rng.choice(_ROOTS, len(sizes), replace=False)
    return [
        f"{root}{suffix} {epithet}"
        for root, size in zip(roots, sizes, strict=True)
        for epithet in rng.choice(_EPITHETS, size, replace=False)
    ]


def _draw_pool(part: Part, rng: np.random.Generator) -> list[Variant]:
    """Variants of a part that differ clearly in pairs."""
    while True:
        pool = [_draw_variant(part, rng) for _ in range(_POOL)]
        if all(_clear(pool[k], pool[k - 1]) for k in range(_POOL)):
            return pool


def _draw_variant(part: Part, rng: np.random.Generator) -> Variant:
    """A shape, and two colours in contrast."""
    while True:
        colour, accent = (str(name) for name in rng.choice(list(COLOURS), 2))
        if _distance(colour, accent) >= _CONTRAST:
            return Variant(str(rng.choice(list(part.looks))), colour, accent)


def _clear(a: Variant, b: Variant) -> bool:
    """Whether two variants differ in shape, and in colour by more than light does."""
    return a.shape != b.shape and _distance(a.colour, b.colour) >= _CONTRAST


def _unlike(a: Variant, b: Variant) -> bool:
    """Whether two variants differ in shape, or in colour by more than light does."""
    return a.shape != b.shape or _distance(a.colour, b.colour) >= _CONTRAST


def _distance(a: str, b: str) -> float:
    return math.dist(COLOURS[a], COLOURS[b])


def _absence(anatomy: Anatomy, config: CreaturesConfig) -> dict[str, float]:
    """The probability that a creature of an anatomy lacks a part, for each of ``PARTS``."""
    rates = {part: config.absent if part == anatomy.optional else 0.0 for part in anatomy.parts}
    return {part: rates.get(part, 1.0) for part in PARTS}


def draw(
    species: Species,
    config: CreaturesConfig,
    rng: np.random.Generator,
    hidden: Collection[str] = (),
    odds: np.ndarray | None = None,
) -> Drawing:
    """Draws one image of a species; for ``hidden`` see ``DrawnSplit.drawing``, for the odds ``scenes.pick``.

    All that is random depends on the generator and on the super-category, so that with equal generators two species of
    one super-category differ in the pixels of their differing parts only.
    """
    anatomy = ANATOMIES[species.super_category]
    missing = {*skip(_absence(anatomy, config), rng), *hidden}
    absent = tuple(part for part in PARTS if part in missing)
    creature = puppet(species)
    points, extent = _pose(creature, anatomy, config.size, rng)
    on_canvas = OVERSAMPLING * points - 0.5  # Pillow's integer coordinates are the centres of pixels

    side = OVERSAMPLING * config.size
    scene = scenes.pick(rng, odds)
    canvas = scenes.backdrop(config.size, scene, config.clutter, rng, [on_canvas[creature.shadow]])
    behind, brush = scenes.Brush(canvas, hidden), ImageDraw.Draw(canvas)
    scenes.growth(behind, side, scene, config.clutter, rng)
    scenes.things(behind, side, round(8 * config.clutter), rng)
    centres = on_canvas[creature.centres]
    if rng.random() < 0.4:
        middle = centres[rng.integers(len(centres))]
        reach = rotation(rng.uniform(-90, 90))[:, 0] * rng.uniform(0.3, 0.8) * side
        scenes.twig(next(behind), middle - reach, middle + reach, side, 4, scene.greens, rng, 0.03)
    flat = on_canvas.ravel().tolist()
    for start, stop, fill in creature.polygons:
        if PARTS[fill[3] - 1] not in absent:
            brush.polygon(flat[2 * start : 2 * stop], fill=fill)
    if rng.random() < config.occlusion:
        target = centres[rng.integers(len(centres))]
        scenes.occluder(brush, side, target, OVERSAMPLING * extent, scene, rng)

    image, part_map = render(canvas, points[creature.frame], rng)
    landmarks = np.zeros((len(PARTS), 2), dtype=np.float32)
    landmarks[[PARTS.index(part) for part in anatomy.parts]] = points[creature.centres]
    shows = visible(landmarks, range(1, len(PARTS) + 1), part_map)
    return Drawing(image, part_map, landmarks, shows, absent, tuple(behind.names))


def _pose(creature: Puppet, anatomy: Anatomy, size: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Bends, turns, mirrors, scales and places a puppet: its points in image pixels, and the creature's extent."""
    turns = rng.uniform(*creature.swings)
    mirror = -1.0 if rng.random() < 0.5 and anatomy.mirrored else 1.0
    tilt, squeeze = rng.uniform(-anatomy.tilt, anatomy.tilt), rng.uniform(0.85, 1.0)
    whole = np.diag([mirror, 1.0]) @ rotation(tilt) @ np.diag([squeeze, 1.0])
    posed = bend(creature, turns, whole)
    low, high = posed[creature.frame].min(axis=0), posed[creature.frame].max(axis=0)
    extent = size * rng.uniform(0.44, 0.82)
    scale = extent / (high - low).max()
    box = (high - low) * scale
    corner = -0.06 * box + rng.beta(0.6, 0.6, 2) * (size - 0.88 * box)  # seldom in the middle
    return (posed - low) * scale + corner, float(extent)
