"""Random numbers that depend on an image and nothing else: not on the ranks, the device or what was drawn before.

Every number is a hash of the seed of the image and of its own place (splitmix64), computed on the device. So a step has
the same noise whatever the number of ranks, and a resumed run has what the uninterrupted one would have had.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, odd, as int64
FIRST = -0x40A7B892E31B1A47
SECOND = -0x6B2FB644ECCEEE15


@unique
class Stream(IntEnum):
    """What random numbers of an image are for; those of other streams are independent."""

    MEASUREMENT = 0
    MOTION = 1
    GUMBEL = 2
    PART_DROPOUT = 3
    MIXING = 4
    SHRINKING = 5
    DETAIL = 6
    WARP = 7
    COLOR_JITTER = 8
    PLACE = 9


def image_seeds(seed: int, step: int, micro: int, first: int, count: int) -> Tensor:
    """Seeds of some images of a micro batch of all ranks.

    Args:
        seed: Of the run.
        step: Optimiser step.
        micro: Micro batch of the step.
        first: First image of this rank.
        count: Images of this rank.

    Returns:
        int64 [count].
    """
    states = np.random.SeedSequence([seed, step, micro]).generate_state(first + count, np.uint64)
    return torch.from_numpy(states[first:].view(np.int64).copy())


def uniform(seeds: Tensor, count: int, stream: Stream) -> Tensor:
    """Uniform numbers.

    Args:
        seeds: Of the images, int64 [N].
        count: Numbers for every image.
        stream: What they are for.

    Returns:
        float32 [N, count], in (0, 1).
    """
    place = torch.arange(1, count + 1, device=seeds.device) + (stream << 32)
    z = _mix(seeds)[:, None] + place * GOLDEN
    return (_shift(_mix(z), 41).float() + 0.5) * 2.0**-23  # 24 bits and a half would round to 1


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * FIRST
    z = (z ^ _shift(z, 27)) * SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
