"""The fused occurrence kernels against the float64 reference: on a GPU, or on a CPU under TRITON_INTERPRET=1."""

import pytest
import torch

from kernels import reference

triton = pytest.importorskip("triton")
from kernels import grouping, occurrence  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() and not grouping.INTERPRETED else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu" and not grouping.INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"),
]

WINDOWS = [(2, 0.4, "valid"), (2, 0.4, "same"), (0, 0.5, "valid"), (3, 2.0, "same"), (1, 30.0, "valid")]
LAYOUTS = {
    "contiguous": lambda q: q.contiguous(),
    "channels_last": lambda q: q.contiguous(memory_format=torch.channels_last),
    "cut_out": lambda q: torch.nn.functional.pad(q, (1, 2, 1, 1, 2, 0))[:, 2:, 1:-1, 1:-2],
}


def draw(sizes, dtype=torch.float64, layout="contiguous"):
    logits = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return LAYOUTS[layout](torch.softmax(logits, 1).to(dtype).to(DEVICE))


def results(provider, assign, *window):
    assign = assign.detach().requires_grad_()
    found = provider.part_occurrence(assign, *window)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(found)
    return found.detach(), torch.autograd.grad(found, assign, upstream)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_like_the_reference(window, dtype, layout):
    assign = draw((2, 3, 9, 7), dtype, layout)
    exact, exact_grad = results(reference, assign.double(), *window)
    found, grad = results(occurrence, assign, *window)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    # A weighted mean of at most 49 values below 1, summed in the output's dtype; the gradient is one product, rounded
    # to the dtype of the map (the interpreter truncates to bfloat16, twice as far).
    assert (found.double() - exact).abs().max() <= 49 * torch.finfo(found.dtype).eps
    limit = 4 * torch.finfo(found.dtype).eps + torch.finfo(dtype).eps
    assert (grad.double() - exact_grad).abs().max() <= limit * exact_grad.abs().max()


@pytest.mark.parametrize("sizes", [(1, 1, 5, 5), (1, 2, 40, 33), (1, 64, 6, 5)], ids=str)
def test_ragged_sizes(sizes):
    """One window only; more windows than a program takes at once; as many parts as there may be."""
    assign = draw(sizes)
    for found, truth in zip(results(occurrence, assign), results(reference, assign), strict=True):
        torch.testing.assert_close(found, truth)


def test_one_position():
    assign = draw((2, 3, 1, 1))
    torch.testing.assert_close(occurrence.part_occurrence(assign, 0, 0.4), assign[:, :, 0, 0])


def test_no_images():
    found, grad = results(occurrence, draw((0, 3, 5, 5)))
    assert found.shape == (0, 3)
    assert grad.shape == (0, 3, 5, 5)


def test_of_equal_maxima_the_first_gets_the_gradient():
    assign = torch.full((1, 1, 40, 40), 0.5, device=DEVICE, requires_grad=True)
    occurrence.part_occurrence(assign, 1, 0.4).sum().backward()
    touched = assign.grad[0, 0].nonzero()
    assert touched.min(0).values.tolist() == [0, 0]
    assert touched.max(0).values.tolist() == [2, 2]


@pytest.mark.parametrize("row,column", [(0, 0), (20, 31), (39, 39)])
def test_the_winner_is_found_anywhere(row, column):
    """A map with more windows than a program takes at once, one bright position in it."""
    assign = torch.zeros(1, 1, 40, 40, device=DEVICE)
    assign[0, 0, row, column] = 0.5
    assign.requires_grad_()
    occurrence.part_occurrence(assign, 1, 0.4, "same").sum().backward()
    assert divmod(int(assign.grad.argmax()), 40) == (row, column)


def test_nan_stays_in_its_map():
    assign = draw((2, 3, 9, 7), torch.float32)
    assign[1, 2, 4, 4] = float("nan")
    assert occurrence.part_occurrence(assign).isnan().tolist() == [[False] * 3, [False, False, True]]


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda q: occurrence.part_occurrence(q, 1, 0.7), draw((1, 2, 4, 3)).requires_grad_()
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operators_are_registered_as_torch_wants_it(layout):
    assign = draw((2, 3, 6, 5), torch.float32, layout)
    torch.library.opcheck(occurrence._part_occurrence, (assign.requires_grad_(), 2, 0.4, "valid"))
    found, winner = occurrence._part_occurrence(assign.detach(), 2, 0.4, "valid")
    torch.library.opcheck(
        occurrence._part_occurrence_backward,
        (found, winner, 6, 5, layout == "channels_last", torch.float32, 2, 0.4),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_only_the_winner_is_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        occurrence.part_occurrence(draw((2, 3, 6, 5)).requires_grad_())
    assert [(tensor.shape, tensor.dtype) for tensor in kept] == [((2, 3), torch.int32)]


def test_a_narrow_gaussian_is_the_plain_maximum():
    assign = draw((2, 3, 9, 7))
    assert torch.equal(occurrence.part_occurrence(assign, 2, 1e-160, "same"), assign.amax((2, 3)))


def test_no_second_derivatives():
    assign = draw((1, 2, 5, 5)).requires_grad_()
    (grad,) = torch.autograd.grad(occurrence.part_occurrence(assign).square().sum(), assign, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()
