"""The device that a model runs on."""

from __future__ import annotations

import torch


def pick_device(device: str) -> torch.device:
    """The device of that name; auto is a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} is not available ({str(error).splitlines()[0]})") from None
    return picked
