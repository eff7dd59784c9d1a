"""What where and when a photo was taken adds to the logits: a term of its own, beside what the image says.

The network is that of geographical priors (Mac Aodha et al., ICCV 2019): sines and cosines of longitude, latitude and
day, then residual layers, then a linear layer without bias. Here it is a summand of the logits and learns with them,
from zero, so that the logit of a class is what the image says plus what the place says. An image without a place gets
exactly 0, and in training places are left out at random so that the image learns to do without.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rg.config import PlaceConfig
from rg.model.noise import Stream, uniform

HALF_TURNS = (90.0, 180.0)  # latitude and longitude, in degrees, that are half a turn
YEAR = 365.25  # days


class PlaceTerm(nn.Module):
    """Logits of a place.

    Args:
        config: Architecture.
        num_classes: Number of classes, or of attributes.
    """

    def __init__(self, config: PlaceConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(6, config.width)
        self.blocks = nn.ModuleList(ResidualLayers(config.width) for _ in range(config.blocks))
        self.last = nn.Linear(config.width, num_classes, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, places: Tensor, seeds: Tensor | None = None) -> Tensor:
        """What places add to the logits.

        Args:
            places: float [N, 3]: latitude and longitude in degrees, day of the year; nan for what is not known.
            seeds: Of the images, int64 [N]; with them places are left out as in training.

        Returns:
            float32 [N, classes], exactly 0 where nothing is known.
        """
        if seeds is not None and self.config.dropout:
            places = left_out(places, seeds, self.config.dropout)
        with torch.autocast(places.device.type, enabled=False):  # bfloat16 would move places by half a degree
            x = F.relu(self.first(encoding(places)))
            for block in self.blocks:
                x = block(x)
            return self.last(x).masked_fill(places.isnan().all(1, keepdim=True), 0.0)


class ResidualLayers(nn.Module):
    """Two linear layers with ReLU behind each, and what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> [N, width]."""
        return x + F.relu(self.linear2(F.relu(self.linear1(x))))


def encoding(places: Tensor) -> Tensor:
    """Sine and cosine of latitude, longitude and day, as angles that end where they begin; 0 for what is not known.

    So, as in the published encoding, the two poles are one place.

    Args:
        places: float [N, 3], see ``PlaceTerm.forward``.

    Returns:
        [N, 6]: three sines, three cosines.
    """
    latitude, longitude, day = places.unbind(1)
    turns = torch.stack([latitude / HALF_TURNS[0], longitude / HALF_TURNS[1], 2 * (day - 1) / YEAR], 1)
    angles = math.pi * turns
    known = ~angles.isnan()
    angles = angles.masked_fill(~known, 0.0)
    return torch.cat([angles.sin() * known, angles.cos() * known], 1)


def left_out(places: Tensor, seeds: Tensor, share: float) -> Tensor:
    """Places of training: of some images nothing is told, of some no coordinates, of some no date.

    Args:
        places: float [N, 3], see ``PlaceTerm.forward``.
        seeds: Of the images, int64 [N].
        share: Probability of each of the three.
    """
    everything, where, when = (uniform(seeds, 3, Stream.PLACE) < share).unbind(1)
    hidden = torch.stack([everything | where, everything | where, everything | when], 1)
    return places.masked_fill(hidden.to(places.device), math.nan)
