"""The fused grouping kernels against the float64 reference: on a GPU, or on a CPU under TRITON_INTERPRET=1."""

import pytest
import torch

from kernels import reference

triton = pytest.importorskip("triton")
from benchmarks.kernel_accuracy import autocast  # noqa: E402
from kernels import dispatch, grouping  # noqa: E402
from kernels.blocks import choose_blocks  # noqa: E402
from tests.support.fused import (  # noqa: E402
    DEVICE,
    LAYOUTS,
    ROUNDING,
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
]

# N, C, H, W, K: several tiles and channel steps, one row, one column, one of everything, K past one and up to four MMA
# tiles, one part.
CASES = [(2, 130, 11, 13, 5), (3, 33, 1, 9, 4), (2, 64, 9, 1, 8), (1, 1, 1, 1, 1), (2, 40, 6, 6, 17), (1, 24, 5, 7, 64)]
CASES += [(2, 16, 3, 3, 1)]


both_ways = pytest.mark.parametrize("way", ["tile", "lean"], indirect=True)


@pytest.fixture(params=["tile"])
def way(request, monkeypatch):
    """The tiles that are preferred: today's, unless a test asks for the leaner ones."""
    monkeypatch.setattr(dispatch, "_preferred", request.param)
    return request.param


def part_assignment(provider, x, centers, sigma):
    return {"assign": provider.part_assignment(x, centers, sigma)}


def vlad_pooling(provider, x, centers, sigma, assign):
    return {"regions": provider.vlad_pooling(x, assign, centers, sigma)}


def check(operator, case, dtype, layout):
    x, centers, sigma = draw(case, dtype, layout)
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    if operator is vlad_pooling:
        inputs["assign"] = torch.softmax(upstream(x.new_empty(x.shape[0], case[4], *x.shape[2:]), 9), 1)
    compare(operator, inputs, grouping)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", [region_grouping, part_assignment, vlad_pooling])
def test_like_the_reference(operator, dtype, layout):
    check(operator, CASES[0], dtype, layout)


