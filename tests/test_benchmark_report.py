"""Measured numbers in the documentation are those of the rows in benchmarks/results."""

import pytest

from benchmarks import ledger, report


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
    marked = 0
    for path in report.documents():
        text = path.read_text()
        rendered, changes = report.render(text)
        assert not changes, f"{path}: {'; '.join(changes)}"
        assert rendered == text
        marked += text.count("<!-- ")
    assert marked >= 40


@pytest.mark.parametrize(
    "text,expected",
    [
        ("2<!-- steps: fused, time, p50 --> ms", "2"),
        ("1.0<!-- steps: fused, time, p50 --> ms", "2.2"),
        ("1.00<!-- steps: fused, one, two, time, p50 -->x", "2.25"),
        ("9<!-- steps: 4 images, small, fused, one, two, time, n -->", "5"),
        ("3.0<!-- steps: eager, time, p50 / fused, time, p50 -->x", "4.0"),
        ("3<!-- steps: fused, time, p50 / eager, time, p50 --> %", "25"),
        ("2<!-- steps: eager, time, p50 --> %", "9"),  # whatever its unit is
        ("1,000<!-- steps: eager, throughput, p50 -->", "12,346"),
        ("7<!-- steps: eager, throughput, p50 -->", "12,346"),
        ("7<!-- steps: GPU, loop, time, p50 -->", "2"),
        ("7<!-- steps: NPU, loop, time, p50 / GPU, loop, time, p50 -->", "2"),
    ],
)
def test_a_number_becomes_that_of_the_newest_row(results, text, expected):
    rendered, changes = report.render(f"so: {text}, or 9 so.", results)
    number, _, rest = text.partition("<")
    assert rendered == f"so: {expected}<{rest}, or 9 so."
    assert len(changes) == (number != expected)
    assert report.render(rendered, results) == (rendered, [])


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
def test_a_comment_that_names_no_row(results, words, said):
    with pytest.raises(ValueError, match=said):
        report.render(f"1<!-- {words} -->", results)


def test_a_changed_number_of_a_document_is_an_error(tmp_path, capsys):
    text = report.documents()[1].read_text()
    document = tmp_path / "README.md"
    document.write_text(text.replace("862<!--", "1,862<!--"))
    assert report.main([str(document)]) == 1
    assert "loader: dali_cpu, 2 workers, throughput, p50: 862, not 1,862" in capsys.readouterr().out
    assert "1,862<!--" in document.read_text()
    assert report.main([str(document), "--write"]) == 0
    assert document.read_text() == text
    assert report.main([str(document)]) == 0


def test_rows_are_printed_with_what_they_were_measured_on(capsys):
    assert report.main(["--rows", "loader"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(report.read("loader"))
    assert all(line.count("|") == 11 for line in lines)


@pytest.mark.parametrize("arguments", [["--rows", "stairs"], ["nowhere.md"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    assert stop.value.code == 2
    assert arguments[-1].removesuffix(".md") in capsys.readouterr().err
