"""The gallery: 10,000 images on one page that opens from disk, and no file name or label acts in it."""

import base64
import hashlib
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.files import write_json
from rg.explain import pictures
from rg.explain.files import LONGEST_SIDE
from rg.explain.overlays import attribution_overlay, parts_overlay, photo
from rg.pages import gallery
from rg.pages.numbers import percent, signed
from rg.runs.part_names import Part
from tests.explain.test_pictures import explanation
from tests.support.page_driver import page_driver

SCRIPT = "</script><script>console.log('acted')</script><!--"
LABELS = ("wren", SCRIPT, 'robin "redbreast" & <b>', "鷦鷯")
K = 5


def line(number, rng, count):
    adds = rng.normal(size=K).round(3).tolist()
    label, truth = LABELS[number % 4], LABELS[number % 3]
    probability = (number + 0.5) / count
    part = {"background": False, "center": [1, 2], "area": 0.2, "attention": 1 / K}
    return {
        "summary": f"Very likely {label} (97.0 %). The rest is {number}.",
        "source": f"photos/{truth}/{number}-\udc80'{SCRIPT}.jpg",
        "width": 64,
        "height": 48,
        "window": [0, 0, 64, 48],
        "answer": ("label", "unsure", "unknown")[number % 5 % 3],
        "label": label,
        "probability": probability,
        "logit": sum(adds),
        "constant": 0.5,
        "top_k": [{"label": label, "probability": probability}],
        "rival": {"label": "wren", "probability": 0.1, "logit": 0.0, "constant": 0.0} if number % 2 else None,
        "parts": [
            {
                "part": k,
                "name": f"part {k}",
                "occurrence": rng.uniform(),
                "attention": 1 / K,
                "contribution": value,
                "rival_contribution": -value / 2,
                **part,
            }
            for k, value in enumerate(adds)
        ],
        "truth": None if number % 10 == 0 else truth,
        "name": f"bird-{number}",
        "picture": f"pictures/bird-{number}.webp",
        "bytes": 1,
        "modified": 1,
    }


