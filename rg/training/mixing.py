"""Mixup and CutMix: neighbours of a batch become two mixtures of each other.

Images 2n and 2n + 1 of the micro batch of all ranks are mixed, and every rank holds both or neither. So a step has the
same mixtures whatever the number of ranks. The order of the stream is random, and with it who is whose neighbour.
"""

from __future__ import annotations

import torch
from scipy.special import betaincinv
from torch import Tensor

from rg.config import InputConfig
from rg.model.noise import Stream, uniform


def neighbours(values: Tensor) -> Tensor:
    """Of each of an even number of images what the one has that it is mixed with: [N, ...]."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix(images: Tensor, seeds: Tensor, config: InputConfig) -> tuple[Tensor, Tensor]:
    """Mix every image with its neighbour, as Zhang et al. (2018) or, by a box, Yun et al. (2019) do.

    If both are on, half of the pairs are mixed in each way.

    Args:
        images: An even number of them: [N, 3, H, W], uint8 or float.
        seeds: Of the images, int64 [N] on the CPU.
        config: Its ``mixup`` and ``cutmix``, of which one is positive at least.

    Returns:
        images: float32 [N, 3, H, W].
        shares: float32 [N], what an image kept of itself; its neighbour has the rest.
    """
    height, width = images.shape[2:]
    kept = _kept(seeds[::2], height, width, config).repeat_interleave(2, dim=0).to(images.device, non_blocking=True)
    own = images.float()
    return torch.lerp(neighbours(own), own, kept.unsqueeze(1)), kept.mean((1, 2))


def _kept(seeds: Tensor, height: int, width: int, config: InputConfig) -> Tensor:
    """What pairs keep of themselves at every pixel: float32 [N, H, W]."""
    share, way, down, across = uniform(seeds, 4, Stream.MIXING).double().unbind(1)
    ways = [_blended(share, height, width, config.mixup)] if config.mixup else []
    ways += [_outside_box(share, down, across, height, width, config.cutmix)] if config.cutmix else []
    return torch.where((way < 0.5)[:, None, None], ways[0], ways[-1])


def _blended(share: Tensor, height: int, width: int, alpha: float) -> Tensor:
    return _beta(share, alpha)[:, None, None].float().expand(-1, height, width)


def _outside_box(share: Tensor, down: Tensor, across: Tensor, height: int, width: int, alpha: float) -> Tensor:
    """0 in a box whose centre lies anywhere, of which what lies beyond the image is cut off, else 1."""
    half = (1 - _beta(share, alpha)).sqrt()[:, None] / 2
    rows = ((torch.arange(height) + 0.5) / height - down[:, None]).abs() < half
    columns = ((torch.arange(width) + 0.5) / width - across[:, None]).abs() < half
    return (~(rows[:, :, None] & columns[:, None, :])).float()


def _beta(numbers: Tensor, alpha: float) -> Tensor:
    """Numbers of the distribution Beta(alpha, alpha) from uniform ones."""
    return torch.from_numpy(betaincinv(alpha, alpha, numbers.numpy()))
