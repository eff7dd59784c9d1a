"""Explanations as a table: what other programs read of it."""

import csv
import json

import pyarrow.parquet
import pytest

from rg.explain import spreadsheet
from rg.explain.spreadsheet import check_table, write_table

PARTS = [{"name": "part 0"}, {"name": "beak"}, {"name": "=HYPERLINK(1)"}]


def line(number, **values):
    parts = [{"contribution": number + k / 4, "occurrence": 0.5, "area": -k / 8} for k in range(3)]
    facts = {"source": f"photos/{number}.jpg", "answer": "label", "label": "wren", "probability": 1 / (number + 1)}
    return (
        facts | {"rival": {"label": "robin", "probability": 0.25}, "truth": None, "seen": 1.0, "parts": parts} | values
    )


LINES = [
    line(0),
    line(
        1,
        summary='Very likely, "wren". Why; not.',
        label='Grünspecht, "männlich"\nzweite Zeile',
        rival=None,
        truth="wren",
    ),
    line(2, source="=1+1.jpg", label="@home", truth="-robin"),
    line(3, source="photos/\udc80.jpg"),
    line(4, source="photos/x;=1+1.jpg"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"parts": PARTS}))
    (tmp_path / "explanations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def read_csv(folder):
    with (folder / "explanations.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_image(folder):
    write_table(folder, "csv")
    rows = read_csv(folder)
    assert len(rows) == len(LINES)
    for row, expected in zip(rows, LINES, strict=True):
        assert float(row["probability"]) == expected["probability"]  # to the last digit
        assert float(row["part 0: adds"]) == expected["parts"][0]["contribution"]
        assert float(row["part 1 beak: adds"]) == expected["parts"][1]["contribution"]
        assert float(row["part 1 beak: area"]) == -0.125  # a number may begin with a minus
    assert rows[0]["rival"] == "robin"
    assert [row["summary"] for row in rows[:2]] == ["", LINES[1]["summary"]]  # an earlier version wrote none
    assert (rows[1]["rival"], rows[1]["rival_probability"], rows[0]["truth"]) == ("", "", "")
    assert rows[1]["label"] == LINES[1]["label"]


def test_no_cell_is_a_formula_for_a_spreadsheet(folder):
    write_table(folder, "csv")
    row = read_csv(folder)[2]
    assert (row["file"], row["label"], row["truth"]) == ("'=1+1.jpg", "'@home", "'-robin")
    text = (folder / "explanations.csv").read_bytes()
    assert text.startswith(b'\xef\xbb\xbf"file",')
    assert b'"photos/x;=1+1.jpg",' in text  # where a semicolon separates, too


def test_parquet_holds_the_same(folder, monkeypatch):
    monkeypatch.setattr(spreadsheet, "ROWS", 3)  # so that rows are left for a second batch
    write_table(folder, "csv")
    rows = read_csv(folder)
    write_table(folder, "parquet")
    assert not (folder / "explanations.csv").exists()
    table = pyarrow.parquet.read_table(folder / "explanations.parquet").to_pylist()
    assert list(table[0]) == list(rows[0])
    for found, row, expected in zip(table, rows, LINES, strict=True):
        assert found["probability"] == expected["probability"]
        assert found["label"] == expected["label"]
        assert found["part 2 =HYPERLINK(1): adds"] == float(row["part 2 =HYPERLINK(1): adds"])
    assert (table[1]["rival"], table[1]["rival_probability"]) == (None, None)
    assert table[3]["file"] == "photos/\ufffd.jpg"


def test_none_leaves_no_table_of_before(folder):
    write_table(folder, "csv")
    write_table(folder, "none")
    assert sorted(path.name for path in folder.iterdir()) == ["explanations.jsonl", "settings.json"]


def test_what_cannot_be_written_is_told_before_anything_is_explained(monkeypatch):
    with pytest.raises(ValueError, match=r"^table: expected csv, parquet or none, got 'xlsx'"):
        check_table("xlsx")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^table: parquet needs pyarrow"):
        check_table("parquet")
    check_table("csv")