def make(folder, count):
    """A folder as ``explain`` leaves it; its pictures are links to one."""
    rng = np.random.default_rng(0)
    lines = [line(number, rng, count) for number in range(count)]
    parts = [Part(k, ("part 0", SCRIPT, "crown", "part 3", "part 4")[k], k == 4, k in (1, 2)) for k in range(K)]
    settings = {"run": SCRIPT, "weights": "0" * 64, "parts": [asdict(part) for part in parts], "view": "whole"}
    write_json(folder / "settings.json", settings | {"pictures": "webp"})
    (folder / "explanations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    (folder / "left_out.jsonl").write_text('{"source": "x.jpg", "reason": "empty"}\n' * 3)
    Image.new("RGB", (64, 48), "teal").save(folder / "one.webp")
    for place in ("pictures", "thumbnails"):
        (folder / place).mkdir()
        for record in lines:
            os.link(folder / "one.webp", folder / place / f"{record['name']}.webp")
    gallery.write(folder)
    return lines


class Scripts(html.parser.HTMLParser):
    """What a parser takes for scripts, and for elements."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        self.elements.append(f"/{tag}")

    def handle_data(self, data):
        if self.elements and self.elements[-1] == "script":
            self.scripts[-1][1] += data


def test_the_page_holds_what_was_explained_and_nothing_acts(tmp_path):
    lines = make(tmp_path, 40)
    page = (tmp_path / "gallery.html").read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!data:)\w", page.split("<script>")[0])
    (kind, data), (_, script) = Scripts(page).scripts
    assert kind == {"type": "application/json", "id": "data"}
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{policy}'\"" in page
    content = json.loads(data)
    labels = content["about"]["labels"]
    assert len(content["rows"]) == 40
    for row, record in zip(content["rows"], lines, strict=True):
        assert (row[0], labels[row[2]]) == (record["source"].replace("\udc80", "\ufffd"), record["label"])
        assert (labels[row[5]] if row[5] >= 0 else None) == record["truth"]
        assert row[3] == pytest.approx(record["probability"], abs=1e-5)
        assert row[18] == record["summary"]
        assert sum(row[9]) + row[8] == pytest.approx(record["logit"] + record["constant"], abs=1e-6)
    assert [part["name"] for part in content["about"]["parts"]] == ["part 0", SCRIPT, "crown", "part 3", "part 4"]


def test_shares_are_rounded_but_not_to_none_or_all(tmp_path):
    make(tmp_path, 10)
    path = tmp_path / "explanations.jsonl"
    record = json.loads(path.read_text().splitlines()[0])
    exact = (0.0, 1e-7, 0.123456789, 1 - 1e-7, 1.0)
    for part, share in zip(record["parts"], exact, strict=True):
        part |= {"attention": share, "occurrence": share, "contribution": -share / 100}
    path.write_text("".join(json.dumps(record | {"probability": share}) + "\n" for share in exact))
    gallery.write(tmp_path)
    rows = json.loads(Scripts((tmp_path / "gallery.html").read_text()).scripts[0][1])["rows"]
    probable = [percent(share) for share in (1e-9, *exact[1:-1], 1 - 1e-9)]  # an earlier version wrote 0 and 1
    assert [percent(row[3]) for row in rows] == probable
    for row in rows:
        assert [signed(value) for value in row[9]] == [signed(-share / 100) for share in exact]
        assert [percent(share, 0) for share in row[10]] == [percent(share, 0) for share in row[11]]
        assert [percent(share, 0) for share in row[10]] == [percent(share, 0) for share in exact]


def test_a_folder_without_images_has_a_page(tmp_path):
    make(tmp_path, 0)
    assert '"rows":[\n]}' in (tmp_path / "gallery.html").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no settings\.json"):
        gallery.write(tmp_path)


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --enable-logging=stderr --window-size=1280,900 --virtual-time-budget=20000"
)
VISIT = (Path(__file__).parent / "visit_gallery.js").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_ten_thousand(tmp_path):
    count = 10_000
    folder = tmp_path / "a #1 100% folder"
    folder.mkdir()
    lines = make(folder, count)
    digest = base64.b64encode(hashlib.sha256(VISIT.encode()).digest()).decode()
    page = (folder / "gallery.html").read_text()
    visited = folder / "visited.html"
    visited.write_text(
        page.replace("script-src '", f"script-src 'sha256-{digest}' '").replace("</body>", f"<script>{VISIT}</script>")
    )
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", visited.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (logged,) = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    visit = json.loads(base64.b64decode(re.search(r"FOUND([\w+/=]+)", logged)[1]))
    print(f"opened in {visit['opened']:.0f} ms")

    def of(*conditions):
        return f"{sum(all(condition(one) for condition in conditions) for one in lines):,} of {count:,}"

    def occurrence(record):
        return round(100 * record["parts"][2]["occurrence"])

    assert visit["count"] == of()
    assert 60 <= visit["cards"] <= 600
    assert 60 <= visit["middle"] <= 600
    assert visit["painted"] == 64
    assert visit["same"]
    assert visit["filters"] == {
        "label=0": of(lambda record: record["label"] == LABELS[0]),
        "part=2": of(lambda record: max(record["parts"], key=lambda part: part["contribution"])["part"] == 2),
        "role=occurs": of(lambda record: occurrence(record) >= 50),
        "role=lacks": of(lambda record: occurrence(record) < 50),
        "least=25": of(lambda record: record["probability"] >= 0.25),
        "most=75": of(lambda record: record["probability"] <= 0.75),
        "answer=1": of(lambda record: record["answer"] == "unsure"),
        "correct=wrong": of(lambda record: record["truth"] not in (None, record["label"])),
        "correct=open": of(lambda record: record["truth"] is None),
        "find=77 WREN": of(
            lambda record: all(word in f"{record['source']} {record['label']}" for word in ("77", "wren"))
        ),
    }
    last, second = lines[-1], lines[-2]
    assert visit["first"] == f"{lines[0]['label']}\n{lines[0]['source']}".replace("\udc80", "\ufffd")
    assert visit["title"] == f"{last['label']} {percent(last['probability'])}"
    assert visit["source"] == last["source"].replace("\udc80", "\ufffd")
    assert visit["second"] == second["source"].replace("\udc80", "\ufffd")
    assert visit["told"] == last["summary"].replace(" %", "\N{NO-BREAK SPACE}%")
    assert visit["picture"] == 64
    parts = sorted(last["parts"], key=lambda part: -part["contribution"])
    names = {1: SCRIPT, 2: "crown"}
    shown = [(f"{part['part']}{names.get(part['part'], '')}", part["contribution"]) for part in parts]
    assert visit["rows"] == [f"{name}{signed(value)}" for name, value in [*shown, ("constant", 0.5)]]
    assert visit["versus"] == "Why not wren?"
    differences = sorted((part["contribution"] - part["rival_contribution"] for part in parts), reverse=True)
    assert visit["against"] == [signed(value) for value in [*differences, 0.5]]
    assert visit["closed"]
    assert visit["nothing"] == "No image fits these filters."
    assert visit["fetched"] == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_tiles_show_the_columns_of_the_picture(tmp_path):
    driver = page_driver()
    lines, sizes, columns = make(tmp_path, 3), [(64, 48), (48, 170), (1300, 400)], []
    for number, (record, (width, height)) in enumerate(zip(lines, sizes, strict=True)):
        scale = min(1, LONGEST_SIDE / max(width, height))  # explain keeps a copy of this size
        shown = explanation(max(1, round(width * scale)), max(1, round(height * scale)))
        path = tmp_path / "pictures" / f"bird-{number}.webp"
        path.unlink()  # a link to the picture of all
        pictures.panel(shown).save(path, lossless=True)
        record |= {"width": width, "height": height}
        size = pictures.panel_size(shown)
        columns.append([overlay(shown, size=size) for overlay in (photo, parts_overlay, attribution_overlay)])
    (tmp_path / "explanations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    settings = json.loads((tmp_path / "settings.json").read_text())
    settings["parts"][0] |= {"name": "Schulterblattfederansatzstelleunterseite", "named": True}
    write_json(tmp_path / "settings.json", settings)
    gallery.write(tmp_path)
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto((tmp_path / "gallery.html").as_uri())
        page.locator(".card").first.click()
        for expected in columns:
            for tile, column in zip(page.locator(".crop").all(), expected, strict=True):
                tile.locator("img").evaluate("image => image.decode()")
                with Image.open(io.BytesIO(tile.screenshot())) as drawn:
                    assert drawn.height < 700
                    drawn = np.asarray(drawn.convert("RGB").resize(column.size), dtype=int)
                # But for rounded corners, a frame, and what scaling does to sharp edges.
                inside = np.s_[4:-4, 4:-4]
                assert np.median(np.abs(drawn - np.asarray(column, dtype=int))[inside]) <= 3
                assert not (drawn[inside] == 255).all(2).all(0).any()  # no white margin beside the picture
            page.keyboard.press("ArrowRight")
        page.set_viewport_size({"width": 390, "height": 844})
        driver.expect(page.locator(".bars")).to_contain_text("Schulterblatt")
        assert page.locator("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        browser.close()
