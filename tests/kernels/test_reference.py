"""The reference operators against literal formulas in NumPy float64 and scipy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import kernels

# N, C, H, W, K: ragged on purpose.
CASES = [(2, 33, 5, 7, 3), (1, 1, 1, 1, 1), (3, 8, 1, 9, 4), (2, 64, 6, 6, 8), (0, 4, 3, 3, 2)]


def draw(case, dtype=torch.float64, seed=0):
    N, C, H, W, K = case
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, H, W, generator=generator, dtype=dtype)
    centers = torch.randn(K, C, generator=generator, dtype=dtype)
    sigma = torch.rand(K, generator=generator, dtype=dtype) * 0.6 + 0.1
    return x, centers, sigma


def literal(x, centers, sigma):
    """Eq. 1 and Eq. 3, position by position."""
    x, centers, sigma = x.numpy(), centers.numpy(), sigma.numpy()
    N, C, H, W = x.shape
    K = len(centers)
    assign, regions = np.zeros((N, K, H, W)), np.zeros((N, K, C))
    for n in range(N):
        for i in range(H):
            for j in range(W):
                logits = np.array([-np.sum(((x[n, :, i, j] - centers[k]) / sigma[k]) ** 2) / 2 for k in range(K)])
                weights = np.exp(logits - logits.max())
                assign[n, :, i, j] = weights / weights.sum()
        for k in range(K):
            mass = max(assign[n, k].sum(), 1e-5)
            total = sum(assign[n, k, i, j] * x[n, :, i, j] for i in range(H) for j in range(W))
            z = (total / mass - centers[k]) / sigma[k]
            regions[n, k] = z / np.linalg.norm(z)
    return assign, regions


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_grouping_is_the_formula(case, layout):
    x, centers, sigma = draw(case)
    assign, regions = kernels.region_grouping(x.to(memory_format=layout), centers, sigma)
    expected_assign, expected_regions = literal(x, centers, sigma)
    np.testing.assert_allclose(assign.numpy(), expected_assign, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(regions.numpy(), expected_regions, rtol=1e-7, atol=1e-9)
    assert assign.dtype == regions.dtype == torch.float64


def test_grouping_is_assignment_then_pooling():
    x, centers, sigma = draw(CASES[0])
    assign, regions = kernels.region_grouping(x, centers, sigma)
    assert torch.equal(assign, kernels.part_assignment(x, centers, sigma))
    assert torch.equal(regions, kernels.vlad_pooling(x, assign, centers, sigma))


def test_permuting_parts_permutes_outputs():
    x, centers, sigma = draw(CASES[3])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assign, regions = kernels.region_grouping(x, centers, sigma)
    permuted_assign, permuted_regions = kernels.region_grouping(x, centers[order], sigma[order])
    torch.testing.assert_close(permuted_assign, assign[:, order])
    torch.testing.assert_close(permuted_regions, regions[:, order])


def test_a_part_without_mass_points_away_from_its_center():
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    centers = torch.tensor([[0.0, 0.1], [300.0, 400.0]], dtype=torch.float64)
    assign, regions = kernels.region_grouping(x, centers, torch.full((2,), 0.5, dtype=torch.float64))
    assert assign[:, 1].sum() == 0
    torch.testing.assert_close(regions[0, 1], torch.tensor([-0.6, -0.8], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_does_not_reach_inside(dtype):
    x, centers, sigma = draw((2, 256, 7, 7, 4), torch.float32)
    x, centers = x.to(dtype), centers / 4
    exact = kernels.part_assignment(x.double(), centers.double(), sigma.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assign, regions = kernels.region_grouping(x, centers, sigma)
        occurrence = kernels.part_occurrence(assign)
    assert assign.dtype == regions.dtype == occurrence.dtype == torch.float32
    # Logits are below 256 * 2 / (2 * 0.1^2) ~ 3e4 here, where float32 resolves 2e-3; eager bf16 would be off by ~1.
    assert (assign.double() - exact).abs().max() < 1e-2


@pytest.mark.parametrize("radius,std", [(2, 0.4), (1, 1.0), (0, 0.5), (3, 2.0)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_occurrence_is_scipys_gaussian_filter(radius, std, padding):
    assign = torch.softmax(torch.randn(2, 3, 8, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1)
    expected = np.zeros((2, 3))
    for n in range(2):
        for k in range(3):
            smooth = gaussian_filter(assign[n, k].numpy(), std, mode="constant", radius=radius)
            inner = smooth[radius : 8 - radius, radius : 11 - radius] if padding == "valid" else smooth
            expected[n, k] = inner.max()
    np.testing.assert_allclose(kernels.part_occurrence(assign, radius, std, padding).numpy(), expected, rtol=1e-12)


def test_of_equal_maxima_the_first_gets_the_gradient():
    assign = torch.full((1, 1, 7, 7), 0.5, requires_grad=True)
    kernels.part_occurrence(assign, radius=1, std=0.4).sum().backward()
    touched = assign.grad[0, 0].nonzero()
    assert touched.min(0).values.tolist() == [0, 0]
    assert touched.max(0).values.tolist() == [2, 2]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] and case[1] < 40])
def test_gradients(case):
    x, centers, sigma = (tensor.requires_grad_() for tensor in draw(case))

    def everything(x, centers, sigma):
        assign, regions = kernels.region_grouping(x, centers, sigma)
        return assign, regions, kernels.part_occurrence(assign, padding="same")

    assert torch.autograd.gradcheck(everything, (x, centers, sigma))


def test_bandwidth_learns_through_the_softmax_only():
    x, centers, sigma = draw(CASES[0])
    sigma.requires_grad_()
    assign = kernels.part_assignment(x, centers, sigma).detach()
    kernels.vlad_pooling(x, assign, centers, sigma).pow(3).sum().backward()
    assert sigma.grad.abs().max() < 1e-10
