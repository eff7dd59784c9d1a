"""Where drawn species live on an imaginary earth, and when in the year they are seen.

There are a few regions and two seasons. Species of one genus, which look much alike, never share both; species of
different genera often do. So a place leaves a few species of many, and looks and place together tell what neither does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.places import Place

_STREAM = 3_000_017  # keeps the generators apart from those of species and images
_REGIONS = 4
_SEASONS = (120.0, 280.0)  # days of the year in their middle
_REGION_SPREAD, _SEASON_SPREAD = 9.0, 25.0  # standard deviations in degrees and days
_UNKNOWN = 0.1  # share of the images without coordinates, and without a date
_YEAR = 365


@dataclass(frozen=True)
class Range:
    """Of one species.

    Attributes:
        latitude: Of the middle of its region, degrees.
        longitude: Of the same.
        day: Of the year, in the middle of its season.
    """

    latitude: float
    longitude: float
    day: float


def draw_ranges(genera: Sequence[int], seed: int) -> list[Range]:
    """Draws the range of every species, genus by genus.

    Args:
        genera: Number of species of every genus, at most eight.
        seed: Of the data set.
    """
    rng = np.random.default_rng([seed, _STREAM])
    first = rng.uniform(-180, 180)
    longitudes = [_wrapped(first + 360 * number / _REGIONS, -180, 360) for number in range(_REGIONS)]
    regions = [(float(rng.uniform(-50, 60)), longitude) for longitude in longitudes]
    cells = [Range(*region, day) for region in regions for day in _SEASONS]
    return [cells[cell] for size in genera for cell in rng.choice(len(cells), size, replace=False)]


def draw_place(home: Range, seed: int, split: int, index: int) -> Place | None:
    """Where and when an image of a species was taken; of some images that is not known, or in part only.

    Args:
        home: Of the species.
        seed: Of the data set.
        split: Number of the split.
        index: Number of the image; with the seed and the split it decides all that is random.
    """
    rng = np.random.default_rng([seed, split, index, _STREAM])
    north, east, late = rng.normal(size=3).tolist()
    latitude = min(max(home.latitude + _REGION_SPREAD * north, -90.0), 90.0)
    stretch = max(math.cos(math.radians(latitude)), 0.2)  # a degree of longitude is shorter there
    longitude = _wrapped(home.longitude + _REGION_SPREAD * east / stretch, -180, 360)
    day = 1 + int(_wrapped(home.day + _SEASON_SPREAD * late, 0, _YEAR))
    located, dated = (rng.random(2) >= _UNKNOWN).tolist()
    if not (located or dated):
        return None
    date = day if dated else None
    return Place(round(latitude, 5), round(longitude, 5), date) if located else Place(day=date)


def _wrapped(value: float, low: float, length: float) -> float:
    return (value - low) % length + low
