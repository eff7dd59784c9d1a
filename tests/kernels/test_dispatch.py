"""Which kernels a call takes, and when it may do without a registered operator."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch

PLAIN = {
    "channels": 1024,
    "parts": 8,
    "dtype": torch.bfloat16,
    "channels_last": True,
    "capability": (9, 0),
    "forward": True,
}


@pytest.mark.parametrize(
    "change,fits",
    [
        ({}, True),
        ({"forward": False}, True),
        ({"channels": 2048}, True),
        ({"channels": 2048, "forward": False}, True),
        ({"channels": 2048, "parts": 9}, False),
        ({"parts": 16}, True),
        ({"parts": 16, "forward": False}, True),
        ({"channels": 512, "parts": 32}, True),
        ({"channels": 512, "parts": 32, "forward": False}, False),
        ({"channels": 256, "parts": 32, "forward": False}, True),
        ({"parts": 17}, False),
        ({"channels": 432, "parts": 32}, True),
        ({"channels": 64, "parts": 16}, True),
        ({"channels": 64, "parts": 17}, False),
        ({"channels": 256, "parts": 64}, True),
        ({"channels": 1020}, False),
        ({"channels": 56}, False),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float16}, False),
        ({"channels_last": False}, False),
        ({"capability": (8, 0)}, False),
        ({"capability": (10, 0)}, True),
        ({"capability": (12, 0)}, False),
    ],
    ids=str,
)
def test_the_rule(change, fits):
    assert dispatch.fits_image(**(PLAIN | change)) == fits


def test_a_wrong_preference_is_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "tile")
    with pytest.raises(ValueError, match=r"kernels: expected 'tile', 'lean' or 'image', got 'fast'"):
        dispatch.prefer("fast")
    assert dispatch.preferred() == "tile"


def test_who_looks_at_operators_gets_them():
    seen = []

    class Subclass(torch.Tensor):
        pass

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    x = torch.zeros(2)
    assert dispatch.is_eager(x, torch.nn.Parameter(x))
    assert not dispatch.is_eager(x, x.as_subclass(Subclass))
    with Mode():
        assert not dispatch.is_eager(x)
    torch.func.grad(lambda y: (seen.append(dispatch.is_eager(y)), y.sum())[1])(x)
    torch.compile(lambda y: y + dispatch.is_eager(y), backend="eager", fullgraph=True)(x)
    assert seen == [False]
    compiled = torch.compile(lambda y: y + 1 if dispatch.is_eager(y) else y - 1, backend="eager", fullgraph=True)
    assert compiled(x)[0] == -1
