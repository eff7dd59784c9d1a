"""Pictures of the ledger: whether they show its newest rows."""

import csv

import pytest

from benchmarks import plots, report
from benchmarks.plots import PLOTS, Plot

PLOT = Plot("train", "Steps", "net, 8 images of 64 px", ("cpu", "fp32"), ("time",), ("region grouping",))


def row(date, p50, provider="region grouping", mode="cpu, fp32, kept", metric="time", case="net, 8 images of 64 px"):
    return {
        "date": date,
        "commit": "abc",
        "dirty": "0",
        "device": "A & B (2 cores)",
        "driver": "",
        "python": "3",
        "torch": "2",
        "triton": "3",
        "case": case,
        "provider": provider,
        "mode": mode,
        "metric": metric,
        "unit": "ms",
        "p20": str(p50 - 1),
        "p50": str(p50),
        "p80": str(p50 + 2),
        "n": "5",
    }


@pytest.fixture
def results(tmp_path):
    def write(*rows):
        with (tmp_path / "train.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, report.ledger.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path

    return write


@pytest.mark.parametrize("name", PLOTS)
def test_the_pictures_show_the_newest_rows(name):
    """``python -m benchmarks.plots`` draws them anew."""
    assert plots.drawn_from(plots.FOLDER / f"{name}.svg") == plots.sha256(plots.rows(PLOTS[name]))


def test_a_picture_has_a_bar_for_every_row_that_it_is_about(results, tmp_path):
    folder = results(
        row("2026-01-01", 20.0),
        row("2026-01-02", 30.5),
        row("2026-01-02", 41.25, mode="cpu, fp32, nchw"),
        row("2026-01-02", 5.0, mode="cuda, fp32, nchw"),
        row("2026-01-02", 6.0, metric="memory"),
        row("2026-01-02", 7.0, case="net, 16 images of 64 px"),
        row("2026-01-02", 8.0, mode="cpu, fp32, kept, cpu"),  # images of a decoder
        row("2026-01-02", 9.0, provider="whole network"),
        row("2026-01-01", 9.5, mode="cpu, fp32, kept") | {"device": "another"},
    )
    found = plots.rows(PLOT, folder)
    assert [one["p50"] for one in found] == ["30.5", "41.25"]
    plots.draw(PLOT, found, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    for words in ("Steps", "region grouping, kept", "region grouping, nchw", "30.5", "41.25", "A &amp; B (2 cores)"):
        assert f">{words}<" in text or f"{words}</text>" in text, words


def test_a_picture_is_older_than_rows_that_changed(results, tmp_path):
    before = plots.rows(PLOT, results(row("2026-01-01", 20.0)))
    plots.draw(PLOT, before, tmp_path / "picture.svg")
    assert plots.drawn_from(tmp_path / "picture.svg") == plots.sha256(before)
    assert plots.sha256(before) != plots.sha256(plots.rows(PLOT, results(row("2026-01-01", 20.1))))
    assert plots.drawn_from(tmp_path / "none.svg") is None


def test_no_rows_no_picture(results):
    with pytest.raises(ValueError, match="expected rows of net, 8 images of 64 px, cpu, fp32, got none"):
        plots.rows(PLOT, results(row("2026-01-01", 20.0, metric="memory")))
