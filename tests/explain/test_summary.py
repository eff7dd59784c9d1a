"""Explanations in sentences: exact for a table of cases, and true of any numbers."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rg.explain.contributions import NOTABLE
from rg.explain.facts import MOSTLY, Facts, PartExplanation, PlaceExplanation, Rival
from rg.explain.numbers import percent
from rg.explain.summary import EXPECTED, LEANING, OCCURS, WORDS, likelihood, summarize

SURE, RARE = {"occurrence": 0.98, "frequency": 0.97}, {"occurrence": 0.12, "frequency": 0.97}
SIDE = 20  # pixels


def part(index, name="", adds=0.0, rival=0.0, background=False, occurrence=0.9, frequency=None, off=False):
    strongest = np.zeros((SIDE, SIDE), np.int8)
    name = name or f"part {index}"
    return PartExplanation(index, name, strongest, (0, 0), occurrence, 0.1, adds, rival, background, frequency, off)


def facts(parts, constant=0.0, p=0.97, rival=("robin", 0.021, 0.0), top=None, saw=1.0, **values):
    """Of a wren; a rival is its name, probability and constant, parts are arguments of ``part``."""
    made = [part(k, **about) for k, about in enumerate(parts)]
    told, against = values.get("place"), None
    if rival:
        logit = sum(one.rival_contribution for one in made) + rival[2] + (told.rival_contribution if told else 0)
        against = Rival(rival[0], rival[1], logit, rival[2])
    label = values.pop("label", "wren")
    best = [(label, p), *([(top or rival[0], rival[1])] if rival else [])]
    settings = {"calibrated": True} | values
    return Facts(
        label=label,
        probability=p,
        logit=sum(one.contribution for one in made) + constant + (told.contribution if told else 0),
        constant=constant,
        top_k=best,
        rival=against,
        attribution=np.zeros((SIDE, SIDE), np.float32),
        assign=np.zeros((len(made), 1, 1), np.float32),
        parts=made,
        image=np.zeros((SIDE, SIDE, 3), np.uint8),
        window=(0, 0, SIDE * saw, SIDE),
        **settings,
    )


HEAD, WING = {"name": "head", "adds": 3.0, "rival": 0.5}, {"name": "wing", "adds": 1.0, "rival": -0.2}
BIRD = [HEAD, WING, {"name": "tail"}]
TOLD = "What tells it from robin, the next most likely (2.1 %), is mostly the head and the wing"
ATTRIBUTES = {"label": "Smiling", "rival": ("Young", 0.9, 0.0), "multi_label": True}
NONE = {"label": "", "answer": "none", "rival": None, "p": 0.0, "calibrated": False}


def place(adds, rival=0.0, located=True, dated=True):
    return PlaceExplanation(located, dated, adds, rival, "robin")


CASES = {
    "the place decides": (
        facts(BIRD, place=place(5.0)),
        "Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly the place and "
        "date of the photo, and only then the head.",
    ),
    "the place helps the rival as much": (facts(BIRD, place=place(5.0, 5.0)), f"Very likely wren (97.0 %). {TOLD}."),
    "the place makes the parts less than half": (
        facts([*BIRD, {"adds": 0.5}], place=place(3.9, dated=False)),
        f"Very likely wren (97.0 %). {TOLD.replace('mostly', 'above all')}.",
    ),
    "the date speaks for the rival of a tie": (
        facts([HEAD], place=place(0.0, 2.5, located=False), p=0.5, rival=("robin", 0.5, 0.0)),
        "As good as a tie between wren (50.0 %) and robin (50.0 %). "
        "What speaks for wren is above all the head, what speaks for robin is above all the date of the photo.",
    ),
    "two parts decide": (facts(BIRD), f"Very likely wren (97.0 %). {TOLD}."),
    "sure": (facts(BIRD, p=0.9991), f"Virtually certainly wren (99.9 %). {TOLD}."),
    "never quite": (facts(BIRD, p=1 - 1e-9), f"Virtually certainly wren (> 99.9 %). {TOLD}."),
    "fair": (facts(BIRD, p=0.7), f"Likely wren (70.0 %). {TOLD}."),
    "even": (facts(BIRD, p=0.51), f"More likely than not wren (51.0 %). {TOLD}."),
    "open": (facts(BIRD, p=0.4), f"About as likely as not wren (40.0 %). {TOLD}."),
    "low": (facts(BIRD, p=0.2), f"The best guess is wren, which is unlikely (20.0 %). {TOLD}."),
    "never evaluated": (facts(BIRD, calibrated=False), f"The model says wren (97.0 %, not calibrated). {TOLD}."),
    "unsure": (
        facts(BIRD, p=0.8, answer="unsure"),
        f"The model is not sure enough to answer; its best guess is wren, which is likely (80.0 %). {TOLD}.",
    ),
    "unsure and never calibrated": (
        facts(BIRD, p=0.8, answer="unsure", calibrated=False),
        f"The model is not sure enough to answer; its best guess is wren (80.0 %, not calibrated). {TOLD}.",
    ),
    "unknown": (
        facts([HEAD | RARE], p=0.6, answer="unknown"),
        "The model does not know this; its best guess is wren (60.0 %). "
        "The parts that it would go by hardly occur in the photo.",
    ),
    "without labels": (facts([{}, {}], **NONE), "This model learned without labels and names no class."),
    "without labels, a part is missing": (
        facts([{} | RARE, {} | SURE], saw=0.4, **NONE),
        "This model learned without labels and names no class; it saw only 40 % of the photo. "
        "Unusually, there is hardly any sign of part 0.",
    ),
    "an attribute": (
        facts([{"name": "mouth", "adds": 2.0, "rival": 9.0}, {"name": "eyes", "adds": 0.1}], **ATTRIBUTES),
        "Very likely Smiling (97.0 %), the attribute that fits best. What speaks for it is mostly the mouth.",
    ),
    "an attribute that no part speaks for": (
        facts([{"name": "mouth", "adds": -2.0}, {"name": "eyes", "adds": 0.02}], p=0.12, **ATTRIBUTES),
        "The best guess is Smiling, which is unlikely (12.0 %). "
        "No part stands out in what speaks for it, and what speaks against it is above all the mouth.",
    ),
    "one class": (
        facts([HEAD], rival=None, p=1 - 1e-16),
        "The model says wren, the only class that it knows. What speaks for it is mostly the head.",
    ),
    "a part against it": (
        facts([HEAD, {"name": "belly", "adds": 1.0, "rival": 2.0}]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the head, despite the belly.",
    ),
    "hardly against it": (
        facts([HEAD, {"name": "belly", "rival": 0.6}]),
        "Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly the head.",
    ),
    "parts without names": (
        facts([{"adds": 1.0}, {"adds": 2.0}]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly part 1 and part 0.",
    ),
    "names of several true parts": (
        facts([{"name": "crown and beak", "adds": 2.0}, {"name": "tail", "adds": 1.0}]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the crown and beak, and the tail.",
    ),
    "two parts of one name": (
        facts([{"name": "wing", "adds": 2.0}, {"name": "wing", "adds": 1.0}]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the wing (part 0) and the wing (part 1).",
    ),
    "what both classes have does not count": (
        facts([{"name": "belly", "adds": 5.0, "rival": 4.9}, HEAD]),
        "Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly the head.",
    ),
    "spread over many": (
        facts([{"adds": 1.0 - k / 100} for k in range(6)]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is above all part 0 and part 1.",
    ),
    "spread over all": (
        facts([{"adds": 0.04} for _ in range(12)]),
        "Very likely wren (97.0 %). No part stands out in what tells it from robin, the next most likely (2.1 %).",
    ),
    "the constant decides": (
        facts([{"name": "head", "adds": 1.0}], constant=3.0),
        f"Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly {LEANING}, "
        "and only then the head.",
    ),
    "the constant decides against the parts": (
        facts(
            [{"name": "head", "adds": 1.0}, {"name": "belly", "rival": 2.5}], constant=1.0, rival=("robin", 0.021, -1.0)
        ),
        f"Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly {LEANING}, "
        "while the parts together speak against it, above all the belly.",
    ),
    "the constants are even": (
        facts(BIRD, constant=9.0, rival=("robin", 0.021, 9.0)),
        f"Very likely wren (97.0 %). {TOLD}.",
    ),
    "surroundings decide": (
        facts(
            [{"name": "sky", "adds": 2.0, "background": True}, {"adds": 1.5, "background": True}, HEAD | {"adds": 2.0}]
        ),
        "Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly the surroundings "
        "(the sky and part 1), so be careful.",
    ),
    "surroundings decide against a part": (
        facts([{"name": "background", "adds": 2.0, "background": True}, {"name": "head", "rival": 1.0}]),
        "Very likely wren (97.0 %). What tells it from robin, the next most likely (2.1 %), is mostly the surroundings "
        "(the background), despite the head, so be careful.",
    ),
    "surroundings help": (
        facts([HEAD, {"name": "sky", "adds": 2.0, "background": True}]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the head and the sky (surroundings).",
    ),
    "a part that is off is not missed": (
        facts([HEAD, WING, {"name": "tail", "off": True, **RARE}]),
        f"Very likely wren (97.0 %). {TOLD}.",
    ),
    "a part is missing": (
        facts([HEAD | SURE, WING | SURE, {"name": "tail"} | RARE, {"name": "feet"} | RARE | {"frequency": 0.89}]),
        f"Very likely wren (97.0 %). {TOLD}; unusually, there is hardly any sign of the tail.",
    ),
    "surroundings are not missed": (
        facts([*BIRD[:2], {"background": True} | RARE]),
        f"Very likely wren (97.0 %). {TOLD}.",
    ),
    "a part decides that is not there": (
        facts([HEAD | RARE, WING | SURE]),
        "Very likely wren (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the head (hardly to be seen) and the wing.",
    ),
    "part of the photo": (
        facts(BIRD, saw=0.4),
        f"Very likely wren (97.0 %), judged from only 40 % of the photo. {TOLD}.",
    ),
    "a tie": (
        facts([HEAD | {"adds": 1.0}, {"name": "belly", "rival": 0.49}], p=0.5025, rival=("robin", 0.4975, 0.0)),
        "As good as a tie between wren (50.2 %) and robin (49.8 %). "
        "What speaks for wren is above all the head, what speaks for robin is above all the belly.",
    ),
    "a tie by the constant": (
        facts([HEAD | {"adds": 1.0}], p=0.5, rival=("robin", 0.5, 0.5), answer="unsure", calibrated=False),
        "The model is not sure enough to answer; its best guess is a tie between wren (50.0 %) and robin (50.0 %), not "
        f"calibrated. What speaks for wren is above all the head, what speaks for robin is above all {LEANING}.",
    ),
    "a tie of nothing": (
        facts([{}, {}], p=0.5, rival=("robin", 0.5, 0.0)),
        "As good as a tie between wren (50.0 %) and robin (50.0 %). No part stands out.",
    ),
    "why not another": (
        facts(BIRD, rival=("jay", 0.0003, 0.0), top="robin"),
        "Very likely wren (97.0 %). What tells it from jay (< 0.1 %) is mostly the head and the wing.",
    ),
    "odd names": (
        facts([HEAD | {"name": "翼"}, WING | {"name": "the  crest"}], label="<b>Grey\nJay & co</b>"),
        "Very likely <b>Grey Jay & co</b> (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly 翼 and the crest.",
    ),
    "a name from the right": (
        facts([HEAD], label="صقر"),
        "Very likely \u2068صقر\u2069 (97.0 %). "
        "What tells it from robin, the next most likely (2.1 %), is mostly the head.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_its_sentences(name):
    given_facts, sentences = CASES[name]
    assert summarize(given_facts) == sentences


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.99051, "virtually certain"),
        (0.99049, "very likely"),  # shown as 99.0 %, which is not more than 99 %
        (0.9, "likely"),
        (0.66, "more likely than not"),
        (0.5, "about as likely as not"),
        (0.33, "unlikely"),
        (0.1, "very unlikely"),
        (0.0, "very unlikely"),
    ],
)
def test_words_are_those_of_the_number_that_is_shown(probability, words):
    assert likelihood(probability) == words


NAMES = st.sampled_from(["", "head", "wing", "crown and beak", "翼", "the tail"])
ADDS = st.floats(-4, 4) | st.sampled_from([0.0, NOTABLE, -NOTABLE, 1e-9])
SHARES = st.floats(0, 1)
PARTS = st.fixed_dictionaries(
    {"name": NAMES, "adds": ADDS, "rival": ADDS, "background": st.booleans(), "occurrence": SHARES}
    | {"frequency": st.none() | SHARES | st.just(1.0)}
)
RIVALS = st.tuples(st.just("robin"), SHARES, ADDS)


def any_facts(**values):
    chosen = {
        "constant": ADDS,
        "p": SHARES,
        "rival": st.none() | RIVALS,
        "top": st.sampled_from([None, "jay"]),
        "saw": st.sampled_from([0.05, 0.4, 0.74, 0.75, 1.0]),
        "answer": st.sampled_from(["label", "unsure", "unknown"]),
        "calibrated": st.booleans(),
        "multi_label": st.booleans(),
    }
    return st.builds(facts, st.lists(PARTS, min_size=1, max_size=8), **(chosen | values))


def mentioned(made, sentences):
    """How often every part is named; longer names first, so that none is found within another."""
    counts = Counter()
    names = {}
    for one in made.parts:
        twins = sum(other.name.split() == one.name.split() for other in made.parts) > 1
        names[one.index] = f"{one.name} (part {one.index})" if twins else one.name
    for index, name in sorted(names.items(), key=lambda item: -len(item[1])):
        counts[index] = len(re.findall(rf"(?<!\w){re.escape(name)}(?![\w(]| \(part)", sentences))
        sentences = sentences.replace(name, "")
    return counts


@given(any_facts())
@example(CASES["a part decides that is not there"][0])
@example(CASES["the constant decides against the parts"][0])
def test_sentences_say_nothing_that_the_numbers_do_not(made):
    sentences = summarize(made)
    assert sentences == summarize(dataclasses.replace(made))
    assert [len(text) > 0 for text in re.split(r"\.(?!\d) ?", sentences)] == [
        True,
        True,
        False,
    ]  # two, whatever is said

    known = {
        percent(made.probability),
        percent(made.seen, 0),
        *([percent(made.rival.probability)] if made.rival else []),
    }
    assert set(re.findall(r"(?:[<>] )?[\d.]+ %", sentences)) <= known
    words = [
        said for _, said in WORDS if said.replace("certain", "certainly") in sentences.lower() or said in sentences
    ]
    if not made.calibrated or made.answer == "unknown":
        assert [said for said in words if said != "likely"] == []  # "the next most likely"
    if made.seen < MOSTLY:
        assert f"only {percent(made.seen, 0)} of the photo" in sentences

    versus = made.rival and not made.multi_label
    why = sentences.split(". ", 1)[1]
    for index, times in mentioned(made, why).items():
        one = made.parts[index]
        adds = one.contribution - (one.rival_contribution if versus else 0)
        missing = one.occurrence < OCCURS and (one.frequency or 0) >= EXPECTED and not one.background
        assert times <= 1
        assert not times or abs(adds) >= NOTABLE or missing


@given(any_facts(answer=st.just("label"), calibrated=st.just(True)), st.floats(1.5, 3))
def test_the_part_that_counts_most_is_named_first(made, most):
    """One that outweighs everything else by far is the reason, whichever it is and whatever the rest does."""
    strongest = dataclasses.replace(made.parts[0], contribution=100 * most, rival_contribution=0.0, background=False)
    made = dataclasses.replace(made, parts=[strongest, *made.parts[1:]], logit=made.logit + 100 * most)
    assert mentioned(made, re.search(r"is mostly (.*)", summarize(made))[1])[0] == 1
    surroundings = dataclasses.replace(made, parts=[dataclasses.replace(strongest, background=True), *made.parts[1:]])
    assert "is mostly the surroundings (" in summarize(surroundings)
    assert summarize(surroundings).partition(";")[0].rstrip(".").endswith("so be careful")


@given(any_facts(rival=RIVALS, multi_label=st.just(False)), st.integers(-64, 64))
def test_what_is_added_for_both_classes_alike_does_not_tell_them_apart(made, shift):
    def exact(one, more=0):
        """In binary, so that differences stay the same to the last bit."""
        adds, rival = (round(64 * value) / 64 + more for value in (one.contribution, one.rival_contribution))
        return dataclasses.replace(one, contribution=adds, rival_contribution=rival)

    same = dataclasses.replace(made, parts=[exact(one) for one in made.parts])
    moved = dataclasses.replace(made, parts=[exact(one, shift) for one in made.parts])
    assert summarize(moved) == summarize(same)
