"""What the settings of a run say about its images, in the terms of ``pipelines``."""

from __future__ import annotations

import torch

from pipelines.decoding import Decoding, pick_decoder
from pipelines.geometry import Geometry
from rg.config import InputConfig


def training_geometry(config: InputConfig) -> Geometry:
    """Random windows, flips and brightness."""
    return Geometry(
        config.short_side, config.crop, config.view, training=True, flip=config.flip, brightness=config.brightness
    )


def evaluation_geometry(config: InputConfig, view: str = "input") -> Geometry:
    """What training looks at without randomness, or (view = whole) whole images of the short side for testing."""
    short_side, crop = config.test_size
    return Geometry(short_side, crop, "whole" if view == "whole" else config.view)


def decoding(config: InputConfig, device: torch.device, local_world_size: int = 1) -> Decoding:
    """How a rank decodes for a model on a device.

    Raises:
        ValueError: the decoder needs a GPU, and there is none.
    """
    return Decoding(
        decoder=pick_decoder(config.decoder, device),
        threads=config.threads,
        prefetch=config.prefetch,
        hardware_load=config.hardware_load,
        largest_width=config.largest_width,
        largest_height=config.largest_height,
        gpu=device.index or 0,
        ranks=local_world_size,
    )
