"""What creatures look like in pieces: an anatomy for each super-category.

Birds and fish are built facing right, beetles, seen from above, facing up, flowers upright; a hundred units are about
one body length, x points to the right and y down. Every part hangs on one joint, so that a pose is one affine map per
part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.drawn.shapes import RGB, Point, ellipse, moved, smooth, turned

PARTS = (
    "eye", "head", "legs", "wing", "breast", "tail", "flank", "dorsal fin", "tail fin", "pectoral fin", "antennae",
    "thorax", "elytra", "sepals", "petals", "centre", "stem", "leaf",
)  # fmt: skip
_RIM = 1.5
RIM_SHADE = 0.6  # of the darker copy behind an outline
ALIKE = "alike"  # the look of a part that is the same in all species


@dataclass(frozen=True)
class Layer:
    """One outline of a part.

    Attributes:
        outline: float [P, 2].
        base: ``colour`` or ``accent`` of the variant, or a colour of the layer's own.
        tone: Brightness relative to that colour.
        rim: How far a darker copy behind it stands out on all sides.
    """

    outline: np.ndarray
    base: str | RGB = "colour"
    tone: float = 1.0
    rim: float = 0.0


Look = tuple[Layer, ...]  # from back to front


@dataclass(frozen=True)
class Joint:
    """What a part turns about, and between which angles in degrees, clockwise."""

    pivot: Point = (0.0, 0.0)
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Part:
    """One part of an anatomy.

    Attributes:
        joint: What it turns about; parts with equal joints turn together.
        centre: The landmark, which all looks cover; of parts that come in pairs it is on one, always the same.
        looks: Shape of a variant -> what is drawn.
    """

    joint: Joint
    centre: Point
    looks: dict[str, Look]


@dataclass(frozen=True)
class Anatomy:
    """What the species of a super-category have in common.

    Attributes:
        parts: Name -> part, from back to front.
        genus: The parts that are equal in all species of a genus and tell the genera apart.
        species: The parts that tell the species of a genus apart.
        optional: The part that tells nothing and may be missing.
        frame: Spans the creature, whatever its species: x0, y0, x1, y1.
        shadow: Outline of what casts the shadow: float [P, 2].
        tilt: The creature is turned by up to so many degrees either way.
        mirrored: Whether half of the images show it mirrored; not where left and right are alike.
        suffix: How the names of its genera end.
    """

    parts: dict[str, Part]
    genus: tuple[str, str]
    species: tuple[str, str]
    optional: str
    frame: tuple[float, float, float, float]
    shadow: np.ndarray
    tilt: float
    mirrored: bool
    suffix: str


def _points(text: str) -> np.ndarray:
    """Points written as in SVG, "x,y x,y ...": float [P, 2]."""
    return np.array([pair.split(",") for pair in text.split()], dtype=float)


def _curve(text: str) -> np.ndarray:
    """Closed curve through points written as in SVG."""
    return smooth(_points(text))  # type: ignore[arg-type]


def _stroke(text: str, start: float, end: float) -> np.ndarray:
    """Outline of a line through points written as in SVG that tapers from one width to another."""
    line = _points(text)
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.hypot(*along.T)[:, None]
    across *= np.linspace(start / 2, end / 2, len(line))[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def _feather(root: Point, degrees: float, length: float, width: float) -> np.ndarray:
    return turned(_curve("0,-30 45,-50 85,-38 100,0 85,38 45,50 0,30") * (length, width) / 100, degrees) + root


def _feather_end(root: Point, degrees: float, length: float, width: float) -> np.ndarray:
    return turned(_curve("68,-46 87,-36 100,0 87,36 68,46 76,0") * (length, width) / 100, degrees) + root


def _base(*outlines: np.ndarray, tone: float = 1.0) -> Look:
    """In the colour of the variant, with a rim."""
    return tuple(Layer(outline, tone=tone, rim=_RIM) for outline in outlines)


def _mark(*outlines: np.ndarray) -> Look:
    """In the accent of the variant, upon something else."""
    return tuple(Layer(outline, "accent") for outline in outlines)


def _limb(*outlines: np.ndarray) -> Look:
    """In the accent of the variant, with a rim."""
    return tuple(Layer(outline, "accent", rim=_RIM) for outline in outlines)


def _dots(places: str, radius: float) -> Look:
    return _mark(*(ellipse((x, y), radius, radius, 0, 12) for x, y in _points(places)))


def _both(*outlines: np.ndarray) -> list[np.ndarray]:
    """Outlines on the left and their mirror images on the right."""
    return [side for outline in outlines for side in (outline, outline * (-1, 1))]


def _legs(*outlines: np.ndarray) -> dict[str, Look]:
    """Alike in all creatures that have some."""
    return {ALIKE: tuple(Layer(outline, (190, 112, 58), rim=_RIM) for outline in outlines)}


def _eyes(places: str, radius: float) -> dict[str, Look]:
    """Alike in all creatures that have some: pale iris, dark pupil, catch-light."""
    layers: list[Layer] = []
    for x, y in _points(places):
        glint = (x + 0.22 * radius, y - 0.28 * radius)
        layers += (
            Layer(ellipse((x, y), radius, radius), (250, 236, 196), rim=_RIM),
            Layer(ellipse((x, y), 0.62 * radius, 0.62 * radius, 0, 12), (22, 20, 28)),
            Layer(ellipse(glint, 0.24 * radius, 0.24 * radius, 0, 8), (255, 255, 255)),
        )
    return {ALIKE: tuple(layers)}


def _bird() -> Anatomy:
    body = _curve("40,-16 45,6 34,28 6,36 -24,26 -50,6 -50,-6 -26,-20 5,-30 26,-28")
    trunk = (*_base(body), Layer(_curve("42,4 32,25 6,33 -24,23 -40,10 0,14"), tone=1.25))
    beak = Layer(_curve("54,-46 70,-42 88,-30 70,-26 54,-26"), "accent", rim=_RIM)
    skull = (
        beak,
        Layer(_points("55,-33 84,-31 70,-26 54,-25"), "accent", 0.75),
        *_base(ellipse((36, -36), 25, 25, 0, 24)),
    )
    crest = _limb(
        *(_feather((30, -50), degrees, length, 14) for degrees, length in ((-160, 34), (-132, 38), (-104, 34)))
    )
    flight = ((160, 60, 17), (169, 66, 17), (178, 68, 17))
    feathers = tuple(
        layer for k, feather in enumerate(flight) for layer in _base(_feather((10, -10), *feather), tone=0.7 + 0.1 * k)
    )
    shield = _curve("17,-10 10,-21 -8,-22 -28,-10 -22,5 -2,10 12,4")
    wing = (*feathers, *_base(shield, tone=1.1))

    def tail(*feathers: tuple[float, float, float]) -> Look:
        """Feathers: degrees off the axis, length, width."""
        return tuple(
            layer
            for degrees, length, width in feathers
            for layer in (
                *_base(_feather((-40, 0), 180 + degrees, length, width)),
                *_mark(_feather_end((-40, 0), 180 + degrees, length, width)),
            )
        )

    shins = [_stroke(f"{x},28 {x + 1},44 {x},60", 6, 4.5) for x in (-6, 10)]
    feet = [moved(_points("-9,63 0,56 7,58 15,64 3,62"), x, 0) for x in (-6, 10)]
    neck = Joint((28, -20), -16, 16)
    return Anatomy(
        parts={
            "tail": Part(
                Joint((-42, 0), -10, 10),
                (-68, 0),
                {
                    "fan": tail((-30, 50, 20), (30, 50, 20), (-15, 54, 20), (15, 54, 20), (0, 56, 20)),
                    "fork": tail((-13, 66, 18), (13, 66, 18)),
                    "square": tail((-7, 46, 20), (7, 46, 20), (0, 46, 20)),
                    "pointed": tail((-8, 50, 14), (8, 50, 14), (0, 80, 15)),
                },
            ),
            "legs": Part(Joint((2, 30), -16, 16), (10.8, 44), _legs(*shins, *feet)),
            "breast": Part(
                Joint(),
                (33, 3),
                {
                    "bibbed": trunk + _mark(_curve("42,-14 43,6 34,22 22,14 20,-20")),
                    "spotted": trunk + _dots("36,-6 24,0 34,10 20,16 5,20 12,29 -10,22 -22,16 26,25", 4.2),
                    "striped": trunk
                    + _mark(*(ellipse((x, 19 - abs(x - 5) / 3), 3, 13, 18) for x in (-20, -3, 13, 29))),
                    "belted": trunk + _mark(_curve("44,0 44,12 28,20 0,20 0,6 26,6")),
                },
            ),
            "head": Part(
                neck,
                (25, -33),
                {
                    "capped": skull + _mark(_curve("58,-42 48,-56 36,-60 21,-54 13,-41 36,-45")),
                    "masked": skull + _mark(_curve("60,-41 48,-46 28,-44 16,-36 28,-28 48,-28 60,-31")),
                    "crested": crest + skull,
                    "cheeked": skull + _mark(ellipse((33, -25), 14, 10, 0, 14)),
                },
            ),
            "eye": Part(neck, (44, -40), _eyes("44,-40", 7.5)),
            "wing": Part(
                Joint((10, -10), -8, 42),
                (-9, -6),
                {
                    "barred": wing + _mark(*(ellipse((x, -6), 3.6, 13, 14, 12) for x in (-16, -1))),
                    "tipped": wing + _mark(*(_feather_end((10, -10), *feather) for feather in flight)),
                    "shielded": feathers + _limb(shield),
                    "spotted": wing + _dots("-17,-10 -5,-14 7,-11 -10,0 2,-2 -30,0 -44,2", 3.6),
                },
            ),
        },
        genus=("head", "tail"),
        species=("wing", "breast"),
        optional="legs",
        frame=(-85, -68, 85, 60),
        shadow=body,
        tilt=24,
        mirrored=True,
        suffix="ornis",
    )


def _fish() -> Anatomy:
    body = _curve("62,0 50,-16 28,-27 0,-30 -28,-20 -50,-8 -50,8 -28,19 0,29 28,26 50,14")
    trunk = (*_base(body), Layer(_curve("40,16 20,26 0,27 -28,17 -46,6 0,13"), tone=1.3))
    face = _base(_curve("64,0 53,-16 34,-25 24,-20 22,0 26,20 36,23 53,15"))
    skull = (*face, Layer(_points("52,7 63,4 62,7 53,10"), (60, 36, 40)))

    def fin(outline: str, *rays: str) -> Look:
        return _base(_curve(outline)) + _mark(*(_stroke(ray, 2, 4.5) for ray in rays))

    spines = _base(_points("28,-20 24,-54 14,-40 8,-60 -2,-40 -10,-58 -17,-36 -26,-50 -32,-14"))
    paddle = Layer(_curve("17,3 4,2 -12,10 -10,22 4,22 17,10"), (240, 228, 196), rim=_RIM)
    rays = [Layer(_stroke(ray, 1.4, 2.4), (190, 172, 132)) for ray in ("12,7 -6,10", "12,7 -6,17", "12,7 3,19")]
    return Anatomy(
        parts={
            "dorsal fin": Part(
                Joint((0, -20), -6, 6),
                (8, -38),
                {
                    "sail": fin(
                        "26,-20 18,-46 -2,-66 -20,-56 -30,-30 -34,-12",
                        "12,-30 10,-46",
                        "0,-30 -4,-56",
                        "-16,-26 -18,-50",
                    ),
                    "spiny": spines
                    + _mark(
                        *(
                            moved(_points("-4,16 4,16 1,0"), x, y)
                            for x, y in ((20, -52), (7, -56), (-9, -54), (-24, -46))
                        )
                    ),
                    "double": fin("26,-20 20,-50 8,-58 2,-40 0,-20", "14,-30 12,-50")
                    + fin("-12,-18 -14,-42 -28,-46 -34,-28 -36,-10", "-22,-22 -24,-40"),
                    "ribbon": fin(
                        "36,-16 28,-38 4,-45 -24,-40 -46,-24 -44,-4",
                        "24,-16 19,-36",
                        "6,-16 1,-42",
                        "-12,-16 -17,-40",
                        "-28,-16 -33,-34",
                    ),
                },
            ),
            "tail fin": Part(
                Joint((-46, 0), -16, 16),
                (-58, 0),
                {
                    "fork": fin(
                        "-44,-6 -66,-14 -92,-34 -78,-8 -70,0 -78,8 -92,34 -66,14 -44,6",
                        "-62,-8 -82,-24",
                        "-62,8 -82,24",
                    ),
                    "fan": fin(
                        "-44,-6 -64,-22 -86,-30 -93,0 -86,30 -64,22 -44,6",
                        "-62,-10 -82,-20",
                        "-64,0 -88,0",
                        "-62,10 -82,20",
                    ),
                    "crescent": fin(
                        "-44,-5 -58,-16 -80,-50 -72,-20 -67,0 -72,20 -80,50 -58,16 -44,5",
                        "-62,-10 -72,-32",
                        "-62,10 -72,32",
                    ),
                    "flag": fin("-44,-6 -64,-14 -80,-16 -84,0 -80,16 -64,14 -44,6", "-76,-14 -76,14"),
                },
            ),
            "flank": Part(
                Joint(),
                (-16, -4),
                {
                    "striped": trunk
                    + _mark(
                        *(
                            ellipse((-10, y), length, 2.8, 2 * y / 100, 14)
                            for y, length in ((-17, 26), (-3, 38), (11, 32))
                        )
                    ),
                    "banded": trunk
                    + _mark(*(ellipse((x, 0), 4.5, height, 4, 14) for x, height in ((10, 25), (-10, 24), (-30, 16)))),
                    "spotted": trunk + _dots("12,-16 0,-4 -12,-18 -20,4 -30,-10 6,18 -38,3 -10,16", 4.2),
                    "saddled": trunk + _mark(_curve("26,-24 0,-28 -28,-18 -48,-6 -20,0 0,-8 20,-2")),
                },
            ),
            "head": Part(
                Joint(),
                (33, 2),
                {
                    "masked": skull + _mark(_curve("54,-14 40,-22 38,0 41,19 50,14 49,0")),
                    "capped": skull + _mark(_curve("60,-6 52,-15 34,-24 26,-18 40,-10")),
                    "cheeked": skull + _mark(ellipse((34, 7), 9, 10, 0, 14)),
                    "lipped": skull + _mark(_curve("52,0 60,-6 70,0 62,4 68,10 58,13 50,10")),
                },
            ),
            "eye": Part(Joint(), (44, -7), _eyes("44,-7", 7.5)),
            "pectoral fin": Part(Joint((17, 6), -24, 24), (3, 12), {ALIKE: (paddle, *rays)}),
        },
        genus=("head", "dorsal fin"),
        species=("flank", "tail fin"),
        optional="pectoral fin",
        frame=(-90, -58, 64, 32),
        shadow=body,
        tilt=32,
        mirrored=True,
        suffix="ichthys",
    )


def _beetle() -> Anatomy:
    legs = ("-16,-34 -36,-46 -44,-66 -52,-70", "-20,-6 -42,0 -54,14 -62,14", "-18,14 -40,30 -46,54 -54,60")
    feelers = _base(*_both(_stroke("-6,-60 -14,-71 -24,-80", 5.5, 5)))
    comb = "-21,-77 -31,-102"
    teeth = ("-22,-79 -42,-71", "-26,-89 -45,-82", "-30,-99 -48,-94")
    skull = _base(ellipse((0, -57), 16, 13, 0, 20))
    jaw = _curve("-4,-64 -16,-72 -13,-88 -1,-92 -7,-84 -6,-76 -1,-72")
    horn = _curve("-6,-62 -5,-80 0,-100 5,-80 6,-62 0,-58")
    snout = _curve("-7,-62 -6,-82 -9,-90 9,-90 6,-82 7,-62")
    collar = _base(_curve("-17,-52 17,-52 27,-40 28,-24 10,-20 -10,-20 -28,-24 -27,-40"))
    shield = (*collar, Layer(ellipse((0, -44), 14, 4, 0, 12), tone=1.25))
    half = _curve("-1,-22 -17,-24 -32,-12 -36,12 -30,38 -16,56 -1,62 -1,20")
    cases = (
        *_base(*_both(half)),
        *(Layer(glint, tone=1.3) for glint in _both(ellipse((-25, 0), 3.5, 14, 8, 12))),
        Layer(_points("-1.2,-20 1.2,-20 1.2,60 -1.2,60"), tone=RIM_SHADE),
    )
    band = _curve("-1,-5 -20,-8 -32,-3 -31,5 -20,3 -1,6")
    neck = Joint((0, -50), -8, 8)
    return Anatomy(
        parts={
            "legs": Part(Joint((0, 0), -6, 6), (-43, 1.5), _legs(*_both(*(_stroke(leg, 7.5, 3.5) for leg in legs)))),
            "antennae": Part(
                neck,
                (-20, -76.4),
                {
                    "long": feelers + _limb(*_both(_stroke("-22,-79 -42,-86 -60,-76 -72,-56", 5, 3.5))),
                    "clubbed": feelers + _limb(*_both(ellipse((-29, -85), 8.5, 7.5, 0, 12))),
                    "feathered": feelers
                    + _limb(*_both(_stroke(comb, 6, 4), *(_stroke(tooth, 4, 3) for tooth in teeth))),
                    "elbowed": feelers + _limb(*_both(_stroke("-23,-79 -27,-90 -22,-102", 5.5, 5))),
                },
            ),
            "elytra": Part(
                Joint(),
                (0, 16),
                {
                    "spotted": cases + _dots("-14,-10 14,-10 -24,14 24,14 -10,20 10,20 -16,40 16,40", 6),
                    "banded": cases + _mark(*_both(band, moved(band, 0, 27))),
                    "striped": cases + _mark(*_both(_curve("-13,-18 -18,10 -12,46 -5,44 -9,10 -7,-18"))),
                    "tipped": cases + _mark(*_both(_curve("-2,60 -16,53 -28,36 -20,28 -2,34"))),
                },
            ),
            "thorax": Part(
                Joint(),
                (0, -33),
                {
                    "edged": shield + _mark(*_both(_curve("-16,-50 -25,-40 -26,-25 -18,-22 -16,-36"))),
                    "eyed": shield + _mark(*_both(ellipse((-12, -34), 7, 7.5, 0, 12))),
                    "crossed": shield + _mark(_points("-6,-51 6,-51 6,-21 -6,-21")),
                    "belted": shield + _mark(_points("-27,-33 27,-33 27,-23 -27,-23")),
                },
            ),
            "head": Part(
                neck,
                (0, -56),
                {
                    "horned": skull + _limb(horn),
                    "jawed": _limb(*_both(jaw)) + skull,
                    "snouted": _limb(snout) + skull,
                    "plated": skull + _mark(_curve("-10,-66 10,-66 8,-56 0,-50 -8,-56")),
                },
            ),
            "eye": Part(neck, (-14, -60), _eyes("-14,-60 14,-60", 6)),
        },
        genus=("head", "antennae"),
        species=("thorax", "elytra"),
        optional="legs",
        frame=(-60, -92, 60, 62),
        shadow=np.concatenate(_both(half)),
        tilt=180,
        mirrored=False,
        suffix="ocarabus",
    )


def _flower() -> Anatomy:
    heart = (0.0, -34.0)

    def whorl(outline: np.ndarray, count: int, first: float) -> list[np.ndarray]:
        """Copies of an outline that points right around the heart of the flower, the first turned by some degrees."""
        return [turned(outline, first + 360 / count * k) + heart for k in range(count)]

    def leaves(outline: np.ndarray, mark: np.ndarray, count: int, first: float) -> Look:
        pairs = zip(whorl(outline, count, first), whorl(mark, count, first), strict=True)
        return tuple(layer for leaf, sign in pairs for layer in _base(leaf) + _mark(sign))

    lance = _curve("4,-7 30,-13 52,0 30,13 4,7")
    ruffle = _points("5,-10 36,-22 40,-12 48,-10 45,0 48,10 40,12 36,22 5,10")
    notched = _curve("2,-5 20,-16 36,-13 29,0 36,13 20,16 2,5")
    spike = _points("2,-7 16,-12 39,0 16,12 2,7")
    disc = _base(ellipse(heart, 13, 13, 0, 20))
    stalk = _base(_stroke("0,-34 3,0 5,30 2,66", 6.5, 7.5))
    thorns = [_points(f"4,{y} {4 + dx},{y - 7} 4,{y + 6}") for y, dx in ((10, 14), (24, -13), (48, 13), (58, -14))]
    rings = [moved(_points("-5,-3 5,-3 5,3 -5,3"), x, y) for x, y in ((4, 13), (4.8, 26), (4.4, 44), (3.2, 57))]
    blade, rib = _curve("0,0 14,-14 34,-14 50,-2 32,7 14,8"), _stroke("2,0 24,-3 46,-3", 2.2, 1.2)
    foliage = [
        layer
        for degrees, y in ((-24, 34), (-158, 42))
        for layer in (
            Layer(moved(turned(blade, degrees), 5, y), (86, 148, 68), rim=_RIM),
            Layer(moved(turned(rib, degrees), 5, y), (150, 194, 112)),
        )
    ]
    blossom, plant = Joint(heart, -22, 22), Joint(heart, -10, 10)
    return Anatomy(
        parts={
            "stem": Part(
                plant,
                (4.5, 21),
                {
                    "thorny": _limb(*thorns) + stalk,
                    "ringed": stalk + _limb(*rings),
                    "knotted": stalk + _limb(ellipse((4.4, 22), 7.5, 6, 0, 12), ellipse((3.6, 54), 7.5, 6, 0, 12)),
                    "rooted": stalk + _limb(_curve("-3,48 9,48 17,62 3,74 -11,62")),
                },
            ),
            "leaf": Part(plant, (27, 22), {ALIKE: tuple(foliage)}),
            "sepals": Part(
                blossom,
                (24.7, -68),
                {
                    "pointed": leaves(lance, _stroke("20,0 48,0", 5, 3), 5, -54),
                    "tipped": leaves(ellipse((27, 0), 25, 12), ellipse((44, 0), 7, 6, 0, 10), 5, -54),
                    "spidery": leaves(_stroke("5,0 30,0 50,0", 8, 7), ellipse((50, 0), 5.5, 5.5, 0, 10), 10, -54),
                    "frilled": leaves(ruffle, _stroke("36,-14 41,0 36,14", 5, 5), 5, -54),
                },
            ),
            "petals": Part(
                blossom,
                (0, -58),
                {
                    "round": leaves(ellipse((18, 0), 17.5, 12.7), ellipse((16, 0), 9, 4.5, 0, 10), 5, -90),
                    "notched": leaves(notched, _stroke("8,0 26,0", 5, 3), 5, -90),
                    "rayed": leaves(ellipse((20, 0), 17, 5.5, 0, 14), ellipse((34, 0), 4.5, 3.5, 0, 8), 10, -90),
                    "starry": leaves(spike, _points("2,-3 10,-5 25,0 10,5 2,3"), 6, -90),
                },
            ),
            "centre": Part(
                blossom,
                heart,
                {
                    "ringed": disc + _mark(ellipse(heart, 7.5, 7.5, 0, 14)),
                    "dotted": disc + _mark(*whorl(ellipse((8.5, 0), 3, 3, 0, 8), 6, 0)),
                    "starry": disc + _mark(*whorl(_points("0,-4.5 12.5,0 0,4.5"), 5, 18)),
                    "tufted": _base(*whorl(_stroke("0,0 13,0", 3, 2), 9, 10))
                    + _mark(*whorl(ellipse((15, 0), 3.2, 3.2, 0, 8), 9, 10))
                    + _base(ellipse(heart, 7, 7, 0, 14)),
                },
            ),
        },
        genus=("sepals", "stem"),
        species=("petals", "centre"),
        optional="leaf",
        frame=(-46, -80, 46, 66),
        shadow=ellipse(heart, 40, 40),
        tilt=34,
        mirrored=True,
        suffix="anthus",
    )


ANATOMIES = {"Aves": _bird(), "Actinopterygii": _fish(), "Insecta": _beetle(), "Plantae": _flower()}
