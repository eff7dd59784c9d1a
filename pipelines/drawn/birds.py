"""Procedurally drawn fine-grained birds with exact parts, landmarks and boxes: a data set that needs no download.

A class is a species, that is a tuple of part variants. Every species has near-duplicates that differ from it in exactly
one part: of the head, of the trunk, or the tail. Pose, size, place, light and surroundings vary from image to image and
know nothing of the species, unless ``own_scenery`` is set. Every image has a random generator of its own, so any image
can be drawn alone, by any worker, byte for byte.

    >>> birds = Birds(BirdsConfig(species=48), "train", per_species=50)
    >>> sample = birds[17]
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from pipelines.drawn import scenes
from pipelines.drawn.bird_shapes import JOINTS, Puppet, puppet
from pipelines.drawn.scenes import OVERSAMPLING
from pipelines.drawn.shapes import rotation
from pipelines.drawn.species import LANDMARKS, MAX_SPECIES, PARTS, Species, draw_names, draw_species
from pipelines.drawn.split import Drawing, DrawnSplit, bend, check_config, lacking, render, skip, visible

OPTIONAL = ("crest", "wing", "tail", "legs")
_SPECIES_STREAM = 1_000_003  # keeps the generator of the species apart from those of the images
_LANDMARK_PARTS = tuple(PARTS.index(part) + 1 for part in LANDMARKS.values())


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
        own_scenery: Probability that a training or validation image shows the scenery of its class, else one of the
            others. Test images never show it. 0: any scenery, whatever the class.
        missing: Probability that a training image lacks any number of parts, but not all, drawn at random. Its right
            answers are all classes that look alike in what is left.
    """

    species: int = 48
    size: int = 128
    seed: int = 0
    absent: float = 0.05
    occlusion: float = 0.15
    clutter: float = 1.0
    own_scenery: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.species <= MAX_SPECIES:
            raise ValueError(f"species: expected 2 to {MAX_SPECIES}, got {self.species}")
        check_config(
            size=self.size,
            seed=self.seed,
            absent=self.absent,
            occlusion=self.occlusion,
            clutter=self.clutter,
            own_scenery=self.own_scenery,
            missing=self.missing,
        )


class Birds(DrawnSplit):
    """A split of the bird data set; the super-category of a species is its family.

    The parts that tell a species from its near-duplicates are always drawn, or the label could not be decided, unless
    ``missing`` takes them away; all other parts of ``OPTIONAL`` are absent with the configured probability.

    Attributes:
        near_duplicates: Pairs of classes with the only part in which they differ.
        species: The part variants, one tuple per class.
        telling: The parts that tell a class from its near-duplicates, one set per class.
    """

    name = "birds"

    def __init__(self, config: BirdsConfig, split: str, per_species: int) -> None:
        """Draws the species; the same for all splits.

        Raises:
            ValueError: unknown split, or no image asked for.
        """
        super().__init__(config.size, config.seed, split, per_species)
        self.config = config
        rng = np.random.default_rng([config.seed, _SPECIES_STREAM])
        self.species, self.near_duplicates = draw_species(config.species, rng)
        self.class_names = draw_names(self.species, self.near_duplicates, rng)
        self.super_categories = [species.family for species in self.species]
        self.part_names = list(PARTS)
        self.class_parts = [dict(zip(PARTS, species.parts, strict=True)) for species in self.species]
        self.own_parts = [PARTS] * len(self.species)
        self.landmark_names = list(LANDMARKS)
        self.missing = config.missing if split == "train" else 0.0
        self.telling: list[set[str]] = [set() for _ in self.species]
        for a, b, part in self.near_duplicates:
            self.telling[a].add(part)
            self.telling[b].add(part)
        self._odds = scenes.odds_of_classes(config.species, config.own_scenery, config.seed, swapped=split == "test")
        rates = [absence(config, always) for always in self.telling]  # every class has equally many images
        average = [statistics.mean(rate.get(part, 0.0) for rate in rates) for part in PARTS]
        self.absence = [lacking(absent, self.missing) for absent in average]

    def _draw(self, label: int, rng: np.random.Generator, hidden: Collection[str]) -> Drawing:
        odds = self._odds[label] if self._odds else None
        return draw(self.species[label], self.config, rng, self.telling[label], hidden, odds)


def absence(config: BirdsConfig, always: Collection[str] = ()) -> dict[str, float]:
    """The probability that a part is not drawn, for each of ``OPTIONAL``; 0 for those in ``always``."""
    return {part: 0.0 if part in always else config.absent for part in OPTIONAL}


def draw(
    species: Species,
    config: BirdsConfig,
    rng: np.random.Generator,
    always: Collection[str] = (),
    hidden: Collection[str] = (),
    odds: np.ndarray | None = None,
) -> Drawing:
    """Draws one image of a species.

    All that is random depends on the generator and on the family, so that with equal generators two species of one
    family differ in the pixels of their differing parts only.

    Args:
        species: What to draw.
        config: Size and density of the image.
        rng: Decides everything else.
        always: Parts that are never absent.
        hidden: See ``DrawnSplit.drawing``.
        odds: Of the scenes, see ``scenes.pick``.
    """
    missing = {*skip(absence(config, always), rng), *hidden}
    absent = tuple(part for part in PARTS if part in missing)
    bird = puppet(species)
    points, extent = _pose(bird, config.size, rng)
    on_canvas = OVERSAMPLING * points - 0.5  # Pillow's integer coordinates are the centres of pixels

    side = OVERSAMPLING * config.size
    scene = scenes.pick(rng, odds)
    silhouette = [on_canvas[polygon.start : polygon.stop] for polygon in bird.silhouette]
    canvas = scenes.backdrop(config.size, scene, config.clutter, rng, silhouette)
    behind, brush = scenes.Brush(canvas, hidden), ImageDraw.Draw(canvas)
    scenes.growth(behind, side, scene, config.clutter, rng)
    scenes.things(behind, side, round(7 * config.clutter), rng)
    if rng.random() < 0.6:
        foot = on_canvas[bird.landmarks][-1]
        reach = rotation(rng.uniform(-14, 14))[:, 0] * rng.uniform(0.3, 0.8) * side
        scenes.twig(next(behind), foot - reach, foot + reach, side, 4, scene.greens, rng, 0.03)
    flat = on_canvas.ravel().tolist()
    for polygon in bird.polygons:
        if PARTS[polygon.fill[3] - 1] not in absent:
            brush.polygon(flat[2 * polygon.start : 2 * polygon.stop], fill=polygon.fill)
    if rng.random() < config.occlusion:
        target = on_canvas[bird.frame][rng.integers(bird.frame.stop - bird.frame.start)]
        scenes.occluder(brush, side, target, OVERSAMPLING * extent, scene, rng)

    image, part_map = render(canvas, points[bird.frame], rng)
    landmarks = points[bird.landmarks].astype(np.float32)
    shows = visible(landmarks, _LANDMARK_PARTS, part_map)
    return Drawing(image, part_map, landmarks, shows, absent, tuple(behind.names))


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
    posed = bend(bird, [turns[joint] for joint in JOINTS], whole)
    low, high = posed[bird.frame].min(axis=0), posed[bird.frame].max(axis=0)
    extent = size * rng.uniform(0.6, 0.92)
    scale = extent / (high - low).max()
    box = (high - low) * scale
    corner = -0.02 * box + rng.random(2) * (size - 0.96 * box)
    return (posed - low) * scale + corner, float(extent)
