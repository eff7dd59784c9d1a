"""What surrounds a bird: a soft backdrop, things that distract from it, a perch, something in front of it, and light.

Everything is drawn on a canvas of twice the image's size, in four channels: the fourth is 0 for scenery, and p for part
p of the bird. Coordinates are those of the canvas, sizes are relative to its side.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipelines.drawn.shapes import COLOURS, RGB, ellipse, rotation, shade, smooth, turned

Canvas = Image.Image
SCENERY = "scenery"  # what stands behind the object, as a name of something to leave out
OVERSAMPLING = 2
_COARSE = 4  # the backdrop is painted at a quarter of the image's size, which makes it soft
_BLUR = ImageFilter.GaussianBlur(0.9)


@dataclass(frozen=True)
class Scene:
    """A kind of place: the backdrop's colours from top to bottom, those of its blobs, and what grows there."""

    stops: tuple[RGB, RGB, RGB]
    blobs: tuple[RGB, ...]
    growth: str
    greens: tuple[RGB, ...]


SCENES = {
    "meadow": Scene(
        ((176, 214, 232), (160, 196, 126), (96, 142, 66)),
        ((120, 168, 84), (198, 210, 120), (232, 226, 160), (90, 132, 70)),
        "grass",
        ((78, 128, 50), (112, 156, 62), (60, 108, 56)),
    ),
    "sky": Scene(
        ((98, 160, 220), (160, 204, 238), (222, 236, 242)),
        ((240, 246, 250), (210, 228, 242), (250, 244, 232)),
        "leaves",
        ((70, 120, 60), (104, 148, 70), (58, 96, 62)),
    ),
    "water": Scene(
        ((172, 206, 208), (98, 156, 170), (52, 102, 126)),
        ((140, 190, 196), (72, 124, 142), (196, 218, 210)),
        "ripples",
        ((196, 222, 222), (150, 196, 204), (58, 106, 128)),
    ),
    "forest": Scene(
        ((92, 122, 76), (70, 100, 62), (62, 58, 42)),
        ((136, 168, 90), (50, 80, 54), (198, 206, 120), (94, 84, 56)),
        "leaves",
        ((58, 98, 52), (92, 134, 60), (128, 152, 70)),
    ),
    "autumn": Scene(
        ((238, 212, 164), (216, 158, 96), (132, 90, 60)),
        ((236, 176, 80), (190, 98, 60), (244, 220, 160), (140, 84, 56)),
        "leaves",
        ((206, 104, 44), (228, 160, 56), (160, 66, 48)),
    ),
    "dusk": Scene(
        ((84, 84, 138), (198, 130, 144), (250, 200, 148)),
        ((240, 170, 140), (130, 100, 150), (254, 222, 170)),
        "grass",
        ((58, 56, 84), (84, 70, 92), (46, 50, 70)),
    ),
    "snow": Scene(
        ((178, 200, 222), (214, 226, 236), (240, 244, 248)),
        ((250, 252, 254), (190, 208, 226), (226, 232, 240)),
        "grass",
        ((150, 140, 120), (176, 164, 140), (122, 118, 110)),
    ),
}  # fmt: skip

_OWN_STREAM = 3_000_017  # keeps the generator of the scenery of classes apart from those of species and images

_LEAF = smooth([(0, -0.06), (0.3, -0.5), (0.7, -0.36), (1, 0), (0.7, 0.36), (0.3, 0.5), (0, 0.06)], 2)
_VEIN = np.array([(0.05, -0.04), (0.95, 0.0), (0.05, 0.04)])
_BLADE = np.array([(0, -0.5), (0.5, -0.2), (1, 0.5), (0.5, 0.4), (0, 0.5)])
_RIPPLE = ellipse((0, 0), 0.5, 0.5, 0, 12)

