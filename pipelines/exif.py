"""Where and when a photo was taken, as the camera wrote it into the file."""

from __future__ import annotations

import io
import warnings
from typing import Any

from pipelines.formats import open_image
from pipelines.places import Place, day_of_year

GPS_BLOCK, CAMERA_BLOCK = 0x8825, 0x8769
NORTH_OR_SOUTH, LATITUDE, EAST_OR_WEST, LONGITUDE = 1, 2, 3, 4  # in the block of GPS
TAKEN = 0x9003  # DateTimeOriginal, in the block of the camera


def exif_place(data: bytes) -> Place | None:
    """The place that an image file tells of.

    Cameras write zeros, blanks or nothing where they do not know, and a damaged block tells nothing: all of that is not
    known, nor is latitude 0 with longitude 0, which is what receivers say that have found no satellite.

    Args:
        data: The bytes of an image file.

    Returns:
        None if it tells nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(io.BytesIO(data)) as image:
                exif = image.getexif()
                gps, camera = exif.get_ifd(GPS_BLOCK), exif.get_ifd(CAMERA_BLOCK)
        except Exception:  # a damaged file makes Pillow raise nearly anything; it is refused where it is decoded
            return None
    latitude, longitude = _degrees(gps, LATITUDE, NORTH_OR_SOUTH, "S"), _degrees(gps, LONGITUDE, EAST_OR_WEST, "W")
    day = _day(camera.get(TAKEN))
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None if day is None else Place(day=day)
    try:
        return Place(latitude, longitude, day)
    except ValueError:  # out of range
        return None if day is None else Place(day=day)


def _degrees(gps: Any, number: int, side: int, negative: str) -> float | None:
    """Degrees of three numbers: degrees, minutes, seconds."""
    try:
        degrees, minutes, seconds = map(float, gps[number])
        value = degrees + minutes / 60 + seconds / 3600
        return -value if str(gps[side]).strip().upper() == negative else value
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _day(taken: object) -> int | None:
    """Day of the year of a date such as 2017:06:21 12:00:00."""
    date, _, time = str(taken).strip().partition(" ")
    try:
        return day_of_year(f"{date.replace(':', '-')} {time}")
    except ValueError:
        return None
