"""The protocol of FunnyBirds against the paper's words said once more, on random models and random explanations."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from rg.attribution.funnybirds import (
    THRESHOLDS,
    Importance,
    Subject,
    at_best_threshold,
    background_independence,
    dimensions,
    removals,
    rivals,
    scores,
    sufficient_sets,
)

PARTS = ("beak", "eye", "foot", "tail", "wing")
VARIANTS = (4, 3, 4, 9, 6)  # of the parts of FunnyBirds
THINGS = ("bg 0", "bg 1", "bg 2")


def some_classes(rng, count=50):
    unique = {tuple(int(rng.integers(n)) for n in VARIANTS) for _ in range(3 * count)}
    return [dict(zip(PARTS, looks, strict=True)) for looks in sorted(unique, key=lambda _: rng.random())[:count]]


class Lookup:
    """A model that says something random of every set of what is left, and remembers what it was asked."""

    def __init__(self, rng, classes):
        self.rng, self.count, self.known = rng, classes, {}
        self.base = rng.normal(0, 2, classes)

    def __call__(self, removed):
        if removed not in self.known:
            self.known[removed] = self.base + self.rng.normal(0, 1.0 if removed else 0.0, self.count)
        return self.known[removed]


class Said:
    """A random explanation of every class; some attribution is negative, some lies nowhere."""

    def __init__(self, rng):
        self.rng, self.known = rng, {}

    def __call__(self, label):
        if label not in self.known:
            of = dict(zip((*PARTS, *THINGS), self.rng.normal(0.3, 1, 8) ** 3, strict=True))
            self.known[label] = Importance(of, sum(of.values()) + float(self.rng.random()))
        return self.known[label]


def restated(classes, label, model, said):
    """What the paper does, one threshold and one part at a time."""
    whole = model(frozenset())
    named = max(range(len(classes)), key=lambda c: whole[c])

    def called(c, threshold):
        return [name for name in said(c).of if said(c).of[name] > threshold * said(c).total]

    tells = {}
    for size in range(1, 6):
        for names in itertools.combinations(PARTS, size):
            owners = [c for c in classes if all(c[name] == classes[label][name] for name in names)]
            tells[names] = len(owners) == 1
    minimal = [s for s in tells if tells[s] and not any(tells[o] and set(o) < set(s) for o in tells)]

    checks = np.full((4, len(THRESHOLDS)), np.nan)
    for t, threshold in enumerate(THRESHOLDS):
        if named == label:
            found = set(called(label, threshold))
            checks[0, t] = max(sum(name in found for name in s) / len(s) for s in minimal)
        of_named = [name for name in called(named, threshold) if name in PARTS]
        left = model(frozenset(name for name in PARTS if name not in of_named))
        checks[1, t] = float(left.argmax() == named)
        checks[2, t] = float(model(frozenset(of_named)).argmax() != named)
        needless = [
            name
            for name in (*PARTS, *THINGS)
            if abs(whole[label] - model(frozenset([name]))[label]) < abs(0.05 * whole[label])
            or model(frozenset([name]))[label] > whole[label]
        ]
        if needless:
            checks[3, t] = 1 - sum(name in called(label, threshold) for name in needless) / len(needless)
    falls = [whole[label] - model(frozenset([name]))[label] for name in PARTS]
    single = spearmanr([said(label).of[name] for name in PARTS], falls).statistic

    sensitivity = np.full(2, np.nan)
    for a, b in itertools.combinations([c for c in range(len(classes)) if c != label], 2):
        own = [{name for name in PARTS if classes[c][name] == classes[label][name]} for c in (a, b)]
        if len(own[0]) == len(own[1]) == 2 and not own[0] & own[1]:
            without = [model(frozenset(names)) for names in own]
            if without[0][a] < without[1][a] and without[1][b] < without[0][b]:
                weight = {(c, k): sum(said(c).of[name] for name in own[k]) for c in (a, b) for k in (0, 1)}
                sensitivity = np.array([float(weight[a, 0] > weight[b, 0]), float(weight[b, 1] > weight[a, 1])])
            break
    else:
        pytest.fail("these classes have no rivals, which tests nothing")
    return {"checks": checks, "single_deletion": single, "target_sensitivity": sensitivity}


def test_every_score_is_what_the_paper_says():
    rng = np.random.default_rng(0)
    classes = some_classes(rng)
    told, right = 0, 0
    for number in range(40):
        model, said, label = Lookup(rng, len(classes)), Said(rng), int(rng.integers(len(classes)))
        if number % 2:
            model.base[label] = 8
        named = int(model(frozenset()).argmax())
        subject = Subject(label, named, PARTS, THINGS, classes, model)
        found, expected = scores(subject, said), restated(classes, label, model, said)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, err_msg=name)
        told += not np.isnan(expected["target_sensitivity"]).any()
        right += not np.isnan(expected["checks"][0]).any()
    assert told > 5
    assert 10 < right < 40


def test_all_that_is_asked_of_the_model_is_known_beforehand():
    rng = np.random.default_rng(1)
    classes = some_classes(rng)
    for label in range(20):
        model, said = Lookup(rng, len(classes)), Said(rng)
        named = int(model(frozenset()).argmax())
        subject = Subject(label, named, PARTS, THINGS, classes, model)
        planned = removals(subject, [said(named)])
        model.known.clear()
        for removed in planned:
            model(removed)
        scores(subject, said)
        background_independence(subject)
        assert set(model.known) == planned


def test_the_background_counts_thing_by_thing():
    logits = {frozenset(): 10.0, frozenset(["bg 0"]): 9.6, frozenset(["bg 1"]): 9.4, frozenset(["bg 2"]): 14.0}
    subject = Subject(0, 0, (), THINGS, [{}, {}], lambda removed: np.array([logits[removed], 0.0]))
    assert background_independence(subject).tolist() == [1, 0, 1]  # 4 %, 6 %, and a logit that grows


def test_sets_that_tell_a_class():
    classes = [
        {"beak": 1, "tail": 1, "wing": 1},
        {"beak": 1, "tail": 1, "wing": 2},
        {"beak": 1, "tail": 2, "wing": 1},
        {"petals": 1},
    ]
    assert sufficient_sets(classes, 0, ("beak", "tail", "wing")) == [frozenset(["tail", "wing"])]
    assert sufficient_sets(classes, 1, ("beak", "tail", "wing")) == [frozenset(["wing"])]
    assert sufficient_sets(classes, 0, ("beak", "tail")) == []  # the wing is not seen
    assert sufficient_sets(classes, 3, ("petals", "stem")) == [frozenset(["petals"])]


def test_near_duplicates_are_rivals_where_no_others_are():
    """What tells them is what one shares with the image and the other does not."""
    own = dict.fromkeys("abcd", 0)
    classes = [own, own | {"a": 1}, own | {"b": 1}, dict.fromkeys("abcd", 2)]
    pair = rivals(classes, 0, tuple("abcd"))
    assert pair.rivals == (1, 2)
    assert pair.owned == (frozenset("b"), frozenset("a"))
    assert rivals(classes, 0, tuple("acd")) is None  # both look alike in what is seen, or differ in all
    assert rivals(classes[:1], 0, tuple("abcd")) is None


def test_dimensions_are_composed_as_published():
    """With the figures that the authors print as an example of an output, and the axes they draw of them."""
    csdc, pc, dc, d, sd, ts = 0.7353, 0.602, 0.532, 0.54372, 0.54592, 0.806
    means = np.zeros((1, 4, len(THRESHOLDS)))
    means[0, :, 1] = csdc, pc, dc, d
    found = at_best_threshold(means) | {"single_deletion": np.array([2 * sd - 1]), "target_sensitivity": np.array([ts])}
    found |= dimensions(found)
    assert found["threshold"] == pytest.approx(0.01620253164556962)
    assert found["completeness"] == pytest.approx(((csdc + pc + dc) / 3 + d) / 2)
    assert found["correctness"] == pytest.approx(sd)
    assert found["contrastivity"] == pytest.approx(ts)
    assert found["explainability"] == pytest.approx((found["completeness"] + sd + ts) / 3)


def test_there_are_80_thresholds():
    assert len(THRESHOLDS) == 80
    assert THRESHOLDS[[0, -1]].tolist() == [0.01, 0.5]
    assert np.ptp(np.diff(THRESHOLDS)) == pytest.approx(0, abs=1e-12)