# Small things as layers from back to front: outline, and how bright it is relative to the thing's colour, or a colour
# of its own.
_BARK: RGB = (104, 80, 62)
_LAYERS: tuple[tuple[tuple[np.ndarray, float | RGB], ...], ...] = (
    (  # berry
        (np.array([(-0.04, -0.9), (0.04, -0.9), (0.03, 0), (-0.03, 0)]), (84, 92, 52)),
        (ellipse((0, 0), 0.5, 0.5), 0.65),
        (ellipse((0, -0.02), 0.44, 0.44), 1.0),
        (ellipse((-0.14, -0.18), 0.13, 0.1, -30, 8), 1.7),
    ),
    (  # flower
        *((turned(ellipse((0.4, 0), 0.3, 0.2, 0, 10), 72 * k), 0.9 + 0.08 * (k % 3)) for k in range(5)),
        (ellipse((0, 0), 0.2, 0.2, 0, 10), (250, 214, 96)),
    ),
    (  # butterfly
        (ellipse((-0.26, -0.2), 0.36, 0.22, 40, 12), 1.0),
        (ellipse((0.26, -0.2), 0.36, 0.22, -40, 12), 1.0),
        (ellipse((-0.2, 0.2), 0.24, 0.18, -40, 12), 0.8),
        (ellipse((0.2, 0.2), 0.24, 0.18, 40, 12), 0.8),
        (ellipse((-0.32, -0.26), 0.1, 0.1, 0, 8), (250, 246, 236)),
        (ellipse((0.32, -0.26), 0.1, 0.1, 0, 8), (250, 246, 236)),
        (ellipse((0, 0), 0.06, 0.38, 0, 8), (48, 40, 44)),
    ),
    (  # ladybird
        (ellipse((0, -0.36), 0.24, 0.18, 0, 10), (40, 36, 42)),
        (ellipse((0, 0.04), 0.42, 0.46), 1.0),
        (np.array([(-0.03, -0.4), (0.03, -0.4), (0.03, 0.48), (-0.03, 0.48)]), (40, 36, 42)),
        *(
            (ellipse((x, y), 0.09, 0.09, 0, 8), (40, 36, 42))
            for x, y in ((-0.2, -0.1), (0.2, -0.1), (-0.2, 0.2), (0.2, 0.2))
        ),
    ),
    (  # pebble
        (smooth([(-0.6, 0.1), (-0.3, -0.35), (0.25, -0.38), (0.62, 0.0), (0.45, 0.34), (-0.35, 0.36)], 3), 0.7),
        (smooth([(-0.5, 0.0), (-0.26, -0.3), (0.2, -0.32), (0.48, -0.04), (0.2, 0.16), (-0.3, 0.16)], 3), 0.95),
    ),
    (  # lost feather
        (_LEAF * (1.6, 0.5) - (0.8, 0.0), 0.7),
        (_LEAF * (1.5, 0.4) - (0.77, 0.0), 1.05),
        (_VEIN * (1.9, 0.6) - (1.0, 0.0), 1.6),
    ),
)


def _joined(layers: Sequence[tuple[np.ndarray, float | RGB]]) -> tuple[np.ndarray, list[tuple[int, int, float | RGB]]]:
    """All points of a thing in one array, with the range and the tint of each layer."""
    stops = np.cumsum([len(outline) for outline, _ in layers]).tolist()
    ranges = [(stop - len(outline), stop, tint) for stop, (outline, tint) in zip(stops, layers, strict=True)]
    return np.concatenate([outline for outline, _ in layers]), ranges


_THINGS = [_joined(layers) for layers in _LAYERS]
_BIRD_COLOURS = list(COLOURS.values())


def odds_of_classes(classes: int, own: float, seed: int, swapped: bool) -> list[np.ndarray] | None:
    """How often an image of a class shows each of ``SCENES``.

    Every class has a scene of its own; all scenes are those of equally many classes, or of one more.

    Args:
        classes: How many there are.
        own: Probability of the own scene; all others share the rest evenly. With 0, classes have none.
        seed: Decides which scene is whose.
        swapped: The own scene is never shown.

    Returns:
        Float [scenes] for every class; None where all scenes are as frequent whatever the class.
    """
    if own == 0:
        return None
    places = np.random.default_rng([seed, _OWN_STREAM]).permutation(classes) % len(SCENES)
    share = 0.0 if swapped else own
    rest = (1 - share) / (len(SCENES) - 1)
    return [np.where(np.arange(len(SCENES)) == place, share, rest) for place in places]


def pick(rng: np.random.Generator, odds: np.ndarray | None) -> Scene:
    """One of ``SCENES`` with these odds, or any."""
    return list(SCENES.values())[rng.integers(len(SCENES)) if odds is None else rng.choice(len(SCENES), p=odds)]


