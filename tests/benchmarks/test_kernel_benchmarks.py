"""What the kernel benchmarks count and gate; what they time needs a GPU and is not tested."""

import csv
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import kernels
from benchmarks import bench_kernels, kernel_accuracy
from benchmarks.tools import ledger
from benchmarks.tools.kernel_cases import CASES, Case
from kernels import operators

triton = pytest.importorskip("triton")
from benchmarks import kernel_resources  # noqa: E402

pytestmark = pytest.mark.skipif(operators.INTERPRETED, reason="interpreted kernels cannot be compiled")

CASE = Case(2, 64, 5, 7, 3, "bf16", "channels_last")


def test_bytes_are_those_of_the_tensors():
    x, centers, sigma = CASE.draw("cpu")
    x.requires_grad_()
    outputs = kernels.region_grouping(x, centers, sigma)
    (grad,) = torch.autograd.grad([output.sum() for output in outputs], x)
    assert CASE.bytes("forward") == x.nbytes + sum(output.nbytes for output in outputs)
    assert CASE.bytes("backward") == x.nbytes + grad.nbytes + 2 * sum(output.nbytes for output in outputs)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_operations_are_those_that_torch_counts():
    """Of the matrix products; |x|^2 and the multiple of x come on top, two operations an element."""
    from torch.utils.flop_counter import FlopCounterMode

    x, centers, sigma = CASE.draw("cpu")
    x = x.float().requires_grad_()
    with FlopCounterMode(display=False) as forward:
        outputs = kernels.region_grouping(x, centers.requires_grad_(), sigma)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad([output.sum() for output in outputs], [x, centers])
    assert CASE.flops("forward") == forward.get_total_flops() + 2 * CASE.features
    # Autograd multiplies with q once more, for the gradient of q, as the formulas do with x . w.
    assert CASE.flops("backward") == backward.get_total_flops() + 2 * CASE.features


def test_the_papers_sizes_are_all_there():
    assert len(CASES) == len(set(CASES)) == 32
    assert {(case.N, case.H, case.W, case.K) for case in CASES} == {
        (128, 14, 14, 8),
        (32, 16, 16, 9),
        (128, 20, 20, 8),
        (32, 28, 28, 5),
    }


def test_dry_run():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_kernels", "--dry-run"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 2 * len(CASES)
    # 128 x 1024 x 196 x 2 bytes of features, 128 x 8 x 196 x 4 of assignments, 128 x 8 x 1024 x 4 of regions: 56.4 MB,
    # 18.8 us at 3 TB/s.
    assert lines[2].startswith("N128 C1024 14x14 K8 bf16 channels_last")
    assert lines[2].split()[-4:] == ["56.4", "0.87", "15.5", "18.8"]


@pytest.mark.parametrize(
    "options,message",
    [(["--channels", "77"], "77"), (["--dry-run", "--rounds", "0"], "--rounds"), (["--dtype", "int8"], "int8")],
)
def test_bad_options(options, message):
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_kernels", *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("asked", [False, True])
def test_the_table_takes_the_newest_rows(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_kernels, "RESULTS", tmp_path / "kernels.csv")
    with pytest.raises(ValueError, match="nothing is recorded"):
        bench_kernels.table()
    times = [("fused", 9.0), ("fused", 0.02), ("eager", 0.2), ("autocast", 0.1), ("compile", 0.05), ("copy", 0.016)]
    times += [("image", 0.02), ("lean", 0.024)] if asked else []
    with bench_kernels.RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ledger.COLUMNS)
        writer.writeheader()
        for provider, ms in times:
            row = dict.fromkeys(ledger.COLUMNS, "")
            row |= {"case": CASES[0].name, "mode": "forward graph cold", "metric": "time", "provider": provider}
            writer.writerow(row | {"p50": ms, "device": "NVIDIA H100", "commit": "abc"})
    (line,) = bench_kernels.table().splitlines()[2:]
    ways = "1.50x of a copy | 1.25x of a copy" if asked else " | "
    assert line == (
        f"| {CASES[0].name} | forward | 0.020 | 1.25x | {ways} | 10.0x slower | 5.0x slower | 2.5x slower | "
        "NVIDIA H100, abc |"
    )


def test_accuracy_of_float64_is_exact():
    double = Case(1, 64, 5, 5, 3, "fp32", "contiguous")
    wide = lambda *inputs: kernels.region_grouping(*(tensor.double() for tensor in inputs))  # noqa: E731
    found = kernel_accuracy.errors(wide, double, "cpu")
    assert set(found) == {"assign", "regions", "gradient of x", "gradient of centers", "gradient of sigma"}
    # The gradients come back in float32.
    assert found["assign"] == found["regions"] == 0
    assert max(found.values()) < 1e-6


def test_compiled_without_a_gpu():
    found = [
        kernel_resources.describe(kernel, arguments)
        for kernel, arguments in kernel_resources.launches(replace(CASE, C=128), (9, 0))
    ]
    assert {item.name for item in found} == {
        "tile_forward",
        "tile_normalize",
        "tile_direction",
        "tile_backward",
        "tile_parameters",
        "image_forward",
        "image_backward",
        "image_parameters",
        "occurrence_forward",
        "occurrence_backward",
    }
    forward = next(item for item in found if item.name == "tile_forward")
    used = kernel_resources.compile(forward, 90)
    assert 16 <= used.registers <= 255
    assert used.matrix > 0
    assert used.wide_loads > 0
    assert kernel_resources.failures(forward, used, 90) == []
    for change, words in (
        ({"shared": 10**6}, "shared"),
        ({"stack": 65}, "stack"),
        ({"matrix": 0}, "matrix"),
        ({"wide_loads": 0}, "128-bit"),
    ):
        (reason,) = kernel_resources.failures(forward, replace(used, **change), 90)
        assert words in reason


@pytest.mark.parametrize("C,name", [(64, "image_backward"), (2048, "image_channels")])
def test_an_image_at_a_time_comes_and_goes_through_descriptors(C, name):
    found = [
        kernel_resources.describe(kernel, arguments)
        for kernel, arguments in kernel_resources.launches(replace(CASE, C=C), (9, 0), every=False)
    ]
    backward, without = (item for item in found if item.name == name)
    used = kernel_resources.compile(backward, 90)
    assert used.descriptor_loads > 0
    assert used.descriptor_stores > 0
    assert kernel_resources.failures(backward, used, 90) == []
    for change, words in (({"descriptor_loads": 0}, "loads"), ({"descriptor_stores": 0}, "stores")):
        (reason,) = kernel_resources.failures(backward, replace(used, **change), 90)
        assert words in reason
    assert kernel_resources.failures(without, replace(used, descriptor_stores=0), 90) == []


def test_dispatch_is_printed(capsys):
    bench_kernels.dispatch([CASES[0], replace(CASES[0], C=2048)])
    lines = capsys.readouterr().out.splitlines()[-12:]
    leaner, forward, backward, twice = (lines[index] for index in (1, 2, 5, 11))
    assert leaner.split()[-8:] == ["lean", "64x64x8", "lean", "128x64x8", "lean", "128x64x8", "lean", "64x64x8"]
    assert forward.split()[-4:] == ["in", "1", "tile", "64x64x16"]
    assert "image 32x1024x8 in 1  " in forward
    assert "image 16x1024x8 in 1  " in backward
    assert "image 16x2048x8 in 1 + 1024  " in twice
