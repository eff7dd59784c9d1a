"""Names of any script in pictures: letters and no boxes, joined as they are written, or a line that says why not."""

import shutil
import subprocess

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont, features

from rg.explain import fonts, lettering


def drawn(text):
    picture = Image.new("RGB", (400, 40), "white")
    lettering.draw_text(ImageDraw.Draw(picture), (4, 4), text, (0, 0, 0), 20)
    return np.asarray(picture)


@pytest.mark.parametrize(
    "first,second",
    [
        ("Ł", "Ž"),
        ("Ж", "Ш"),
        ("ω", "λ"),
        ("א", "ב"),
        ("ع", "غ"),
        ("ก", "ข"),
        ("अ", "ब"),
        ("ǿ", "ế"),
        ("狗", "猫"),
        ("🐦", "🐧"),
    ],
)
def test_two_letters_never_look_alike(first, second):
    assert not np.array_equal(drawn(first), drawn(second))


@pytest.mark.parametrize("text", ["Łabędź niemy", "Ёжик", "ωλ", "עורב", "عصفور", "นกกระจอก", "मोर", "chim sẻ"])
def test_scripts_of_the_installed_fonts_have_glyphs(text):
    pieces = lettering.runs(text, 20)
    assert "".join(piece for _, piece in pieces) == text
    for font, piece in pieces:
        glyphs = TTFont(font.path)["cmap"].getBestCmap()
        assert all(ord(character) in glyphs for character in piece)


@pytest.mark.skipif(not features.check("raqm"), reason="no FriBiDi here")
@pytest.mark.parametrize("text", ["عصفور", "क्षत्रिय"])
def test_letters_are_joined(text):
    ((font, piece),) = lettering.runs(text, 20)
    apart = ImageFont.truetype(font.path, 20, layout_engine=ImageFont.Layout.BASIC)
    assert font.getlength(piece) < 0.9 * apart.getlength(piece)


@pytest.mark.skipif(not features.check("raqm"), reason="no FriBiDi here")
def test_a_name_from_right_to_left_stands_in_its_sentence():
    """What comes before it in the line is left of it, what comes after is right of it, and it is one piece."""
    (columns,) = np.nonzero((drawn("a: عصفور b") != drawn("a:  b")).any((0, 2)))
    left, right = lettering.length("a: ", 20), lettering.length("a: عصفور b", 20)
    assert 4 + left - 4 <= columns.min()
    assert columns.max() <= 4 + right + 1
    assert np.array_equal(drawn("a: عصفور")[:, : int(left)], drawn("a: ")[:, : int(left)])


def test_neighbours_of_a_name_from_right_to_left_keep_their_order():
    """No font has Hebrew and Cyrillic: pieces of one font each, the first of the name on the right."""
    assert [piece.strip() for _, piece in lettering.runs("דרור Ёж ก กา", 20)] == ["Ёж", "ก กา", "דרור"]


def test_characters_that_are_no_letters_do_not_hide(caplog, monkeypatch):
    monkeypatch.setattr(lettering, "_reported", set())
    assert "".join(piece for _, piece in lettering.runs("a\x07b\udc80c", 20)) == "a[0007]b[DC80]c"
    assert caplog.messages == []  # no font would help


def test_what_no_font_has_is_a_code_point_and_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(lettering, "_reported", set())
    for text in ("wren \U0010fffd", "robin \U0010fffd", "\U0010fffe"):
        assert f"[{ord(text[-1]):04X}]" in lettering.runs(text, 20)[-1][1]
    (line,) = caplog.messages
    assert repr("\U0010fffd") in line
    assert "fonts-noto-core" in line


def test_without_a_font_for_chinese_the_extra_is_named(caplog, monkeypatch):
    monkeypatch.setattr(lettering, "_reported", set())
    monkeypatch.setattr(fonts, "face_of", lambda character: None if ord(character) > 0x3000 else fonts.main_face())
    assert [piece for _, piece in lettering.runs("a 鷦鷯", 20)] == ["a [9DE6][9DEF]"]
    (line,) = caplog.messages
    assert line.startswith("no font here has '鷦鷯'")
    assert "region-grouping[cjk]" in line


@pytest.mark.skipif(not shutil.which("fc-list"), reason="no fontconfig here")
@pytest.mark.parametrize("character", "Աა⠓")  # Armenian, Georgian, Braille
def test_fonts_of_the_system_are_found(character):
    pattern = f":charset={ord(character):x}:scalable=true:color=false"
    available = subprocess.run(["fc-list", pattern, "file"], capture_output=True, text=True, check=True).stdout
    face = fonts.face_of(character)
    assert (face is not None) == bool(available)
    if face:
        assert ord(character) in TTFont(face[0], fontNumber=face[1])["cmap"].getBestCmap()