def backdrop(size: int, scene: Scene, clutter: float, rng: np.random.Generator, shadow: Sequence[np.ndarray]) -> Canvas:
    """A soft gradient with blobs, some of them in the colours of birds, and the shadow of outlines in it."""
    side = max(8, size // _COARSE)
    stops = np.array(scene.stops) + rng.normal(0, 10, (3, 1)) + rng.normal(0, 6, (3, 3))
    rows = np.linspace(0, 1, side)
    middle = rng.uniform(0.25, 0.75)
    columns = np.stack([np.interp(rows, (0, middle, 1), stops[:, c]) for c in range(3)], axis=1)
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[..., :3] = columns.clip(0, 255)[:, None]
    coarse = Image.fromarray(pixels, "RGBX")
    draw = ImageDraw.Draw(coarse)
    for x, y, radius, flat, pick, colour in rng.random((round(14 * clutter), 6)).tolist():
        x, y, rx = x * side, y * side, (0.03 + 0.13 * radius * radius) * side
        ry = rx * (0.5 + 0.6 * flat)
        palette = scene.blobs if pick < 0.7 else _BIRD_COLOURS
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(*palette[int(colour * len(palette))], 0))
    scale = side / (OVERSAMPLING * size)
    dx, dy = rng.uniform(0.03, 0.07, 2) * side
    for outline in shadow:
        points = outline * scale + (dx, dy)
        y = int(points[:, 1].mean().clip(0, side - 1))
        red, green, blue = (int(under) for under in columns[y].clip(0, 255))
        draw.polygon(points.ravel().tolist(), fill=(*shade((red, green, blue), 0.72), 0))
    soft = coarse.filter(_BLUR).resize((size, size), Image.Resampling.BILINEAR)
    return soft.resize((OVERSAMPLING * size,) * 2, Image.Resampling.NEAREST)


class Brush:
    """Paints the things of the scenery one after the other, but for those that are hidden.

    Args:
        canvas: To paint on.
        hidden: Names of things, or ``SCENERY`` for all of them.

    Attributes:
        names: Of the things so far.
    """

    def __init__(self, canvas: Canvas, hidden: Collection[str]) -> None:
        self._hidden = hidden
        self._canvas = ImageDraw.Draw(canvas)
        self._aside = ImageDraw.Draw(canvas.copy()) if hidden else self._canvas
        self.names: list[str] = []

    def __iter__(self) -> Brush:
        return self

    def __next__(self) -> ImageDraw.ImageDraw:
        """What to paint the next thing with; never ends."""
        name = f"{SCENERY} {len(self.names) + 1}"
        self.names.append(name)
        return self._aside if SCENERY in self._hidden or name in self._hidden else self._canvas


def growth(brush: Brush, side: int, scene: Scene, clutter: float, rng: np.random.Generator) -> None:
    """Grass, leaves on twigs, or ripples, as befits the scene."""
    if scene.growth == "grass":
        count = round(26 * clutter)
        x, y, angle, length, width = rng.random((5, count))
        xy = np.stack([x, 0.8 + 0.25 * y], axis=1) * side
        size = np.stack([0.12 + 0.3 * length**2, 0.012 + 0.014 * width], axis=1) * side
        _stamps(brush, _BLADE, xy, -115 + 50 * angle, size, scene.greens, rng)
    elif scene.growth == "ripples":
        x, y, length, width = rng.random((4, round(16 * clutter)))
        xy = np.stack([x, y], axis=1) * side
        size = np.stack([0.08 + 0.26 * length, 0.006 + 0.014 * width], axis=1) * side
        _stamps(brush, _RIPPLE, xy, np.zeros(len(x)), size, scene.greens, rng)
    else:
        for _ in range(round(2 * clutter)):
            start = rng.uniform(0, 1, 2) * side
            angle = rng.uniform(-40, 40) + rng.choice((0, 180))
            end = start + rotation(angle)[:, 0] * side * rng.uniform(0.4, 1.0)
            twig(next(brush), start, end, side, 5, scene.greens, rng)


def things(brush: Brush, side: int, count: int, rng: np.random.Generator) -> None:
    """Berries, flowers, insects, pebbles and feathers in the colours of birds."""
    for (kind, colour, x, y, angle, size), draw in zip(rng.random((count, 6)).tolist(), brush, strict=False):
        points, layers = _THINGS[int(kind * len(_THINGS))]
        base = _BIRD_COLOURS[int(colour * len(_BIRD_COLOURS))]
        placed = points @ (rotation(80 * angle - 40) * ((0.045 + 0.065 * size) * side))
        placed += np.array((x * side, y * side))
        flat = placed.ravel().tolist()
        for start, stop, tint in layers:
            fill = tint if isinstance(tint, tuple) else shade(base, tint)
            draw.polygon(flat[2 * start : 2 * stop], fill=(*fill, 0))


