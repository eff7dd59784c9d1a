"""Annotation files in the format of COCO: JSON with tables of images, categories and annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, kind: type[Any] = dict) -> Any:
    """The tables of an annotation file, which is an object; or the entries of one that is a list.

    Raises:
        ValueError: it is no JSON, or of another kind.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, kind):
        expected = "object" if kind is dict else kind.__name__
        raise ValueError(f"{path}: expected a JSON {expected}, got a {type(content).__name__}")
    return content


def column(
    path: Path, content: dict[str, Any], table: str, key: str, kind: type[Any], missing: Any = None
) -> list[Any]:
    """One value of every entry of a table, ``missing`` where there is none.

    Raises:
        ValueError: a value is of another type, or there is none and ``missing`` is None.
    """
    entries = content.get(table)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: {table} is missing or no list")
    values: list[Any] = [entry.get(key, missing) if isinstance(entry, dict) else None for entry in entries]
    for number, value in enumerate(values):
        if type(value) is not kind or (kind is int and not 0 <= value < 2**31):
            actual = "none" if value is None else repr(value)[:60]
            raise ValueError(f"{path}: {table}[{number}]: expected {key} ({kind.__name__}), got {actual}")
    return values
