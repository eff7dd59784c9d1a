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
from kernels import grouping, image_grouping, operators  # noqa: E402

pytestmark = pytest.mark.skipif(operators.INTERPRETED, reason="interpreted kernels are not launched")
CASE = Case(132, 64, 4, 4, 3, "bf16", "channels_last")


TWICE = replace(CASE, C=1024, K=9)  # whose backward takes two passes


@pytest.fixture(scope="module")
def inputs():
    return [tensor.requires_grad_() for tensor in CASE.draw("cpu")]


@pytest.mark.parametrize(
    "module,case,forward,backward",
    [
        (
            grouping,
            CASE,
            ["_forward_kernel", "normalize_kernel"],
            ["_direction_kernel", "_backward_kernel", "_parameters_kernel"],
        ),
        (image_grouping, CASE, ["_forward_kernel"], ["_backward_kernel", "_parameters_kernel"]),
        (image_grouping, TWICE, ["_forward_kernel"], ["_backward_kernel", "_channels_kernel", "_parameters_kernel"]),
    ],
    ids=["tile", "image", "image twice"],
)
def test_kernels_of_a_step(module, case, forward, backward):
    inputs = [tensor.requires_grad_() for tensor in case.draw("cpu")]
    with bench_host.nothing_launched() as launched:
        for _ in range(2):
            outputs = module.region_grouping(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    names = [launch.kernel for launch in launched]
    assert names == 2 * (forward + backward)


@pytest.mark.parametrize("case", [CASE, TWICE], ids=["once", "twice"])
def test_a_second_launch_hands_over_what_the_first_did(case):
    """The first goes through Triton's binder, later ones do not: arguments and grid must be those of the binder."""
    inputs = [tensor.requires_grad_() for tensor in case.draw("cpu")]
    image_grouping._plan_forward.cache_clear()
    image_grouping._plan_backward.cache_clear()
    with bench_host.nothing_launched() as launched:
        for _ in range(2):
            outputs = image_grouping.region_grouping(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])
    first, second = launched[: len(launched) // 2], launched[len(launched) // 2 :]
    assert len(first) == (4 if case is TWICE else 3)
    for bound, direct in zip(first, second, strict=True):
        assert bound.grid == direct.grid
        assert len(bound.arguments) == len(direct.arguments)
        for theirs, ours in zip(bound.arguments, direct.arguments, strict=True):
            assert type(theirs) is type(ours)
            if isinstance(theirs, Tensor):
                assert (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)
            elif isinstance(theirs, int | bool):
                assert theirs == ours


def test_a_plan_is_for_what_triton_compiles_for():
    """Calls that Triton would compile anew for are never launched with what others were compiled to."""
    x, centers, sigma = (tensor.detach() for tensor in TWICE.draw("cpu"))
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

    calls = [(name, "both", True) for name in dictionaries] + [("plain", grads, True) for grads in upstreams]
    calls.append(("plain", "both", False))

    def launches(fresh):
        found = []
        with bench_host.nothing_launched() as launched:
            for name, grads, learns in calls:
                if fresh:
                    image_grouping._plan_forward.cache_clear()
                    image_grouping._plan_backward.cache_clear()
                parameters = [tensor.detach().requires_grad_() for tensor in dictionaries[name]]
                launched.clear()
                outputs = image_grouping.region_grouping(x.clone().requires_grad_(learns), *parameters)
                given = zip(outputs, upstreams[grads](*outputs), strict=True)
                torch.autograd.backward(*zip(*[pair for pair in given if pair[1] is not None], strict=True))
                found.append([launch.compilation for launch in launched])
        return found

    assert launches(fresh=False) == launches(fresh=True)


def test_no_gradient_of_the_features_no_descriptor_of_it(inputs):
    x, centers, sigma = (tensor.detach() for tensor in inputs)
    outputs = None
    with bench_host.nothing_launched() as launched:
        outputs = image_grouping.region_grouping(x, centers.requires_grad_(), sigma)
        outputs[1].sum().backward()
    assert launched[1].kernel == "_backward_kernel"
    assert launched[1].arguments[1] is None


def test_bad_options():
    command = [sys.executable, "-m", "benchmarks.bench_host", "--rounds", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--rounds: expected 1 or more, got 0" in done.stderr
