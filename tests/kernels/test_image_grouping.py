"""Grouping an image at a time against the float64 reference: on a GPU, or on a CPU under TRITON_INTERPRET=1."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton")
from kernels import dispatch, grouping, image_grouping, operators, reference  # noqa: E402
from kernels.blocks import choose_image_blocks  # noqa: E402
from kernels.maps import capability  # noqa: E402
from tests.support.fused import (  # noqa: E402
    DEVICE,
    check_captured,
    compare,
    draw,
    poison_fresh_memory,
    region_grouping,
    results,
    upstream,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu" and not grouping.INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.skipif(
        DEVICE == "cuda" and torch.cuda.get_device_capability()[0] not in (9, 10), reason="needs tensor descriptors"
    ),
]
# N, C, H, W, K: several spans, ragged; one step; one row; one position; more parts than a block; channels past one.
CASES = [(2, 72, 7, 9, 5), (2, 64, 4, 4, 8), (3, 136, 1, 9, 1), (1, 64, 1, 1, 3), (1, 64, 5, 7, 12), (1, 520, 5, 5, 8)]


needs_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def draw_last(case):
    return draw(case, torch.bfloat16, "channels_last")


@pytest.fixture
def cut(request, monkeypatch):
    """So many spans of an image, however few images there are, and so many passes of backward."""
    spans, passes = request.param

    def cut(N, P, C, K, forward):
        blocks = choose_image_blocks(N, P, C, K, forward)
        span = triton.cdiv(triton.cdiv(P, spans), blocks.positions) * blocks.positions
        second = blocks.channels // (1 if forward else passes)
        return dataclasses.replace(blocks, spans=spans, span=span, second=second)

    monkeypatch.setattr(image_grouping, "choose_image_blocks", cut)
    image_grouping._plan_forward.cache_clear()
    image_grouping._plan_backward.cache_clear()
    yield
    image_grouping._plan_forward.cache_clear()
    image_grouping._plan_backward.cache_clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_like_the_reference(case):
    x, centers, sigma = draw_last(case)
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


@pytest.mark.parametrize("case", [*CASES[:1], *CASES[4:], (1, 64, 7, 19, 3)], ids=str)
@pytest.mark.parametrize("cut", [(1, 1), (2, 1), (1, 2), (2, 2)], indirect=True, ids=str)
@pytest.mark.usefixtures("cut")
def test_several_steps_like_the_reference(case):
    x, centers, sigma = draw_last(case)
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


def test_more_images_than_the_sums_of_parameters_take_at_once():
    x, centers, sigma = draw_last((130, 64, 1, 1, 2))
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


def test_a_column_of_tokens():
    """Channels and columns have the same stride, and yet the features lie in channels_last."""
    x, centers, sigma = draw_last((2, 64, 9, 1, 3))
    tokens = x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(-1)
    assert tokens.stride(1) == tokens.stride(3) == 1
    compare(region_grouping, {"x": tokens, "centers": centers, "sigma": sigma}, image_grouping)


@pytest.mark.parametrize("case", [(1, 2048, 3, 3, 8), (2, 1032, 2, 3, 3), (1, 520, 3, 3, 12)], ids=str)
def test_backward_that_takes_two_passes(case):
    N, C, H, W, K = case
    assert choose_image_blocks(N, H * W, C, K, forward=False).passes == 2
    x, centers, sigma = draw_last(case)
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


def test_backward_that_does_not_fit_takes_tiles():
    x, centers, sigma = draw_last((1, 264, 3, 3, 20))
    assert dispatch.takes_image(x, centers, capability(x))
    assert not dispatch.takes_image(x, centers, capability(x), forward=False)
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


def test_parameters_may_be_views_of_bfloat16():
    x, centers, sigma = draw_last(CASES[0])
    centers, sigma = centers.bfloat16().t().contiguous().t(), torch.stack([sigma, sigma], 1).bfloat16()[:, 0]
    compare(region_grouping, {"x": x, "centers": centers, "sigma": sigma}, image_grouping)


def test_features_may_start_anywhere():
    x, centers, sigma = draw_last(CASES[0])
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert shifted.data_ptr() % 16
    found, expected = (
        results(region_grouping, image_grouping, {"x": features, "centers": centers, "sigma": sigma})
        for features in (shifted, x)
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("cut", [(2, 1), (2, 2)], indirect=True, ids=str)
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("chosen", [0, 1])
def test_each_output_alone_has_its_gradient(chosen):
    x, centers, sigma = draw_last(CASES[1])
    found = []
    for provider in (reference, image_grouping):
        wide = torch.float64 if provider is reference else None
        inputs = [tensor.detach().to(wide or tensor.dtype).requires_grad_() for tensor in (x, centers, sigma)]
        output = provider.region_grouping(*inputs)[chosen]
        found.append(torch.autograd.grad(output, inputs, upstream(output, 1)))
    for ours, exact, digits in zip(found[1], found[0], (2**-7, 2**-12, 2**-12), strict=True):
        assert (ours.double() - exact).abs().max() <= digits * exact.abs().max()


@pytest.mark.parametrize("cut", [(2, 1), (2, 2)], indirect=True, ids=str)
@pytest.mark.usefixtures("cut")
def test_gradients_of_any_layout():
    x, centers, sigma = (tensor.requires_grad_() for tensor in draw_last(CASES[0]))
    assign, regions = image_grouping.region_grouping(x, centers, sigma)
    grads = upstream(assign, 1), upstream(regions, 2)
    expected = torch.autograd.grad((assign, regions), (x, centers, sigma), grads, retain_graph=True)
    cut = torch.nn.functional.pad(grads[0], (1, 2, 1, 1))[..., 1:-1, 1:-2]
    turned = grads[1].transpose(1, 2).contiguous().transpose(1, 2)
    found = torch.autograd.grad((assign, regions), (x, centers, sigma), (cut, turned))
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("provider", [grouping, image_grouping], ids=["tile", "image"])
@pytest.mark.parametrize(
    "case", [CASES[0], (1, 520, 3, 3, 12), (1, 264, 3, 3, 20)], ids=str
)  # the last goes back by tiles
def test_features_that_need_no_gradient_change_no_other(provider, case):
    x, centers, sigma = draw_last(case)
    grads = []
    for learns in (True, False):
        leaves = x.clone().requires_grad_(learns), centers.clone().requires_grad_(), sigma.clone().requires_grad_()
        outputs = provider.region_grouping(*leaves)
        torch.autograd.backward(outputs, [upstream(output, seed) for seed, output in enumerate(outputs)])
        grads.append([leaf.grad for leaf in leaves])
    assert grads[1][0] is None
    assert torch.equal(grads[0][1], grads[1][1])
    assert torch.equal(grads[0][2], grads[1][2])


@pytest.mark.parametrize("provider", [grouping, image_grouping], ids=["tile", "image"])
def test_eager_calls_are_the_registered_operator(provider, monkeypatch):
    x, centers, sigma = draw_last(CASES[0])
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    eager = results(region_grouping, provider, inputs)
    monkeypatch.setattr(provider, "is_eager", lambda *_: False)
    for name, value in results(region_grouping, provider, inputs).items():
        assert torch.equal(value, eager[name]), name


@pytest.mark.parametrize("provider", [grouping, image_grouping], ids=["tile", "image"])
def test_a_batch_of_gradients(provider):
    x, centers, sigma = draw_last(CASES[1])
    centers.requires_grad_()
    regions = provider.region_grouping(x, centers, sigma)[1]
    grads = torch.stack([upstream(regions, seed) for seed in range(3)])
    (found,) = torch.autograd.grad(regions, centers, grads, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(found, grads, strict=True):
        assert torch.equal(one, torch.autograd.grad(regions, centers, grad, retain_graph=True)[0])


@pytest.mark.parametrize("provider", [grouping, image_grouping], ids=["tile", "image"])
def test_a_mode_around_backward_sees_the_operator(provider):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    x, centers, sigma = draw_last(CASES[1])
    loss = provider.region_grouping(x, centers.requires_grad_(), sigma)[1].sum()
    with Mode():
        loss.backward()
    assert any("grouping_backward" in name for name in seen)


@pytest.mark.parametrize(
    "store", [lambda t: t.contiguous(), lambda t: t.clone(), lambda t: t], ids=["nchw", "copy", "same"]
)
def test_hooks_may_store_what_is_kept_as_they_like(store):
    x, centers, sigma = (tensor.requires_grad_() for tensor in draw_last(CASES[0]))

    def gradients(pack):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = image_grouping.region_grouping(x, centers, sigma)
        return torch.autograd.grad(outputs, (x, centers, sigma), [upstream(output, 1) for output in outputs])

    # Stored in NCHW, backward takes tiles: operands and the gradient of x are rounded in another order.
    digits = (2**-7, 2**-12, 2**-12) if store(x).stride() != x.stride() else (0, 0, 0)
    for found, expected, share in zip(gradients(store), gradients(lambda tensor: tensor), digits, strict=True):
        assert (found.double() - expected.double()).abs().max() <= share * expected.abs().max()


def test_compiled_after_preferring_images(monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "image")
    x, centers, sigma = draw_last(CASES[1])
    compiled = torch.compile(operators.region_grouping, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        compiled(x, centers, sigma), image_grouping.region_grouping(x, centers, sigma), strict=True
    ):
        assert torch.equal(found, expected)


def test_the_operators_are_registered_as_torch_wants_it():
    inputs = [tensor.requires_grad_() for tensor in draw_last(CASES[1])]
    torch.library.opcheck(image_grouping._image_grouping, inputs)
    plain = [tensor.detach() for tensor in inputs]
    outputs = [tensor.detach() for tensor in image_grouping._image_grouping(*plain)]
    what = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for grads in (outputs[:2], (None, outputs[1]), (outputs[0], None)):
        torch.library.opcheck(image_grouping._image_grouping_backward, (*plain, *outputs, *grads), test_utils=what)


@pytest.mark.parametrize("provider", [grouping, image_grouping], ids=["tile", "image"])
@pytest.mark.parametrize("eager", [True, False])
def test_no_second_derivatives(provider, eager, monkeypatch):
    monkeypatch.setattr(provider, "is_eager", lambda *_: eager)
    x, centers, sigma = draw_last(CASES[1])
    x.requires_grad_()
    (grad,) = torch.autograd.grad(provider.region_grouping(x, centers, sigma)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


def test_one_graph():
    inputs = [tensor.requires_grad_() for tensor in draw_last(CASES[1])]

    def loss(x, centers, sigma):
        assign, regions = image_grouping.region_grouping(x * 1, centers, sigma)
        return assign.square().sum() + regions.pow(3).sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


def test_no_images():
    x, centers, sigma = (tensor.requires_grad_() for tensor in draw_last((0, 64, 3, 3, 4)))
    assign, regions = image_grouping.region_grouping(x, centers, sigma)
    assert assign.shape == (0, 4, 3, 3)
    (assign.sum() + regions.sum()).backward()
    assert x.grad.shape == x.shape
    assert not centers.grad.any()
    assert not sigma.grad.any()


@pytest.mark.parametrize("cut", [(2, 1), (2, 2)], indirect=True, ids=str)
@pytest.mark.usefixtures("cut")
def test_same_input_same_bits_whatever_lies_in_fresh_memory(monkeypatch):
    x, centers, sigma = draw_last(CASES[0])
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    first = results(region_grouping, image_grouping, inputs)
    poison_fresh_memory(monkeypatch)
    second = results(region_grouping, image_grouping, inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_nan_stays_in_its_image():
    x, centers, sigma = draw_last((2, 64, 4, 4, 3))
    x[1, 3, 2, 2] = float("nan")
    assign, regions = image_grouping.region_grouping(x, centers, sigma)
    assert assign[1, :, 2, 2].isnan().all()
    assert int(assign.isnan().sum()) == 3
    assert regions[1].isnan().all()
    assert regions[0].isfinite().all()


def test_a_part_without_mass():
    x, centers, sigma = draw_last((2, 64, 4, 4, 3))
    centers[2] = 1000.0
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    found = results(region_grouping, image_grouping, inputs)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not found["assign"][:, 2].any()
    torch.testing.assert_close(found["regions"][:, 2], -torch.nn.functional.normalize(centers[2:], dim=1).expand(2, -1))


def test_preferring_images_changes_who_computes(monkeypatch):
    x, centers, sigma = draw_last(CASES[1])
    called = []
    for name, provider in (("tile", grouping), ("image", image_grouping)):
        monkeypatch.setattr(provider, "region_grouping", lambda *_, name=name: called.append(name))
    monkeypatch.setattr(dispatch, "_preferred", "tile")
    operators.region_grouping(x, centers, sigma)
    dispatch.prefer("image")
    operators.region_grouping(x, centers, sigma)
    operators.region_grouping(x.contiguous(), centers, sigma)
    operators.region_grouping(x.float(), centers, sigma)
    assert called == ["tile", "image", "tile", "tile"]


@needs_a_gpu
@pytest.mark.parametrize("case", [CASES[0], (2, 1024, 7, 7, 16)], ids=str)
def test_captured_in_a_cuda_graph(case):
    """Backward in one pass, and in two."""
    x, centers, sigma = draw_last(case)
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    check_captured(inputs, image_grouping)
