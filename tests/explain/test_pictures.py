"""Explanations as pictures: what is tinted, where the bars end, and that every size fits."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import ImageDraw

from rg.explain import facts, lettering, overlays, pictures
from rg.explain.colors import LINE, ink_on, palette
from rg.explain.contributions import NOTABLE, bars, signed, stands_out
from rg.explain.explanation import Explanation
from rg.explain.facts import PartExplanation, Rival

GREY = 100
RIVAL = Rival("Next", 0.1, -1.5, 0.5)


def explanation(
    width=200,
    height=160,
    contributions=(2.0, -1.0, 0.5),
    background=(False, False, True),
    label="Winter wren",
    window=None,
    constant=0.25,
    names=None,
    rival=RIVAL,
):
    """A grey image cut into vertical stripes, one per part."""
    edges = np.linspace(0, width, len(contributions) + 1).round().astype(int)
    strongest = np.zeros((height, width), np.int8)
    parts = []
    for k, contribution in enumerate(contributions):
        strongest[:, edges[k] : edges[k + 1]] = k
        parts.append(
            PartExplanation(
                k,
                names[k] if names else f"part {k}",
                strongest,
                center=((edges[k] + edges[k + 1]) / 2, height / 2),
                occurrence=0.9,
                attention=1 / len(contributions),
                contribution=contribution,
                rival_contribution=-0.5 * k,
                background=background[k % 3],
            )
        )
    return Explanation(
        label=label,
        probability=0.8,
        logit=sum(contributions) + constant,
        constant=constant,
        top_k=[(label, 0.8), ("Next", 0.1)],
        rival=rival,
        attribution=np.tile(np.linspace(0, 0.5, width, dtype=np.float32), (height, 1)),
        assign=np.eye(len(contributions), dtype=np.float32)[:, None],
        parts=parts,
        image=np.full((height, width, 3), GREY, np.uint8),
        window=window or (0, 0, width, height),
    )


def cielab(colors):
    """CIE L*a*b* of 8-bit sRGB under D65."""
    scaled = np.asarray(colors) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(xyz / (0.9505, 1, 1.089))
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def least_difference(colors):
    lab = cielab(colors)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))


def dichromat(colors, matrix):
    """What an eye with two kinds of cones cannot tell from colours; the matrix is for linear light with gamma 2.2."""
    linear = (np.asarray(colors) / 255) ** 2.2
    return 255 * np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)


# Viénot, Brettel and Mollon (1999); the same with one plane for the tritanope, as in libDaltonLens.
DICHROMATS = {
    "protanope": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranope": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "tritanope": [[1.01277, 0.13548, -0.14826], [-0.01243, 0.86812, 0.14431], [0.07589, 0.80500, 0.11911]],
    "nobody": np.eye(3),
}


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_palette_keeps_its_colours_apart(eyes):
    assert all(palette(count) == palette(64)[:count] for count in range(1, 65))
    # 2.3 is a just noticeable difference in CIE L*a*b*.
    for count, noticeable in ((8, 8), (12, 5), (16, 4), (64, 1)):
        assert least_difference(dichromat(palette(count), DICHROMATS[eyes])) > noticeable * 2.3, count


def test_numbers_on_colours_can_be_read():
    def luminance(color):
        scaled = np.asarray(color) / 255
        return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    assert ink_on((0, 158, 115)) == (255, 255, 255)
    for color in palette(64):
        assert ink_on(color) in ((0, 0, 0), (255, 255, 255))
        dark, light = sorted((luminance(color), luminance(ink_on(color))))
        assert (light + 0.05) / (dark + 0.05) > 3  # WCAG for large or bold text and graphics


@pytest.mark.parametrize("count", [0, 65])
def test_palette_refuses(count):
    with pytest.raises(ValueError, match=f"expected 1 to 64 colours, got {count}"):
        palette(count)


def test_object_parts_are_tinted_outlined_and_numbered():
    pixels = np.asarray(overlays.parts_overlay(explanation()), dtype=int)
    colors = np.array(palette(3))
    assert (pixels[10, 190] == GREY).all()  # background
    for k, x in enumerate((33, 100)):
        assert pixels[10, x] == pytest.approx(GREY + 0.34 * (colors[k] - GREY), abs=0.51)  # rounding to 8 bits
        assert (pixels[80, x - 6] == colors[k]).all()  # the disc of the number, left of its digit
    assert (pixels[10, 66] == colors[0]).all()
    assert (pixels[10, 67] == colors[1]).all()
    everything = np.asarray(overlays.parts_overlay(explanation(), background=True), dtype=int)
    assert (everything[10, 190] != GREY).any()


def test_a_part_in_two_pieces_is_numbered_on_the_thicker_one():
    parts = explanation().parts
    mask = np.zeros((160, 200), bool)
    mask[:, :8] = mask[60:120, 120:180] = True  # its centre lies between them
    assert overlays._anchor(mask, (70, 80)) == pytest.approx((150, 90), abs=15)
    assert overlays._anchor(parts[0].mask, parts[0].center) == parts[0].center


def test_what_the_model_did_not_see_is_dark():
    seen = explanation(window=(50, 30, 150, 130))
    pixels = np.asarray(overlays.photo(seen))
    assert (pixels[30:130, 50:150] == GREY).all()
    assert pixels[:30].max() == pixels[:, 150:].max() == 0.3 * GREY
    cropped = facts.crop_to_window(seen)
    assert (np.asarray(overlays.photo(cropped)) == GREY).all()
    assert cropped.image.shape == (100, 100, 3)
    assert cropped.attribution.shape == cropped.parts[0].mask.shape == (100, 100)
    assert cropped.parts[1].center == (50, 50)


def test_spotlight_leaves_one_part_as_it_is():
    pixels = np.asarray(overlays.spotlight(explanation(), 1))
    assert (pixels[:, 67:133] == GREY).all()
    assert pixels[:, :64].max() < 0.6 * GREY
    assert (pixels[80, 66] == palette(3)[1]).all()


def lightness(shown):
    return np.asarray(overlays.attribution_overlay(shown).convert("L"), dtype=int)[80]


def test_attribution_gets_lighter_above_an_even_share():
    shown = explanation()  # 0 to 0.5 of three parts
    light = lightness(shown)
    above = shown.attribution[80] > 1 / 3
    assert len(set(light[~above])) == 1
    assert (np.diff(light[above][::10]) > 0).all()
    shown.attribution[:] *= 2
    light = lightness(shown)
    shown.attribution[:] *= 0.75
    assert lightness(shown)[-1] == light[-1]  # the largest value, 0.75 as 1
    shown.attribution[:] *= 0.5
    assert lightness(shown)[-1] < light[-1]  # 0.375 is hardly more than 1/3


@pytest.mark.parametrize("value", [0, 1 / 3, 0.34])
def test_attribution_that_prefers_nothing_is_flat_and_dark(value):
    flat, dark = explanation(), explanation()
    flat.attribution[:], dark.attribution[:] = value, 0
    with np.errstate(all="raise"):
        assert len(set(lightness(flat))) == 1
        assert lightness(flat)[0] == pytest.approx(lightness(dark)[0], abs=3)  # of 255
    assert lightness(flat)[0] < GREY


def test_a_background_slot_takes_no_share_of_the_attention():
    shown = explanation()
    parts = [
        dataclasses.replace(part, attention=attention)
        for part, attention in zip(shown.parts, (0.5, 0.5, 0), strict=True)
    ]
    shown, dark = (dataclasses.replace(shown, parts=parts, attribution=np.zeros_like(shown.attribution)) for _ in "ab")
    shown.attribution[:] = 0.5  # an even share of the two parts that count
    assert lightness(shown)[0] == pytest.approx(lightness(dark)[0], abs=3)  # of 255


@pytest.mark.parametrize(
    "value,text",
    [
        (0, "+0.00"),
        (-0.0, "+0.00"),
        (1.234, "+1.23"),
        (-0.0312, "-0.03"),
        (0.0031, "+0.0031"),
        (0.004, "+0.0040"),
        (-0.00012345, "-0.00012"),
    ],
)
def test_no_contribution_looks_like_zero_unless_it_is(value, text):
    assert signed(value) == text


@pytest.mark.parametrize("contributions,outstanding", [((0.049, -0.049), False), ((0.01, -0.05), True)])
def test_small_contributions_do_not_stand_out(contributions, outstanding):
    assert stands_out(explanation(contributions=contributions)) is outstanding


def test_bars_of_small_contributions_are_short():
    pixels = np.asarray(pictures.contribution_bars(explanation(contributions=(0.005,), constant=0.0)))
    (columns,) = np.nonzero((pixels[:, 76:] == palette(1)[0]).all(2).any(0))
    room = pictures.BARS_WIDTH - 132 - 76
    assert np.ptp(columns) == pytest.approx(room * 0.005 / NOTABLE, abs=2)  # both ends are whole pixels


@pytest.mark.parametrize("limit", [3, 4, 7, 8, 100])
def test_rows_always_sum_to_the_logit(limit):
    contributions = (0.5, -3.0, 2.0, 0.1, -0.2, 0.3, 1.0)
    shown = explanation(contributions=contributions)
    rows = bars(shown, limit)
    assert len(rows) == min(limit, len(contributions) + 1)
    assert sum(row.value for row in rows) == pytest.approx(shown.logit)
    assert sum(row.attention for row in rows if row.attention is not None) == pytest.approx(1)
    assert rows[0].number == ("1" if limit == 3 else "2")  # the largest that is shown; part 1 matters most
    values = [row.value for row in rows if row.color]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("limit", [3, 100])
def test_rows_against_the_rival_sum_to_the_difference(limit):
    shown = explanation(contributions=(0.5, -3.0, 2.0, 0.1))
    rows = bars(shown, limit, versus_rival=True)
    rival_logit = sum(part.rival_contribution for part in shown.parts) + shown.rival.constant
    assert sum(row.value for row in rows) == pytest.approx(shown.logit - rival_logit)
    alone = explanation(rival=None)
    assert bars(alone, limit, versus_rival=True) == bars(alone, limit)
    assert pictures.panel(alone).width < pictures.panel(explanation()).width


def test_names_of_parts_stand_beside_their_numbers():
    named, unnamed = explanation(names=("crown", "a tail that is very long", "part 2")), explanation()
    assert [row.name for row in bars(named, 9)] == ["crown", "", "a tail that is very long", ""]
    assert {row.name for row in bars(unnamed, 9)} == {""}
    left = [np.asarray(pictures.contribution_bars(one))[:, :76] for one in (named, unnamed)]
    assert (left[0] != left[1]).any()


def test_bars_have_the_lengths_of_their_values():
    shown = explanation(contributions=(2.0, -1.0, 0.5), constant=0.0)
    pixels = np.asarray(pictures.contribution_bars(shown))
    ends = {}
    for k, color in enumerate(palette(3)):
        columns = np.flatnonzero((pixels[:, 76:] == color).all(2).any(0))  # right of the numbers
        ends[k] = columns.min(), columns.max()
    zero = ends[0][0]
    length = ends[0][1] - zero
    # Both ends of a bar are whole pixels, and the line at zero covers one.
    assert ends[1][1] == pytest.approx(zero, abs=2)
    assert ends[1][0] == pytest.approx(zero - length / 2, abs=2)
    assert ends[2] == (pytest.approx(zero, abs=2), pytest.approx(zero + length / 4, abs=2))
    with pytest.raises(ValueError, match="size: expected at least"):
        pictures.contribution_bars(shown, (100, 320))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (2500, 1), (128, 128), (1600, 1200)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 64])
def test_panel_of_any_size(size, count):
    label = "Zaunkönig\n鷦鷯 🐦 " * 40
    shown = explanation(*size, contributions=np.linspace(-1, 2, count).tolist(), label=label)
    picture = np.asarray(pictures.panel(shown))
    assert picture.shape[0] == np.asarray(pictures.panel(explanation())).shape[0]
    assert picture.shape[1] < 2400
    margin = pictures.MARGIN - 1  # a hairline
    for edge in (picture[:margin], picture[-margin:], picture[:, :margin], picture[:, -margin:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("answer,words", [("unsure", "unsure: "), ("unknown", "no known part fits: "), ("label", "")])
def test_panel_says_when_the_label_is_withheld(answer, words, monkeypatch):
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *arguments, **_: written.append(arguments[2]))
    pictures.panel(dataclasses.replace(explanation(), answer=answer))
    probability = f"{100 * explanation().probability:.1f} %"
    (line,) = [text for text in written if probability in text]
    assert line.startswith(f"{words}{probability}")


def test_a_white_photo_ends_somewhere():
    white = dataclasses.replace(explanation(), image=np.full((160, 200, 3), 255, np.uint8))
    picture = np.asarray(pictures.panel(white))
    height, width = (length for length in pictures.panel_size(white)[::-1])
    left = pictures.MARGIN
    top = next(y for y, row in enumerate(picture[:, left - 1]) if (row == LINE).all())
    for edge in (picture[top : top + height + 2, left - 1], picture[top + height + 1, left : left + width]):
        assert (edge == LINE).all()


def test_small_images_are_outlined_at_the_size_of_the_picture():
    shown = explanation(20, 16)
    large = np.asarray(overlays.parts_overlay(shown, size=(400, 320)), dtype=int)
    assert large.shape == (320, 400, 3)
    assert (large[5, 138] == palette(3)[0]).all()  # outlines meet at 7 of 20 pixels
    assert (large[5, 142] == palette(3)[1]).all()
    assert len(np.unique(large[5, :130], axis=0)) == 1


def test_texts_are_cut_where_they_would_stick_out():
    text = "wren " * 100
    for width in (30, 100, 333):
        cut = lettering.shorten(text, 20, width)
        assert lettering.length(cut, 20) <= width
        assert lettering.length(text[: len(cut) + 1] + "…", 20) > width
    assert lettering.shorten("two\nlines", 20, 1000) == "two lines"
