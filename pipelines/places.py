"""Where and when a photo was taken: latitude and longitude in degrees, and the day of the year."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass

DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})([T ].*)?")
LIMITS = {"latitude": (-90, 90), "longitude": (-180, 180)}  # degrees
LAST_DAY = 366


@dataclass(frozen=True)
class Place:
    """Where and when a photo was taken, as far as that is known.

    Attributes:
        latitude: Degrees north, -90 to 90; None if it is not known.
        longitude: Degrees east, -180 to 180; None if it is not known.
        day: Of the year, 1 to 366; None if it is not known.

    Raises:
        ValueError: a number is out of its range, one coordinate comes without the other, or nothing is known.
    """

    latitude: float | None = None
    longitude: float | None = None
    day: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and low <= value <= high):
                got = f"{value:g}" if isinstance(value, float) else repr(value)
                raise ValueError(f"{name}: expected {low} to {high} degrees, got {got}")
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude, longitude: expected both or neither, got one")
        if self.day is not None and not (type(self.day) is int and 1 <= self.day <= LAST_DAY):
            raise ValueError(f"day: expected a day of the year, 1 to {LAST_DAY}, got {self.day!r}")
        if self.latitude is None and self.day is None:
            raise ValueError("place: expected latitude and longitude, a day, or all of them, got nothing")

    @classmethod
    def read(cls, latitude: str | float | None, longitude: str | float | None, date: str | None) -> Place | None:
        """From what people write; what is empty or None is not known.

        Args:
            latitude: Degrees north.
            longitude: Degrees east.
            date: YYYY-MM-DD, perhaps with a time behind it, which does not count.

        Returns:
            None if nothing is known.

        Raises:
            ValueError: one of them cannot be read, or is out of its range.
        """
        north, east = _degrees("latitude", latitude), _degrees("longitude", longitude)
        day = day_of_year(date) if date and date.strip() else None
        if north is None and east is None and day is None:
            return None
        return cls(north, east, day)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Latitude, longitude and day; nan for what is not known."""
        latitude, longitude, day = (
            math.nan if value is None else float(value) for value in (self.latitude, self.longitude, self.day)
        )
        return latitude, longitude, day


UNKNOWN = (math.nan, math.nan, math.nan)  # numbers of no place at all


def day_of_year(date: str) -> int:
    """1 to 366.

    Args:
        date: YYYY-MM-DD, perhaps with a time behind it.

    Raises:
        ValueError: it is no date.
    """
    found = DATE.fullmatch(date.strip())
    try:
        if found:
            return datetime.date(*map(int, found.groups()[:3])).timetuple().tm_yday
    except ValueError:  # such as 2017-02-30
        pass
    raise ValueError(f"date: expected YYYY-MM-DD, got {date[:40]!r}")


def _degrees(name: str, value: str | float | None) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected degrees such as 52.5, got {value!r:.40}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
