"""Threshold, limit and selective metrics against brute force, scikit-learn and guarantees that hold by counting."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import binom
from sklearn.metrics import precision_score

from rg.evaluation.confidence import choose_threshold, fit_confidence, presence_limit, selective_metrics
from rg.explain.numbers import percent
from rg.runs.confidence import (
    Confidence,
    basis,
    fewest_for_limit,
    fewest_for_threshold,
    probabilities,
    read_confidence,
    write_confidence,
)
from rg.runs.folder import WEIGHTS

SOME = Confidence(0.5, 0.75, 0.2, 0.95, 0.01, 0.5, 0.97, 100, "birds", "0" * 64)


def draw(images: int, seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are as likely as their softmax says."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(images, 4))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_lower_threshold_reaches_the_target(target, seed):
    """Every split of the decisions into above and below is tried; a coarse grid makes many of them equally sure."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(120), 2)
    correct = rng.random(120) < confidence
    reach = [least for least in np.unique(confidence) if precision_score(correct, confidence >= least) >= target]
    found = choose_threshold(confidence, correct, target)
    if not reach:
        assert found is None
    elif min(reach) == confidence.min():
        assert found == 0
    else:
        assert ((confidence >= found) == (confidence >= min(reach))).all()
        assert np.abs(confidence - found).min() > 1e-3  # half-way: rounding to float32 changes nothing
    order = rng.permutation(120)
    assert choose_threshold(confidence[order], correct[order], target) == found


def test_thresholds_at_the_ends():
    confidence = np.array([0.9, 0.8, 0.7])
    assert choose_threshold(confidence, np.array([True, True, True]), 1.0) == 0
    assert choose_threshold(confidence, np.array([False, False, False]), 0.1) is None
    assert choose_threshold(confidence, np.array([True, False, False]), 1.0) == pytest.approx(0.85)
    assert choose_threshold(np.full(3, 0.5), np.array([True, True, False]), 0.6) == 0
    assert choose_threshold(np.full(3, 0.5), np.array([True, True, False]), 0.7) is None
    twenty = np.arange(20) > 0
    assert choose_threshold(np.linspace(0, 1, 20), twenty, 0.95) == 0  # 19 of 20 is 95 %, not less


@pytest.mark.parametrize("images,false_alarms,below", [(1000, 0.01, 9), (99, 0.01, 0), (20, 0.01, 0), (199, 0.1, 19)])
def test_the_limit_keeps_its_promise(images, false_alarms, below):
    """The next image is equally likely to be anywhere in the order of all, so k of N + 1 places are below the limit."""
    presence = np.random.default_rng(0).random(images)
    limit = presence_limit(presence, false_alarms)
    assert (presence < limit).sum() == below
    assert (below + 1) / (images + 1) <= max(false_alarms, 1 / (images + 1))


def test_the_rate_of_false_alarms_is_met_on_new_images():
    """k / (N + 1) = 5 % on average; the mean of 400 draws scatters by a 20th of the deviation of Beta(5, 95), 2.2 %."""
    rng = np.random.default_rng(1)
    rates = [(rng.random(2000) < presence_limit(rng.random(99), 0.05)).mean() for _ in range(400)]
    assert np.mean(rates) == pytest.approx(0.05, abs=5 * 0.022 / 20)


def test_everything_is_fitted_on_the_validation_images():
    logits, labels = draw(2000)
    presence = np.random.default_rng(2).random(2000)
    found = fit_confidence(3 * logits, labels, presence, 0.9, 0.05, "birds", "weights")
    assert found.temperature == pytest.approx(3, rel=0.1)  # labels follow logits, which came three times as large
    probability = softmax(3 * logits / found.temperature, axis=1).max(1)
    known = presence >= found.presence_limit
    given = known & (probability >= found.threshold)
    right = logits.argmax(1) == labels
    assert (~known).sum() == 99
    assert (found.coverage, found.precision) == (given.mean(), right[given].mean())
    assert 0.9 <= found.precision < 0.91
    assert 0 < found.coverage < known.mean()
    for n in range(0, 2000, 7):
        said = "unknown" if not known[n] else "label" if given[n] else "unsure"
        assert found.answer(probability[n], presence[n]) == said


