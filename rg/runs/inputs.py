"""What the settings of a run say about its images, in the terms of ``pipelines``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.batches.decoders import pick_decoder
from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.shards.cache import Cache
from pipelines.shards.storage import Location
from rg.config import InputConfig

logger = logging.getLogger(__name__)


MULTIPLE = 16  # pixels, of which a crop that grows is a multiple


def training_geometry(config: InputConfig) -> Geometry:
    """Random windows, flips and brightness, of the largest crops."""
    return Geometry(
        config.short_side, config.crop, config.view, training=True, flip=config.flip, brightness=config.brightness
    )


def growing_geometries(config: InputConfig, epochs: int) -> dict[int, Geometry]:
    """Epoch from which on -> random windows, flips and brightness; one geometry unless crops grow."""
    largest = training_geometry(config)
    if not config.smallest_crop:
        return {0: largest}
    geometries = {}
    for stage in range(config.stages):
        exact = config.smallest_crop + (config.crop - config.smallest_crop) * stage / (config.stages - 1)
        crop = min(config.crop, max(MULTIPLE, MULTIPLE * round(exact / MULTIPLE)))
        short_side = round(config.short_side * crop / config.crop)
        geometries[epochs * stage // config.stages] = replace(largest, short_side=short_side, crop=crop)
    return geometries


def evaluation_geometry(config: InputConfig) -> Geometry:
    """What training looks at without randomness."""
    return Geometry(*config.test_size, config.view)


def whole_geometry(config: InputConfig, stride: int) -> Geometry:
    """Whole images of the short side for testing, for a backbone of that stride."""
    return Geometry(*config.test_size, "whole", stride)


def decoding(config: InputConfig, device: torch.device, sharing: int = 1) -> Decoding:
    """How a rank decodes for a model on a device; ``sharing`` ranks have the same cores.

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
        gpu=torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index or 0,
        ranks=sharing,
        pinned=device.type == "cuda",
    )


def cache(config: InputConfig) -> Cache | None:
    """Where a run keeps shards on the way, if it does.

    Raises:
        ValueError: nothing can be written there.
    """
    return Cache(Path(config.cache), int(config.cache_gib * 2**30)) if config.cache != "none" else None


def cache_of_run(config: InputConfig) -> Cache | None:
    """The cache of a run that was trained before, perhaps elsewhere: only where it is there already."""
    if not Path(config.cache).is_dir():
        return None
    try:
        return cache(config)
    except ValueError as error:
        logger.warning("%s; shards are read without it", error)
        return None


def tested_on(config: InputConfig, device: torch.device) -> InputConfig:
    """The settings with a decoder for that device: a run that was trained on a GPU may be tested without."""
    return replace(config, decoder="auto") if config.decoder == "mixed" and device.type == "cpu" else config


def evaluation_loader(
    config: InputConfig,
    data: Location,
    split: str,
    geometry: Geometry,
    batch_size: int,
    device: torch.device,
    pieces: Sequence[range] | None = None,
    sharing: int = 1,
) -> Loader:
    """One pass over a split with its annotations, or over pieces of it; ``sharing`` ranks have the same cores.

    It leaves all damaged samples out, however many: whether they are too many tells ``check_damaged`` of all pieces.
    """
    config = tested_on(config, device)
    return Loader(
        data,
        split,
        geometry,
        batch_size,
        annotations=True,
        decoding=decoding(config, device, sharing),
        pieces=pieces,
        max_damaged=1.0,
        cache=cache_of_run(config),
    )
