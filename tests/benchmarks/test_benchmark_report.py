"""Measured numbers in the documentation are those of the rows in benchmarks/results."""

import json

import pytest

from benchmarks import report
from benchmarks.tools import ledger


@pytest.fixture
def results(tmp_path):
    """Two providers, one of them measured twice; names with commas."""
    header = ",".join(ledger.COLUMNS)
    rows = [
        '2026-01-02,b,0,CPU,,3,2,,"4 images, small",fused,"one, two",time,ms,1.5,2.25,3,5',
        '2026-01-01,a,0,CPU,,3,2,,"4 images, small",fused,"one, two",time,ms,7,8,9,5',
        '2026-01-01,a,0,CPU,,3,2,,"4 images, small",eager,"one, two",time,ms,8,9,10,5',
        '2026-01-01,a,0,CPU,,3,2,,"4 images, small",eager,"one, two",throughput,images/s,1,12345.6,3,5',
        '2026-01-03,c,0,GPU,,3,2,,"4 images, small",loop,"one, two",time,ms,1,2,3,5',
        '2026-01-04,c,0,NPU,,3,2,,"4 images, small",loop,"one, two",time,ms,3,4,5,5',
    ]
    (tmp_path / "steps.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def test_numbers_of_the_documents_are_those_of_their_rows():
    measured = 0
    for path, passages in report.passages().items():
        text = path.read_text()
        rendered, changes = report.render(text, passages)
        assert not changes, f"{path}: {'; '.join(changes)}"
        assert rendered == text
        measured += sum(len(passage["rows"]) for passage in passages)
    assert measured >= 250


@pytest.mark.parametrize(
    "number,row,after,expected",
    [
        ("2", "steps: fused, time, p50", "ms", "2"),
        ("1.0", "steps: fused, time, p50", "ms", "2.2"),
        ("1.00", "steps: fused, one, two, time, p50", "times", "2.25"),
        ("9", "steps: 4 images, small, fused, one, two, time, n", "times", "5"),
        ("3.0", "steps: eager, time, p50 / fused, time, p50", "times", "4.0"),
        ("3", "steps: fused, time, p50 / eager, time, p50", "%", "25"),
        ("2", "steps: eager, time, p50", "%", "9"),  # whatever its unit is
        ("1,000", "steps: eager, throughput, p50", "images/s", "12,346"),
        ("7", "steps: eager, throughput, p50", "images/s", "12,346"),
        ("7", "steps: GPU, loop, time, p50", "ms", "2"),
        ("7", "steps: NPU, loop, time, p50 / GPU, loop, time, p50", "times", "2"),
    ],
)
def test_a_number_becomes_that_of_the_newest_row(results, number, row, after, expected):
    passages = [{"text": f"{{}} {after}, or", "rows": [row]}]
    rendered, changes = report.render(f"so 17: {number} {after},\nor 9 {after} so.", passages, results)
    assert rendered == f"so 17: {expected} {after},\nor 9 {after} so."
    assert len(changes) == (number != expected)
    assert report.render(rendered, passages, results) == (rendered, [])


def test_several_numbers_of_a_passage_each_have_their_row(results):
    rows = ["steps: fused, time, p50", "steps: eager, throughput, p50", "steps: GPU, loop, time, p50"]
    passages = [{"text": "| a | {} | {} | {} |", "rows": rows}]
    rendered, changes = report.render("| a | 1.00 | 1 | 100 |\n| b | 1 | 2 | 3 |", passages, results)
    assert rendered == "| a | 2.25 | 12,346 | 2 |\n| b | 1 | 2 | 3 |"
    assert len(changes) == 3


@pytest.mark.parametrize("text", ["takes 3 ms", "takes 3 s, and it takes 4 s"])
def test_a_passage_stands_in_its_document_once(results, text):
    with pytest.raises(ValueError, match=r"expected once, found [02] times: takes {} s"):
        report.render(text, [{"text": "takes {} s", "rows": ["steps: fused, time, p50"]}], results)


def test_every_number_of_a_passage_needs_a_row(results):
    with pytest.raises(ValueError, match=r"expected a row for every {}, got 1"):
        report.render("3 and 4", [{"text": "{} and {}", "rows": ["steps: fused, time, p50"]}], results)


@pytest.mark.parametrize(
    "words,said",
    [
        ("steps: time, p50", "expected one row, got CPU, 4 images, small, fused, one, two, time; CPU, 4 images"),
        ("steps: fused, throughput, p50", "expected one row, got none"),
        ("steps: fused, two, time, p50", "expected one row, got none"),
        ("steps: loop, time, p50", "expected one row, got GPU, 4 images, small, loop, one, two, time; NPU, 4 images"),
        ("steps: fused, time", "expected one of p20, p50, p80, n at the end, got time"),
        ("stairs: fused, time, p50", "stairs: expected one of steps"),
    ],
)
def test_a_passage_that_names_no_row(results, words, said):
    with pytest.raises(ValueError, match=said):
        report.render("takes 1 s", [{"text": "takes {} s", "rows": [words]}], results)


def test_a_changed_number_of_a_document_is_an_error(tmp_path, monkeypatch, capsys):
    document, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    row = report.read("loader")[0]
    name = ", ".join(row[key] for key in report.NAME)
    numbers.write_text(json.dumps({"page.md": [{"text": "takes {} of", "rows": [f"loader: {name}, n"]}]}))
    document.write_text("It takes 1,862 of them.")
    monkeypatch.setattr(report, "passages", lambda: {document: json.loads(numbers.read_text())["page.md"]})
    assert report.main([]) == 1
    assert f"{row['n']}, not 1,862" in capsys.readouterr().out
    assert document.read_text() == "It takes 1,862 of them."
    assert report.main(["--write"]) == 0
    assert document.read_text() == f"It takes {row['n']} of them."
    assert report.main([]) == 0


def test_rows_are_printed_with_what_they_were_measured_on(capsys):
    assert report.main(["--rows", "loader"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(report.read("loader"))
    assert all(line.count("|") == 11 for line in lines)


@pytest.mark.parametrize("arguments", [["--rows", "stairs"], ["page.md"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    assert stop.value.code == 2
    assert arguments[-1] in capsys.readouterr().err
