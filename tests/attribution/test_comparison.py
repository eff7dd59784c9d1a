"""Which method wins: paired tests against scipy and against exact ones, and how often they err."""

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from rg.attribution.comparison import holm, p_values, winners
from rg.attribution.funnybirds import NAMES, THRESHOLDS
from rg.attribution.values import Values, figures

DRAWS = 0.02  # four standard errors of a share of 10,000 tosses are at most 4 * sqrt(0.25 / 10,000)


def test_the_p_value_of_a_mean_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    b = a + rng.normal(0.12, 0.5, 60)
    expected = permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, rng=1
    ).pvalue
    assert 0.01 < expected < 0.5
    assert p_values([{"deletion": a}], [{"deletion": b}])["deletion"] == pytest.approx(expected, abs=DRAWS)


@pytest.mark.parametrize("wins,losses", [(6, 0), (3, 0), (12, 3), (5, 5)])
def test_the_p_value_of_hits_is_that_of_mcnemar(wins, losses):
    """Images on which both hit, or both miss, say nothing."""
    hits = np.array([1, 0] * 20 + [1] * wins + [0] * losses, dtype=float)
    others = np.array([1, 0] * 20 + [0] * wins + [1] * losses, dtype=float)
    expected = binomtest(wins, wins + losses).pvalue
    assert p_values([{"hit": hits}], [{"hit": others}])["hit"] == pytest.approx(expected, abs=DRAWS)


def test_checks_change_places_before_their_threshold_is_chosen():
    """Against swaps that are really made, on images with gaps."""
    rng = np.random.default_rng(3)
    shape = (9, 4, len(THRESHOLDS))
    rest = {"single_deletion": rng.random(9), "target_sensitivity": rng.random((9, 2))}
    a, b = ({"checks": (rng.random(shape) < 0.5 + bias).astype(float), **rest} for bias in (0.1, -0.1))
    a["checks"][3, 2] = np.nan
    once = np.ones((1, 9))

    def difference(swapped):
        mask = swapped[:, None, None]
        one, other = np.where(mask, b["checks"], a["checks"]), np.where(mask, a["checks"], b["checks"])
        return {
            name: value[0] - figures({"checks": other, **rest}, once)[name][0]
            for name, value in figures({"checks": one, **rest}, once).items()
        }

    true = difference(np.zeros(9, bool))
    every = [difference(np.array([n >> k & 1 for k in range(9)], bool)) for n in range(1 << 9)]
    found = p_values([a], [b])
    for name in (*NAMES, "completeness"):
        exact = np.mean([abs(of[name]) >= abs(true[name]) - 1e-9 for of in every])
        assert found[name] == pytest.approx(exact, abs=DRAWS), name


def test_runs_of_the_same_images_are_no_more_images():
    """Three runs that say the same are as much evidence as one."""
    rng = np.random.default_rng(4)
    a, b = ({"deletion": rng.random(30)} for _ in range(2))
    assert p_values([a] * 3, [b] * 3) == p_values([a], [b])


def test_holm_is_what_he_says():
    """The example of his method: the smallest against alpha / m, the next against alpha / (m - 1), until one fails."""
    rng = np.random.default_rng(5)
    for p in rng.random((200, 5)) ** 3:
        for alpha in (0.01, 0.05, 0.2):
            rejected, order = set(), np.argsort(p)
            for rank, k in enumerate(order):
                if p[k] > alpha / (len(p) - rank):
                    break
                rejected.add(int(k))
            assert {k for k, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def runs_of(numbers, runs=1):
    keys = [str(n) for n in range(len(next(iter(numbers.values()))))]
    return [
        Values(keys, {key: {"deletion": values.copy()} for key, values in numbers.items()}, {}) for _ in range(runs)
    ]


def test_the_best_wins_only_if_it_is_better_than_every_other():
    rng = np.random.default_rng(6)
    common = rng.random(80)
    numbers = {name: common + rng.normal(shift, 0.1, 80) for name, shift in (("a", 0), ("b", 0.1), ("c", 0.3))}
    assert winners(runs_of(numbers), list("abc"), {"deletion": True}) == {"deletion": "a"}
    assert winners(runs_of(numbers), list("abc"), {"deletion": False}) == {"deletion": "c"}
    assert winners(runs_of(numbers | {"twin": numbers["a"]}), ["a", "b", "twin"], {"deletion": True}) == {}
    close = numbers | {"b": numbers["a"] + rng.normal(0.005, 0.1, 80)}
    assert winners(runs_of(close), list("abc"), {"deletion": True}) == {}


def test_the_best_has_to_be_ahead_in_every_run():
    rng = np.random.default_rng(7)
    runs = runs_of({"a": rng.normal(0.0, 0.1, 80), "b": rng.normal(0.5, 0.1, 80)}, 3)
    assert winners(runs, ["a", "b"], {"deletion": True}) == {"deletion": "a"}
    runs[2].methods["a"]["deletion"] += 0.6  # the mean of a is lower still
    assert winners(runs, ["a", "b"], {"deletion": True}) == {}


def test_what_was_not_measured_takes_no_part():
    rng = np.random.default_rng(8)
    numbers = {"a": rng.random(50), "b": rng.random(50) + 1, "none": np.full(50, np.nan)}
    assert winners(runs_of(numbers), ["a", "b", "none"], {"deletion": True}) == {"deletion": "a"}
    assert winners(runs_of(numbers), ["a", "none"], {"deletion": True}) == {}


def test_of_methods_that_are_equal_few_win(monkeypatch):
    """Two that are equal and one far behind, the least favourable case: an error in at most 5 % of the tables."""
    monkeypatch.setattr("rg.attribution.comparison.TOSSES", 400)
    rng, tables = np.random.default_rng(9), 200
    won = 0
    for _ in range(tables):
        numbers = {"a": rng.random(25), "b": rng.random(25), "c": rng.random(25) + 2}
        won += bool(winners(runs_of(numbers), list("abc"), {"deletion": True}))
    assert binomtest(won, tables, 0.05, alternative="greater").pvalue > 0.001
