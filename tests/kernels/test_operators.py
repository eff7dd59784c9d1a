"""What the public operators refuse, and who computes them."""

import os
import subprocess
import sys

import pytest
import torch

import kernels


def draw():
    generator = torch.Generator().manual_seed(0)
    x, centers = torch.randn(2, 33, 5, 7, generator=generator), torch.randn(3, 33, generator=generator)
    return x, centers, torch.full((3,), 0.5)


@pytest.mark.parametrize("operator", [kernels.region_grouping, kernels.part_assignment])
@pytest.mark.parametrize(
    "change,argument,words",
    [
        (lambda x, c, s: (x[0], c, s), "x", ["[N, C, H, W]", "[33, 5, 7]"]),
        (lambda x, c, s: (x[:, :, :0], c, s), "x", ["H, W >= 1"]),
        (lambda x, c, s: (x.long(), c, s), "x", ["int64"]),
        (lambda x, c, s: (x.to(torch.complex64), c, s), "x", ["complex64"]),
        (lambda x, c, s: (x.to(torch.float8_e4m3fn), c, s), "x", ["float8"]),
        (lambda x, c, s: (x, c[:, :-1], s), "centers", ["[K, 33]", "[3, 32]"]),
        (lambda x, c, s: (x, c[:0], s[:0]), "centers", ["K >= 1", "0"]),
        (lambda x, c, s: (x, c.repeat(22, 1), s.repeat(22)), "centers", ["64", "66"]),
        (lambda x, c, s: (x, c.to("meta"), s), "centers", ["meta", "cpu"]),
        (lambda x, c, s: (x, c, s[:-1]), "sigma", ["[3]", "[2]"]),
        (lambda x, c, s: (x, c, s.int()), "sigma", ["int32"]),
        (lambda x, c, s: (x, c, s.to("meta")), "sigma", ["meta", "cpu"]),
        (lambda x, c, s: (x.double(), c, s.double()), "centers", ["float32", "float64"]),
        (lambda x, c, s: (x, c, s.double()), "sigma", ["float64", "float32"]),
        (lambda x, c, s: (x, c, s * 0), "sigma", ["positive", "0"]),
        (lambda x, c, s: (x, c, s - 1), "sigma", ["positive", "-0.5"]),
        (lambda x, c, s: (x, c, s * float("nan")), "sigma", ["positive", "nan"]),
    ],
)
def test_grouping_refuses(operator, change, argument, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        operator(*change(*draw()))
    assert str(error.value).startswith(f"{argument}: ")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "assign,match",
    [
        (torch.rand(2, 4, 5, 7), r"assign: .*\[2, 3, 5, 7\], got \[2, 4, 5, 7\]"),
        (torch.rand(2, 3, 35), r"assign: .*\[N, K, H, W\]"),
        (torch.ones(2, 3, 5, 7, dtype=torch.bool), "assign: .*bool"),
        (torch.rand(2, 3, 5, 7, device="meta"), "assign: on meta"),
        (torch.rand(2, 3, 5, 7).double(), "assign: float64, but x is float32"),
    ],
)
def test_pooling_refuses(assign, match):
    x, centers, sigma = draw()
    with pytest.raises(ValueError, match=match):
        kernels.vlad_pooling(x, assign, centers, sigma)


@pytest.mark.parametrize(
    "arguments,match",
    [
        ({"assign": torch.rand(1, 2, 4, 9)}, "4x9 map is smaller than the 5x5"),
        ({"assign": torch.rand(2, 4, 9)}, r"\[N, K, H, W\]"),
        ({"assign": torch.rand(1, 0, 9, 9)}, "K, H, W >= 1"),
        ({"assign": torch.ones(1, 2, 9, 9).int()}, "assign: .*int32"),
        ({"assign": torch.rand(1, 2, 9, 9), "std": 0.0}, "std: .*0"),
        ({"assign": torch.rand(1, 2, 9, 9), "std": float("nan")}, "std: .*nan"),
        ({"assign": torch.rand(1, 2, 9, 9), "radius": -1}, "radius: .*-1"),
        ({"assign": torch.rand(1, 2, 9, 9), "padding": "full"}, "padding: .*'valid' or 'same'"),
    ],
)
def test_occurrence_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        kernels.part_occurrence(**arguments)


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_on_a_cpu_the_interpreter_has_to_be_asked_for(interpreted):
    code = (
        "import torch, kernels\n"
        "x = torch.randn(1, 4, 3, 3, requires_grad=True)\n"
        "assign, _ = kernels.region_grouping(x, torch.randn(2, 4), torch.ones(2))\n"
        "print('Grouping' in type(assign.grad_fn).__name__)\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": interpreted, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(interpreted == "1")


def test_without_triton_there_is_the_reference():
    code = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import sys; sys.modules['triton'] = None\n"
        "import torch, kernels\n"
        "print(kernels.part_occurrence(torch.rand(1, 2, 5, 5)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[1, 2]" in done.stdout