@pytest.mark.parametrize("layout", ["channels_last", "cut_out"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", [region_grouping, part_assignment, vlad_pooling])
@pytest.mark.parametrize("way", ["lean"], indirect=True)
@pytest.mark.usefixtures("way")
def test_leaner_tiles_like_the_reference(operator, dtype, layout):
    check(operator, CASES[0], dtype, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_ragged_sizes(case, dtype, layout):
    check(region_grouping, case, dtype, layout)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
@pytest.mark.parametrize("way", ["lean"], indirect=True)
@pytest.mark.usefixtures("way")
def test_leaner_tiles_of_ragged_sizes(case):
    check(region_grouping, case, torch.bfloat16, "channels_last")


@pytest.mark.parametrize("compiled", [False, True])
def test_leaner_tiles_are_taken_when_preferred_and_kept_for_backward(compiled, way, monkeypatch):  # noqa: ARG001
    taken = []
    for name in ("_forward", "backward"):
        function = getattr(grouping, name)
        record = lambda *args, function=function: (taken.append(args[-1]), function(*args))[1]  # noqa: E731
        monkeypatch.setattr(grouping, name, record)
    x, centers, sigma = draw((2, 18, 3, 5, 4), torch.bfloat16, "channels_last")
    x.requires_grad_()
    operators = [
        lambda: sum(output.sum() for output in grouping.region_grouping(x, centers, sigma)),
        lambda: grouping.part_assignment(x, centers, sigma).square().sum(),
        lambda: grouping.vlad_pooling(x, x.new_ones((2, 4, 3, 5), dtype=torch.float32), centers, sigma).sum(),
    ]
    for operator in operators:
        call = torch.compile(operator, backend="aot_eager") if compiled else operator
        for preferred in ("lean", "tile"):
            taken.clear()
            dispatch.prefer(preferred)
            loss = call()
            dispatch.prefer("tile" if preferred == "lean" else "lean")
            loss.backward()
            assert taken == [preferred == "lean"] * 2


def test_no_images():
    x, centers, sigma = draw((0, 8, 3, 3, 4), torch.float32)
    centers = centers.t().contiguous().t()
    x.requires_grad_(), centers.requires_grad_()
    torch.library.opcheck(grouping._region_grouping, (x, centers, sigma, False))
    assign, regions = grouping.region_grouping(x, centers, sigma)
    assert assign.shape == (0, 4, 3, 3)
    assert regions.shape == (0, 4, 8)
    (assign.sum() + regions.sum()).backward()
    assert x.grad.shape == x.shape
    assert not centers.grad.any()


@both_ways
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extremes(dtype):
    """Large features, a part without mass, a position exactly on a centre, an image of identical positions."""
    x, centers, sigma = draw((3, 48, 6, 6, 4), torch.float32)
    centers = centers.bfloat16().float()
    x[0, :, 2, 3] = centers[1]
    x[1] = x[1, :, :1, :1]
    x[2] *= 100
    centers[3] = 1000.0
    check_inputs = {"x": x.to(dtype), "centers": centers, "sigma": sigma}
    wide = {name: tensor.double() for name, tensor in check_inputs.items()}
    exact = results(region_grouping, reference, wide)
    plain, fused = (results(region_grouping, provider, check_inputs) for provider in (reference, grouping))
    assert all(tensor.isfinite().all() for tensor in fused.values())
    assert not fused["assign"][:, 3].any()
    torch.testing.assert_close(fused["regions"][:, 3], -torch.nn.functional.normalize(centers[3:], dim=1).expand(3, -1))
    # Logits of the two usual images are below |x - c|^2 / (2 sigma^2) ~ 48 * 1.25 / (2 * 0.79^2) * 4 < 200, of the last
    # one 10^4 times that; softmax halves their rounding at most.
    for image, logits in ((0, 200), (1, 200), (2, 2e6)):
        error = (fused["assign"][image].double() - exact["assign"][image]).abs().max()
        assert (
            error
            <= min(1, logits * ROUNDING[dtype]) + 2 * (plain["assign"][image] - exact["assign"][image]).abs().max()
        )


@pytest.mark.parametrize("operator", [region_grouping, part_assignment, vlad_pooling])
def test_gradcheck(operator):
    x, centers, sigma = draw((2, 5, 2, 3, 3))
    inputs = [x, centers, sigma]
    if operator is vlad_pooling:
        inputs.append(torch.softmax(upstream(x.new_empty(2, 3, 2, 3), 9), 1))
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: tuple(operator(grouping, *args).values()), inputs)


def test_each_output_alone_has_its_gradient():
    x, centers, sigma = draw((2, 20, 4, 4, 3))
    for chosen in (0, 1):
        found = []
        for provider in (reference, grouping):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, centers, sigma)]
            output = provider.region_grouping(*inputs)[chosen]
            found.append(torch.autograd.grad(output, inputs, upstream(output, 1)))
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operators_are_registered_as_torch_wants_it(layout):
    x, centers, sigma = draw((2, 18, 3, 5, 4), torch.float32, layout)
    inputs = [tensor.requires_grad_() for tensor in (x, centers, sigma)]
    assign, lse, regions, mass, norm = (tensor.detach() for tensor in grouping._region_grouping(*inputs, False))
    torch.library.opcheck(grouping._region_grouping, (*inputs, True))
    torch.library.opcheck(grouping._part_assignment, (*inputs, True))
    torch.library.opcheck(grouping._vlad_pooling, (inputs[0], assign.clone().requires_grad_(), *inputs[1:], True))
    plain = [tensor.detach() for tensor in inputs]
    # The gradients themselves are not differentiable: only schema, fakes and tracing are checked of them.
    what = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    pooled = (regions, mass, norm)
    for grads in ((assign, regions), (None, regions), (assign, None)):
        known = pooled if grads[1] is not None else (None, None, None)
        torch.library.opcheck(grouping._grouping_backward, (*plain, assign, lse, *known, *grads, True), test_utils=what)
    torch.library.opcheck(
        grouping._vlad_pooling_backward, (plain[0], assign, *plain[1:], *pooled, regions, True), test_utils=what
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_and_gradients_have_the_layout_of_the_features(layout):
    x, centers, sigma = draw((2, 18, 3, 5, 4), torch.bfloat16, layout)
    x.requires_grad_()
    assign, regions = grouping.region_grouping(x, centers, sigma)
    (grad,) = torch.autograd.grad((assign.square().sum() + regions.sum()), x)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert assign.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)
    assert grad.dtype == torch.bfloat16


