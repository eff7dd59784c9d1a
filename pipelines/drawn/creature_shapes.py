"""A creature as a puppet: the polygons of a species, and the joints that they turn about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.drawn.anatomies import ALIKE, ANATOMIES, PARTS, RIM_SHADE, Joint
from pipelines.drawn.shapes import COLOURS, RGB, shade
from pipelines.drawn.species import Variant


@dataclass(frozen=True)
class Species:
    """A super-category and a variant for each part that tells, in the order of the anatomy's ``genus + species``."""

    super_category: str
    variants: tuple[Variant, ...]

    def by_part(self) -> dict[str, Variant]:
        """The variant of each part that tells."""
        anatomy = ANATOMIES[self.super_category]
        return dict(zip(anatomy.genus + anatomy.species, self.variants, strict=True))


@dataclass(frozen=True)
class Puppet:
    """A species as polygons on joints.

    Attributes:
        points: float [N, 2]: the polygons, then the centres of the parts, the frame and the shadow.
        joints: int [N], which joint a point hangs on.
        pivots: float [J, 2].
        swings: float [2, J], the smallest and the largest turn in degrees.
        polygons: From back to front: first and last point, and a colour whose fourth channel is the part, from one.
        centres: Where the centres of the anatomy's parts are in ``points``.
        frame: Where the corners of the frame are.
        shadow: Where the shadow is.
    """

    points: np.ndarray
    joints: np.ndarray
    pivots: np.ndarray
    swings: np.ndarray
    polygons: tuple[tuple[int, int, tuple[int, int, int, int]], ...]
    centres: slice
    frame: slice
    shadow: slice


@lru_cache(maxsize=1024)
def puppet(species: Species) -> Puppet:
    """Builds the puppet of a species; cached, since every image of the species shares it."""
    anatomy = ANATOMIES[species.super_category]
    variants = species.by_part()
    joints = list(dict.fromkeys([Joint(), *(part.joint for part in anatomy.parts.values())]))
    outlines: list[np.ndarray] = []
    hangs_on: list[int] = []
    polygons: list[tuple[int, int, tuple[int, int, int, int]]] = []

    def place(outline: np.ndarray, joint: Joint) -> slice:
        start = len(hangs_on)
        outlines.append(outline)
        hangs_on.extend([joints.index(joint)] * len(outline))
        return slice(start, len(hangs_on))

    def fill(outline: np.ndarray, part: str, colour: RGB) -> None:
        where = place(outline, anatomy.parts[part].joint)
        polygons.append((where.start, where.stop, (*colour, PARTS.index(part) + 1)))

    for name, part in anatomy.parts.items():
        variant = variants.get(name)
        palette = {"colour": COLOURS[variant.colour], "accent": COLOURS[variant.accent]} if variant else {}
        for layer in part.looks[variant.shape if variant else ALIKE]:
            colour = shade(palette[layer.base] if isinstance(layer.base, str) else layer.base, layer.tone)
            if layer.rim:
                fill(_grown(layer.outline, layer.rim), name, shade(colour, RIM_SHADE))
            fill(layer.outline, name, colour)
    start = len(hangs_on)
    for part in anatomy.parts.values():
        place(np.array([part.centre]), part.joint)
    centres = slice(start, len(hangs_on))
    x0, y0, x1, y1 = anatomy.frame
    frame = place(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), Joint())
    shadow = place(anatomy.shadow, Joint())
    return Puppet(
        points=np.concatenate(outlines),
        joints=np.array(hangs_on),
        pivots=np.array([joint.pivot for joint in joints]),
        swings=np.array([(joint.low, joint.high) for joint in joints]).T,
        polygons=tuple(polygons),
        centres=centres,
        frame=frame,
        shadow=shadow,
    )


def _grown(outline: np.ndarray, rim: float) -> np.ndarray:
    """The outline moved outwards by ``rim``."""
    tangent = np.roll(outline, -1, axis=0) - np.roll(outline, 1, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    x, y = outline.T
    winding = np.sign(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    grown: np.ndarray = outline + rim * winding * normal
    return grown
