"""The page of parts, and the report of a run whose parts people have changed."""

import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from pipelines.files import write_json
from rg.cli.main import main
from rg.evaluation.evaluate import evaluate
from rg.explain.choices import Choices
from rg.pages.numbers import percent
from rg.pages.parts import part_row, points, surest
from tests.support import forked, miniature_run
from tests.support.page_driver import page_driver

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    """Part 1 is off and part 3 is merged into part 0."""
    folder = miniature_run.build(tmp_path_factory.mktemp("parts") / "run", small_birds)
    write_json(folder / "part_names.json", {"0": "<i>crown", "1": {"off": True}, "2": "tip", "3": {"merge": 0}})
    evaluate(folder, small_birds, device="cpu")
    return folder


@pytest.fixture(scope="module")
def page(run, small_birds):
    result = forked.run(["parts", str(run), "--data", str(small_birds), "--device", "cpu"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(run / "parts.html")
    assert not list(run.glob("*.pieces"))
    return (run / "parts.html").read_text()


@pytest.fixture(scope="module")
def report(run):
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text()


def test_the_page_tells_what_parts_json_holds(run, page):
    measured = json.loads((run / "parts.json").read_text())
    assert "part 1 switched off, part 3 merged into part 0" in page
    assert re.findall(r'<article class="card" id="part(\d)">', page) == ["0", "1", "2"]
    assert "<i>crown" not in page
    assert "&lt;i&gt;crown" in page
    for k in (0, 2):
        assert percent(measured["parts"][k]["accuracy_without"]) in unescape(page)
    areas = np.array([json.loads(line)["area"] for line in (run / "predictions.jsonl").open()])
    assert page.count("<img") == np.minimum((areas > 0).sum(0), 8).sum()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page


def test_a_row_names_the_classes_that_lose_most():
    measured = {"accuracy": 0.8, "classes": ["wren", "jay", "owl", "kite"], "class_images": [10, 10, 0, 10]}
    measured |= {"class_accuracy": [0.9, 0.7, None, 0.8]}
    part = {"accuracy_without": 0.6, "class_accuracy_without": [0.5, 0.1, None, 0.8]}
    row = part_row(measured, part | {"class_shares": [0.5, None, 0.02, -0.9]}, [])
    assert [(change.name, change.before, change.after) for change in row.losing] == [
        ("jay", 0.7, 0.1),
        ("wren", 0.9, 0.5),
    ]
    assert row.resting == [("wren", 0.5)]
    assert row.gain == pytest.approx(-0.2)
    assert [points(value) for value in (0.1234, -0.02, 0.0004)] == ["+12.3", "\N{MINUS SIGN}2.0", "±0.0"]


def test_a_sheet_takes_turns_among_the_classes_where_a_part_is_seen():
    labels, occurrence = np.array([0, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.7, 0.95, 0.8])
    areas = np.array([0.2, 0.1, 0.3, 0.0, 0.1])
    assert surest(["a", "c", "d", "e", "b"], labels, occurrence, areas) == [0, 2, 4, 1]


def test_the_report_says_what_people_have_changed(report):
    assert "part 1 switched off, part 3 merged into part 0" in report
    assert "into 3 parts" in " ".join(report.split())
    assert 'data-part="1"' not in report  # it is off, so there is nothing to switch
    assert 'data-part="3"' not in report


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_card_of_the_report_answers_without_a_part(run, report):
    driver = page_driver()
    choices = [Choices(**json.loads(unescape(text))) for text in re.findall(r'data-choices="(.*?)"', report)]
    assert choices
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        page = browser.new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((run / "report.html").resolve().as_uri())
        card = page.locator(".what-if").first
        card.locator("summary").click()
        first = choices[0]
        table = Choices(first.labels, *map(np.array, (first.constants, first.contributions)), first.temperature, True)
        (whole, share, _), *_ = table.without(())
        for off in ((0,), (0, 2)):
            card.locator(f".toggle[data-part='{off[-1]}']").click()
            (label, probability, _), (second, other, _), *_ = table.without(off)
            names = "<i>crown and tip" if 2 in off else "<i>crown"
            told = f"Without {names}: {label}, {percent(probability)}. With all parts: {whole}, {percent(share)}."
            driver.expect(card.locator(".without")).to_have_text(told)
            driver.expect(card.locator(".next")).to_contain_text(f"Next: {second}, {percent(other)}")
        for part in (0, 2):
            card.locator(f".toggle[data-part='{part}']").click()
        driver.expect(card.locator(".without")).to_have_text("")
        assert complaints == []
        browser.close()
