"""Threshold, limit and selective metrics against brute force, scikit-learn and guarantees that hold by counting."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import precision_score

from rg.evaluation.confidence import choose_threshold, fit_confidence, presence_limit, selective_metrics
from rg.runs.confidence import Confidence, read_confidence, write_confidence
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
    found = fit_confidence(9 * np.eye(3, 4), np.arange(3), None, 0.95, 0.01, "birds", "weights")
    assert (found.temperature, found.threshold, found.coverage, found.precision) == (None, 0, 1, 1)
    assert "no temperature" in caplog.text


def test_answers_that_are_never_right_give_no_threshold(caplog):
    found = fit_confidence(np.eye(3), np.array([1, 2, 0]), np.ones(3), 0.95, 0, "birds", "weights")
    assert (found.threshold, found.presence_limit, found.coverage, found.precision) == (None, None, 0, None)
    assert "no threshold" in caplog.text
    assert found.answer(1.0, 1.0) == "unsure"
    measured = selective_metrics(found, np.eye(3), np.arange(3), np.ones(3))
    assert (measured["coverage"], measured["precision"], measured["unsure"]) == (0, None, 1)


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
