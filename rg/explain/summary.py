"""An explanation in at most two sentences, made of its numbers: what it is, and what decided that.

See docs/explanations.md. Words for probabilities are those of the IPCC (Mastrandrea et al., Guidance Note for Lead
Authors of the Fifth Assessment Report on Consistent Treatment of Uncertainties, 2010).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rg.explain.contributions import NOTABLE
from rg.explain.facts import MOSTLY, Facts, PartExplanation, Rival
from rg.explain.numbers import percent

WORDS = (  # for probabilities of more than so many percent
    (99, "virtually certain"),
    (90, "very likely"),
    (66, "likely"),
    (50, "more likely than not"),
    (33, "about as likely as not"),
    (10, "unlikely"),
    (-1, "very unlikely"),
)
BESIDE = 0.25  # share of the largest contribution from which on another one is named, too
OCCURS = 0.5  # occurrence from which on a part occurs, as in evaluation
EXPECTED = 0.9  # share of the evaluated images from which on a part is missed where it does not occur
LEANING = "a leaning that the model has whatever the photo shows"
DIRECTED = ("R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI")  # bidirectional classes of Unicode
ISOLATE, END = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"


def summarize(facts: Facts) -> str:
    """What the image shows, and which parts decided that against which rival; at most two sentences.

    Args:
        facts: Of one image.
    """
    return " ".join(f"{sentence}." for sentence in (_what(facts), _why(facts)) if sentence)


def likelihood(probability: float) -> str:
    """A calibrated probability in words: of the number as it is shown, so that both agree."""
    shown = float(f"{100 * probability:.1f}")
    return next(words for bound, words in WORDS if shown > bound)


def _what(facts: Facts) -> str:
    """The first sentence: the label, and how sure the model is of it."""
    partly = facts.seen < MOSTLY
    seen = f"only {percent(facts.seen, 0)} of the photo"
    if facts.answer == "none":
        return f"This model learned without labels and names no class{f'; it saw {seen}' if partly else ''}"
    return f"{_answer(facts)}{f', judged from {seen}' if partly else ''}"


def _answer(facts: Facts) -> str:
    label, probability = _text(facts.label), percent(facts.probability)
    words, rival = likelihood(facts.probability), _tied_with(facts)
    unchecked = "" if facts.calibrated else ", not calibrated"
    says = "The model says"
    if not (facts.rival or facts.multi_label):
        guess = f"{label}, the only class that it knows"
    elif rival:
        says = "As good as"
        other = f"{_text(rival.label)} ({percent(rival.probability)})"
        guess = f"a tie between {label} ({probability}) and {other}{unchecked}"
    elif facts.answer == "unknown" or not facts.calibrated:  # nothing was calibrated on what is unknown
        guess = f"{label} ({probability}{unchecked})"
    elif facts.answer == "unsure" or "unlikely" in words:
        says = "The best guess is"
        guess = f"{label}, which is {words} ({probability})"
    else:
        best = ", the attribute that fits best" if facts.multi_label else ""
        return f"{words.replace('certain', 'certainly').capitalize()} {label} ({probability}){best}"
    if facts.answer == "unknown":
        return f"The model does not know this; its best guess is {guess}"
    if facts.answer == "unsure":
        return f"The model is not sure enough to answer; its best guess is {guess}"
    return f"{says} {guess}"


def _why(facts: Facts) -> str:
    """The second sentence: what decided, and what is missing; empty if there is nothing to say."""
    if facts.answer == "unknown":
        return "The parts that it would go by hardly occur in the photo"
    names = _Names(facts)
    said = [] if facts.answer == "none" else [_tie(facts, names) if _tied_with(facts) else _decision(facts, names)]
    missing = [part for part in facts.parts if _is_missing(part) and part.index not in names.used]
    if missing:
        most = max(missing, key=lambda part: (part.frequency or 0.0, -part.occurrence))
        said.append(f"unusually, there is hardly any sign of {names.bare(most)}")
    return _capital("; ".join(said))


def _decision(facts: Facts, names: _Names) -> str:
    """What tells the label from its rival, or speaks for it where there is none."""
    rival = None if facts.multi_label else facts.rival
    adds, beside, favour, against = _weights(facts, rival)
    subject, pause = "what speaks for it", ""
    if rival:
        is_next = len(facts.top_k) > 1 and facts.top_k[1][0] == rival.label
        subject = f"what tells it from {_text(rival.label)}{', the next most likely' if is_next else ''}"
        subject, pause = f"{subject} ({percent(rival.probability)})", "," if is_next else ""
    total = sum(adds)
    most, words = max((value, words) for words, value in beside.items())
    if most >= NOTABLE and most > total:
        text = f"{subject}{pause} is mostly {words}"
        if total <= -NOTABLE:
            worst = f", above all {names.of(against[0])}" if against else ""
            return f"{text}, while the parts together speak against it{worst}"
        return f"{text}, and only then {names.of(favour[0])}" if favour else text
    if not favour:
        worst = f", and what speaks against it is above all {names.of(against[0])}" if against else ""
        return f"no part stands out in {subject}{worst}"
    surroundings = [part for part in favour if part.background]
    share = sum(adds[part.index] for part in surroundings)
    careful = 2 * share > sum(adds[part.index] for part in favour)
    strongest = surroundings if careful else favour
    named = [part for part in strongest[:2] if adds[part.index] >= BESIDE * adds[strongest[0].index]]
    if careful:
        reasons = f"the surroundings ({_both([names.bare(part) for part in named])})"
    else:
        share = sum(adds[part.index] for part in named)
        reasons = _both([names.of(part) for part in named])
    in_favour = sum(max(value, 0.0) for value in [*adds, *beside.values()])
    text = f"{subject}{pause} is {'mostly' if 2 * share > in_favour else 'above all'} {reasons}"
    if against and -adds[against[0].index] >= BESIDE * adds[favour[0].index]:
        text += f", despite {names.of(against[0])}"
    return f"{text}, so be careful" if careful else text


def _tie(facts: Facts, names: _Names) -> str:
    """What speaks for either of two classes that come out even."""
    assert facts.rival
    adds, beside, favour, against = _weights(facts, facts.rival)
    sides = []
    for label, parts, sign in ((facts.label, favour, 1), (facts.rival.label, against, -1)):
        most, words = max((sign * value, words) for words, value in beside.items())
        if most >= max([NOTABLE, *(abs(adds[part.index]) for part in parts[:1])]):
            sides.append(f"what speaks for {_text(label)} is above all {words}")
        elif parts:
            sides.append(f"what speaks for {_text(label)} is above all {names.of(parts[0])}")
    return ", ".join(sides) or "no part stands out"


def _weights(
    facts: Facts, rival: Rival | None
) -> tuple[list[float], dict[str, float], list[PartExplanation], list[PartExplanation]]:
    """What counts for the label, or for it rather than the rival: parts, and in words what is beside them.

    After that the notable parts for it, and those against it.
    """
    adds = [part.contribution - (part.rival_contribution if rival else 0.0) for part in facts.parts]
    order = sorted(facts.parts, key=lambda part: -adds[part.index])
    favour = [part for part in order if adds[part.index] >= NOTABLE]
    against = [part for part in reversed(order) if adds[part.index] <= -NOTABLE]
    beside = {LEANING: facts.constant - (rival.constant if rival else 0.0)}
    if facts.place:
        beside[f"the {facts.place.name} of the photo"] = facts.place.contribution - (
            facts.place.rival_contribution if rival else 0.0
        )
    return adds, beside, favour, against


def _tied_with(facts: Facts) -> Rival | None:
    """The rival, if it comes out even with the label; attributes have none, as they do not exclude each other."""
    rival = None if facts.multi_label else facts.rival
    return rival if rival and abs(facts.logit - rival.logit) < NOTABLE else None


def _is_missing(part: PartExplanation) -> bool:
    """Whether a part does not occur here, but does in nearly all images that the run was evaluated on."""
    return not (part.background or part.off) and (part.frequency or 0.0) >= EXPECTED and part.occurrence < OCCURS


class _Names:
    """Names of parts as they stand in a sentence.

    Attributes:
        used: Numbers of the parts that were named.
    """

    def __init__(self, facts: Facts) -> None:
        self.parts = facts.parts
        self.used: set[int] = set()

    def bare(self, part: PartExplanation) -> str:
        """The head, part 3; with the number where another part has the same name."""
        self.used.add(part.index)
        name = _text(part.name)
        if name == f"part {part.index}":
            return name
        if any(_text(other.name) == name for other in self.parts if other.index != part.index):
            name += f" (part {part.index})"
        return f"the {name}" if name.isascii() and not name.lower().startswith("the ") else name

    def of(self, part: PartExplanation) -> str:
        """The same, and what to know of the part."""
        remark = " (surroundings)" if part.background else " (hardly to be seen)" if _is_missing(part) else ""
        return f"{self.bare(part)}{remark}"


def _both(names: Sequence[str]) -> str:
    """A and B; with a comma where the first holds an "and" itself."""
    return (", and " if " and " in names[0] else " and ").join(names)


def _text(name: str) -> str:
    """A name in one line; one that is written from the right does not turn round what stands beside it."""
    line = " ".join(name.split())
    directed = any(unicodedata.bidirectional(character) in DIRECTED for character in line)
    return f"{ISOLATE}{line}{END}" if directed else line


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