@both_ways
@pytest.mark.usefixtures("way")
def test_same_input_same_bits_whatever_lies_in_fresh_memory(monkeypatch):
    x, centers, sigma = draw(CASES[0], torch.bfloat16)
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    first = results(region_grouping, grouping, inputs)
    poison_fresh_memory(monkeypatch)
    second = results(region_grouping, grouping, inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_nan_stays_in_its_image():
    x, centers, sigma = draw((2, 20, 4, 4, 3), torch.float32)
    x[1, 3, 2, 2] = float("nan")
    assign, regions = grouping.region_grouping(x, centers, sigma)
    assert assign[1, :, 2, 2].isnan().all()
    assert int(assign.isnan().sum()) == 3
    assert regions[1].isnan().all()
    assert regions[0].isfinite().all()


def test_permuting_parts_permutes_outputs():
    x, centers, sigma = draw((2, 40, 6, 6, 8), torch.float32)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    assign, regions = grouping.region_grouping(x, centers, sigma)
    permuted_assign, permuted_regions = grouping.region_grouping(x, centers[order], sigma[order])
    torch.testing.assert_close(permuted_assign, assign[:, order])
    torch.testing.assert_close(permuted_regions, regions[:, order])


def test_parameters_may_be_views():
    x, centers, sigma = draw((2, 20, 4, 4, 3), torch.float32)
    views = centers.t().contiguous().t(), torch.stack([sigma, sigma], 1)[:, 0]
    for view, dense in zip(
        grouping.region_grouping(x, *views), grouping.region_grouping(x, centers, sigma), strict=True
    ):
        assert torch.equal(view, dense)


@pytest.mark.parametrize(
    "sizes,strides",
    [
        ((3, 16, 3, 3), (2**30 + 16, 9, 3, 1)),
        ((1, 18, 3, 3), (1, 2**27 + 16, 3, 1)),
        ((1, 16, 3, 9), (1, 1, 2**30, 16)),
    ],
    ids=["images", "channels", "rows"],
)
def test_offsets_past_two_to_the_31(sizes, strides):
    """An index times a stride passes 2^31, neither does alone. The memory in between is reserved but never touched."""
    reach = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    assert reach > 2**31 > max(strides)
    far = torch.empty(reach, dtype=torch.bfloat16, device=DEVICE).as_strided(sizes, strides)
    x, centers, sigma = draw((*sizes, 3), torch.bfloat16)
    far.copy_(x)
    found, expected = (grouping.region_grouping(tensor, centers, sigma) for tensor in (far, x))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@both_ways
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_bfloat16_parameters(dtype):
    x, centers, sigma = draw(CASES[0], dtype)
    compare(region_grouping, {"x": x, "centers": centers.bfloat16(), "sigma": sigma.bfloat16()}, grouping)


def test_memory_kept_for_backward():
    """At most a quarter of the features, with the sizes of the paper's iNaturalist setting (N multiplies both)."""
    x, centers, sigma = draw((1, 1024, 14, 14, 8), torch.bfloat16, "channels_last")
    inputs = [tensor.requires_grad_() for tensor in (x, centers, sigma)]
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        grouping.region_grouping(*inputs)
    for tensor in inputs:
        assert kept.pop(tensor.untyped_storage().data_ptr())
    assert 0 < sum(kept.values()) <= x.untyped_storage().nbytes() / 4


@both_ways
@pytest.mark.usefixtures("way")
def test_more_accurate_than_eager_autocast():
    """Trained-scale logits at C = 1024: the plain formula under bfloat16 autocast is at least ten times as far off."""
    x, centers, sigma = draw((1, 1024, 14, 14, 8), torch.bfloat16)
    x, centers, sigma = x / 2, centers / 10, torch.full_like(sigma, 0.7)
    exact = reference.part_assignment(x.double(), centers.double(), sigma.double())
    fused = grouping.part_assignment(x, centers, sigma)
    eager, _ = autocast(x, centers, sigma)
    ours, theirs = ((found.double() - exact).abs().max() for found in (fused, eager))
    assert 10 * ours < theirs


def test_no_second_derivatives():
    x, centers, sigma = draw((1, 6, 3, 3, 2), torch.float32)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(grouping.region_grouping(x, centers, sigma)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


@both_ways
@pytest.mark.usefixtures("way")
def test_one_graph():
    x, centers, sigma = draw((2, 18, 3, 5, 4), torch.float32, "channels_last")
    inputs = [tensor.requires_grad_() for tensor in (x, centers, sigma)]

    def loss(x, centers, sigma):
        assign, regions = grouping.region_grouping(x * 1, centers, sigma)
        return assign.square().sum() + regions.pow(3).sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


@both_ways
@pytest.mark.usefixtures("way")
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_captured_in_a_cuda_graph():
    x, centers, sigma = draw((4, 64, 7, 7, 5), torch.bfloat16, "channels_last")
    inputs = {"x": x, "centers": centers, "sigma": sigma}
    check_captured(inputs, grouping)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_blocks_fit_whatever_the_sizes(dtype):
    for images, positions, channels, parts in ((0, 1, 1, 1), (1, 1, 1, 64), (128, 196, 1024, 8), (1, 10**6, 4096, 33)):
        for capability in ((0, 0), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
            for flat in (True, False):
                for lean in (True, False):
                    blocks = choose_blocks(images, positions, channels, parts, dtype, capability, flat, lean)
                    assert blocks.parts >= parts
                    assert min(blocks.positions, blocks.channels) >= 16
                    assert blocks.parts >= 8 if lean and dtype == torch.bfloat16 else blocks.parts >= 16
                    assert blocks.channels * dtype.itemsize <= 128
