"""Deep feature factorisation against parts that are known."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from rg.attribution.factorization import DeepFeatureFactorization


def made_of_parts(count, seed, parts=4, channels=24, side=7):
    """Feature maps whose positions are known mixtures of parts of very different strength, and the mixtures."""
    rng = np.random.default_rng(0)
    features = rng.random((parts, channels)) * (rng.random((parts, channels)) < 0.4)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.1] * parts, (count, side, side))
    strength = rng.uniform(1, 5, (count, side, side, 1))
    maps = (strength * shares) @ features
    return np.moveaxis(maps, 3, 1).astype(np.float32), np.moveaxis(shares, 3, 1)


def matched(found, truth):
    """Found assignment in the order of the true parts (Hungarian matching)."""
    overlap = np.einsum("nkhw,njhw->kj", truth, found)
    return found[:, linear_sum_assignment(-overlap)[1]]


def test_factorization_recovers_parts_in_other_images():
    features, _ = made_of_parts(30, seed=1)
    others, truth = made_of_parts(10, seed=2)
    found = matched(DeepFeatureFactorization(4, 0).fit(features).transform(others), truth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.abs(found - truth).mean() < 0.03
    assert (found.argmax(1) == truth.argmax(1)).mean() > 0.97


def test_assignment_does_not_depend_on_the_scale_of_the_features():
    features, _ = made_of_parts(10, seed=1)
    first, second = (DeepFeatureFactorization(4, 0).fit(scale * features).transform(features) for scale in (1, 64))
    np.testing.assert_allclose(matched(second, first), first, atol=0.02)


def test_the_same_seed_gives_the_same_factors():
    features, _ = made_of_parts(10, seed=1)
    runs = [DeepFeatureFactorization(4, 0).fit(features).transform(features) for _ in range(2)]
    assert np.array_equal(*runs)


def test_negative_features_count_as_none():
    features, _ = made_of_parts(10, seed=1)
    signed = np.where(features > 0, features, -1)
    signed[0, :, 0, 0] = -1
    features[0, :, 0, 0] = 0
    runs = [DeepFeatureFactorization(4, 0).fit(x).transform(x) for x in (features, signed)]
    assert np.array_equal(*runs)
    assert not runs[0][0, :, 0, 0].any()


def test_bad_features_are_refused():
    features, _ = made_of_parts(3, seed=1)
    with pytest.raises(ValueError, match=r"^features: expected \[N, C, h, w\], got \[24, 7, 7\]"):
        DeepFeatureFactorization(4, 0).fit(features[0])
    with pytest.raises(ValueError, match="not fitted"):
        DeepFeatureFactorization(4, 0).transform(features)
    with pytest.raises(ValueError, match="features"):
        DeepFeatureFactorization(4, 0).fit(features).transform(features[:, 1:])
    features[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        DeepFeatureFactorization(4, 0).fit(features)
    with pytest.raises(ValueError, match=r"^parts: expected at least 1, got 0"):
        DeepFeatureFactorization(0, 0)


def test_factors_are_made_again_of_their_components():
    rng = np.random.default_rng(0)
    features = rng.random((6, 5, 4, 3), dtype=np.float32)
    found = DeepFeatureFactorization(3, 0).fit(features)
    again = DeepFeatureFactorization.of(found.components)
    others = rng.random((2, 5, 7, 2), dtype=np.float32)
    np.testing.assert_array_equal(again.amounts(others), found.amounts(others))
    np.testing.assert_array_equal(again.parts, found.parts)
