"""Deep feature factorisation: parts as the non-negative factors of the feature maps of any network."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from sklearn.decomposition import NMF
from threadpoolctl import threadpool_limits

ONE_THREAD = partial(threadpool_limits, 1, user_api="blas")


class DeepFeatureFactorization:
    """Parts as the non-negative factors of feature maps (Collins et al., 2018).

    The features X of all positions, one row each, are factorised into W H with W, H >= 0: every row of H is the feature
    of a part, and W says how much of it there is at every position. Features are clamped at 0, which costs nothing
    behind a ReLU. Matrices are multiplied by one thread: several round otherwise, and many steps enlarge that.

    Args:
        parts: Number of parts.
        seed: Seed of the factorisation.
    """

    def __init__(self, parts: int, seed: int) -> None:
        if parts < 1:
            raise ValueError(f"parts: expected at least 1, got {parts}")
        self.factorization = NMF(parts, max_iter=1000, random_state=seed)

    def fit(self, features: np.ndarray) -> DeepFeatureFactorization:
        """Find the parts in feature maps [N, C, h, w] of any network.

        Raises:
            ValueError: another shape, or features that are not finite.
        """
        _check_features(features)
        with ONE_THREAD():
            self.factorization.fit(np.maximum(features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1]), 0))
        return self

    @property
    def components(self) -> np.ndarray:
        """The factors as they were found: float32 or float64 [parts, C]."""
        return self.factorization.components_

    @classmethod
    def of(cls, components: np.ndarray) -> DeepFeatureFactorization:
        """That whose ``components`` these are."""
        found = cls(len(components), 0)
        found.factorization.components_ = components
        found.factorization.n_components_, found.factorization.n_features_in_ = components.shape
        return found

    @property
    def parts(self) -> np.ndarray:
        """The feature of every part, float32 [parts, C], at unit length; a part of nothing stays 0."""
        components = self.factorization.components_
        return (components / np.maximum(self._lengths[:, None], np.finfo(np.float32).tiny)).astype(np.float32)

    def amounts(self, features: np.ndarray) -> np.ndarray:
        """How much there is of every part at every position, measured with its feature at unit length.

        The factorisation alone leaves the scale open.

        Args:
            features: [N, C, h, w] of the network that was fitted on.

        Returns:
            float32 [N, parts, h, w], non-negative.

        Raises:
            ValueError: another shape, features that are not finite, or nothing fitted yet.
        """
        _check_features(features)
        N, C, h, w = features.shape
        rows = np.maximum(features.transpose(0, 2, 3, 1).reshape(-1, C), 0)
        with ONE_THREAD():
            amounts = self.factorization.transform(rows) * self._lengths
        return amounts.reshape(N, h, w, -1).transpose(0, 3, 1, 2).astype(np.float32)

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Assignment of positions to parts, in the form of ``ModelOutput.assign``: their shares of the amounts.

        Args:
            features: [N, C, h, w] of the network that was fitted on.

        Returns:
            float32 [N, parts, h, w]; sums to 1 over the parts, 0 where a feature has nothing of any part.

        Raises:
            ValueError: another shape, features that are not finite, or nothing fitted yet.
        """
        amounts = self.amounts(features)
        total = amounts.sum(1, keepdims=True)
        return np.divide(amounts, total, out=np.zeros_like(amounts), where=total > 0)

    @property
    def _lengths(self) -> np.ndarray:
        return np.linalg.norm(self.factorization.components_, axis=1)


def draw_positions(maps: Iterable[np.ndarray], each: int, seed: int) -> np.ndarray:
    """Features of random positions: of every map [C, h, w] up to ``each``, as float32 [M, C, 1, 1]."""
    random = np.random.default_rng(seed)
    rows = []
    for features in maps:
        positions = features.reshape(len(features), -1)
        drawn = random.choice(positions.shape[1], min(each, positions.shape[1]), replace=False)
        rows.append(positions[:, drawn].T)
    return np.concatenate(rows)[:, :, None, None]


def _check_features(features: np.ndarray) -> None:
    if features.ndim != 4:
        raise ValueError(f"features: expected [N, C, h, w], got {list(features.shape)}")
