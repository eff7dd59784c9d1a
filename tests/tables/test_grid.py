"""Tables as text and Markdown, character by character, and Markdown read back by the rules of GitHub."""

import re

import pytest

from rg.tables.faithful import COLUMNS, NO_IMAGES, Measured, render
from rg.tables.grid import escape, render_markdown, render_text

GRID = [["method", "error ↓"], ["Attention (Q^T a)", "0.5 ± 0.1 % *"], ["a|b", "-"], ["empty", ""]]


def test_columns_of_text_stand_below_each_other_and_no_line_ends_in_spaces():
    assert render_text("Title *", GRID, ["note", "another"]) == (
        "Title *\n"
        "  method             error ↓\n"
        "  Attention (Q^T a)  0.5 ± 0.1 % *\n"
        "  a|b                -\n"
        "  empty\n"
        "  note\n"
        "  another"
    )


def test_cells_of_markdown_are_escaped_and_what_is_markdown_already_is_not():
    assert render_markdown("**Title**", GRID, ["`code`"]) == (
        "**Title**\n"
        "\n"
        "| method | error ↓ |\n"
        "| --- | --- |\n"
        "| Attention (Q^T a) | 0.5 ± 0.1 % \\* |\n"
        "| a\\|b | - |\n"
        "| empty |  |\n"
        "\n"
        "- `code`"
    )


def test_nothing_below_a_table_leaves_no_empty_lines():
    assert render_text("Title", [["a"]], []) == "Title\n  a"
    assert render_markdown("Title", [["a"]], []) == "Title\n\n| a |\n| --- |"


@pytest.mark.parametrize("text", ["a|b", "<img src=x>", "*c* `d` [e](f)", "back\\slash", "#1 & $2 ~ _x_"])
def test_escaped_text_reads_as_it_was(text):
    """A backslash before ASCII punctuation stands for that character (CommonMark 2.4)."""
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escape(text)) == text
    assert not re.search(r"(?<!\\)(\\\\)*[*|<`_\[]", escape(text))


def test_a_table_of_faithful_of_an_earlier_version_has_neither_intervals_nor_stars():
    numbers = {column.key: 0.25 for column in COLUMNS}
    model = {
        "weights": "a",
        "kind": "plain",
        "recipe": "birds_lite0_plain",
        "accuracy": 0.5,
        "probability": {"image": 0.75, "grey": 0.125, "blurred": None},
        "methods": {"cam": numbers, "random": numbers | {"deletion": None}},
        "undefined": {"contribution": "a plain network has no parts"},
    }
    result = {"dataset": "birds", "split": "test", "samples": 4, "protocol": {"seed": 3}, "models": [model]}
    result["removal"] = "photos are not drawn"
    text, markdown = (render([Measured(result, None)], form).split("\n\n") for form in ("text", "markdown"))
    assert text[:2] == [
        "birds, test: 4 images, seed 3",
        "plain network (birds_lite0_plain): accuracy on these images 50.0 %\n"
        "  method  pointing error ↓  deletion ↓  insertion ↑  noise ↑  shift ↑\n"
        "  CAM     25.0 %            0.250       0.250        0.250    0.250\n"
        "  random  25.0 %            -           0.250        0.250    0.250\n"
        "  Contributions: not defined, a plain network has no parts\n"
        "  probability of the class: image 75.0 %, grey 12.5 %, blurred -",
    ]
    assert markdown[1:4] == [
        "**plain network (birds_lite0_plain): accuracy on these images 50.0 %**",
        "| method | pointing error ↓ | deletion ↓ | insertion ↑ | noise ↑ | shift ↑ |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| CAM | 25.0 % | 0.250 | 0.250 | 0.250 | 0.250 |\n"
        "| random | 25.0 % | - | 0.250 | 0.250 | 0.250 |",
        "- Contributions: not defined, a plain network has no parts\n"
        "- probability of the class: image 75.0 %, grey 12.5 %, blurred -",
    ]
    assert text[2] == markdown[4]
    assert f"- {NO_IMAGES}" in text[2].splitlines()
    assert "- parts taken away: not measured, photos are not drawn" in text[2].splitlines()