def twig(
    draw: ImageDraw.ImageDraw,
    start: np.ndarray,
    end: np.ndarray,
    side: int,
    leaves: int,
    greens: Sequence[RGB],
    rng: np.random.Generator,
    width: float = 0.02,
) -> None:
    """A tapering twig with leaves along it."""
    along = end - start
    across = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-9) * width * side / 2
    bend = start + 0.5 * along + across * rng.uniform(-3, 3)
    for factor, shift in ((0.75, 0.0), (1.1, -0.3)):
        wide, thin = across * (1 + shift), across * (0.6 + shift)
        outline = np.concatenate([start + wide, bend + wide, end + thin, end - thin / 2, bend - wide / 2, start - wide])
        draw.polygon(outline.tolist(), fill=(*shade(_BARK, factor), 0))
    t, angle, length, flip = rng.random((4, leaves))
    xy = start + t[:, None] * along
    angles = np.degrees(np.arctan2(along[1], along[0])) + np.where(flip < 0.5, -1, 1) * (30 + 50 * angle)
    size = (0.07 + 0.07 * length[:, None]) * side * (1, 0.5)
    _stamps(itertools.repeat(draw), _LEAF, xy, angles, size, greens, rng, _VEIN)


def occluder(
    draw: ImageDraw.ImageDraw, side: int, target: np.ndarray, extent: float, scene: Scene, rng: np.random.Generator
) -> None:
    """A leaf or two, a reed or a bare twig in front of ``target``, small against the ``extent`` of the bird."""
    kind = rng.integers(3)
    if kind == 0:
        xy = target + rng.normal(0, 0.05, (2, 2)) * extent
        size = rng.uniform(0.16, 0.24, (2, 1)) * extent * (1, 0.5)
        _stamps(itertools.repeat(draw), _LEAF, xy, rng.uniform(0, 360, 2), size, SCENES["forest"].greens, rng, _VEIN)
    elif kind == 1:
        angle = rng.uniform(-105, -75, 1)
        length = rng.uniform(0.6, 1.0) * side
        root = target - rotation(angle[0])[:, 0] * 0.6 * length
        _stamps(
            itertools.repeat(draw), _BLADE, root[None], angle, np.array([[length, 0.045 * extent]]), scene.greens, rng
        )
    else:
        reach = rotation(rng.uniform(-60, 60))[:, 0] * rng.uniform(0.25, 0.5) * side
        twig(draw, target - reach, target + reach, side, 2, scene.greens, rng, 0.05 * extent / side)


def light(
    bird: np.ndarray, top: float, bottom: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A gradient, dappled shade and grain, and the bird darker from its top to its bottom.

    Args:
        bird: bool [size, size], where the bird is.
        top: Row of the bird's top.
        bottom: Row of the bird's bottom.
        rng: Decides all but the bird's shading.

    Returns:
        A factor per pixel, float32 [size, size], and one per channel, the overall brightness and warmth.
    """
    size = len(bird)
    coarse = rng.uniform(0.86, 1.1, (4, 4)).astype(np.float32)
    field = np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    down, right = rng.uniform(-0.14, 0.14, 2).astype(np.float32)
    field += (down * ramp)[:, None] + right * ramp
    field += rng.random((size, size), dtype=np.float32) * np.float32(0.04)
    rows = np.arange(size, dtype=np.float32)
    field += bird * (0.12 - 0.3 * ((rows - top) / (bottom - top)).clip(0, 1)).astype(np.float32)[:, None]
    brightness, warmth = rng.uniform(0.9, 1.12), rng.uniform(-0.07, 0.07)
    return field, (brightness * (1 + warmth), brightness, brightness * (1 - warmth))


def _stamps(
    draws: Iterable[ImageDraw.ImageDraw],
    outline: np.ndarray,
    xy: np.ndarray,
    degrees: np.ndarray,
    size: np.ndarray,
    colours: Sequence[RGB],
    rng: np.random.Generator,
    vein: np.ndarray | None = None,
) -> None:
    """Copies of an outline, each with its own of the draws: points [P, 2], places [n, 2], angles [n], sizes [n, 2]."""
    angle = np.radians(degrees)
    axis = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    frame = np.stack([axis * size[:, :1], np.stack([-axis[:, 1], axis[:, 0]], axis=1) * size[:, 1:]], axis=1)
    polygons = (outline @ frame + xy[:, None]).reshape(len(xy), outline.size).tolist()
    veins = [] if vein is None else (vein @ frame + xy[:, None]).reshape(len(xy), vein.size).tolist()
    picks, tones = rng.integers(len(colours), size=len(xy)).tolist(), rng.uniform(0.82, 1.12, len(xy)).tolist()
    for (k, polygon), draw in zip(enumerate(polygons), draws, strict=False):
        colour = shade(colours[picks[k]], tones[k])
        draw.polygon(polygon, fill=(*colour, 0))
        if veins:
            draw.polygon(veins[k], fill=(*shade(colour, 0.78), 0))