def test_calibrated_probabilities_make_the_threshold_hold_elsewhere():
    """Five standard errors of the share of right answers, of those chosen and of those tested on."""
    (logits, labels), (others, truth) = draw(20_000), draw(20_000, seed=1)
    found = fit_confidence(logits, labels, None, 0.9, 0.01, "birds", "weights")
    measured = selective_metrics(found, others, truth, None)
    error = np.sqrt(0.9 * 0.1 / (20_000 * measured["coverage"]))
    assert measured["precision"] == pytest.approx(0.9, abs=5 * np.sqrt(2) * error)
    assert measured["unknown"] == 0
    assert found.presence_limit is measured["presence_limit"] is None


def test_selective_metrics_are_counted():
    logits, labels = draw(150, seed=3)
    presence = np.random.default_rng(4).random(150)
    measured = selective_metrics(dataclasses.replace(SOME, temperature=2.0), logits, labels, presence)
    probability = softmax(logits / 2, axis=1).max(1)
    right = logits.argmax(1) == labels
    answers = [
        "unknown" if one < 0.2 else "unsure" if sure < 0.75 else "label"
        for one, sure in zip(presence, probability, strict=True)
    ]
    for name, answer in {"coverage": "label", "unsure": "unsure", "unknown": "unknown"}.items():
        assert measured[name] == pytest.approx(answers.count(answer) / 150)
    given = [n for n, answer in enumerate(answers) if answer == "label"]
    assert measured["precision"] == pytest.approx(sum(right[n] for n in given) / len(given))
    ranked = sorted(range(150), key=lambda n: -probability[n])
    risks = [sum(not right[i] for i in ranked[:n]) / n for n in range(1, 151)]
    assert measured["aurc"] == pytest.approx(sum(risks) / 150)


def test_attributes_are_decisions_of_their_own():
    """Two images of three attributes: the second image shows nothing known, the first is unsure of one attribute."""
    logits, labels = np.array([[4.0, -4, 0.1], [4, 4, 4]]), np.array([[1, 1, 0], [1, 1, 1]])
    some = dataclasses.replace(SOME, temperature=None)
    measured = selective_metrics(some, logits, labels, np.array([0.9, 0.1]))
    shares = [measured[name] for name in ("coverage", "unsure", "unknown", "precision")]
    assert shares == pytest.approx([2 / 6, 1 / 6, 3 / 6, 1 / 2])


def test_answers_that_are_all_right_give_no_temperature(caplog):
    """The best temperature would be zero: any other makes right answers less certain."""
    found = fit_confidence(
        np.tile(9 * np.eye(3, 4), (20, 1)), np.tile(range(3), 20), None, 0.95, 0.01, "birds", "weights"
    )
    assert (found.temperature, found.threshold, found.coverage, found.precision) == (None, 0, 1, 1)
    assert "no temperature" in caplog.text


def test_answers_that_are_never_right_give_no_threshold(caplog):
    logits, labels = np.tile(np.eye(3), (20, 1)), np.tile([1, 2, 0], 20)
    found = fit_confidence(logits, labels, np.ones(60), 0.95, 0, "birds", "weights")
    assert (found.threshold, found.presence_limit, found.coverage, found.precision) == (None, None, 0, None)
    assert "no threshold" in caplog.text
    assert found.answer(1.0, 1.0) == "unsure"
    measured = selective_metrics(found, np.eye(3), np.arange(3), np.ones(3))
    assert (measured["coverage"], measured["precision"], measured["unsure"]) == (0, None, 1)


