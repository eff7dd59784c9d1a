"""Rows that lie in a file read like the array that they were added from."""

import numpy as np
import pytest

from rg.evaluation import calibration, rollup, rows
from rg.evaluation.rollup import Level
from rg.evaluation.rows import Rows

LEVEL = {"genus": Level(("a", "b"), np.array([0, 0, 1, 1, 0]))}


@pytest.fixture(params=[1 << 28, 64], ids=["in memory", "on disk"])
def pair(request, monkeypatch):
    """Rows and their array, of batches of several heights; the second on disk, in blocks of a few rows."""
    monkeypatch.setattr(rows, "IN_MEMORY", request.param)
    rng, own = np.random.default_rng(0), Rows()
    batches = [rng.normal(0, 3, (height, 5)).astype(np.float32) for height in (4, 7, 1, 11)]
    for batch in batches:
        own.append(batch)
    return own, np.concatenate(batches)


def test_slices_are_those_of_the_array(pair):
    own, array = pair
    assert (own.shape, own.size, own.ndim, len(own)) == (array.shape, array.size, array.ndim, len(array))
    for first, last in ((0, 23), (3, 5), (20, 99), (7, 7), (-4, None)):
        np.testing.assert_array_equal(own[first:last], array[first:last])
    own.append(array[:2])  # also after reading
    np.testing.assert_array_equal(own[21:], np.concatenate([array[21:], array[:2]]))


@pytest.mark.parametrize("block", [1, 7, 12, 1 << 20])
def test_blocks_are_those_of_numpy(pair, monkeypatch, block):
    monkeypatch.setattr(rows, "BLOCK", block)
    own, array = pair
    expected = np.array_split(array, 1 + array.size // block)
    found = [own[part] for part in rows.slices(own)]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_measured_of_them_is_that_of_the_array_to_the_bit(pair, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 12)
    own, array = pair
    labels = np.random.default_rng(1).integers(0, 5, len(array))
    assert calibration.fit_temperature(own, labels) == calibration.fit_temperature(array, labels)
    found, expected = (calibration.confidences(logits, labels, 1.7) for logits in (own, array))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert rollup.accuracies(own, labels, LEVEL) == rollup.accuracies(array, labels, LEVEL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_in_any_block(pair, monkeypatch, value):
    monkeypatch.setattr(rows, "BLOCK", 12)
    own, _ = pair
    rows.check_finite(own)
    own.append(np.array([[0, value, 0, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="logits: expected finite values"):
        rows.check_finite(own)


def test_rows_of_another_kind_are_refused(pair):
    own, _ = pair
    with pytest.raises(ValueError, match=r"expected float32 \[n, 5\], got float32 \[2, 4\]"):
        own.append(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"expected float32 \[n, 5\], got float64 \[2, 5\]"):
        own.append(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="expected neighbours, got steps of 2"):
        own[::2]
