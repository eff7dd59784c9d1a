"""What a bird looks like in pieces: a puppet is a species as polygons on joints.

Birds are built facing right in units of about one body length, x to the right and y down, with the body at the origin.
Every point hangs on one joint, so that a pose is one affine map per joint and an image needs no geometry of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.drawn.shapes import COLOURS, RGB, Point, ellipse, moved, shade, smooth, turned
from pipelines.drawn.species import FAMILIES, PARTS, Family, Species, Variant

JOINTS = ("body", "head", "wing", "far wing", "tail", "legs")

# Beak outlines from the base at x = 0 to the tip at x = 1, the base reaching from y = -0.5 to 0.5; the middle point
# is the tip; then the height relative to the head's radius and the length relative to the family's.
_BEAKS: dict[str, tuple[tuple[Point, ...], float, float]] = {
    "cone": (((0, -0.5), (0.45, -0.36), (1, 0.08), (0.45, 0.34), (0, 0.5)), 1.05, 0.95),
    "dagger": (((0, -0.5), (0.5, -0.3), (1.3, 0.1), (0.5, 0.28), (0, 0.4)), 0.62, 1.3),
    "hook": (((0, -0.55), (0.5, -0.6), (0.92, -0.25), (1.0, 0.62), (0.72, 0.28), (0.4, 0.3), (0, 0.45)), 1.15, 1.0),
    "spoon": (((0, -0.5), (0.4, -0.2), (0.85, -0.32), (1.15, 0.05), (0.95, 0.4), (0.4, 0.24), (0, 0.45)), 0.95, 1.15),
    "sickle": (((0, -0.45), (0.5, -0.45), (1.0, 0.05), (1.25, 0.95), (0.85, 0.4), (0.45, 0.12), (0, 0.4)), 0.72, 1.25),
    "needle": (((0, -0.4), (0.6, -0.16), (1.4, 0.0), (0.6, 0.16), (0, 0.4)), 0.42, 1.4),
}


FEATHER = smooth([(0, -0.22), (0.45, -0.5), (0.85, -0.38), (1, 0), (0.85, 0.38), (0.45, 0.5), (0, 0.22)], 2)
FEATHER_END = smooth([(0.66, -0.46), (0.87, -0.36), (1, 0), (0.87, 0.36), (0.66, 0.46), (0.74, 0)], 2)


@dataclass(frozen=True)
class Polygon:
    """Points ``start:stop`` of a puppet, filled with a colour whose fourth channel is the part, counted from one."""

    start: int
    stop: int
    fill: tuple[int, int, int, int]


@dataclass(frozen=True)
class Puppet:
    """A species as polygons on joints.

    Attributes:
        points: float [N, 2]: the polygons, then one point per landmark, then the frame.
        joints: int [N], which of ``JOINTS`` a point hangs on.
        pivots: float [len(JOINTS), 2], the point that a joint turns about.
        polygons: From back to front.
        silhouette: The polygons, of equal outline for all species of a family, that cast the shadow.
        landmarks: Where the landmarks are in ``points``.
        frame: Where the frame is in ``points``. It spans the bird and depends on the family alone, so that species
            of one family are laid out alike.
        stance: The tilt of the body at rest, in degrees.
    """

    points: np.ndarray
    joints: np.ndarray
    pivots: np.ndarray
    polygons: tuple[Polygon, ...]
    silhouette: tuple[Polygon, ...]
    landmarks: slice
    frame: slice
    stance: float


class _Builder:
    """Collects polygons from back to front."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.joints: list[int] = []
        self.polygons: list[Polygon] = []

    def point(self, joint: str, xy: np.ndarray | Sequence[float]) -> None:
        points = np.asarray(xy, dtype=float).reshape(-1, 2)
        self.points.append(points)
        self.joints += [JOINTS.index(joint)] * len(points)

    def add(self, joint: str, part: str, colour: RGB, points: np.ndarray, rim: float = 0.0) -> None:
        """Adds a polygon, with a darker one behind it that stands out by ``rim`` on all sides."""
        if rim:
            tangent = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
            normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
            normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
            x, y = points.T
            winding = np.sign(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
            self.add(joint, part, shade(colour, 0.62), points + rim * winding * normal)
        start = len(self.joints)
        self.point(joint, points)
        self.polygons.append(Polygon(start, len(self.joints), (*colour, PARTS.index(part) + 1)))

    def feather(
        self, joint: str, part: str, colour: RGB, root: Point, degrees: float, size: Point, end: RGB | None = None
    ) -> None:
        """Adds a feather of ``size`` (length, width), its end coloured differently if asked."""
        self.add(joint, part, colour, turned(FEATHER * size, degrees) + root, 0.016)
        if end is not None:
            self.add(joint, part, end, turned(FEATHER_END * size, degrees) + root)


@lru_cache(maxsize=2048)
def puppet(species: Species) -> Puppet:
    """Builds the puppet of a species; cached, since every image of the species shares it."""
    family = FAMILIES[species.family]
    variants = dict(zip(PARTS, species.parts, strict=True))
    b = _Builder()
    _wing(b, "far wing", family, variants["wing"])
    tail_tip = _tail(b, family, variants["tail"])
    _legs(b, family, variants["legs"])
    _crest(b, family, variants["crest"])
    silhouette = [len(b.polygons)]
    _belly(b, family, variants["belly"])
    beak_tip = _beak(b, family, variants["beak"])
    silhouette.append(len(b.polygons))
    _head(b, family, variants["head"])
    eye = _eye(b, family, variants["eye"])
    wing_tip = _wing(b, "wing", family, variants["wing"])

    body, head, radius = smooth(family.body), np.array(family.head), family.head_radius
    foot = (family.hip[0] + 0.05, family.hip[1] + family.leg)
    landmarks = len(b.joints)
    b.point("head", beak_tip)
    b.point("head", eye)
    b.point("head", moved(head, -0.08 * radius, -0.88 * radius))
    b.point("head", moved(head, -0.86 * radius, 0.1 * radius))
    b.point("body", moved(body[body[:, 0].argmax()], -0.05, 0))
    b.point("body", moved(body[body[:, 1].argmax()], 0, -0.04))
    b.point("wing", moved([family.shoulder], 0.02, 0))
    b.point("wing", wing_tip)
    b.point("tail", tail_tip)
    b.point("legs", foot)
    frame = len(b.joints)
    b.point("body", body[::3])
    b.point("head", head + np.array([(1 + family.beak / radius, 0.1), (-0.4, -1.7), (0.2, -1.7)]) * radius)
    b.point("wing", moved([family.shoulder], -family.wing, 0.06))
    b.point("tail", turned(np.array([[family.tail_length, 0]]), family.tail_angle) + family.tail)
    b.point("legs", (foot[0], foot[1] + 0.03))

    pivots = {
        "body": (0.0, 0.0),
        "head": moved(head, -0.3 * radius, 0.6 * radius),
        "wing": family.shoulder,
        "far wing": family.shoulder,
        "tail": family.tail,
        "legs": family.hip,
    }
    return Puppet(
        points=np.concatenate(b.points),
        joints=np.array(b.joints),
        pivots=np.array([pivots[joint] for joint in JOINTS]),
        polygons=tuple(b.polygons),
        silhouette=tuple(b.polygons[k] for k in silhouette),
        landmarks=slice(landmarks, frame),
        frame=slice(frame, len(b.joints)),
        stance=family.stance,
    )


def _colours(variant: Variant) -> tuple[RGB, RGB]:
    return COLOURS[variant.colour], COLOURS[variant.accent]


def _wing(b: _Builder, joint: str, family: Family, variant: Variant) -> np.ndarray:
    """Primaries, secondaries and a shield of coverts; returns the wing tip."""
    colour, accent = _colours(variant)
    if joint == "far wing":
        colour, accent = shade(colour, 0.72), shade(accent, 0.72)
    root, length = family.shoulder, family.wing
    tipped = accent if variant.shape == "tipped" else None
    angles = (162, 167, 172, 177)
    for step, degrees in enumerate(angles):
        size = (length * (0.76 + 0.08 * step), length * 0.22)
        b.feather(joint, "wing", shade(colour, 0.72 + 0.05 * step), root, degrees, size, tipped)
    for degrees, reach in ((156, 0.56), (164, 0.62), (172, 0.66)):
        b.feather(joint, "wing", shade(colour, 0.94), root, degrees, (length * reach, length * 0.24))
    shield = accent if variant.shape == "shielded" else shade(colour, 1.1)
    outline = smooth([(0.1, 0.0), (0.04, -0.13), (-0.2, -0.13), (-0.46, 0.0), (-0.34, 0.15), (-0.1, 0.2), (0.06, 0.12)])
    b.add(joint, "wing", shield, outline * length + root, 0.016)
    if variant.shape == "barred":
        for x, half in ((-0.4, 0.11), (-0.18, 0.16)):
            bar = ellipse((x * length + root[0], 0.035 * length + root[1]), 0.05 * length, half * length, 14, 14)
            b.add(joint, "wing", accent, bar)
    else:
        b.add(
            joint, "wing", shade(shield, 1.22), moved(outline * (0.62 * length) + root, -0.07 * length, -0.01 * length)
        )
    return turned(np.array([[0.97 * length, 0]]), angles[-1])[0] + root


def _tail(b: _Builder, family: Family, variant: Variant) -> np.ndarray:
    """Feathers behind the body; returns the tail tip."""
    colour, accent = _colours(variant)
    length = family.tail_length
    # degrees from the axis, length, width, pattern at the end
    feathers = {
        "fan": [(-26, 0.8, 0.26, 1), (26, 0.8, 0.26, 1), (-13, 0.94, 0.28, 1), (13, 0.94, 0.28, 1), (0, 1, 0.28, 1)],
        "fork": [(0, 0.55, 0.3, 0), (-19, 1.05, 0.2, 1), (19, 1.05, 0.2, 1)],
        "square": [(-9, 0.86, 0.3, 1), (9, 0.86, 0.3, 1), (0, 0.86, 0.3, 1)],
        "streamers": [(-8, 1.3, 0.12, 1), (9, 1.35, 0.12, 1), (-10, 0.6, 0.22, 0), (10, 0.6, 0.22, 0)],
    }[variant.shape]
    width = 0.5 * (length + 0.5)
    for step, (degrees, reach, breadth, patterned) in enumerate(feathers):
        size = (length * reach, width * breadth)
        tint = shade(colour, 0.84 + 0.05 * step)
        b.feather("tail", "tail", tint, family.tail, family.tail_angle + degrees, size, accent if patterned else None)
    degrees, reach = max(feathers, key=lambda feather: feather[1])[:2]
    return turned(np.array([[0.96 * length * reach, 0]]), family.tail_angle + degrees)[0] + family.tail


def _legs(b: _Builder, family: Family, variant: Variant) -> None:
    """Two legs, the far one darker."""
    length = family.leg
    for offset, factor in (((-0.14, -0.03), 0.75), ((0.05, 0.0), 1.0)):
        x, y = family.hip[0] + offset[0], family.hip[1] + offset[1]
        colour, accent = (shade(c, factor) for c in _colours(variant))
        shin = moved([(-0.028, -0.06), (0.028, -0.06), (0.022, length), (-0.022, length)], x, y)
        b.add("legs", "legs", colour, shin, 0.01)
        if variant.shape == "webbed":
            foot = [(-0.05, -0.03), (0.05, -0.03), (0.19, 0.05), (0.1, 0.035), (0.02, 0.06), (-0.06, 0.03)]
        else:
            foot = [(-0.1, 0.03), (-0.02, -0.02), (0.05, -0.02), (0.16, 0.04), (0.07, 0.02), (0.05, 0.05), (0.0, 0.02)]
        b.add("legs", "legs", colour, moved(foot, x, y + length), 0.01)
        if variant.shape == "booted":
            thigh = smooth([(-0.11, -0.08), (0.11, -0.08), (0.09, 0.1), (0.0, 0.19), (-0.08, 0.1)])
            b.add("legs", "legs", accent, moved(thigh * (1, 0.6 + length), x, y), 0.014)


def _crest(b: _Builder, family: Family, variant: Variant) -> None:
    """Rises from behind the crown."""
    colour, accent = _colours(variant)
    r = family.head_radius
    x, y = family.head
    if variant.shape == "tuft":
        for degrees, length in ((-145, 0.75), (-122, 0.95), (-100, 0.85)):
            b.feather("head", "crest", colour, (x - 0.15 * r, y - 0.6 * r), degrees, (length * r, 0.42 * r), accent)
    elif variant.shape == "plume":
        for degrees, length in ((-172, 1.35), (-160, 1.6), (-147, 1.35)):
            b.feather("head", "crest", colour, (x - 0.1 * r, y - 0.55 * r), degrees, (length * r, 0.34 * r), accent)
    elif variant.shape == "fan":
        for degrees in (-160, -135, -110, -85, -60):
            b.feather("head", "crest", colour, (x, y - 0.25 * r), degrees, (1.35 * r, 0.5 * r), accent)
    elif variant.shape == "topknot":
        stalk = np.array([(-0.1, 0.3), (0.1, 0.3), (0.2, -0.55), (0.08, -0.6)]) * r
        b.add("head", "crest", shade(colour, 0.8), moved(stalk, x, y - 0.9 * r), 0.01)
        b.add("head", "crest", colour, ellipse((x + 0.3 * r, y - 1.55 * r), 0.42 * r, 0.26 * r, 25), 0.016)
        b.add("head", "crest", accent, ellipse((x + 0.42 * r, y - 1.5 * r), 0.2 * r, 0.14 * r, 25, 12))
    else:
        horn = smooth([(0.55, 0.3), (0.15, -0.25), (-0.75, -0.75), (-0.5, -0.1), (-0.75, 0.5), (0.0, 0.7)])
        b.add("head", "crest", colour, moved(horn * r, x, y - 0.85 * r), 0.016)
        b.add("head", "crest", accent, moved(horn * (0.5 * r), x - 0.22 * r, y - 0.98 * r))


def _belly(b: _Builder, family: Family, variant: Variant) -> None:
    """The body with its neck and the pattern of the underside."""
    colour, accent = _colours(variant)
    outline = smooth(family.body)
    if family.neck:
        b.add("body", "belly", colour, smooth(family.neck), 0.016)
    b.add("body", "belly", colour, outline, 0.016)
    if family.neck:
        b.add("body", "belly", colour, smooth(family.neck))
    low, front = outline[outline[:, 1].argmax()], outline[outline[:, 0].argmax()]
    underside = moved(low + (outline - low) * (0.82, 0.5), 0.02, -0.005)
    chest = moved(front + (outline - front) * (0.42, 0.72), -0.01, 0.02)
    if variant.shape == "bibbed":
        b.add("body", "belly", accent, chest)
        return
    b.add("body", "belly", shade(colour, 1.3), underside)
    centre = moved(low, 0.0, -0.12)
    if variant.shape == "spotted":
        for dx, dy in (
            (0.34, -0.16),
            (0.22, -0.06),
            (0.1, -0.14),
            (0.33, 0.0),
            (0.08, 0.02),
            (-0.06, -0.05),
            (0.2, 0.06),
        ):
            b.add("body", "belly", accent, ellipse((centre[0] + dx, centre[1] + dy), 0.042, 0.042, 0, 10))
    elif variant.shape == "barred":
        for dx in (-0.14, 0.0, 0.14, 0.28):
            b.add("body", "belly", accent, ellipse((centre[0] + dx, centre[1] - 0.02), 0.03, 0.11, 12, 14))


def _beak(b: _Builder, family: Family, variant: Variant) -> np.ndarray:
    """Two mandibles in front of the head; returns the beak tip."""
    colour, accent = _colours(variant)
    outline, height, reach = _BEAKS[variant.shape]
    size = np.array([family.beak * reach, family.head_radius * height])
    root = moved(family.head, 0.82 * family.head_radius, 0.12 * family.head_radius)
    upper = smooth(outline, 3) * size + root
    b.add("head", "beak", colour, upper, 0.014)
    middle = len(outline) // 2
    lower = np.array([(0, 0.1), outline[middle], *outline[middle + 1 :]]) * size + root
    b.add("head", "beak", accent, lower)
    tip = np.asarray(outline[middle])
    return (tip * 0.96) * size + root


def _head(b: _Builder, family: Family, variant: Variant) -> None:
    colour, accent = _colours(variant)
    r, head = family.head_radius, np.array(family.head)
    b.add("head", "head", colour, ellipse(family.head, r, r, 0, 24), 0.016)

    def patch(points: Sequence[Point]) -> np.ndarray:
        return smooth(points) * r + head

    b.add("head", "head", shade(colour, 1.18), patch([(0.9, 0.15), (0.5, 0.75), (0.0, 0.85), (0.1, 0.3), (0.6, -0.1)]))
    if variant.shape == "capped":
        b.add(
            "head",
            "head",
            accent,
            patch([(0.97, -0.1), (0.6, -0.74), (0.0, -0.96), (-0.6, -0.74), (-0.93, -0.1), (0, -0.3)]),
        )
    elif variant.shape == "masked":
        b.add(
            "head",
            "head",
            accent,
            patch([(0.96, -0.1), (0.5, -0.42), (-0.3, -0.34), (-0.94, 0.0), (-0.3, 0.3), (0.5, 0.3), (0.94, 0.2)]),
        )
    elif variant.shape == "cheeked":
        b.add("head", "head", accent, ellipse((head[0] - 0.12 * r, head[1] + 0.4 * r), 0.52 * r, 0.42 * r))


def _eye(b: _Builder, family: Family, variant: Variant) -> np.ndarray:
    """A coloured eye with a pupil and a catch-light; returns its centre."""
    colour, accent = _colours(variant)
    size = 0.05 + 0.22 * family.head_radius
    x, y = family.head[0] + 0.3 * family.head_radius, family.head[1] - 0.1 * family.head_radius
    if variant.shape == "browed":
        brow = smooth([(1.3, -0.75), (0.3, -1.55), (-1.2, -1.1), (-2.3, -0.1), (-1.0, -0.5), (0.2, -0.8)])
        b.add("head", "eye", accent, moved(brow * size, x, y))
    if variant.shape == "ringed":
        b.add("head", "eye", accent, ellipse((x, y), 1.4 * size, 1.4 * size), 0.01)
    b.add("head", "eye", colour, ellipse((x, y), size, size), 0.012)
    b.add("head", "eye", (24, 20, 26), ellipse((x, y), 0.52 * size, 0.52 * size, 0, 14))
    b.add("head", "eye", (255, 255, 255), ellipse((x + 0.2 * size, y - 0.28 * size), 0.22 * size, 0.22 * size, 0, 8))
    return np.array([x, y])