@pytest.mark.parametrize("target,enough", [(0.95, 59), (0.9, 29), (0.5, 5), (0.99, 299), (0.999, 299), (1.0, 299)])
def test_so_many_right_answers_in_a_row_are_rarely_chance(target, enough):
    """The binomial distribution: all of N right, though only a share of the target is."""
    assert fewest_for_threshold(target) == enough
    assert binom.pmf(enough, enough, min(target, 0.99)) <= 0.05 < binom.pmf(enough - 1, enough - 1, min(target, 0.99))


@pytest.mark.parametrize("false_alarms,enough", [(0.01, 99), (0.05, 19), (0.5, 1), (0.3, 3), (0, 0)])
def test_the_least_of_so_many_is_within_the_false_alarms(false_alarms, enough):
    assert fewest_for_limit(false_alarms) == enough
    assert false_alarms == 0 or 1 / (enough + 1) <= false_alarms * (1 + 1e-9)
    assert false_alarms == 0 or 1 / enough > false_alarms


@pytest.mark.parametrize(
    "images,too_few",
    [
        (49, {"temperature": 50, "threshold": 59, "presence limit": 99}),
        (58, {"threshold": 59, "presence limit": 99}),
        (98, {"presence limit": 99}),
        (99, {}),
    ],
)
def test_nothing_is_fitted_on_too_few_images(images, too_few, caplog):
    logits, labels = draw(images)
    presence = np.random.default_rng(5).random(images)
    found = fit_confidence(3 * logits, labels, presence, 0.95, 0.01, "birds", "weights")
    assert (found.images, found.too_few) == (images, too_few)
    assert (found.temperature is None) == ("temperature" in too_few)
    assert (found.presence_limit is None) == ("presence limit" in too_few)
    assert (found.threshold == 0) == ("threshold" in too_few)
    if too_few:
        assert f"{images} validation images, too few for: " in caplog.text
        assert "presence limit (takes 99)" in basis(images, too_few)
    else:
        assert not caplog.text
        assert basis(images, too_few) == "fitted on 99 validation images"
    if "threshold" in too_few and "presence limit" in too_few:
        assert found.answer(1e-3, 0.0) == "label"  # nothing is withheld for a reason that nobody knows


def test_an_older_file_of_few_images_says_so(tmp_path, caplog):
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    older = dataclasses.asdict(dataclasses.replace(SOME, images=9, weights=hashlib.sha256(b"weights").hexdigest()))
    del older["shards"]
    (tmp_path / "confidence.json").write_text(json.dumps(older))
    assert read_confidence(tmp_path).shards is None
    assert "9 validation images, too few for: temperature (takes 50), threshold (takes 59)" in caplog.text


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_those_of_scipy_and_never_certain(multi_label):
    logits = np.random.default_rng(6).normal(size=(50, 4)).astype(np.float32)
    expected = expit(logits / 0.7) if multi_label else softmax(logits.astype(float) / 0.7, axis=1)
    np.testing.assert_allclose(probabilities(logits, 0.7, multi_label), expected, rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits, None, multi_label).argmax(1), logits.argmax(1))
    saturated = probabilities(np.array([[9e4, -9e4, 0, 1]], np.float32), None, multi_label)
    assert 0 < saturated.min() < saturated.max() < 1
    assert (percent(saturated.max()), percent(saturated.min())) == ("> 99.9 %", "< 0.1 %")


def test_a_file_of_other_weights_is_not_used(tmp_path, caplog):
    assert read_confidence(tmp_path) is None
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    write_confidence(tmp_path / "confidence.json", SOME)
    assert read_confidence(tmp_path) is None
    assert "was fitted with other weights" in caplog.text
    right = hashlib.sha256(b"weights").hexdigest()
    write_confidence(tmp_path / "confidence.json", dataclasses.replace(SOME, weights=right))
    assert read_confidence(tmp_path) == dataclasses.replace(SOME, weights=right)
    content = json.loads((tmp_path / "confidence.json").read_text())
    (tmp_path / "confidence.json").write_text(json.dumps(content | {"more": 1}))
    with pytest.raises(ValueError, match=r"confidence.json: no file of this program \(.*more"):
        read_confidence(tmp_path)
