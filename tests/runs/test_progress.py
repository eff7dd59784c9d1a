"""Bars on a terminal, lines in a log."""

import io
import logging
import sys

from rg.runs.progress import image_progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_bar_counts_what_it_passes_on(monkeypatch):
    terminal = watch(monkeypatch, Terminal())
    assert list(progress_bar(range(7), desc="birds", mininterval=0)) == list(range(7))
    assert "birds" in terminal.getvalue()
    assert "7/7" in terminal.getvalue()
    assert "image/s" in terminal.getvalue()
    assert not terminal.getvalue().endswith("\n")  # it goes when everything is done


def test_a_bar_of_the_caller_that_stays(monkeypatch):
    terminal = watch(monkeypatch, Terminal())
    with progress_bar(total=3, initial=1, unit="step", leave=True) as bar:
        bar.update(2)
    assert "3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_nothing_is_shown_where_nobody_watches(monkeypatch):
    terminal = watch(monkeypatch, Terminal())
    assert list(progress_bar(range(7), shown=False)) == list(range(7))
    assert terminal.getvalue() == ""
    log = watch(monkeypatch, io.StringIO())
    assert list(progress_bar(range(7))) == list(range(7))
    assert log.getvalue() == ""


def test_a_walk_over_images_is_a_bar_on_a_terminal_and_a_line_in_a_log(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rg")

    def walk():
        with image_progress() as advance:
            for done in range(4, 9):
                advance(done, 8)

    terminal = watch(monkeypatch, Terminal())
    walk()
    assert "image/s" in terminal.getvalue()
    assert not caplog.records
    watch(monkeypatch, io.StringIO())
    walk()
    (line,) = caplog.messages
    assert line.startswith("8/8 images ")


def test_one_of_several_walks_is_named_and_leaves_no_line_if_it_is_over_soon(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rg")
    watch(monkeypatch, io.StringIO())
    clock = iter([0, 10, 20, 40, 50])
    monkeypatch.setattr("rg.runs.progress.time.monotonic", lambda: next(clock))

    def walk(steps):
        with image_progress("test") as advance:
            for done in range(steps + 1):
                advance(done, steps)

    walk(1)
    assert not caplog.records
    clock = iter([0, 10, 20, 40, 50])
    walk(3)
    assert [line.partition(" images")[0] for line in caplog.messages] == ["test: 2/3", "test: 3/3"]


def test_a_process_for_which_another_speaks_shows_nothing(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rg")
    for stream in (Terminal(), io.StringIO()):
        watch(monkeypatch, stream)
        with image_progress(shown=False) as advance:
            advance(0, 2)
            advance(2, 2)
        assert stream.getvalue() == ""
    assert not caplog.records
