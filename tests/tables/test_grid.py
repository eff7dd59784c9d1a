"""Tables as text and Markdown, character by character, and Markdown read back by the rules of GitHub."""

import re

import pytest

from rg.attribution.methods import NAMES
from rg.tables.faithful import GROUPS, NO_IMAGES, Measured, render
from rg.tables.grid import FORMS, escape, render_markdown, render_text
from rg.tables.paper import RENDERERS

GRID = [["method", "error ↓"], ["Attention (Q^T a)", "0.5 ± 0.1 % *"], ["a|b", "-"], ["empty", ""]]


def test_the_paper_is_rendered_in_these_forms_and_as_json():
    assert list(RENDERERS) == [*FORMS, "json"]


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


def faithful(numbers, removal="photos are not drawn"):
    """What is measured of a plain network whose methods have these numbers."""
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
    return Measured(result | {"removal": removal}, None)


OLD = ("pointing_error", "deletion", "insertion", "noise_stability", "shift_stability")


def test_what_earlier_versions_measured_is_printed_in_groups_without_intervals_and_stars():
    result = faithful(dict.fromkeys(OLD, 0.25))
    text, markdown = (render([result], form).split("\n\n") for form in ("text", "markdown"))
    assert text[:-1] == [
        "birds, test: 4 images, seed 3",
        "plain network (birds_lite0_plain): accuracy on these images 50.0 %\n"
        "  Contributions: not defined, a plain network has no parts\n"
        "  probability of the class: image 75.0 %, grey 12.5 %, blurred -",
        "where it points\n"  # no outside, no focus: nobody measured them
        "  method  pointing error ↓\n"
        "  CAM     25.0 %\n"
        "  random  25.0 %",
        "order of pixels\n  method  deletion ↓  insertion ↑\n  CAM     0.250       0.250\n  random  -           0.250",
        "stability\n  method  noise ↑  shift ↑\n  CAM     0.250    0.250\n  random  0.250    0.250",
    ]
    assert markdown[1:5] == [
        "**plain network (birds_lite0_plain): accuracy on these images 50.0 %**",
        "- Contributions: not defined, a plain network has no parts\n"
        "- probability of the class: image 75.0 %, grey 12.5 %, blurred -",
        "*where it points*",
        "| method | pointing error ↓ |\n| --- | --- |\n| CAM | 25.0 % |\n| random | 25.0 % |",
    ]
    assert text[-1] == markdown[-1]
    assert f"- {NO_IMAGES[0]}" in text[-1].splitlines()
    assert "- parts taken away: not measured, photos are not drawn" in text[-1].splitlines()


def test_the_tables_of_faithful_fit_into_120_columns():
    numbers = {column.key: -0.123 for columns in GROUPS.values() for column in columns}
    runs = [faithful(numbers, "measured") for _ in range(2)]
    for number, run in enumerate(runs):
        (model,) = run.result["models"]
        model["weights"] = str(number)
        model["methods"] = {name: {key: value * (number + 1) for key, value in numbers.items()} for name in NAMES}
    lines = render(runs, "text").splitlines()
    assert all(name in lines for name in GROUPS)
    assert max(map(len, lines)) <= 120


def test_what_survives_randomisation_is_named():
    numbers = {column.key: 0.5 for columns in GROUPS.values() for column in columns}
    line = "  survive the randomisation of all parameters (all random at least 0.5): "
    assert f"{line}CAM" in render([faithful(numbers)], "text").splitlines()  # random looks at no pixel
    assert f"{line}none" in render([faithful(numbers | {"mprt_full": 0.49})], "text").splitlines()
    assert line not in render([faithful(dict.fromkeys(OLD, 0.5))], "text")
