"""Measured numbers in the documentation, and the rows of ``results/`` that they are taken from.

python -m benchmarks.report [--write]
python -m benchmarks.report --rows loader

``docs/numbers.json`` says where numbers come from: under the name of a document, passages with ``{}`` for every number,
and for each of them its row:

    {"text": "DALI decodes {} images/s, {}x ImageFolder", "rows": [
        "loader: dali_cpu, 2 workers, throughput, p50",
        "loader: dali_cpu, throughput, p50 / imagefolder, throughput, p50"]}

First the file in ``results/``, then what its row must hold in device, case, provider, mode or metric, last the column.
Of rows that differ in date and version only the newest counts. A quotient before " %" is a percentage. The number
keeps its decimals and its thousands' commas. A passage stands once in its document, broken into lines anywhere. Without
``--write`` nothing is changed, and numbers that are not those of the rows are an error.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tools import ledger
from benchmarks.tools.command import run_main
from pipelines.files import atomic_write

ROOT = Path(__file__).parent.parent
NAME = ("case", "provider", "mode", "metric")
KEY = ("device", *NAME)
VALUES = ("p20", "p50", "p80", "n")
NUMBER = r"([\d,]*\d(?:\.\d+)?)"
NUMBERS = ROOT / "docs" / "numbers.json"

Row = dict[str, str]
Passage = Mapping[str, Any]


def passages(path: Path = NUMBERS) -> dict[Path, list[Passage]]:
    """The documents with measured numbers, and the passages of each that hold them."""
    return {ROOT / name: marked for name, marked in json.loads(path.read_text()).items()}


def read(name: str, results: Path = ledger.RESULTS) -> list[Row]:
    """The rows of a file of the ledger, the newest of each device, case, provider, mode and metric, oldest first.

    Raises:
        ValueError: there is no such file.
    """
    path = results / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in results.glob("*.csv")))
        raise ValueError(f"{name}: expected one of {names}")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["date"])
    return list({tuple(row[column] for column in KEY): row for row in rows}.values())


def value(rows: Sequence[Row], words: str) -> float:
    """The number that some words name, such as ``dali_cpu, throughput, p50``; ``A / B`` is a quotient.

    Raises:
        ValueError: no row holds the words, or several do.
    """
    if " / " in words:
        above, _, below = words.partition(" / ")
        return value(rows, above) / value(rows, below)
    *wanted, column = words.split(", ")
    if column not in VALUES:
        raise ValueError(f"{words}: expected one of {', '.join(VALUES)} at the end, got {column}")
    matching = [row for row in rows if _holds(row, ", ".join(wanted))]
    if len(matching) != 1:
        names = "; ".join(", ".join(row[key] for key in KEY) for row in matching)
        raise ValueError(f"{words}: expected one row, got {names or 'none'}")
    return float(matching[0][column])


def _holds(row: Row, words: str) -> bool:
    """Whether fields of the row follow each other in the words. Fields have commas of their own."""
    wanted = f", {words},"
    for column in KEY:
        wanted = wanted.replace(f", {row[column]},", ",", 1)
    return wanted == ","


def render(text: str, passages: Sequence[Passage], results: Path = ledger.RESULTS) -> tuple[str, list[str]]:
    """A document with every measured number as its row has it.

    Args:
        text: The document.
        passages: Of it, each with ``text`` and ``rows``.
        results: Folder of rows.

    Returns:
        The text, and a line for each number that was another.

    Raises:
        ValueError: a passage does not stand in the document once, or names no row.
    """
    changes = []
    for passage in passages:
        matches = list(re.finditer(_pattern(passage["text"]), text))
        if len(matches) != 1:
            raise ValueError(f"expected once, found {len(matches)} times: {passage['text']}")
        if len(matches[0].groups()) != len(passage["rows"]):
            raise ValueError(f"expected a row for every {{}}, got {len(passage['rows'])}: {passage['text']}")
        numbers = list(enumerate(passage["rows"], start=1))
        for index, words in reversed(numbers):  # from the end, so that places before it stay
            start, end = matches[0].span(index)
            right = _written(text[start:end], words, text[end : end + 2] == " %", results)
            if right != text[start:end]:
                changes.append(f"{words}: {right}, not {text[start:end]}")
                text = text[:start] + right + text[end:]
    return text, changes


def _pattern(passage: str) -> str:
    words = (NUMBER.join(map(re.escape, word.split("{}"))) for word in passage.split(" "))
    return r"(?<![\d.,])" * passage.startswith("{}") + r"\s+".join(words)


def _written(number: str, words: str, percent: bool, results: Path) -> str:
    """The value of a row with the decimals and commas of the number that stands for it."""
    name, _, row = words.partition(": ")
    exact = value(read(name, results), row)
    if percent and " / " in row:
        exact *= 100
    decimals = len(number.partition(".")[2])
    return f"{exact:,.{decimals}f}" if "," in number or exact >= 1000 else f"{exact:.{decimals}f}"


def table(rows: Sequence[Row]) -> str:
    """Rows in Markdown, with what they were measured on."""
    lines = ["| case | provider | mode | metric | p20 | p50 | p80 | n | device | commit |", "|" + "---|" * 10]
    for row in rows:
        names = [row["case"], row["provider"], row["mode"], f"{row['metric']}, {row['unit']}"]
        commit = row["commit"] + (" and changes" if row["dirty"] == "1" else "")
        lines.append("| " + " | ".join([*names, *(row[name] for name in VALUES), row["device"], commit]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares or writes; exit code 1 if a number is not that of its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="put the numbers of the rows into the documents")
    parser.add_argument("--rows", metavar="NAME", help="print the newest rows of results/NAME.csv instead")
    options = parser.parse_args(arguments)
    wrong = 0
    try:
        if options.rows:
            print(table(read(options.rows)))
            return 0
        for path, marked in passages().items():
            text, changes = render(path.read_text(), marked)
            print("".join(f"{path}: {change}\n" for change in changes), end="")
            wrong += len(changes)
            if changes and options.write:
                with atomic_write(path) as file:
                    file.write(text.encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"not those of the rows: {wrong}" if wrong else "all marked numbers are those of the rows")
    return int(wrong > 0 and not options.write)


if __name__ == "__main__":
    run_main(main)
