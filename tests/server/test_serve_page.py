"""The page in a real browser: three photos dropped in, read, lit up, compared and downloaded."""

import base64
import io
import json
import re
import shutil

import pytest
from PIL import Image

from benchmarks.tools.hostile import JPEG, encoded, noise
from rg.model.edits import Edits
from rg.server.samples import Sample
from tests.server.test_serve import LIMITS, NAMES, PARTS, make, served
from tests.support.page_driver import PATIENCE, page_driver

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
driver = page_driver()
expect = driver.expect

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
PHOTOS = [("wide.jpg", JPEG), ("tall.png", encoded(noise(50, 80), "PNG")), ("<b>broken</b>.jpg", b"no picture")]
DROP = """([names, contents]) => {
    const transfer = new DataTransfer();
    names.forEach((name, n) => transfer.items.add(
        new File([Uint8Array.from(atob(contents[n]), (c) => c.charCodeAt(0))], name)
    ));
    document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def server():
    squares = io.BytesIO()
    Image.new("RGB", (4 * 64, 64), "teal").save(squares, "WEBP")
    shown = {"samples": [Sample("wren", JPEG), Sample("robin", JPEG)], "part_pictures": squares.getvalue()}
    with served(make(), **shown) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def page(request, chromium, server):
    """The page with three photos on it; it must not complain."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints, elsewhere = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((server, "data:", "blob:")) or elsewhere.append(asked.url))
    page.goto(server)
    expect(page.locator("#classes summary")).to_contain_text("3 classes")
    page.evaluate(DROP, [[name for name, _ in PHOTOS], [base64.b64encode(data).decode() for _, data in PHOTOS]])
    expect(page.get_by_role("status")).to_contain_text("done")
    yield page
    # The browser itself reports the status 400 of the broken photo.
    assert [text for text in complaints if "status of 400" not in text] == []
    assert elsewhere == []
    context.close()


def lit(page):
    """Share of the canvas of the first card that nothing darkens, and which numbers stand on it."""
    pixels = """canvas => {
        const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, copy.width, copy.height);
        let clear = 0;
        for (let i = 3; i < data.length; i += 4) clear += data[i] === 0;
        return 4 * clear / data.length;
    }"""
    card = page.locator(".card").first
    return card.locator("canvas").evaluate(pixels), card.locator(".marks span").all_inner_texts()


def test_the_labels_and_why_are_read(page, server):
    cards = page.locator(".card")
    assert cards.locator("h2").all_inner_texts() == [name for name, _ in PHOTOS]
    for n in range(2):
        assert cards.nth(n).locator(".label").inner_text() in NAMES
        assert cards.nth(n).locator(".best li").count() == 3
        assert cards.nth(n).locator(".notice").is_hidden()
        answer = page.request.post(f"{server}/explain", data=PHOTOS[n][1]).json()
        assert cards.nth(n).locator(".told").inner_text().replace("\N{NO-BREAK SPACE}", " ") == answer["summary"]
    expect(cards.nth(2)).to_contain_text("This photo could not be explained. Not an image")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_photo_that_is_too_large_is_counted(page):
    large = base64.b64encode(bytes(int(1.1e6 * LIMITS.megabytes))).decode()
    page.evaluate(DROP, [["fits.jpg", "large.jpg"], [base64.b64encode(JPEG).decode(), large]])
    expect(page.get_by_role("status")).to_have_text("All 5 photos are done.")
    expect(page.locator(".card").last).to_contain_text(f"It is larger than {LIMITS.megabytes} MB.")


