"""Places as people and cameras write them."""

import datetime
import io
import math

import pytest
from PIL import Image

from pipelines.exif import exif_place
from pipelines.places import Place, day_of_year


def test_days_are_those_of_the_calendar() -> None:
    first = datetime.date(2016, 1, 1)
    for day in range(366):
        assert day_of_year((first + datetime.timedelta(day)).isoformat()) == day + 1
    assert day_of_year("2017-06-21T23:59:59+02:00") == day_of_year("2017-06-21 00:00") == 172


@pytest.mark.parametrize("date", ["21.06.2017", "2017-6-21", "2017-02-29", "2017-13-01", "172", "June", "2017-06-21x"])
def test_other_dates_are_refused(date: str) -> None:
    with pytest.raises(ValueError, match=r"date: expected YYYY-MM-DD, got "):
        day_of_year(date)


def test_what_is_not_told_is_not_known() -> None:
    assert Place.read("", None, " ") is None
    assert Place.read("52.5", " 13.25", None) == Place(52.5, 13.25)
    assert Place.read(None, "", "2017-01-02") == Place(day=2)
    assert Place(day=2).numbers[2] == 2
    assert all(map(math.isnan, Place(day=2).numbers[:2]))
    assert Place(0, -180, 366).numbers == (0, -180, 366)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((91, 0, None), "latitude: expected -90 to 90 degrees, got 91"),
        ((0, -180.5, None), "longitude: expected -180 to 180 degrees, got -180.5"),
        (("north", "0", None), "latitude: expected degrees such as 52.5, got 'north'"),
        (("nan", "0", None), "latitude: expected -90 to 90 degrees, got nan"),
        ((1, None, None), "latitude, longitude: expected both or neither, got one"),
        ((None, None, "yesterday"), "date: expected YYYY-MM-DD, got 'yesterday'"),
    ],
)
def test_bad_values_are_named(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Place.read(*values)


@pytest.mark.parametrize("day", [0, 367, 1.0, True])
def test_days_are_numbered_from_1_to_366(day: float) -> None:
    with pytest.raises(ValueError, match="day: expected a day of the year"):
        Place(day=day)  # type: ignore[arg-type]


def test_a_place_says_something() -> None:
    with pytest.raises(ValueError, match="place: expected"):
        Place()


def photo(gps: dict | None = None, taken: str | None = None) -> bytes:
    exif = Image.Exif()
    if gps is not None:
        exif.get_ifd(0x8825).update(gps)
    if taken is not None:
        exif.get_ifd(0x8769)[0x9003] = taken
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def gps(latitude: tuple, north: str, longitude: tuple, east: str) -> dict:
    return {1: north, 2: latitude, 3: east, 4: longitude}


def test_cameras_write_degrees_minutes_and_seconds() -> None:
    place = exif_place(photo(gps((33, 51, 25.2), "S", (151, 12, 54.0), "E"), "2019:12:31 23:59:58"))
    assert place is not None
    assert place.latitude == pytest.approx(-33.857, abs=1e-6)
    assert place.longitude == pytest.approx(151.215, abs=1e-6)
    assert place.day == 365
    west = exif_place(photo(gps((0, 30, 0), "N", (90, 0, 0), "W")))
    assert west == Place(0.5, -90.0)


@pytest.mark.parametrize(
    "place", [None, gps((0, 0, 0), "N", (0, 0, 0), "E"), gps((95, 0, 0), "N", (1, 0, 0), "E"), {1: "N"}]
)
@pytest.mark.parametrize(("taken", "day"), [(None, None), ("0000:00:00 00:00:00", None), ("2017:01:09 10:00:00", 9)])
def test_what_a_camera_does_not_know(place: dict | None, taken: str | None, day: int | None) -> None:
    assert exif_place(photo(place, taken)) == (Place(day=day) if day else None)


def test_files_without_a_word_tell_nothing() -> None:
    assert exif_place(b"no image") is None
    assert exif_place(photo()[:40]) is None
