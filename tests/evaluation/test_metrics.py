"""Metrics against scikit-learn, scipy and constructions whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import center_of_mass
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from rg.attribution.pointing import in_any_box, peaks
from rg.evaluation import metrics
from rg.model.maps import part_centers, parts_at


def test_part_centers_are_centers_of_mass():
    assign = torch.rand(2, 3, 5, 8, dtype=torch.float64)
    centers = part_centers(assign)
    for n in range(2):
        for k in range(3):
            y, x = center_of_mass(assign[n, k].numpy())
            assert centers[n, k].tolist() == pytest.approx([(x + 0.5) / 8, (y + 0.5) / 5])


@pytest.mark.parametrize("seed", range(4))
def test_clustering_scores_are_those_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, 400)
    predicted = np.where(rng.random(400) < 0.7, truth % 3, rng.integers(0, 4, 400))
    nmi, ari = metrics.clustering_scores(metrics.contingency(predicted, truth, 4, 5))
    assert nmi == pytest.approx(normalized_mutual_info_score(truth, predicted))
    assert ari == pytest.approx(adjusted_rand_score(truth, predicted))


def test_clustering_scores_at_the_ends():
    assert metrics.clustering_scores(np.diag([3, 4, 5])) == pytest.approx((1, 1))
    assert metrics.clustering_scores(np.array([[5, 0], [5, 0]])) == pytest.approx((0, 0))
    assert metrics.clustering_scores(np.array([[7]])) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="two counts"):
        metrics.clustering_scores(np.array([[1, 0]]))


def test_landmarks_that_are_linear_in_the_centers_have_no_error():
    rng = np.random.default_rng(0)
    centers = rng.random((60, 3, 2))
    weights = rng.normal(size=(6, 4))
    landmarks = (centers.reshape(60, 6) @ weights + 0.3).reshape(60, 2, 2)
    visible = rng.random((60, 2)) < 0.8
    errors, mean_shape = metrics.landmark_errors(
        centers[:40], landmarks[:40], visible[:40], centers[40:], landmarks[40:], visible[40:]
    )
    assert np.isnan(errors).tolist() == (~visible[40:]).tolist()
    assert np.nanmax(errors) < 1e-9
    p = 0
    mean = landmarks[:40, p][visible[:40, p]].mean(0)
    n = np.flatnonzero(visible[40:, p])[0]
    assert mean_shape[n, p] == pytest.approx(np.hypot(*(landmarks[40 + n, p] - mean)))


def test_invisible_landmarks_teach_nothing():
    rng = np.random.default_rng(1)
    centers, landmarks = rng.random((50, 2, 2)), rng.random((50, 1, 2))
    visible = rng.random((50, 1)) < 0.5
    spoiled = np.where(visible[..., None], landmarks, 1e6)
    arguments = (centers[:5], landmarks[:5], np.ones((5, 1), bool))
    clean, _ = metrics.landmark_errors(centers, landmarks, visible, *arguments)
    same, _ = metrics.landmark_errors(centers, spoiled, visible, *arguments)
    np.testing.assert_array_equal(clean, same)


def test_a_landmark_that_is_never_visible_is_not_measured():
    points = np.zeros((4, 1, 2))
    errors, _ = metrics.landmark_errors(points, points, np.zeros((4, 1), bool), points, points, np.ones((4, 1), bool))
    assert np.isnan(errors).all()


def test_relative_to_box():
    relative = metrics.relative_to_box(np.array([[[10.0, 20.0], [30.0, 25.0]]]), np.array([[10.0, 15.0, 50.0, 35.0]]))
    np.testing.assert_allclose(relative, [[[0, 0.25], [0.5, 0.5]]])


@pytest.mark.parametrize("height, width", [(128, 128), (96, 160)])
def test_parts_at_points_are_those_of_the_upsampled_map(height, width):
    random = torch.Generator().manual_seed(0)
    assign = torch.softmax(4 * torch.randn(3, 5, 8, 8, generator=random), 1)
    x, y = (torch.randint(0, side, (3, 20), generator=random) for side in (width, height))
    up = F.interpolate(assign, (height, width), mode="bilinear", align_corners=False).argmax(1)
    expected = torch.stack([up[n, y[n], x[n]] for n in range(3)])
    assert torch.equal(parts_at(assign, torch.stack([x, y], 2) + 0.5, (height, width)), expected)


@pytest.mark.parametrize("height, width", [(128, 128), (96, 160)])
def test_peak_of_one_hot_position(height, width):
    attribution = torch.zeros(1, 8, 8)
    attribution[0, 2, 5] = 1
    x, y = peaks(attribution, (height, width))[0].tolist()
    assert abs(x - 5.5 * width / 8) <= 1
    assert abs(y - 2.5 * height / 8) <= 1


def test_peak_between_two_positions():
    """Of a blob sampled on a coarse map, the peak lies nearer to the blob than the nearest position does."""
    centers = (torch.arange(8) + 0.5) * 16
    true = torch.tensor([70.0, 47.0])
    attribution = torch.exp(-((centers[None, :] - true[0]) ** 2 + (centers[:, None] - true[1]) ** 2) / (2 * 20.0**2))
    found = peaks(attribution[None], (128, 128))[0]
    assert (found - true).abs().max() < 2
    assert (torch.tensor([72.0, 40.0]) - true).abs().max() > 2 * (found - true).abs().max()


def test_in_any_box():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    assert in_any_box(np.array([25.5, 20.0]), boxes)
    assert not in_any_box(np.array([15.0, 5.0]), boxes)
    assert not in_any_box(np.array([10.0, 5.0]), boxes)


def test_states_of_parts():
    wins = np.array([[0.7, 0.3, 0.0, 0.0, 0.0]] * 200)
    wins[:3, 3] = 0.1
    overlap = np.eye(5)
    overlap[1, 4] = overlap[4, 1] = 0.9
    wins[:, 4] = 0.2
    overlap[2, 2] = 0
    names = ["part 0", "crown", "part 2", "part 3", "part 4"]
    assert metrics.part_states(wins, overlap, names) == ["everywhere", "in use", "dead", "in use", "duplicate of crown"]
