"""The terms of SCOPS against statements of their own in float64, position by position, and their gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from rg.model import scops_terms as terms
from rg.model.warping import POINTS, random_warps, spline

N, K, H, W, C = 3, 4, 6, 8, 5
SEEDS = torch.tensor([11, -4, 2**61])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def softmax(seed, maps=K + 1, size=(H, W)):
    return 2 * torch.randn(N, maps, *size, dtype=torch.float64, generator=generator(seed))


@pytest.fixture
def assign():
    return softmax(5).softmax(1)


@pytest.fixture
def warps():
    return random_warps(SEEDS, H, W).double()


def middles(side):
    return [-1 + (2 * index + 1) / side for index in range(side)]


def mean_place(map_):
    raised = map_.numpy() + 1e-3
    return np.array(
        [
            sum(raised[i, j] * x for i in range(H) for j, x in enumerate(middles(W))) / raised.sum(),
            sum(raised[i, j] * y for j in range(W) for i, y in enumerate(middles(H))) / raised.sum(),
        ]
    )


def test_centers(assign):
    expected = [[mean_place(map_) for map_ in image] for image in assign]
    np.testing.assert_allclose(terms.centers(assign).numpy(), expected, atol=1e-12)


def test_an_absent_part_has_a_centre_and_a_gradient():
    maps = torch.zeros(1, 1, H, W, requires_grad=True)
    terms.centers(maps).sum().backward()
    torch.testing.assert_close(terms.centers(maps).detach(), torch.zeros(1, 1, 2))
    assert torch.isfinite(maps.grad).all()


def test_concentration(assign):
    total = 0.0
    for image in assign[:, :-1]:
        for map_ in image:
            raised, (column, row) = map_.numpy() + 1e-3, mean_place(map_)
            for i, y in enumerate(middles(H)):
                for j, x in enumerate(middles(W)):
                    total += raised[i, j] / raised.sum() * ((x - column) ** 2 + (y - row) ** 2)
    assert terms.concentration_loss(assign[:, :-1]).item() == pytest.approx(total / N)


def test_equivariance(assign, warps):
    """The target is sampled by scipy, and counts where the warped image shows the source."""
    logits = softmax(8)
    grid = places_of_positions(warps)
    expected, counts = [], []
    for n in range(N):
        divergences = []
        for i in range(H):
            for j in range(W):
                x, y = grid[n, i, j]
                if max(abs(x), abs(y)) > 1:
                    continue
                at = np.clip([(y + 1) * H / 2 - 0.5, (x + 1) * W / 2 - 0.5], 0, [H - 1, W - 1])
                target = [map_coordinates(map_, at[:, None], order=1)[0] for map_ in assign[n].numpy()]
                predicted = logits[n, :, i, j].softmax(0).tolist()
                divergences += [t * math.log(t / q) for t, q in zip(target, predicted, strict=True)]
        counts.append(len(divergences))
        expected.append(np.mean(divergences))
    assert 0 < min(counts) < H * W * (K + 1)  # one warp at least shows what is beyond its image
    assert terms.equivariance_loss(assign, logits, warps).item() == pytest.approx(np.mean(expected))


def places_of_positions(warps):
    """By the definition of a thin-plate spline, one position at a time: [N, H, W, 2]."""
    line = np.linspace(-1, 1, POINTS)
    points = [(x, y) for y in line for x in line]
    out = np.zeros((N, H, W, 2))
    for n, weights in enumerate(warps.numpy()):
        for i, y in enumerate(middles(H)):
            for j, x in enumerate(middles(W)):
                squares = [(x - px) ** 2 + (y - py) ** 2 for px, py in points]
                bends = [r2 * math.log(r2) / 2 if r2 else 0.0 for r2 in squares]
                out[n, i, j] = np.array([*bends, 1, x, y]) @ weights
    return out


def test_equivariance_teaches_the_warped_image_alone(warps):
    logits, warped = softmax(1).requires_grad_(), softmax(2).requires_grad_()
    terms.equivariance_loss(logits.softmax(1), warped, warps).backward()
    assert logits.grad is None
    assert warped.grad.abs().max() > 0


def test_landmark_equivariance(assign, warps):
    parts, warped = assign[:, :-1], softmax(3).softmax(1)[:, :-1]
    squares = []
    for n in range(N):
        for k in range(K):
            x, y = mean_place(warped[n, k])
            line = np.linspace(-1, 1, POINTS)
            bends = [r2 * math.log(r2) / 2 for r2 in ((x - px) ** 2 + (y - py) ** 2 for py in line for px in line)]
            carried = np.array([*bends, 1, x, y]) @ warps[n].numpy()
            squares += ((carried - mean_place(parts[n, k])) ** 2).tolist()
    assert terms.landmark_equivariance_loss(parts, warped, warps).item() == pytest.approx(np.mean(squares))


def test_landmark_equivariance_teaches_both_images(warps):
    logits, warped = softmax(1).requires_grad_(), softmax(2).requires_grad_()
    terms.landmark_equivariance_loss(logits.softmax(1), warped.softmax(1), warps).backward()
    assert logits.grad.abs().max() > 0
    assert warped.grad.abs().max() > 0


def test_a_blob_that_turns_with_the_image_costs_nothing():
    """Turned by a right angle, which the grid of positions takes to itself; turned the other way it costs."""
    points = spline(torch.stack(torch.meshgrid(*2 * [torch.linspace(-1, 1, POINTS)], indexing="xy"), 2).view(1, -1, 2))
    turn = points.double() @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    logits = softmax(4, size=(7, 7))[:1]
    ways = [logits.rot90(times, (2, 3)) for times in (1, -1)]
    for loss in (
        lambda moved: terms.equivariance_loss(logits.softmax(1), moved, turn).item(),
        lambda moved: terms.landmark_equivariance_loss(logits.softmax(1), moved.softmax(1), turn).item(),
    ):
        costs = [loss(moved) for moved in ways]
        assert min(costs) == pytest.approx(0, abs=1e-9)
        assert max(costs) > 1e-3


def test_semantic_consistency(assign):
    parts, basis = assign[:, :-1], torch.randn(K, C, dtype=torch.float64, generator=generator(1))
    features = torch.rand(N, C, H, W, dtype=torch.float64, generator=generator(2))
    saliency = torch.rand(N, 2 * H, 2 * W, dtype=torch.float64, generator=generator(3))
    squares = []
    for n in range(N):
        for i in range(H):
            for j in range(W):
                salient = saliency[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean().item()
                for c in range(C):
                    made = sum(parts[n, k, i, j].item() * max(basis[k, c].item(), 0) for k in range(K))
                    squares.append((made - salient * features[n, c, i, j].item()) ** 2)
    loss = terms.semantic_consistency_loss(parts, basis, features, saliency)
    assert loss.item() == pytest.approx(np.mean(squares))


def test_coarse_features_are_brought_to_the_maps(assign):
    features = torch.full((N, C, 2, 2), 0.5, dtype=torch.float64)
    loss = terms.semantic_consistency_loss(0 * assign, torch.ones(K + 1, C).double(), features, torch.ones(N, 9, 9))
    assert loss.item() == pytest.approx(0.25)


def test_orthonormality():
    basis = torch.randn(K, C, dtype=torch.float64, generator=generator(7))
    unit = basis.numpy() / np.linalg.norm(basis.numpy(), axis=1, keepdims=True)
    expected = sum((unit[a] @ unit[b] - (a == b)) ** 2 for a in range(K) for b in range(K))
    assert terms.orthonormality_loss(basis).item() == pytest.approx(expected)
    assert terms.orthonormality_loss(3 * torch.eye(4, 6)).item() == pytest.approx(0, abs=1e-12)


FEATURES = torch.rand(N, C, 2, 3, dtype=torch.float64, generator=generator(6))
TERMS = {
    "concentration": lambda q, _w: terms.concentration_loss(q.softmax(1)),
    "equivariance": lambda q, w: terms.equivariance_loss(softmax(9)[: len(q)].softmax(1), q, w),
    "landmark equivariance": lambda q, w: terms.landmark_equivariance_loss(q.softmax(1), (q * q.flip(1)).softmax(1), w),
    "semantic consistency": lambda q, _w: terms.semantic_consistency_loss(
        q.softmax(1), torch.ones(K + 1, C, dtype=q.dtype), FEATURES[: len(q)], FEATURES[: len(q), 0]
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name, warps):
    assert torch.autograd.gradcheck(lambda q: TERMS[name](q, warps[:2]), softmax(2)[:2].requires_grad_())


def test_gradients_of_the_basis(assign):
    def losses(basis):
        consistency = terms.semantic_consistency_loss(assign[:, :-1], basis, FEATURES, FEATURES[:, 0])
        return consistency, terms.orthonormality_loss(basis)

    basis = torch.randn(K, C, dtype=torch.float64, generator=generator(3)).requires_grad_()
    assert torch.autograd.gradcheck(losses, basis)


@pytest.mark.parametrize("name", ["concentration", "landmark equivariance"])
def test_terms_are_means_over_images(name, warps):
    logits = softmax(3)
    alone = [TERMS[name](logits[n : n + 1], warps[n : n + 1]) for n in range(N)]
    torch.testing.assert_close(TERMS[name](logits, warps), torch.stack(alone).mean())


def test_equivariance_is_a_mean_over_images(assign, warps):
    logits = softmax(4)
    alone = [terms.equivariance_loss(assign[n : n + 1], logits[n : n + 1], warps[n : n + 1]) for n in range(N)]
    torch.testing.assert_close(terms.equivariance_loss(assign, logits, warps), torch.stack(alone).mean())
