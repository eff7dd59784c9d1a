"""Mosaics: what lies where, and maps whose share on the right images is known."""

import numpy as np
import pytest
import torch

from rg.attribution.mosaics import EVERY, Mosaics

CLASSES = torch.tensor([1, 0, 1, 2, 0, 1, 1, 1, 2])


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (9, 3, 8, 6), dtype=torch.uint8, generator=generator)


def quarters(mosaic):
    return {(y, x): mosaic[:, 8 * y : 8 * y + 8, 6 * x : 6 * x + 6] for y in (0, 1) for x in (0, 1)}


def test_two_images_are_of_the_class_and_two_of_others():
    mosaics = Mosaics.of_images(images(), CLASSES, (0,))
    assert mosaics.of.tolist() == [0, EVERY, 2 * EVERY]
    assert mosaics.classes.tolist() == [1, 0, 2]
    assert mosaics.images.shape == (3, 3, 16, 12)
    for mosaic, number, right in zip(mosaics.images, mosaics.of, mosaics.right, strict=True):
        assert right.sum() == 2
        own = {images()[number].numpy().tobytes(), images()[number].flip(2).numpy().tobytes()}
        others = {other.numpy().tobytes() for other in images()[CLASSES[number] != CLASSES]}
        seen = {place: tile.numpy().tobytes() for place, tile in quarters(mosaic).items()}
        assert {seen[place] for place in seen if right[place]} == own
        assert {seen[place] for place in seen if not right[place]} <= others


def test_places_differ_between_seeds():
    assert len({Mosaics.of_images(images(), CLASSES, (seed,)).right.tobytes() for seed in range(20)}) > 5


def test_focus_is_the_share_of_what_is_positive():
    mosaics = Mosaics.of_images(images(), CLASSES, (0,))
    right = torch.from_numpy(mosaics.right).repeat_interleave(8, 1).repeat_interleave(6, 2).float()
    np.testing.assert_allclose(mosaics.focus(right), 1)
    np.testing.assert_allclose(mosaics.focus(1 - right), 0)
    np.testing.assert_allclose(mosaics.focus(torch.ones(3, 5, 5)), 0.5)
    np.testing.assert_allclose(mosaics.focus(3 * right + 1), 0.8)
    np.testing.assert_allclose(mosaics.focus(2 * right - 1), 1)
    assert np.isnan(mosaics.focus(-right)).all()


@pytest.mark.parametrize("count", [1, 9])
def test_images_of_one_class_make_no_mosaic(count):
    mosaics = Mosaics.of_images(images()[:count], torch.ones(count, dtype=torch.int64), (0,))
    assert mosaics.images.shape == (0, 3, 16, 12)
    assert len(mosaics.of) == len(mosaics.classes) == 0
