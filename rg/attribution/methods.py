"""The methods that are compared: for each kind of model which are defined, and why the others are not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from rg.attribution.factorization import DeepFeatureFactorization, draw_positions
from rg.attribution.maps import (
    cam,
    contribution_map,
    factor_map,
    grad_cam,
    guided_grad_cam,
    guides,
    integrated_gradients,
    looks_twice,
    part_attribution,
)
from rg.attribution.stability import Explain
from rg.model.build import Model
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel

POSITIONS = 50_000  # of feature maps, that the factors are fitted on
NAMES = {
    "attribution": "Attention (Q^T a)",
    "contribution": "Contributions",
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "Guided Grad-CAM",
    "integrated_gradients": "Integrated Gradients",
    "dff": "DFF",
    "random": "random",
    "centre": "centre",
}
KINDS = {"region_grouping": "region grouping", "plain": "plain network"}  # of models, for people
BASELINES = ("random", "centre")  # look at no pixel, to have a floor to compare with
PARTS_NEEDED = frozenset(("attribution", "contribution"))
NO_PARTS = "a plain network has no parts"
NO_CAM = "needs a linear classifier right behind global pooling; its counterpart here are the contributions"
NO_MAP = "needs a map of the whole image that the answer comes from, not a second look at its parts"
NOT_RELU = "needs a backbone whose activations are ReLU or ReLU6 only"


@dataclass(frozen=True)
class Method:
    """One way to explain one model.

    Attributes:
        name: For people.
        explain: Images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w]; None if it is not defined.
        undefined: Why it is not, empty if it is.
    """

    name: str
    explain: Explain | None
    undefined: str = ""


def methods(model: Model, factors: DeepFeatureFactorization, steps: int, seed: int) -> dict[str, Method]:
    """All methods for a model, in the order of ``NAMES``.

    Args:
        model: In evaluation mode.
        factors: Fitted on its features.
        steps: Of Integrated Gradients.
        seed: Of the random maps.
    """
    functions: dict[str, Explain | str] = {"attribution": NO_PARTS, "contribution": NO_PARTS, "cam": NO_CAM}
    if isinstance(model, RegionGroupingModel):
        functions |= {"attribution": partial(part_attribution, model), "contribution": partial(contribution_map, model)}
    if isinstance(model, PlainModel):
        functions |= {"cam": partial(cam, model)}
    functions |= {
        "grad_cam": partial(grad_cam, model),
        "guided_grad_cam": partial(guided_grad_cam, model) if guides(model) else NOT_RELU,
        "integrated_gradients": partial(integrated_gradients, model, steps=steps),
        "dff": partial(factor_map, model, factorization=factors),
        "random": RandomMaps(model.backbone.stride, seed),
        "centre": centre,
    }
    if looks_twice(model):
        functions |= dict.fromkeys(("grad_cam", "guided_grad_cam", "dff"), NO_MAP)
    return {
        key: Method(NAMES[key], None, function) if isinstance(function, str) else Method(NAMES[key], function)
        for key, function in functions.items()
    }


def factorize(model: Model, batches: Iterable[Tensor], samples: int, parts: int, seed: int) -> DeepFeatureFactorization:
    """The factors of the feature maps of some images, as Collins et al. (2018) find them.

    Args:
        model: In evaluation mode.
        batches: Images [N, 3, H, W], on any device.
        samples: Number of all images.
        parts: Number of factors.
        seed: Of the factorisation, and of the positions that it takes where there are very many.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        maps = (features for images in batches for features in model.features(images.to(device)).float().cpu().numpy())
        positions = draw_positions(maps, -(-POSITIONS // samples), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps more or less of one of many solutions
        return DeepFeatureFactorization(parts, seed).fit(positions)


class RandomMaps:
    """Maps of independent uniform numbers, one for every stride; other ones each time.

    Args:
        stride: Pixels of the image per position of the map.
        seed: Of all maps.
    """

    def __init__(self, stride: int, seed: int) -> None:
        self._stride, self._seed = stride, seed
        self._generator = torch.Generator()
        self.begin(0)

    def begin(self, number: int) -> None:
        """Begin a series of maps of that number, whatever was drawn before."""
        (state,) = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        self._generator.manual_seed(int(state) >> 1)

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> float32 [N, h, w]; the classes do not matter."""
        size = (len(classes), *(-(-side // self._stride) for side in images.shape[2:]))
        return torch.rand(size, generator=self._generator).to(images.device)


def centre(images: Tensor, classes: Tensor) -> Tensor:
    """A Gaussian in the middle of every image [N, 3, H, W], its standard deviation a quarter of the sides.

    Returns:
        float32 [N, H, W]; neither pixels nor classes matter.
    """
    y, x = (torch.linspace(-1, 1, side + 1, device=images.device)[:-1] + 1 / side for side in images.shape[2:])
    gaussian = torch.exp(-2 * (y[:, None] ** 2 + x**2))
    return gaussian.expand(len(classes), -1, -1)