def test_a_part_lights_up_both_ways(page, server):
    card = page.locator(".card").first
    response = page.request.post(
        f"{server}/explain?pictures=true", multipart={"file": {"name": "a", "mimeType": "image/jpeg", "buffer": JPEG}}
    ).json()
    runs, part = response["pictures"]["part_map"]["runs"], max(response["parts"], key=lambda part: part["area"])["part"]
    area = sum(length for one, length in zip(runs[::2], runs[1::2], strict=True) if one == part) / sum(runs[1::2])
    assert len(lit(page)[1]) <= sum(not part.background for part in PARTS)
    row = card.locator(f"tr[data-part='{part}']")
    row.locator(".pick").focus()
    share, numbers = lit(page)
    assert area - 0.1 < share <= area  # but for its outline
    assert numbers == [str(part)]
    expect(row).to_have_class("lit")
    expect(card.locator("figcaption")).to_contain_text(PARTS[part].name.capitalize())
    row.locator(".pick").blur()
    assert card.locator("tr.lit").count() == 0

    # The other way round: from the middle of the longest run of that part in the photo to its bar.
    width = response["pictures"]["part_map"]["width"]
    at, spots = 0, []
    for one, length in zip(runs[::2], runs[1::2], strict=True):
        rows, first = divmod(at, width)
        spots.append((min(length, width - first) if one == part else 0, first, rows))
        at += length
    length, first, y = max(spots)
    canvas = card.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    scale = box["width"] / width
    page.mouse.move(box["x"] + (first + length / 2) * scale, box["y"] + (y + 0.5) * scale)
    expect(row).to_have_class("lit")


def test_why_not_another(page):
    card = page.locator(".card").first
    label = card.locator(".label").inner_text()
    for button in card.get_by_role("button", name="Why not").all():
        name = button.get_attribute("aria-label").removeprefix("Why not ").removesuffix("?")
        button.click()
        expect(card.locator("caption")).to_have_text(f"What tells {label} from {name}")
        expect(card.locator(".told")).to_contain_text(re.compile(rf"\b{name}\b"))
        values = card.locator("tbody td:nth-child(3), tfoot td:nth-child(3)").all_inner_texts()
        *parts, total = (float(value.replace("\N{MINUS SIGN}", "-")) for value in values)
        assert sum(parts) == pytest.approx(total, abs=0.005 * len(values) + 0.001)  # every number is rounded
    card.get_by_label("Why this?").check()
    expect(card.locator("caption")).to_have_text(f"What speaks for {label}")


def test_layers_are_chosen_with_the_keyboard(page):
    card = page.locator(".card").first
    photo = card.locator("img").get_attribute("src")
    card.locator(".layers input:checked").focus()
    page.keyboard.press("ArrowRight")
    assert card.locator(".marks span").count() == 0
    assert card.locator("img").get_attribute("src") == photo
    page.keyboard.press("ArrowRight")
    expect(card.locator("img")).not_to_have_attribute("src", photo)


def test_downloads(page):
    card = page.locator(".card").first
    with page.expect_download() as got:
        card.get_by_role("button", name="Download JSON").click()
    response = json.loads(got.value.path().read_text())
    assert got.value.suggested_filename == "wide.json"
    assert (response["source"], response["label"]) == ("wide.jpg", card.locator(".label").inner_text())
    assert "pictures" not in response
    with page.expect_download() as got:
        card.get_by_role("button", name="Download picture").click()
    assert got.value.suggested_filename == "wide.png"
    with Image.open(got.value.path()) as picture:
        assert picture.format == "PNG"


def test_a_sample_is_one_click_away_and_what_is_accepted_is_said(page):
    limits = page.locator("#limits").inner_text()
    for words in ("JPEG", "PNG", "WebP", f"{LIMITS.megabytes:g} MB", f"{LIMITS.megapixels:g} megapixels"):
        assert words in limits
    buttons = page.locator("#samples button")
    assert buttons.all_inner_texts() == ["wren", "robin"]
    buttons.nth(1).click()
    expect(page.get_by_role("status")).to_contain_text("All 4")
    assert page.locator(".card").last.locator("h2").inner_text() == "robin.jpg"
    assert page.locator(".card").last.locator(".label").inner_text() in NAMES


