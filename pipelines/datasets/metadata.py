"""Where and when the photos of a folder were taken, from a table beside them: ``metadata.csv``.

    file,latitude,longitude,date
    robin/0017.jpg,52.51,13.40,2021-05-03
    wren/a.jpg,,,2020-11-30

The file is a path below the folder of the table. Cells may be empty, photos may be missing, other columns do not count.
Cells are separated by commas, or by semicolons as spreadsheets of some countries do.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from pipelines.places import Place

METADATA = "metadata.csv"
COLUMNS = ("file", "latitude", "longitude", "date")

logger = logging.getLogger(__name__)


def read_places(raw: Path) -> dict[str, Place]:
    """Path of a photo below the folder, with slashes -> its place; photos of which nothing is known are left out.

    Raises:
        ValueError: there is no such table, a column is missing, or a line cannot be understood; the message names it.
        OSError: the table cannot be read.
    """
    path = raw / METADATA
    if not path.is_file():
        raise ValueError(f"{path} is missing; it has the columns {', '.join(COLUMNS)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text; export the table as CSV in UTF-8") from None
    head = lines[0] if lines else ""
    table = csv.DictReader(lines, delimiter=";" if head.count(";") > head.count(",") else ",")
    columns = {(name or "").strip().lower(): name for name in table.fieldnames or ()}
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, but {', '.join(missing)} is missing")
    places: dict[str, Place | None] = {}
    for row in table:
        file, *values = ((row[columns[name]] or "").strip() for name in COLUMNS)
        file = file.replace("\\", "/").removeprefix("./")
        if not file:
            continue
        try:
            if file in places:
                raise ValueError(f"{file} is in the table twice")
            places[file] = Place.read(*values)
        except ValueError as error:
            raise ValueError(f"{path}, line {table.line_num}: {error}") from None
    if gone := sorted(file for file in places if not (raw / file).is_file()):
        logger.warning("%s: files that are not there: %d of %d, such as %s", path, len(gone), len(places), gone[0])
    return {file: place for file, place in places.items() if place}
