"""What is launched, counted where nothing is launched: on a CPU, with kernels compiled for a GPU."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
from benchmarks import bench_host  # noqa: E402
from benchmarks.tools.kernel_cases import Case  # noqa: E402
from kernels import dispatch, grouping, image_grouping, operators  # noqa: E402

pytestmark = pytest.mark.skipif(operators.INTERPRETED, reason="interpreted kernels are not launched")
CASE = Case(132, 64, 4, 4, 3, "bf16", "channels_last")


TWICE = replace(CASE, C=1024, K=9)  # whose backward takes two passes
TILES = (
    ["forward_kernel", "normalize_kernel"],
    ["direction_kernel", "backward_kernel", "parameters_kernel"],
)


@pytest.fixture(scope="module")
def inputs():
    return [tensor.requires_grad_() for tensor in CASE.draw("cpu")]


def preferring(way, monkeypatch):
    """The module that is called after ``prefer``, nothing planned yet."""
    monkeypatch.setattr(dispatch, "_preferred", way)
    module = image_grouping if way == "image" else grouping
    forget(module)
    return module


def forget(module):
    module._plan_forward.cache_clear()
    module._plan_backward.cache_clear()


@pytest.mark.parametrize(
    "way,case,forward,backward",
    [
        ("tile", CASE, *TILES),
        ("lean", CASE, *TILES),
        ("image", CASE, ["forward_kernel"], ["backward_kernel", "parameters_kernel"]),
        ("image", TWICE, ["forward_kernel"], ["backward_kernel", "channels_kernel", "parameters_kernel"]),
    ],
    ids=["tile", "lean", "image", "image twice"],
)
def test_kernels_of_a_step(way, case, forward, backward, monkeypatch):
    module = preferring(way, monkeypatch)
    inputs = [tensor.requires_grad_() for tensor in case.draw("cpu")]
    with bench_host.nothing_launched() as launched:
        for _ in range(2):
            outputs = module.region_grouping(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    names = [launch.kernel for launch in launched]
    assert names == 2 * (forward + backward)


@pytest.mark.parametrize(
    "way,case,launches",
    [("lean", CASE, 5), ("image", CASE, 3), ("image", TWICE, 4)],
    ids=["lean", "image", "image twice"],
)
def test_a_second_launch_hands_over_what_the_first_did(way, case, launches, monkeypatch):
    """The first goes through Triton's binder, later ones do not: arguments and grid must be those of the binder."""
    module = preferring(way, monkeypatch)
    inputs = [tensor.requires_grad_() for tensor in case.draw("cpu")]
    with bench_host.nothing_launched() as launched:
        for _ in range(2):
            outputs = module.region_grouping(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    first, second = launched[:launches], launched[launches:]
    for bound, direct in zip(first, second, strict=True):
        assert bound.grid == direct.grid
        assert len(bound.arguments) == len(direct.arguments)
        for theirs, ours in zip(bound.arguments, direct.arguments, strict=True):
            assert type(theirs) is type(ours)
            if isinstance(theirs, Tensor):
                assert (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)
            elif isinstance(theirs, int | bool):
                assert theirs == ours


@pytest.mark.parametrize("way,case", [("lean", CASE), ("image", TWICE)], ids=["lean", "image"])
def test_a_plan_is_for_what_triton_compiles_for(way, case, monkeypatch):
    """Calls that Triton would compile anew for are never launched with what others were compiled to."""
    module = preferring(way, monkeypatch)
    x, centers, sigma = (tensor.detach() for tensor in case.draw("cpu"))
    features = {
        "plain": x,
        "somewhere": torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x),
        "contiguous": x.contiguous(),
        "float32": x.float(),
    }
    shifted = torch.empty(len(sigma) + 1)[1:].copy_(sigma)
    dictionaries = {
        "plain": (centers, sigma),
        "transposed": (centers.t().contiguous().t(), sigma),
        "bfloat16": (centers.bfloat16(), sigma.bfloat16()),
        "sigma somewhere": (centers, shifted),
        "strided sigma": (centers, torch.stack([sigma, sigma], 1)[:, 0]),
    }
    upstreams = {
        "both": lambda a, r: (torch.ones_like(a), torch.ones_like(r)),
        "expanded": lambda a, r: (torch.ones_like(a), torch.ones(()).expand_as(r)),
        "contiguous": lambda a, r: (torch.ones(a.shape), torch.ones_like(r)),
        "assign alone": lambda a, _: (torch.ones_like(a), None),
        "regions alone": lambda _, r: (None, torch.ones_like(r)),
    }

    calls = [("plain", name, "both", True) for name in dictionaries]
    calls += [("plain", "plain", grads, True) for grads in upstreams]
    calls.append(("plain", "plain", "both", False))
    if way == "lean":  # images are copied to where descriptors want them, and others do not fit
        calls += [(name, "plain", "both", True) for name in features]

    def launches(fresh):
        found = []
        with bench_host.nothing_launched() as launched:
            for lies, name, grads, learns in calls:
                if fresh:
                    forget(module)
                parameters = [tensor.detach().requires_grad_() for tensor in dictionaries[name]]
                launched.clear()
                outputs = module.region_grouping(features[lies].detach().requires_grad_(learns), *parameters)
                given = zip(outputs, upstreams[grads](*outputs), strict=True)
                torch.autograd.backward(*zip(*[pair for pair in given if pair[1] is not None], strict=True))
                numbers = [[value for value in launch.arguments if isinstance(value, int)] for launch in launched]
                found.append([(launch.compilation, launch.grid) for launch in launched] + numbers)
        return found

    assert launches(fresh=False) == launches(fresh=True)


def test_no_gradient_of_the_features_no_descriptor_of_it(inputs):
    x, centers, sigma = (tensor.detach() for tensor in inputs)
    outputs = None
    with bench_host.nothing_launched() as launched:
        outputs = image_grouping.region_grouping(x, centers.requires_grad_(), sigma)
        outputs[1].sum().backward()
    assert launched[1].kernel == "backward_kernel"
    assert launched[1].arguments[1] is None


def test_bad_options():
    command = [sys.executable, "-m", "benchmarks.bench_host", "--rounds", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--rounds: expected 1 or more, got 0" in done.stderr
