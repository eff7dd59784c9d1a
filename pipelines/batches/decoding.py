"""JPEG and window in, pixels out: what the loader needs of a decoder, and which decoders there are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.cores import usable_cores

logger = logging.getLogger(__name__)


class DecodeError(ValueError):
    """An image of a batch cannot be decoded; the decoder cannot be used any more."""


@dataclass(frozen=True)
class Decoding:
    """How images are decoded on one rank.

    Attributes:
        decoder: ``cpu`` or ``mixed`` (GPU), both DALI, or ``pillow``, on the CPU.
        threads: Decoding threads; 0 takes the cores of this process divided by ``ranks``.
        prefetch: Batches that are decoded ahead.
        hardware_load: Share of the images that ``mixed`` gives to the JPEG engine of the GPU, where it has one. Its
            pixels differ by a few grey levels from those of the other units: with 0 or 1 they depend on the image
            alone, else on the batch that it is in, too.
        largest_width: Columns of the largest image, for which ``mixed`` allocates memory once; 0 if not known.
        largest_height: Rows of the largest image.
        gpu: Number of the GPU for ``mixed``.
        ranks: Ranks that share the cores of this process.
        pinned: Pixels on the CPU lie in page-locked memory, which a GPU copies while the host goes on.
    """

    decoder: str = "cpu"
    threads: int = 0
    prefetch: int = 2
    hardware_load: float = 1.0
    largest_width: int = 0
    largest_height: int = 0
    gpu: int = 0
    ranks: int = 1
    pinned: bool = False

    @property
    def thread_count(self) -> int:
        """Threads, with 0 replaced."""
        return self.threads or max(1, usable_cores() // self.ranks)


class Decoder(Protocol):
    """Decodes batches one after the other, some ahead.

    Attributes:
        device: Where the pixels are.
        version: What decides the values of the pixels.
    """

    device: torch.device
    version: str

    def submit(self, jpegs: Sequence[bytes], windows: Sequence[Window]) -> None:
        """Starts a batch, whose outputs are of one size; at most ``prefetch`` may be under way.

        Raises:
            DecodeError: see there.
        """
        ...

    def result(self) -> Tensor:
        """The oldest batch under way: uint8 [N, rows, columns, 3].

        Raises:
            DecodeError: see there.
        """
        ...
