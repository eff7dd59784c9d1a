"""What is computed in full precision, whatever autocast rounds around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def without_autocast(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """A function whose first tensor has at least float32, and inside which nothing is rounded.

    Places in images need it: in bfloat16 they are whole pixels apart.
    """

    @functools.wraps(function)
    def run(x: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return function(wide, *args, **kwargs)

    return run