def test_long_names_leave_room_and_every_number_has_a_picture(page):
    name = "a-photograph-of-the-garden-behind-the-house" * 3 + ".jpg"
    page.evaluate(DROP, [[name], [base64.b64encode(JPEG).decode()]])
    expect(page.get_by_role("status")).to_contain_text("All 4")
    first, last = page.locator(".card").first, page.locator(".card").last
    heights = [card.locator(".remove").bounding_box()["height"] for card in (first, last)]
    assert heights[0] == pytest.approx(heights[1], abs=0.5)  # one line beside either name
    assert last.locator("h2").get_attribute("title") == name
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert first.locator(".pick .thumb").count() == first.locator(".pick").count() == len(PARTS)
    boxes = [box.bounding_box() for box in first.locator(".pick .thumb").all()]
    assert all(box["width"] == box["height"] > 20 for box in boxes)


def test_everyone_can_use_it(page):
    """No serious breach of the rules of axe (WCAG 2); the script comes in past the page's policy, by the driver."""
    page.locator(".card").first.locator(".pick").first.focus()
    audit = axe.Axe().run(page).response
    assert len(audit["passes"]) > 20
    serious = [one for one in audit["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []


def test_what_the_model_does_not_know_it_says_first(chromium, server):
    for answer, heading in (("unknown", "The model does not know this."), ("unsure", "The model is not sure.")):
        page = chromium.new_page()

        def changed(route, *, answer=answer):
            response = route.fetch()
            route.fulfill(response=response, json=response.json() | {"answer": answer})

        page.route("**/explain?*", changed)
        page.goto(server)
        expect(page.locator("#files")).to_be_enabled()
        page.set_input_files("#files", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": JPEG}])
        expect(page.locator(".notice b")).to_have_text(heading)
        order = page.locator(".said > *:visible").evaluate_all("all => all.map((one) => one.className)")
        assert order[:2] == ["notice", "verdict"]
        page.close()


def test_a_part_is_switched_off_and_the_server_agrees(page):
    """The page answers from what it has; a server of a model that has those parts off answers the same."""
    card, explainer = page.locator(".card").first, make()
    label = card.locator(".label").inner_text()
    for off in ((1,), (1, 3)):
        card.locator(f".toggle[data-part='{off[-1]}']").click()
        explainer.model.edits = Edits(off)
        with served(explainer) as address:
            photo = {"file": {"name": "a", "mimeType": "image/jpeg", "buffer": JPEG}}
            asked = page.request.post(f"{address}/explain?pictures=true", multipart=photo).json()
        expect(card.locator(".label")).to_have_text(asked["label"])
        names, meters = card.locator(".best .name"), card.locator(".best .meter span")
        widths = meters.evaluate_all("all => all.map((one) => parseFloat(one.style.width))")
        firsts = names.evaluate_all("all => all.map((one) => one.firstChild.data)")
        shares = {name: width / 100 for name, width in zip(firsts, widths, strict=True)}
        assert shares == pytest.approx({best["label"]: best["probability"] for best in asked["top_k"]}, abs=1e-4)
        score = card.locator("tfoot td:nth-child(3)").inner_text().replace("\N{MINUS SIGN}", "-")
        assert float(score) == pytest.approx(asked["logit"], abs=0.005 + 1e-4)  # two decimals are shown
        expect(card.locator(f"tr[data-part='{off[-1]}']")).to_contain_text("off")
    expect(card.locator(".without")).to_contain_text("Without crown and part 3: ")
    expect(card.locator(".told")).to_have_text("")  # it would be of all parts
    assert set(card.locator(".marks span").all_inner_texts()) <= {"0"}  # part 2 is background
    for part in off:
        card.locator(f".toggle[data-part='{part}']").click()
    expect(card.locator(".without")).to_have_text("")
    expect(card.locator(".label")).to_have_text(label)
    expect(card.locator(".told")).not_to_have_text("")
