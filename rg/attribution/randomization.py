"""Whether maps change when the parameters of the model are randomised, and when they explain another class.

MPRT (Adebayo et al., NeurIPS 2018) randomises the parameters from the classifier down to the pixels, one stage after
another, and compares each map with that of the trained model. Two corrections are those of Hedstroem et al. (2024):
sMPRT compares maps that are averaged over noisy images, since noise alone makes maps differ; eMPRT asks how much more
complex a map is once all is random, since similarity of noise says little. Random logit (Sixt et al., ICML 2020)
explains another class.

The parameters of a stage are shuffled within each tensor: random ones of the same distribution. Batch norms of random
stages take their statistics anew from the images, as those of a network at the start of its training do. Statistics
of the trained network would let activations vanish or explode, and then maps are constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rg.attribution.stability import Explain, rank_correlation
from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel

EVERY = 4  # of how many images one is measured: with K stages it costs K + 8 maps of every method
DEPTHS = ("upper", "middle", "lower")  # of the backbone, a third of its layers each
COPIES = 3  # of an image under noise
NOISE = 0.1  # its standard deviation, as a share of the range of the image
BINS = 100  # of the histogram whose entropy is the complexity of a map
SURVIVES = 0.5  # rank correlation with the map of the random network from which on a method has survived
STAGE = "mprt_after_"  # and the name of a stage: key of the correlation once that stage is random, too


def stages(model: Model) -> dict[str, list[nn.Module]]:
    """The layers of a model that are randomised together, from the top down."""
    assert isinstance(model.classifier, nn.Module)  # of models without classes nothing is explained
    found = {"classifier": _layers(model.classifier)}
    if isinstance(model, RegionGroupingModel):
        if model.attention is not None:
            found["attention"] = _layers(model.attention)
        found["region_transform"] = _layers(model.region_transform)
        found["dictionary"] = _layers(model.dictionary) + _layers(model.standardization)
    layers = _layers(model.backbone)
    lowest_first = np.array_split(np.arange(len(layers)), len(DEPTHS))
    for depth, numbers in zip(DEPTHS, reversed(lowest_first), strict=True):
        found[f"backbone_{depth}"] = [layers[number] for number in numbers]
    if model.sampler:
        found["sampler"] = _layers(model.sampler)
    return found


@torch.no_grad()
def cascade(model: Model, images: Tensor, seed: Sequence[int]) -> Iterator[str]:
    """Randomises a model stage by stage, from the top down; what was before holds again at the end.

    Args:
        model: In evaluation mode; it is changed in place.
        images: uint8 [N, 3, H, W], for the statistics of batch norms.
        seed: Of the random parameters.

    Yields:
        The name of the stage that is random from now on.
    """
    generator = _generator(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random: list[nn.Module] = []
    try:
        for name, layers in stages(model).items():
            for parameter in (own for layer in layers for own in layer.parameters(recurse=False)):
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
            random += layers
            _recalibrate(model, random, images)
            yield name
    finally:
        model.load_state_dict(before)


def randomization(
    model: Model,
    compared: Mapping[str, Explain],
    images: Tensor,
    classes: Tensor,
    seed: Sequence[int],
) -> dict[str, dict[str, np.ndarray]]:
    """What the methods are worth when the model, or the class, is another one.

    Args:
        model: In evaluation mode; changed on the way, as it was in the end.
        compared: By name, images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w].
        images: uint8 [N, 3, H, W].
        classes: int64 [N].
        seed: Of random parameters, noise and other classes.

    Returns:
        For every method float64 [N], nan but for every ``EVERY``-th image and where a map is constant:
        ``mprt_after_STAGE`` for every stage and their mean ``mprt``, ``mprt_full`` when all is random, ``smprt``,
        ``emprt`` and ``random_logit``.
    """
    chosen = slice(None, None, EVERY)
    own, named = images[chosen], classes[chosen]
    before = {key: explain(own, named) for key, explain in compared.items()}
    others = another_class(named, model.num_classes, seed)
    found: dict[str, dict[str, np.ndarray]] = {key: {} for key in compared}
    for key, explain in compared.items():
        other = np.full(len(own), np.nan) if others is None else _similarity(before[key], explain(own, others))
        found[key]["random_logit"] = other
    smooth = {key: _denoised(explain, own, named, seed) for key, explain in compared.items()}
    after: dict[str, Tensor] = {}
    names = [*stages(model)]
    for name in cascade(model, images, seed):
        after = {key: explain(own, named) for key, explain in compared.items()}
        for key, values in after.items():
            found[key][STAGE + name] = _similarity(before[key], values)
        if name == names[-1]:
            for key, explain in compared.items():
                found[key]["smprt"] = _similarity(smooth[key], _denoised(explain, own, named, seed))
    size = (images.shape[2], images.shape[3])
    for key, scores in found.items():
        scores["mprt"] = np.mean([scores[STAGE + name] for name in names], axis=0)
        scores["mprt_full"] = scores[STAGE + names[-1]]
        scores["emprt"] = complexity_rise(before[key], after[key], size)
    return {
        key: {name: _spread(values, len(images)) for name, values in scores.items()} for key, scores in found.items()
    }


def another_class(classes: Tensor, number: int, seed: Sequence[int]) -> Tensor | None:
    """For classes [N] others, drawn evenly; None if there is one class only."""
    if number < 2:
        return None
    steps = np.random.default_rng(seed).integers(1, number, len(classes))
    return (classes + torch.from_numpy(steps).to(classes)) % number


def complexity_rise(before: Tensor, after: Tensor, size: tuple[int, int]) -> np.ndarray:
    """How much more complex maps [N, h, w] have become, as a share: float64 [N], nan for constant maps before.

    The complexity is the entropy of the histogram of a map, up-sampled to the size of the image, between its extremes.
    """
    entropies = []
    for maps in (before, after):
        up = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)
        entropies.append(np.array([entropy(np.histogram(own, BINS)[0]) for own in up.double().cpu().numpy()]))
    first, last = entropies
    return np.divide(last - first, first, out=np.full(len(first), np.nan), where=first > 0)


def survivors(methods: Mapping[str, float | None]) -> list[str]:
    """Of methods and their ``mprt_full`` those whose maps are much the same once all parameters are random."""
    return [key for key, value in methods.items() if value is not None and value >= SURVIVES]


def _layers(module: nn.Module) -> list[nn.Module]:
    """What has parameters of its own inside a module, or statistics: in the order of registration, lowest first."""
    parts = module.modules()
    return [part for part in parts if isinstance(part, _BatchNorm) or [*part.parameters(recurse=False)]]


def _recalibrate(model: Model, layers: Sequence[nn.Module], images: Tensor) -> None:
    """Give batch norms the statistics of the images, and of their mirror images: one image alone has none."""
    found = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in found]
    for norm in found:
        norm.reset_running_stats()
        norm.momentum = None  # of all that passes, each the same
        norm.train()
    model(torch.cat([images, images.flip(3)]))
    for norm, momentum in zip(found, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _denoised(explain: Explain, images: Tensor, classes: Tensor, seed: Sequence[int]) -> Tensor:
    """Mean of the maps of ``COPIES`` noisy copies of the images; the noise depends on the seed alone."""
    generator = _generator(seed)
    whole = images.float()
    sigma = NOISE * (whole.amax((1, 2, 3), keepdim=True) - whole.amin((1, 2, 3), keepdim=True))
    copies = [whole + sigma * torch.randn(whole.shape, generator=generator).to(whole) for _ in range(COPIES)]
    return torch.stack([explain(noisy, classes) for noisy in copies]).mean(0)


def _generator(seed: Sequence[int]) -> torch.Generator:
    (state,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def _similarity(before: Tensor, after: Tensor) -> np.ndarray:
    return rank_correlation(*(maps.flatten(1).double().cpu().numpy() for maps in (before, after)))


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Values of every ``EVERY``-th of so many images, nan for the others."""
    spread = np.full(count, np.nan)
    spread[::EVERY] = values
    return spread
