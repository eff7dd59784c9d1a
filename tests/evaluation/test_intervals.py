"""Confidence intervals against scipy's bootstrap, and against scores of images that are really drawn again."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from rg.evaluation.intervals import PerImage, intervals


def test_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    samples = PerImage()
    samples.mean("value", values)
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert samples.figures()["value"] == pytest.approx(values.mean())
    assert intervals(samples, 20_000)["value"] == pytest.approx(list(expected), rel=0.01)
    assert intervals(samples) == intervals(samples)


def test_intervals_are_those_of_images_drawn_again():
    """Ratios weigh images by what was measured in them; scores are those of all labels of the images drawn."""
    rng = np.random.default_rng(1)
    errors = rng.random((40, 5))
    errors[rng.random((40, 5)) < 0.4] = np.nan
    truth = rng.integers(0, 4, (40, 30))
    predicted = np.where(rng.random((40, 30)) < 0.5, truth, rng.integers(0, 3, (40, 30)))
    tables = np.zeros((40, 4, 4), int)
    np.add.at(tables, (np.arange(40)[:, None], truth, predicted), 1)
    samples = PerImage(tables={("nmi", "ari"): tables})
    samples.mean("error", errors)
    drawn = [rng.integers(0, 40, 40) for _ in range(250)]
    expected = {
        "error": [np.nanmean(errors[rows]) for rows in drawn],
        "nmi": [normalized_mutual_info_score(truth[rows].ravel(), predicted[rows].ravel()) for rows in drawn],
        "ari": [adjusted_rand_score(truth[rows].ravel(), predicted[rows].ravel()) for rows in drawn],
    }
    found = intervals(samples, 4000)
    assert set(found) == set(expected)
    for name, values in expected.items():
        ends = np.quantile(values, [0.025, 0.975])
        assert found[name] == pytest.approx(ends.tolist(), abs=0.15 * (ends[1] - ends[0])), name
    weights = np.stack([np.bincount(rows, minlength=40) for rows in drawn]).astype(float)
    for name, values in samples.weighted(weights).items():
        assert values == pytest.approx(expected[name]), name


def test_what_was_not_measured_has_no_interval():
    samples = PerImage(tables={("nmi", "ari"): np.zeros((3, 2, 2), int)})
    samples.mean("error", np.full((3, 2), np.nan))
    samples.mean("single", np.array([np.nan, 0.25, np.nan]))
    assert samples.figures() == {"nmi": None, "ari": None, "error": None, "single": 0.25}
    assert intervals(samples) == {"single": [0.25, 0.25]}
    assert intervals(PerImage()) == PerImage().figures() == {}
