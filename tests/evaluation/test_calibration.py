"""Temperature and reliability against searches, loops, scikit-learn and labels drawn from known probabilities."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve

from rg.evaluation import rows
from rg.evaluation.calibration import confidences, fit_temperature, reliability

KINDS = ("classes", "attributes")


def draw(kind: str, temperature: float, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are as likely as softmax or sigmoid of logits / temperature say."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(images, 5)) + rng.normal(size=5)
    if kind == "attributes":
        return logits, (rng.random(logits.shape) < expit(logits / temperature)).astype(np.int64)
    # Of logits plus Gumbel noise the largest is that of a class drawn from their softmax.
    return logits, (logits / temperature + rng.gumbel(size=logits.shape)).argmax(1)


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean negative log likelihood, or binary cross entropy."""
    z = logits.astype(float) / temperature
    if labels.ndim == 1:
        return -log_softmax(z, axis=1)[np.arange(len(z)), labels].mean()
    return (np.logaddexp(0, z) - labels * z).mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_no_temperature_of_a_grid_is_better(kind, seed):
    logits, labels = draw(kind, 1.7, 150, seed)
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 4001))
    losses = [loss(logits, labels, temperature) for temperature in grid]
    found = fit_temperature(logits, labels)
    assert loss(logits, labels, found) <= min(losses)
    assert abs(np.log(found / grid[np.argmin(losses)])) <= np.log(grid[1] / grid[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_level_at_the_temperature(kind):
    logits, labels = draw(kind, 0.6, 200)
    found = fit_temperature(logits, labels)
    step = 1e-5

    def slope(temperature):
        return (loss(logits, labels, temperature + step) - loss(logits, labels, temperature - step)) / (2 * step)

    assert abs(slope(found)) < 1e-9
    assert slope(found / 1.01) < -1e-5 < 1e-5 < slope(found * 1.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(kind, temperature):
    """Up to five standard errors: the Fisher information of 1 / T is the variance of the logits under the model."""
    logits, labels = draw(kind, temperature, 40_000)
    if kind == "classes":
        p = softmax(logits / temperature, axis=1)
        information = ((p * logits**2).sum(1) - (p * logits).sum(1) ** 2).sum()
    else:
        p = expit(logits / temperature)
        information = (p * (1 - p) * logits**2).sum()
    tolerance = 5 * temperature**2 / np.sqrt(information)
    assert tolerance < 0.05 * temperature
    assert fit_temperature(logits, labels) == pytest.approx(temperature, abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_is_in_units_of_the_logits(kind, monkeypatch):
    logits, labels = draw(kind, 1.3, 400)
    found = fit_temperature(logits, labels)
    assert fit_temperature(8 * logits, labels) == pytest.approx(8 * found, rel=1e-9)
    assert fit_temperature(logits[::-1], labels[::-1]) == pytest.approx(found, rel=1e-9)
    if kind == "classes":
        assert fit_temperature(logits + 1000 * np.arange(400)[:, None], labels) == pytest.approx(found, rel=1e-9)
    single = logits.astype(np.float32)
    assert fit_temperature(single, labels) == fit_temperature(single.astype(np.float64), labels)
    monkeypatch.setattr(rows, "BLOCK", 33)
    assert fit_temperature(logits, labels) == pytest.approx(found, rel=1e-9)


def test_two_classes_are_one_attribute():
    logits, labels = draw("attributes", 1.3, 300)
    two = np.stack([np.zeros(300), logits[:, 0]], axis=1)
    assert fit_temperature(two, labels[:, 0]) == pytest.approx(fit_temperature(logits[:, :1], labels[:, :1]), rel=1e-9)


@pytest.mark.parametrize("scale", [0.1, 10, 1e4])
def test_a_best_temperature_beyond_the_bounds_is_the_bound(scale):
    right = scale * np.eye(3)
    assert fit_temperature(right, np.arange(3)) == 0.01
    assert fit_temperature(right - scale / 2, np.eye(3, dtype=int)) == 0.01
    assert fit_temperature(right, np.array([1, 2, 0])) == 100
    assert fit_temperature(right - scale / 2, 1 - np.eye(3, dtype=int)) == 100


def test_logits_that_are_all_alike_stay_as_they_are():
    assert fit_temperature(np.full((4, 3), 7.0), np.array([0, 1, 2, 0])) == 1
    assert fit_temperature(np.zeros((4, 3)), np.ones((4, 3), int)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_confidence_of_classes_is_that_of_the_winner(temperature, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 64)
    logits, labels = draw("classes", 2.0, 100)
    confidence, correct = confidences(logits.astype(np.float32), labels, temperature)
    assert (confidence.dtype, correct.dtype) == (np.float64, bool)
    for n, row in enumerate(np.exp(logits.astype(np.float32).astype(float) / temperature)):
        assert confidence[n] == pytest.approx(max(row) / sum(row))
        assert correct[n] == (np.argmax(row) == labels[n])


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_every_attribute_is_a_decision(temperature):
    logits, labels = draw("attributes", 2.0, 20)
    confidence, correct = confidences(logits, labels, temperature)
    p = 1 / (1 + np.exp(-logits / temperature))
    np.testing.assert_allclose(confidence, np.maximum(p, 1 - p).ravel())
    np.testing.assert_array_equal(correct, ((p > 0.5) == labels).ravel())


def test_bins_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(200), np.arange(16) / 15, [0, 0, 1]])
    correct = rng.random(len(confidence)) < 0.6
    found = reliability(confidence, correct)
    error = 0.0
    for i in range(15):
        inside = [n for n, c in enumerate(confidence) if i / 15 < c <= (i + 1) / 15 or (i == 0 and c == 0)]
        assert found.counts[i] == len(inside)
        assert found.confidences[i] == pytest.approx(np.mean(confidence[inside]))
        assert found.accuracies[i] == pytest.approx(np.mean(correct[inside]))
        error += len(inside) / len(confidence) * abs(np.mean(confidence[inside]) - np.mean(correct[inside]))
    assert found.ece == pytest.approx(error)


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("lowest", [0.0, 0.5])
def test_bins_are_those_of_sklearn(bins, lowest):
    rng = np.random.default_rng(bins)
    confidence = rng.uniform(lowest, 1, 100)
    correct = rng.random(100) < confidence
    found = reliability(confidence, correct, bins)
    accuracies, means = calibration_curve(correct, confidence, n_bins=bins)
    assert len(found.counts) == len(found.accuracies) == len(found.confidences) == bins
    assert [value for value in found.accuracies if value is not None] == pytest.approx(accuracies)
    assert [value for value in found.confidences if value is not None] == pytest.approx(means)


def test_edges_belong_to_the_bin_below():
    found = reliability(np.array([0, 0.25, 0.5, 0.5, 1]), np.array([True, False, True, False, True]), bins=4)
    assert found.counts == (2, 2, 0, 1)
    assert found.confidences == (0.125, 0.5, None, 1)
    assert found.accuracies == (0.5, 0.5, None, 1)
    assert found.ece == pytest.approx((2 * 0.375 + 2 * 0 + 1 * 0) / 5)


def test_confidence_that_is_right_as_often_as_it_says_has_no_error():
    confidence = np.repeat([0.1, 0.3, 0.7, 0.9], 10)
    correct = np.concatenate([np.arange(10) < share for share in (1, 3, 7, 9)])
    assert reliability(confidence, correct).ece == pytest.approx(0, abs=1e-15)
    assert reliability(confidence, ~correct).ece == pytest.approx(np.mean([0.8, 0.4, 0.4, 0.8]))


@pytest.mark.parametrize("images", [1000, 100_000])
def test_the_error_of_calibrated_decisions_vanishes_with_their_number(images):
    """The standard error of the share of n is at most 1 / (2 sqrt(n)), so the mean over bins sqrt(bins / N) / 2."""
    rng = np.random.default_rng(images)
    confidence = rng.random(images)
    found = reliability(confidence, rng.random(images) < confidence)
    assert found.ece < np.sqrt(15 / images) / 2
    overconfident = reliability(np.sqrt(confidence), rng.random(images) < confidence)
    assert overconfident.ece == pytest.approx(2 / 3 - 1 / 2, abs=4 * np.sqrt(15 / images) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_makes_overconfident_logits_reliable(kind):
    logits, labels = draw(kind, 3.0, 10_000)
    temperature = fit_temperature(logits[:5000], labels[:5000])
    before, after = (reliability(*confidences(logits[5000:], labels[5000:], one)).ece for one in (1.0, temperature))
    assert before > 0.1
    assert after < np.sqrt(15 / 5000)


@pytest.mark.parametrize(
    "logits,labels,message",
    [
        (np.zeros((0, 3)), np.zeros(0, int), r"logits: expected \[N, C\], got \[0, 3\]"),
        (np.zeros(3), np.zeros(3, int), r"logits: expected \[N, C\], got \[3\]"),
        (np.array([[0, np.nan, 0]]), np.zeros(1, int), "logits: expected finite values, got nan to nan"),
        (np.array([[0, 1, -np.inf]]), np.zeros(1, int), "logits: expected finite values, got -inf to 1.0"),
        (np.zeros((2, 3)), np.zeros(3, int), r"labels: expected \[2\] or \[2, 3\], got \[3\]"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels: expected 0 to 2, got 0 to 3"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels: expected 0 to 2, got -1 to 0"),
        (np.zeros((1, 3)), np.array([[0, 2, 1]]), "labels: expected 0 to 1, got 0 to 2"),
    ],
)
def test_logits_and_labels_must_fit(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)
    with pytest.raises(ValueError, match=message):
        confidences(logits, labels, 1.0)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_temperatures_are_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature: expected a positive number, got {temperature}"):
        confidences(np.zeros((1, 2)), np.zeros(1, int), temperature)


@pytest.mark.parametrize(
    "confidence,correct,bins,message",
    [
        ([0.5], [True], 0, "bins: expected at least 1, got 0"),
        ([], [], 15, r"confidence: expected \[M\], got \[0\]"),
        ([[0.5]], [[True]], 15, r"confidence: expected \[M\], got \[1, 1\]"),
        ([0.5, np.nan], [True, True], 15, "confidence: expected 0 to 1, got nan to nan"),
        ([0.5, 1.5], [True, True], 15, "confidence: expected 0 to 1, got 0.5 to 1.5"),
        ([0.5, -1], [True, True], 15, "confidence: expected 0 to 1, got -1.0 to 0.5"),
        ([0.5], [True, False], 15, r"correct: expected \[1\], got \[2\]"),
    ],
)
def test_bins_need_probabilities(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        reliability(np.array(confidence), np.array(correct), bins)
