"""The vocabulary of the birds, and the draw of species from it.

A species is a family, which fixes the body shape, and a tuple of part variants. Up to eight species make a genus: they
are equal but for three telling parts, one of the head, one of the trunk and the tail, each of which comes in two
variants. So a species has near-duplicates that differ from it in exactly one part, and no part alone tells the species:
who wants to know it must look at all three places. Species of different genera differ in at least ``MARGIN`` parts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from pipelines.drawn.shapes import COLOURS, Point

PARTS = ("beak", "eye", "head", "crest", "wing", "belly", "tail", "legs")
LANDMARKS = {
    "beak tip": "beak",
    "eye": "eye",
    "crown": "head",
    "nape": "head",
    "breast": "belly",
    "belly": "belly",
    "shoulder": "wing",
    "wing tip": "wing",
    "tail tip": "tail",
    "feet": "legs",
}  # name -> the part it lies on


# The shapes that a part can take; beaks are a matter of the family.
SHAPES: dict[str, tuple[str, ...]] = {
    "eye": ("round", "ringed", "browed"),
    "head": ("plain", "capped", "masked", "cheeked"),
    "crest": ("tuft", "plume", "fan", "topknot", "horn"),
    "wing": ("shielded", "barred", "tipped"),
    "belly": ("plain", "bibbed", "spotted", "barred"),
    "tail": ("fan", "fork", "square", "streamers"),
    "legs": ("bare", "booted", "webbed"),
}


@dataclass(frozen=True)
class Variant:
    """One way that a part can look.

    Attributes:
        shape: One of ``SHAPES[part]``, or of the family's beaks.
        colour: Name in ``COLOURS``.
        accent: Name in ``COLOURS`` of the part's pattern.
    """

    shape: str
    colour: str
    accent: str


@dataclass(frozen=True)
class Species:
    """A family, which fixes the body shape, and one variant per part in the order of ``PARTS``."""

    family: str
    parts: tuple[Variant, ...]


@dataclass(frozen=True)
class Family:
    """The proportions that the species of a family share, in body lengths."""

    body: tuple[Point, ...]
    neck: tuple[Point, ...]
    head: Point
    head_radius: float
    shoulder: Point
    wing: float
    tail: Point
    tail_length: float
    tail_angle: float
    hip: Point
    leg: float
    beak: float
    beaks: tuple[str, ...]
    stance: float
    nouns: tuple[str, ...]


_PLUMP = (
    (0.43, -0.14), (0.47, 0.07), (0.36, 0.28), (0.08, 0.37), (-0.24, 0.27), (-0.48, 0.07), (-0.52, -0.04),
    (-0.3, -0.16), (0.0, -0.28), (0.24, -0.3),
)  # fmt: skip
_SLIM = (
    (0.42, -0.14), (0.45, 0.04), (0.32, 0.21), (0.06, 0.27), (-0.26, 0.19), (-0.54, 0.04), (-0.58, -0.05),
    (-0.34, -0.14), (0.0, -0.25), (0.24, -0.27),
)  # fmt: skip
_BOAT = (
    (0.5, -0.12), (0.54, 0.06), (0.4, 0.23), (0.02, 0.3), (-0.4, 0.2), (-0.62, -0.06), (-0.6, -0.14),
    (-0.36, -0.15), (0.0, -0.2), (0.3, -0.22),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "Songbirds": Family(
        _PLUMP, (), (0.34, -0.36), 0.26, (0.2, -0.1), 0.74, (-0.42, -0.03), 0.5, 180, (0.0, 0.31), 0.3,
        0.24, ("cone", "dagger", "hook"), -8, ("finch", "lark", "warbler", "thrush", "wren", "robin"),
    ),
    "Waders": Family(
        _SLIM, ((0.22, -0.2), (0.44, -0.1), (0.5, -0.4), (0.54, -0.68), (0.4, -0.7), (0.36, -0.45)), (0.48, -0.74),
        0.18, (0.22, -0.08), 0.78, (-0.46, -0.02), 0.34, 176, (-0.02, 0.2), 0.66,
        0.46, ("dagger", "sickle", "spoon"), 0, ("heron", "stilt", "ibis", "crane", "plover", "curlew"),
    ),
    "Hawks": Family(
        _SLIM, (), (0.38, -0.32), 0.22, (0.24, -0.1), 0.96, (-0.46, -0.02), 0.52, 184, (-0.06, 0.22), 0.24,
        0.22, ("hook", "cone", "dagger"), -38, ("hawk", "falcon", "kite", "harrier", "eagle", "buzzard"),
    ),
    "Ducks": Family(
        _BOAT, ((0.2, -0.16), (0.5, -0.06), (0.6, -0.3), (0.6, -0.48), (0.38, -0.5), (0.34, -0.3)), (0.5, -0.5),
        0.215, (0.2, -0.06), 0.68, (-0.54, -0.08), 0.32, 200, (-0.02, 0.25), 0.2,
        0.3, ("spoon", "cone", "sickle"), 0, ("teal", "pochard", "wigeon", "eider", "goose", "scoter"),
    ),
    "Hummers": Family(
        _SLIM, (), (0.4, -0.3), 0.2, (0.26, -0.12), 0.84, (-0.48, -0.02), 0.44, 178, (-0.1, 0.2), 0.14,
        0.44, ("dagger", "sickle", "needle"), -26, ("sylph", "hermit", "comet", "jewel", "emerald", "nymph"),
    ),
    "Parrots": Family(
        _PLUMP, (), (0.36, -0.36), 0.28, (0.22, -0.1), 0.82, (-0.42, -0.02), 0.86, 182, (-0.02, 0.3), 0.18,
        0.26, ("hook", "cone", "spoon"), -32, ("macaw", "lory", "conure", "amazon", "rosella", "corella"),
    ),
}  # fmt: skip

# Colours that go together: belly and head, wing and tail, two for the patterns.
_PALETTES = (
    ("Azure", "Indigo", "Amber", "Ivory"),
    ("Scarlet", "Sooty", "Golden", "Ivory"),
    ("Golden", "Moss", "Sooty", "Ivory"),
    ("Ivory", "Slate", "Scarlet", "Amber"),
    ("Teal", "Jade", "Rose", "Ivory"),
    ("Violet", "Indigo", "Golden", "Rose"),
    ("Amber", "Chestnut", "Ivory", "Teal"),
    ("Rose", "Violet", "Ivory", "Golden"),
    ("Jade", "Teal", "Golden", "Scarlet"),
    ("Chestnut", "Sooty", "Azure", "Ivory"),
    ("Slate", "Indigo", "Rose", "Golden"),
    ("Ivory", "Teal", "Amber", "Sooty"),
    ("Indigo", "Azure", "Scarlet", "Ivory"),
    ("Moss", "Chestnut", "Golden", "Scarlet"),
    ("Sooty", "Slate", "Scarlet", "Golden"),
    ("Golden", "Amber", "Azure", "Ivory"),
)
# Which colours of the palette a part picks from, most natural first.
_ROLES = {
    "beak": (2, 1, 3),
    "eye": (3, 2),
    "head": (0, 1, 2),
    "crest": (2, 1, 0),
    "wing": (1, 0),
    "belly": (0, 3),
    "tail": (1, 0, 2),
    "legs": (2, 1, 3),
}
_ADJECTIVES = {
    "beak": "billed",
    "eye": "eyed",
    "head": "headed",
    "crest": "crested",
    "wing": "winged",
    "belly": "bellied",
    "tail": "tailed",
    "legs": "legged",
}
_PREFIXES = (
    "Sun", "Moon", "Dawn", "Dusk", "Mist", "Storm", "River", "Meadow", "Reed", "Willow", "Thorn", "Clover", "Ember",
    "Frost", "Honey", "Thistle",
)  # fmt: skip

MARGIN = 3
# One part of each place tells the species of a genus apart; eyes and legs are too small to do it alone.
_TELLING = (("beak", "head", "crest"), ("wing", "belly"), ("tail",))
# The eight choices of three parts, neighbours differing in one: so any genus, full or not, is made of near-duplicates.
_GRAY_CODE = (0, 1, 3, 2, 6, 7, 5, 4)
MAX_SPECIES = 500
_CONTRAST = 150.0  # smallest distance in RGB of the two colours by which near-duplicates differ


def draw_species(count: int, rng: np.random.Generator) -> tuple[list[Species], list[tuple[int, int, str]]]:
    """Draws ``count`` species, genus by genus.

    Returns:
        The species, and for each pair of near-duplicates the two indices and the part in which they differ.
    """
    drawn: list[Species] = []
    pairs: list[tuple[int, int, str]] = []
    for family in itertools.cycle(FAMILIES):
        if len(drawn) == count:
            break
        base = _draw_one(family, rng)
        telling = [str(rng.choice(place)) for place in _TELLING]
        other = {part: _other(base, part, rng) for part in telling}
        codes = _GRAY_CODE[: count - len(drawn)]
        genus = [
            _replaced(base, {part: other[part] for bit, part in enumerate(telling) if code >> bit & 1})
            for code in codes
        ]
        if any(_differences(new, old) < MARGIN for new in genus for old in drawn):
            continue
        for a, b in itertools.combinations(range(len(genus)), 2):
            bits = codes[a] ^ codes[b]
            if bits.bit_count() == 1:
                pairs.append((len(drawn) + a, len(drawn) + b, telling[bits.bit_length() - 1]))
        drawn += genus
    order = rng.permutation(count)
    label = np.argsort(order).tolist()
    return [drawn[k] for k in order], [(label[a], label[b], part) for a, b, part in pairs]


def draw_names(species: list[Species], pairs: list[tuple[int, int, str]], rng: np.random.Generator) -> list[str]:
    """Invents a unique name for each species, after one of the parts that tell it apart."""
    telling: dict[int, set[str]] = {label: set() for label in range(len(species))}
    for a, b, part in pairs:
        telling[a].add(part)
        telling[b].add(part)
    names: list[str] = []
    for label, bird in enumerate(species):
        while True:
            part = str(rng.choice(sorted(telling[label]) or PARTS))
            adjective = f"{bird.parts[PARTS.index(part)].colour}-{_ADJECTIVES[part]}"
            name = f"{adjective} {rng.choice(_PREFIXES)}{rng.choice(FAMILIES[bird.family].nouns)}"
            if name not in names:
                break
        names.append(name)
    return names


def _draw_one(family: str, rng: np.random.Generator) -> Species:
    palette = _PALETTES[rng.integers(len(_PALETTES))]
    variants = []
    for part in PARTS:
        shape = str(rng.choice(shapes(family, part)))
        colour = palette[int(rng.choice(_ROLES[part]))]
        accent = str(rng.choice([name for name in palette if name != colour]))
        variants.append(Variant(shape, colour, accent))
    return Species(family, tuple(variants))


def _other(species: Species, part: str, rng: np.random.Generator) -> Variant:
    """Another shape and a clearly different colour for one part of a species."""
    old = species.parts[PARTS.index(part)]
    shape = str(rng.choice([name for name in shapes(species.family, part) if name != old.shape]))
    distance = {
        name: float(np.linalg.norm(np.subtract(COLOURS[name], COLOURS[old.colour])))
        for name in COLOURS
        if name != old.accent
    }
    colour = str(rng.choice([name for name, far in distance.items() if far >= _CONTRAST]))
    return replace(old, shape=shape, colour=colour)


def _replaced(species: Species, variants: dict[str, Variant]) -> Species:
    return replace(
        species, parts=tuple(variants.get(part, old) for part, old in zip(PARTS, species.parts, strict=True))
    )


def shapes(family: str, part: str) -> tuple[str, ...]:
    """The shapes that a part can take in a family."""
    return FAMILIES[family].beaks if part == "beak" else SHAPES[part]


def _differences(a: Species, b: Species) -> int:
    return sum(x != y for x, y in zip(a.parts, b.parts, strict=True))
