"""What benchmarks say of input that they cannot take."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "words,said",
    [
        (
            ["bench_train", "--recipe", "birds_lite0_saliency", "--size", "64"],
            "bench_train: error: model.sampler.size: expected at most the 64 pixels of input.crop and input.test_crop",
        ),
        (["world_sizes", "--worlds", "1,0"], "world_sizes.py: error: argument --worlds: expected 1 or more, got 0"),
    ],
)
def test_it_is_one_line(words, said):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
