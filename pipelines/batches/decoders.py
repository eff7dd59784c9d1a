"""Which decoders there are, and which of them a run takes."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

from pipelines.batches.decoding import Decoder, Decoding

logger = logging.getLogger(__name__)


def make_decoder(decoding: Decoding, batch_size: int) -> Decoder:
    """A decoder of up to ``batch_size`` images at once."""
    if decoding.decoder == "pillow":
        from pipelines.batches.pillow import PillowDecoder

        return PillowDecoder(decoding)
    from pipelines.batches.dali import DaliDecoder

    return DaliDecoder(decoding, batch_size)


def pick_decoder(setting: str, device: torch.device) -> str:
    """cpu, mixed or pillow, for one of them or auto: DALI where it is installed, on the GPU where the model is.

    Raises:
        ValueError: mixed without a GPU.
    """
    if setting == "mixed" and device.type != "cuda":
        raise ValueError(f"input.decoder: mixed needs a GPU, but the device is {device}; use auto, cpu or pillow")
    if setting != "auto":
        return setting
    if not _dali_is_installed():
        return "pillow"
    return "mixed" if device.type == "cuda" else "cpu"


@functools.cache
def _dali_is_installed() -> bool:
    """Says so once if it is not."""
    try:
        if importlib.util.find_spec("nvidia.dali"):
            return True
    except (ModuleNotFoundError, ValueError):  # no package nvidia; a module that was made unavailable
        pass
    logger.warning("NVIDIA DALI is not installed: Pillow decodes, which takes more CPU time for every image")
    return False
