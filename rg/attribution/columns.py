"""The columns of perturbation and randomisation: for every method and image a number, under the key of its column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rg.attribution.curves import Curves
from rg.attribution.infidelity import infidelity, squares
from rg.attribution.mosaics import Mosaics
from rg.attribution.occlusions import Occlusions
from rg.attribution.randomization import randomization
from rg.attribution.road import road
from rg.attribution.sensitivity_n import sensitivity_n, subsets
from rg.attribution.stability import Explain
from rg.model.build import Model

Answer = Callable[[Tensor, Tensor], Tensor]


def perturbation(
    model: Model,
    probability: Answer,
    images: Tensor,
    classes: Tensor,
    maps: Mapping[str, Tensor],
    curves: Curves,
    seed: Sequence[int],
) -> Iterator[tuple[str, str, np.ndarray]]:
    """What becomes of the answer when pixels are imputed, or turn grey.

    Args:
        model: In evaluation mode.
        probability: Images float [N, 3, H, W] in 0..255 and classes int64 [N] -> the probability of those [N].
        images: uint8 [N, 3, H, W].
        classes: int64 [N], what the model says of them.
        maps: Of them, [N, h, w] by every method.
        curves: Of these images, which know the order of the pixels.
        seed: Of noise and masks.

    Yields:
        Method, key of the column, float64 [N].
    """
    grey = model.backbone.pixel_mean.flatten()

    @torch.no_grad()
    def logit(of: Tensor, named: Tensor) -> Tensor:
        return model(of).logits.gather(1, named[:, None])[:, 0]

    rows, columns = images.shape[2:]
    hidden, cells = (
        Occlusions(logit, images, classes, grey, masks(rows, columns, seed)) for masks in (squares, subsets)
    )
    for key, values in maps.items():
        first, last = road(probability, images, classes, curves.ranks(values), seed)
        yield key, "road_morf", first
        yield key, "road_lerf", last
        yield key, "infidelity", infidelity(hidden.sums(values), hidden.falls)
        yield key, "sensitivity_n", sensitivity_n(cells.sums(values), cells.falls)


def other_maps(
    model: Model,
    compared: Mapping[str, Explain],
    images: Tensor,
    classes: Tensor,
    seed: Sequence[int],
) -> Iterator[tuple[str, str, np.ndarray]]:
    """What becomes of the maps in a mosaic, of another class, and when the parameters are random.

    Args:
        model: In evaluation mode.
        compared: By name, images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w].
        images: uint8 [N, 3, H, W].
        classes: int64 [N], what the model says of them.
        seed: Of random parameters, noise, other classes and mosaics.

    Yields:
        Method, key of the column, float64 [N]; nan for images that are not measured, and ``focus`` nan for networks
        that take images of one size only.
    """
    any_size = model.takes_any_size(max(images.shape[2:]))
    mosaics = Mosaics.of_images(images, classes, seed)
    for key, explain in compared.items():
        focus = np.full(len(images), np.nan)
        if any_size and len(mosaics.of):
            focus[mosaics.of] = mosaics.focus(explain(mosaics.images, mosaics.classes))
        yield key, "focus", focus
    for key, scores in randomization(model, compared, images, classes, seed).items():
        for name, values in scores.items():
            yield key, name, values
