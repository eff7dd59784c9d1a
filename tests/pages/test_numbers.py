"""Numbers on pages: rounded once, from the exact value, and the same in Python and in a browser."""

import json
import re
import shutil
import subprocess
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from rg.explain.contributions import NOTABLE
from rg.explain.facts import MOSTLY
from rg.pages import numbers
from rg.pages.numbers import percent, signed
from rg.pages.scripts import script

SCRIPT = Path(numbers.__file__).with_suffix(".js").read_text()
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
RESULTS = """JSON.stringify({
  notable: NOTABLE,
  mostly: MOSTLY,
  signed: LOGITS.map(signed),
  percent: SHARES.map((share) => percent(share)),
  unbroken: SHARES.map((share) => unbroken(`As > < 1 % of it (${percent(share).replaceAll("\\u00a0", " ")}).`)),
  digits: [0, 1, 2, 3].map((digits) => SHARES.map((share) => percent(share, digits))),
})"""


def around(*values):
    """Every value between its neighbours in double precision."""
    return [
        float(neighbour) for value in values for neighbour in (np.nextafter(value, -9), value, np.nextafter(value, 9))
    ]


def samples():
    """Logits of either sign, and shares: ties, decimals, the tiny, what is nearly rounded the other way, and random."""
    rng = np.random.default_rng(0)
    sizes = [
        *(numerator / 64 for numerator in range(200)),
        *(number / 1000 for number in range(1001)),
        *(factor * 10.0**-power for power in range(1, 30) for factor in (1, 0.996, 1.25, 9.94, 9.95, 9.96)),
        *around(0.0005, 0.004, 0.005, 0.0095, 0.015, 0.5, 0.995, 0.9949, 0.9995, 0.00005, 0.99995, 0.999949, 1),
        *rng.lognormal(-3, 4, 3000).tolist(),
        *(0.0, 5e-324, 12345.675, 1e15),
    ]
    shares = [size for size in sizes if size <= 1]
    return [*sizes, *(-size for size in sizes)], [-0.0, *shares, *(1 - share for share in shares)]


LOGITS, SHARES = samples()


def in_node(program, _):
    command = [NODE, "--input-type=commonjs", "-"]
    done = subprocess.run(
        command, input=f"{program}console.log({RESULTS});", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def in_browser(program, folder):
    page = folder / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="results"></pre><script>{program}'
        f'document.getElementById("results").textContent = encodeURIComponent({RESULTS});</script>'
    )
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unquote(re.search(r'<pre id="results">(.+?)</pre>', done.stdout)[1]))


@pytest.mark.parametrize(
    "execute",
    [
        pytest.param(in_node, marks=pytest.mark.skipif(NODE is None, reason="no node here")),
        pytest.param(in_browser, marks=pytest.mark.skipif(BROWSER is None, reason="no Chromium here")),
    ],
)
def test_a_browser_writes_what_python_writes(execute, tmp_path):
    program = f"{SCRIPT}const LOGITS = {json.dumps(LOGITS)}, SHARES = {json.dumps(SHARES)};\n"
    results = execute(program, tmp_path)
    assert (results["notable"], results["mostly"]) == (NOTABLE, MOSTLY)
    assert list(zip(LOGITS, results["signed"], strict=True)) == [(value, signed(value)) for value in LOGITS]
    assert list(zip(SHARES, results["percent"], strict=True)) == [(share, percent(share)) for share in SHARES]
    assert results["unbroken"] == [
        f"As > <\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}% of it ({percent(share)})." for share in SHARES
    ]
    for digits, texts in enumerate(results["digits"]):
        assert list(zip(SHARES, texts, strict=True)) == [(share, percent(share, digits)) for share in SHARES]


def exactly(value, digits):
    """Decimal arithmetic on the exact binary value."""
    return Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)


def test_logits_have_a_sign_and_two_decimals_or_two_digits():
    for value in LOGITS:
        text = signed(value)
        number = Decimal(text.replace("\N{MINUS SIGN}", "-"))
        assert text[0] == ("\N{MINUS SIGN}" if value < 0 else "+")
        if value == 0 or exactly(value, 2):
            assert number == exactly(value, 2)
            assert re.fullmatch(r"\d+\.\d\d", text[1:])
        else:
            assert number == exactly(value, 1 - Decimal(value).adjusted())
    assert [signed(value) for value in (0.0, -0.0, 0.125, -0.375, 0.00096, -1.25e-7)] == [
        "+0.00",
        "+0.00",
        "+0.12",
        "\N{MINUS SIGN}0.38",
        "+0.00096",
        "\N{MINUS SIGN}1.2e\N{MINUS SIGN}07",
    ]


def test_nothing_but_all_is_all():
    for share in SHARES:
        for digits in range(4):
            text = percent(share, digits).removesuffix("\N{NO-BREAK SPACE}%")
            rounded = exactly(100 * share, digits)
            if share in (0, 1) or 0 < rounded < 100:
                assert Decimal(text) == rounded
            else:
                least = exactly(10.0**-digits, digits)
                assert text == (f"<\N{NO-BREAK SPACE}{least}" if share < 0.5 else f">\N{NO-BREAK SPACE}{100 - least}")
    assert percent(-0.0) == percent(0.0)
    assert percent(None) == "\N{EN DASH}"


def test_all_scripts_have_them():
    for package, name, *before in (("rg.pages", "gallery.js"), ("rg.server", "page.js", "choices.js")):
        text = script(package, name, *before)
        assert text.startswith('"use strict";')
        for function in ("signed", "percent"):
            assert len(re.findall(rf"function {function}\(|\b{function} =", text)) == 1
