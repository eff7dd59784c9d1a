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
