"""Values of images, their figures and intervals: against scipy's bootstrap, and against images really drawn again."""

import io

import numpy as np
import pytest
from scipy.stats import bootstrap

from rg.attribution.funnybirds import NAMES, THRESHOLDS
from rg.attribution.values import Values, figures, load_values, save_values

KEYS = [f"image-{n}" for n in range(40)]


def some_values(seed=0):
    """Means, shares with gaps, checks by threshold, and measures of the model itself, some of several numbers."""
    rng = np.random.default_rng(seed)
    hits = (rng.random(40) < 0.3).astype(float)
    hits[rng.random(40) < 0.2] = np.nan
    steps = rng.uniform(0, 0.5, (40, 4, 1))  # from which threshold on a check of an image is passed, or no more
    checks = ((steps < THRESHOLDS) == np.array([0, 0, 1, 1])[:, None]).astype(float)
    checks[rng.random(40) < 0.1, 0] = np.nan
    checks[rng.random(40) < 0.1, 3] = np.nan
    falls = rng.normal(1, 0.5, (40, 5))
    falls[rng.random((40, 5)) < 0.4] = np.nan
    methods = {"cam": {"deletion": rng.random(40), "pointing_error": hits, "checks": checks}}
    methods["cam"] |= {"single_deletion": rng.normal(size=40), "target_sensitivity": rng.random((40, 2))}
    return Values(KEYS, methods, {"accuracy": rng.random(40), "covering/fall": falls, "covered_by": falls})


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = some_values()
    deletion = values.methods["cam"]["deletion"]
    expected = bootstrap((deletion,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = expected.high - expected.low
    # An end that is the 2.5 % quantile of 1000 replicates: its standard error is 0.03 widths of a normal distribution.
    assert values.intervals()["methods"]["cam"]["deletion"] == pytest.approx(list(expected), abs=0.1 * width)
    assert values.intervals() == values.intervals()


def test_the_interval_of_several_runs_is_that_of_their_mean():
    one, other = some_values(), some_values(1)
    mean = (one.methods["cam"]["deletion"] + other.methods["cam"]["deletion"]) / 2
    expected = bootstrap((mean,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = expected.high - expected.low
    found = one.intervals([other])
    assert found["methods"]["cam"]["deletion"] == pytest.approx(list(expected), abs=0.1 * width)  # as above
    assert set(found["methods"]["cam"]) == set(one.intervals()["methods"]["cam"])
    assert one.intervals([one])["covering"]["fall"] == pytest.approx(one.intervals()["covering"]["fall"])


def at_best(checks):
    """The checks at the threshold with the best completeness, said once more."""
    means = [[np.nanmean(checks[:, c, t]) for c in range(4)] for t in range(len(THRESHOLDS))]
    completeness = [(sum(three) / 3 + last) / 2 for *three, last in means]
    t = max(range(len(THRESHOLDS)), key=lambda t: completeness[t])
    return dict(zip(NAMES, means[t], strict=True)) | {"threshold": THRESHOLDS[t], "completeness": completeness[t]}


def test_figures_of_weighted_images_are_those_of_images_drawn_again():
    """A threshold is chosen anew by every replicate, and gaps do not count."""
    values, rng = some_values(), np.random.default_rng(1)
    drawn = [rng.integers(0, 40, 40) for _ in range(50)]
    weights = np.stack([np.bincount(rows, minlength=40) for rows in drawn]).astype(float)
    of = values.methods["cam"]
    found = figures(of, weights)
    composed = {"completeness", "correctness", "contrastivity", "explainability"}
    assert set(found) == {*of, *NAMES, "threshold", *composed} - {"checks"}
    for r, rows in enumerate(drawn):
        assert found["deletion"][r] == pytest.approx(of["deletion"][rows].mean())
        assert found["pointing_error"][r] == pytest.approx(np.nanmean(of["pointing_error"][rows]))
        assert {name: found[name][r] for name in at_best(of["checks"][rows])} == pytest.approx(
            at_best(of["checks"][rows])
        )
        assert figures(values.model, weights)["covering/fall"][r] == pytest.approx(
            np.nanmean(values.model["covering/fall"][rows])
        )
    assert len(set(found["threshold"])) > 1


def test_figures_and_intervals_stand_at_the_same_places():
    values = some_values()
    places, ends = values.figures(), values.intervals()
    assert set(places) == set(ends) == {"accuracy", "covering", "methods"}
    assert places["covering"]["fall"] == pytest.approx(np.nanmean(values.model["covering/fall"]))
    for name, (low, high) in ends["methods"]["cam"].items():
        assert low <= places["methods"]["cam"][name] <= high, name


def test_what_was_not_measured_is_none_and_has_no_interval():
    measures = {"deletion": (2,), "checks": (2, 4, 80), "single_deletion": (2,), "target_sensitivity": (2, 2)}
    nothing = Values(["a", "b"], {"cam": {name: np.full(shape, np.nan) for name, shape in measures.items()}}, {})
    assert set(nothing.figures()["methods"]["cam"].values()) == {None}
    assert nothing.intervals() == {"methods": {"cam": {}}}


def test_parts_joined_and_read_back_are_the_whole(tmp_path):
    whole, other = some_values(), some_values(1)
    few = Values(KEYS[:7], {"cam": {k: v[:7] for k, v in whole.methods["cam"].items()}}, dict(whole.model))
    few.model.update(
        {name: numbers[:7, :2] if numbers.ndim > 1 else numbers[:7] for name, numbers in whole.model.items()}
    )
    joined = Values.join([few, other])
    assert joined.keys == KEYS[:7] + KEYS
    assert joined.methods["cam"]["checks"].shape == (47, 4, len(THRESHOLDS))
    assert np.isnan(joined.model["covering/fall"][:7, 2:]).all()
    with (tmp_path / "values.npz").open("wb") as out:
        save_values([joined, Values(joined.keys, {}, {"accuracy": np.zeros(47)})], out)
    first, second = load_values(tmp_path / "values.npz")
    assert first.figures() == joined.figures()
    assert (first.keys, list(second.model), second.methods) == (joined.keys, ["accuracy"], {})
    one, again = io.BytesIO(), io.BytesIO()
    save_values([joined], one)
    save_values([joined], again)
    assert one.getvalue() == again.getvalue()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "values.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"values\.npz: expected the values that faithful wrote"):
        load_values(tmp_path / "values.npz")


def test_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "values.npz", keys=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="expected the values that faithful wrote"):
        load_values(tmp_path / "values.npz")
