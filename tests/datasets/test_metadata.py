"""Places of photos in class folders: from a table beside them, or from what cameras wrote."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from pipelines.datasets.folder import Folder
from pipelines.datasets.metadata import read_places
from pipelines.places import Place
from pipelines.shards.manifest import Manifest
from rg.cli.main import main

TABLE = """\
file,latitude,longitude,date,observer
robin/0.jpg,52.5,13.25,2021-05-03,A
.\\wren\\1.jpg,,,2020-11-30,B
wren/0.jpg,,,,
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for name in ("robin", "wren"):
        for number in range(3):
            path = folder / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif.get_ifd(0x8825).update({1: "N", 2: (10.0, 30.0, 0.0), 3: "W", 4: (20.0 + number, 0.0, 0.0)})
            Image.new("RGB", (20, 20 + number), (0, 90, 40 * number)).save(path, exif=exif)
    return folder


def places(raw: Path, locations: str) -> dict[str, Place | None]:
    folders = [Folder(raw, split, locations=locations) for split in ("train", "val")]  # type: ignore[arg-type]
    return {sample.source: sample.place for folder in folders for sample in map(folder.__getitem__, range(len(folder)))}


def test_a_table_tells_of_some_photos(raw: Path) -> None:
    (raw / "metadata.csv").write_text(TABLE)
    found = places(raw, "csv")
    assert found["robin/0.jpg"] == Place(52.5, 13.25, 123)
    assert found["wren/1.jpg"] == Place(day=335)
    assert [source for source, place in found.items() if place] == sorted(["robin/0.jpg", "wren/1.jpg"])


def test_a_table_of_a_spreadsheet(raw: Path) -> None:
    (raw / "metadata.csv").write_text("\ufefffile;Latitude;Longitude;Date\r\nrobin/0.jpg;1;2;\r\n", encoding="utf-8")
    assert read_places(raw) == {"robin/0.jpg": Place(1, 2)}


def test_cameras_are_asked_only_if_told_to(raw: Path) -> None:
    assert not any(places(raw, "none").values())
    assert places(raw, "exif")["wren/2.jpg"] == Place(10.5, -22.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,latitude,longitude,date\nrobin/0.jpg,91,0,\n", "line 2: latitude: expected -90 to 90 degrees, got 91"),
        ("file,latitude,longitude,date\nrobin/0.jpg,,,3.5.2021\n", "line 2: date: expected YYYY-MM-DD, got '3.5.2021'"),
        ("file,latitude,longitude,date\nrobin/0.jpg,1,,\n", "line 2: latitude, longitude: expected both or neither"),
        ("file,latitude,longitude,date\na,1,2,\na,1,2,\n", "line 3: a is in the table twice"),
        (
            "file,lat,lon,date\n",
            "latitude, longitude, date, but latitude, longitude is missing",
        ),
        ("", "but file, latitude, longitude, date is missing"),
    ],
)
def test_bad_tables_are_one_line(raw: Path, table: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "metadata.csv").write_text(table)
    assert main(["prepare", "folder", "--raw", str(raw), "--out", str(raw.parent / "out"), "--locations", "csv"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert str(raw / "metadata.csv") in error[0]


def test_a_missing_table_is_named(raw: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata\.csv is missing; it has the columns file, "):
        Folder(raw, "train", locations="csv")


def test_lines_of_photos_that_are_gone(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    (raw / "metadata.csv").write_text(TABLE + "owl/1.jpg,1,2,\n")
    with caplog.at_level(logging.WARNING):
        read_places(raw)
    assert "files that are not there: 1 of 4, such as owl/1.jpg" in caplog.text


def test_the_digest_tells_other_places(raw: Path) -> None:
    before = Folder(raw, "train").digest()
    (raw / "metadata.csv").write_text(TABLE)
    assert Folder(raw, "train").digest() == before
    first = [Folder(raw, split, locations="csv").digest() for split in ("train", "val")]
    (raw / "metadata.csv").write_text(TABLE.replace("52.5", "52.6").replace("11-30", "11-29"))
    second = [Folder(raw, split, locations="csv").digest() for split in ("train", "val")]
    assert first != second


@pytest.mark.parametrize("locations", ["none", "exif"])
def test_prepare_folder(raw: Path, tmp_path: Path, locations: str) -> None:
    out = tmp_path / "shards"
    assert not main(
        ["prepare", "folder", "--raw", str(raw), "--out", str(out), "--locations", locations, "--jobs", "1"]
    )
    manifest = Manifest.load(out)
    assert manifest.locations is (locations == "exif")
    assert manifest.options.get("locations") == (None if locations == "none" else "exif")
