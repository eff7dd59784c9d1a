"""Explanations as a table, one row for each image: for spreadsheets, and for those who compute with them."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.files import atomic_write
from rg.explain.folder import SETTINGS, TABLES, Line, read_lines
from rg.runs.folder import read_json

ROWS = 4096  # that are written at once
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to compute

PLACE_COLUMNS: dict[str, type] = {"place: adds": float, "label without place": str}

Cell = str | float | bool | None


def check_table(kind: str) -> None:
    """Refuse a kind of table that cannot be written here.

    Raises:
        ValueError: there is no such kind, or its library is not installed.
    """
    if kind not in (*TABLES, "none"):
        raise ValueError(f"table: expected {', '.join(TABLES)} or none, got {kind!r}")
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("table: parquet needs pyarrow; pip install 'region-grouping[parquet]', or take csv")


def write_table(folder: Path, kind: str) -> None:
    """Write the table of a folder that ``explain`` has written, all or nothing; none of another kind stays.

    Columns are the file, the answer, how sure it is, the rival, the class that its folder names, a summary, and for
    each part what it adds to the logit (``adds``), its occurrence and its share of what the model saw (``area``). Where
    the model was told where and when photos were taken, also what that adds, and the answer by the image alone.
    A part that is merged into another has no columns.

    Args:
        folder: With settings.json and explanations.jsonl.
        kind: csv, in UTF-8 with a mark that spreadsheets look for; parquet; or none.

    Raises:
        ValueError: see ``check_table``.
    """
    check_table(kind)
    settings = read_json(folder / SETTINGS, "parts")
    columns, told = _columns(settings["parts"]), settings.get("place") is not None
    if told:
        columns |= PLACE_COLUMNS
    rows = (_row(line, told) for line in read_lines(folder))
    if kind == "csv":
        with atomic_write(folder / TABLES[kind]) as file:
            _write_csv(file, columns, rows)
    elif kind == "parquet":
        with atomic_write(folder / TABLES[kind]) as file:
            _write_parquet(file, columns, rows)
    for other, name in TABLES.items():
        if other != kind:
            (folder / name).unlink(missing_ok=True)


def _columns(parts: list[dict[str, Any]]) -> dict[str, type]:
    """Name and type of every column."""
    columns: dict[str, type] = {"file": str, "answer": str, "label": str, "probability": float}
    columns |= {"rival": str, "rival_probability": float, "truth": str, "seen": float, "summary": str}
    for number, part in enumerate(parts):
        if part.get("merged_into") is not None:
            continue
        name = part["name"] if part["name"] == f"part {number}" else f"part {number} {part['name']}"
        columns |= {f"{name}: {value}": float for value in ("adds", "occurrence", "area")}
    return columns


def _row(line: Line, told: bool) -> list[Cell]:
    rival = line["rival"] or {}
    cells: list[Cell] = [line["source"], line["answer"], line["label"], line["probability"]]
    cells += [rival.get("label"), rival.get("probability"), line["truth"], line["seen"], line.get("summary")]
    for part in line["parts"]:
        if part.get("merged_into") is None:
            cells += [part["contribution"], part["occurrence"], part["area"]]
    if told:
        place = line["place"] or {}
        cells += [place.get("contribution"), place.get("label_without")]
    return cells


def _write_csv(file: IO[bytes], columns: dict[str, type], rows: Iterator[list[Cell]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="", write_through=True)
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)  # a semicolon in a name separates no cells then
    table.writerow(map(_harmless, columns))
    for row in rows:
        table.writerow(map(_harmless, row))
    text.detach()


def _harmless(cell: Cell) -> Cell:
    """A cell that no spreadsheet takes for a formula: names of files and classes are anybody's."""
    return f"'{_text(cell)}" if isinstance(cell, str) and cell.startswith(FORMULA) else _text(cell)


def _write_parquet(file: IO[bytes], columns: dict[str, type], rows: Iterator[list[Cell]]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with pyarrow.parquet.ParquetWriter(file, schema) as table:
        while some := list(itertools.islice(rows, ROWS)):
            arrays = [
                pyarrow.array([_text(cell) for cell in column], field.type)
                for column, field in zip(zip(*some, strict=True), schema, strict=True)
            ]
            table.write_batch(pyarrow.record_batch(arrays, schema))


def _text(cell: Cell) -> Cell:
    """A cell that is valid UTF-8: names of files may hold other bytes."""
    return cell.encode(errors="surrogateescape").decode(errors="replace") if isinstance(cell, str) else cell
