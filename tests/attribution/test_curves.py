"""Deletion and insertion against a plain loop, scikit-learn's area, and a model whose curves are known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import auc

from rg.attribution.curves import Curves, areas

GREY = torch.tensor([100.0, 110.0, 120.0])


def images(count=4, rows=12, columns=10):
    return torch.randint(
        0, 256, (count, 3, rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def softmax_of_all_pixels():
    weights = torch.randn(3, 360, generator=torch.Generator().manual_seed(0))
    return lambda of, classes: torch.softmax(of.flatten(1) / 255 @ weights.T, 1).gather(1, classes[:, None])[:, 0]


def white_share(of, classes):
    """The share of white pixels: the probability of a model that can be told by hand."""
    return (of == 255).all(1).flatten(1).float().mean(1) + 0 * classes


def by_hand(probability, before, after, values, steps):
    order = (-values.flatten()).argsort()
    found = []
    for step in range(steps + 1):
        mixed = before.clone().flatten(1)
        changed = order[: round(step / steps * len(order))]
        mixed[:, changed] = after.flatten(1)[:, changed]
        found.append(float(probability(mixed.view(before.shape))))
    return found


@pytest.mark.parametrize("steps", [1, 6, 7])
def test_curves_are_those_of_a_plain_loop(steps):
    probability, classes = softmax_of_all_pixels(), torch.tensor([0, 1, 2, 1])
    maps = torch.rand(4, 12, 10, generator=torch.Generator().manual_seed(2))
    curves = Curves(probability, images(), classes, GREY, 1.0, steps, 0)
    deleted, inserted = curves.deletion(maps), curves.insertion(maps)
    assert deleted.shape == inserted.shape == (4, steps + 1)
    for n, image in enumerate(images().float()):
        grey = GREY[:, None, None].expand_as(image)
        alone = lambda one, n=n: probability(one[None], classes[n : n + 1])  # noqa: E731
        np.testing.assert_allclose(deleted[n], by_hand(alone, image, grey, maps[n], steps), atol=1e-6)
        blurred = torch.from_numpy(np.stack([gaussian_filter(c, 1.0, mode="mirror", radius=3) for c in image.numpy()]))
        np.testing.assert_allclose(inserted[n], by_hand(alone, blurred, image, maps[n], steps), atol=1e-4)


def test_the_area_is_that_of_scikit_learn():
    curves = np.random.default_rng(0).random((5, 11))
    expected = [auc(np.linspace(0, 1, 11), curve) for curve in curves]
    np.testing.assert_allclose(areas(curves), expected)


def test_a_map_that_knows_deletes_first_what_counts():
    """A quarter of the image is white, and the model counts white pixels."""
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, :4, :4] = 255
    knows = torch.zeros(1, 8, 8)
    knows[:, :4, :4] = 1
    curves = Curves(white_share, image, torch.tensor([0]), GREY, 0.5, 4, 0)
    np.testing.assert_allclose(curves.deletion(knows), [[0.25, 0, 0, 0, 0]])
    np.testing.assert_allclose(curves.deletion(-knows), [[0.25, 0.25, 0.25, 0.25, 0]])
    assert areas(curves.deletion(knows)) == pytest.approx(0.25 * 0.5 / 4)
    assert areas(curves.insertion(knows)) > areas(curves.insertion(-knows))


def test_pixels_that_a_map_does_not_tell_apart_go_in_no_order():
    """Rows from the top would be an order of its own, and photographers put objects where they like."""
    image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    seen = []

    def probability(of, classes):
        seen.append((of == 255).all(1)[0].float())
        return white_share(of, classes)

    curve = Curves(probability, image, torch.tensor([0]), GREY, 0.5, 2, 0).deletion(torch.zeros(1, 4, 4))
    np.testing.assert_allclose(curve, [[1, 0.5, 0]])
    halves = seen[-1].view(2, 16, 32).mean((1, 2))  # of the rows; 3 standard deviations of a fair draw are 0.05
    assert (halves - 0.5).abs().max() < 0.05


def test_the_ends_do_not_depend_on_the_map():
    classes = torch.tensor([0, 1, 2, 1])
    curves = Curves(softmax_of_all_pixels(), images(), classes, GREY, 1.0, 3, 0)
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.rand(4, *size, generator=generator) for size in ((3, 5), (12, 10)))
    for curve in (curves.deletion, curves.insertion):
        np.testing.assert_array_equal(curve(one)[:, [0, -1]], curve(other)[:, [0, -1]])
    np.testing.assert_array_equal(curves.deletion(one)[:, 0], curves.insertion(one)[:, -1])


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        Curves(white_share, images(), torch.zeros(4, dtype=torch.int64), GREY, 1.0, 0, 0)
