"""A model as it is tested, whatever its caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and no autocast, on the device of the model; what was before holds again after.

    Args:
        model: With at least one parameter or buffer.
    """
    trained = [module for module in model.modules() if module.training]
    device = next(tensor.device for tensor in (*model.parameters(), *model.buffers()))
    dtype = torch.get_default_dtype()
    model.eval()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), device:
            yield
    finally:
        torch.set_default_dtype(dtype)
        for module in trained:
            module.training = True
