"""The terms of the loss against statements of their own in float64, position by position, and their gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from sklearn.metrics.pairwise import cosine_similarity

from rg.model import terms

N, K, H, W = 3, 4, 7, 9


@pytest.fixture
def assign():
    logits = 2 * torch.randn(N, K, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return logits.softmax(1)


def smooth(map_):
    """Means of 3 x 3 positions, of windows that lie inside."""
    return uniform_filter(map_.numpy(), 3)[1:-1, 1:-1]


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_presence(assign, margin):
    expected = 0.0
    for k in range(K):
        peak = 0.0
        for n in range(N):
            inside = smooth(assign[n, k])[margin : H - 2 - margin, margin : W - 2 - margin]
            peak = max(peak, inside.max())
        expected += 1 - peak
    assert terms.presence_loss(terms.peaks(assign, margin)).item() == pytest.approx(expected / K)


def test_a_map_without_a_window_is_refused(assign):
    with pytest.raises(ValueError, match=r"at least 9 x 9 positions, got \[7, 9\]"):
        terms.peaks(assign, margin=3)


def test_background_presence(assign):
    expected = 0.0
    for n in range(N):
        map_, best = smooth(assign[n, -1]), 0.0
        for row in range(H - 2):
            for column in range(W - 2):
                away = (row - (H - 3) / 2) ** 2 / ((H - 3) / 2) ** 2 + (column - (W - 3) / 2) ** 2 / ((W - 3) / 2) ** 2
                best = max(best, map_[row, column] * away / 2)
        expected -= math.log(best) / N
    assert terms.background_presence_loss(assign[:, -1]).item() == pytest.approx(expected)


def test_background_in_the_corners_costs_nothing():
    background = torch.ones(2, 7, 7, dtype=torch.float64)
    background[:, 3, 3] = 0
    assert terms.background_presence_loss(background).item() == pytest.approx(0, abs=1e-12)
    assert terms.background_presence_loss(0 * background).item() == pytest.approx(-math.log(terms.EPSILON))


def test_border(assign):
    expected = [
        1 - map_[row, column]
        for map_ in assign[:, -1].numpy()
        for row in range(H)
        for column in range(W)
        if row in (0, H - 1) or column in (0, W - 1)
    ]
    assert terms.border_loss(assign[:, -1]).item() == pytest.approx(np.mean(expected))


def test_concentration(assign):
    expected = []
    for map_ in assign.flatten(0, 1).numpy():
        rows, columns = np.mgrid[:H, :W]
        rows, columns = rows / (H - 1), columns / (W - 1)
        row, column = np.average(rows, weights=map_), np.average(columns, weights=map_)
        expected.append((map_ * ((rows - row) ** 2 + (columns - column) ** 2)).mean())
    assert terms.concentration_loss(assign).item() == pytest.approx(np.mean(expected))


def test_total_variation(assign):
    total = np.abs(np.diff(assign.numpy(), axis=2)).sum() + np.abs(np.diff(assign.numpy(), axis=3)).sum()
    assert terms.total_variation_loss(assign).item() == pytest.approx(total / (N * H * W))


def test_orthogonality():
    features = torch.randn(N, K, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = np.mean([(cosine_similarity(image) - np.eye(K)) ** 2 for image in features.numpy()])
    assert terms.orthogonality_loss(features).item() == pytest.approx(expected)
    assert terms.orthogonality_loss(torch.eye(4, 6).expand(2, 4, 6)).item() == 0


def test_entropy(assign):
    expected = np.mean(
        [-sum(q * math.log(q) for q in image[:, i, j].tolist()) for image in assign for i in range(H) for j in range(W)]
    )
    assert terms.entropy_loss(assign).item() == pytest.approx(expected)


TURN = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]], dtype=torch.float64)


def test_equivariance_of_maps_that_turn_with_the_image_is_nothing(assign):
    square = assign[..., :7]
    turned = square.rot90(1, (2, 3))
    back = TURN.expand(N, 2, 3)
    losses = [terms.equivariance_loss(square, moved, back).item() for moved in (turned, square.rot90(-1, (2, 3)))]
    assert min(losses) == pytest.approx(0, abs=1e-9)
    cosines = [
        cosine_similarity(map_.reshape(1, -1), other.reshape(1, -1)).item()
        for map_, other in zip(square.flatten(0, 1).numpy(), square.rot90(2, (2, 3)).flatten(0, 1).numpy(), strict=True)
    ]
    assert max(losses) == pytest.approx(1 - np.mean(cosines))


def test_equivariance_leaves_out_what_the_moved_image_does_not_show(assign):
    """Shifted by three of nine columns, of which the moved map knows nothing: whatever stands there is ignored."""
    moved = torch.cat([assign[..., 3:], torch.rand(N, K, H, 3, dtype=torch.float64)], 3)
    back = torch.tensor([[[1.0, 0.0, -2 * 3 / W], [0.0, 1.0, 0.0]]], dtype=torch.float64).expand(N, 2, 3)
    assert terms.equivariance_loss(assign, moved, back).item() == pytest.approx(0, abs=1e-9)


TERMS = {
    "presence": lambda q: terms.presence_loss(terms.peaks(q)),
    "background": lambda q: terms.background_presence_loss(q[:, -1]),
    "border": lambda q: terms.border_loss(q[:, -1]),
    "concentration": terms.concentration_loss,
    "total variation": terms.total_variation_loss,
    "equivariance": lambda q: terms.equivariance_loss(q, q.flip(3), TURN.expand(len(q), 2, 3)),
    "orthogonality": lambda q: terms.orthogonality_loss(q.flatten(2)),
    "entropy": terms.entropy_loss,
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name):
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[name](x.softmax(1)), logits)


@pytest.mark.parametrize("name", [name for name in TERMS if name != "presence"])
def test_terms_are_means_over_images(name, assign):
    alone = [TERMS[name](assign[n : n + 1]) for n in range(N)]
    torch.testing.assert_close(TERMS[name](assign), torch.stack(alone).mean())
