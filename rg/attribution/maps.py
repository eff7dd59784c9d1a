"""Maps that explain a class: of a network with parts, of a plain one, and those that are defined for both.

Both kinds of model are two functions: ``features`` makes a feature map of the images, ``describe`` makes logits of the
map. Guided backpropagation and Integrated Gradients are those of Captum, which the extra ``baselines`` installs.
"""

from __future__ import annotations

import copy
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rg.attribution.factorization import DeepFeatureFactorization
from rg.model.build import Model
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel

ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


def part_attribution(model: RegionGroupingModel, images: Tensor, classes: Tensor) -> Tensor:
    """The attribution of the paper, Q^T a: the expected attention of every position (Section 3.2).

    It does not know the class, but for attributes, which have an attention each.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, h, w], of the size of the feature map, 0 to 1.

    Raises:
        ValueError: a model in training mode, or classes that are not of these images and this model.
    """
    _check(model, images, classes)
    with torch.no_grad():
        output = model(images)
    attention = output.attention
    if model.multi_label:
        attention = attention[torch.arange(len(classes)), classes]
    return torch.einsum("nk,nkhw->nhw", attention.float(), output.assign.float())


def contribution_map(model: RegionGroupingModel, images: Tensor, classes: Tensor) -> Tensor:
    """What every position adds to the logit: the contributions of the parts, each laid out over its positions.

    Part k contributes c_k, and a position holds q_k / (sum of q_k) of the part, so the map is the sum over k of
    c_k q_k / (sum of q_k). It sums to the logit but for the constant (see ``RegionGroupingModel.contributions``), which
    makes it the counterpart of a class activation map.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, h, w], of the size of the feature map.

    Raises:
        ValueError: a model in training mode, or classes that are not of these images and this model.
    """
    _check(model, images, classes)
    with torch.no_grad():
        output = model(images)
        contributions = model.contributions(output, classes[:, None])[0][:, 0].float()
    assign = output.assign.float()
    mass = assign.sum((2, 3)).clamp(min=torch.finfo(assign.dtype).tiny)
    return torch.einsum("nk,nkhw->nhw", contributions / mass, assign)


def cam(model: PlainModel, images: Tensor, classes: Tensor) -> Tensor:
    """Class activation maps: the classifier, without its bias, applied to every position (Zhou et al., 2016).

    The mean of a map plus the bias is the logit, but for what a sampler has drawn larger or smaller.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, h, w], of the size of the last feature map.

    Raises:
        ValueError: a model in training mode, or classes that are not of these images and this model.
    """
    _check(model, images, classes)
    with torch.no_grad():
        features = model.features(images)
        maps = torch.einsum("nchw,nc->nhw", features.float(), model.classifier.weight[classes].float())
    return _onto_images(model, maps, images)


def grad_cam(model: Model, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of the feature map (Selvaraju et al., 2017): the sum of its channels, weighted by their mean gradients.

    Positive parts only, as in that paper: a map is 0 everywhere if nothing speaks for the class. Behind global average
    pooling and a linear classifier it is ReLU(CAM) / (h w).

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, h, w], of the size of the feature map.

    Raises:
        ValueError: a model in training mode, or classes that are not of these images and this model.
    """
    _check(model, images, classes)
    features, gradient = _sensitivity(model, images, classes)
    return _onto_images(model, _weighted(features, gradient), images)


def guided_grad_cam(model: Model, images: Tensor, classes: Tensor) -> Tensor:
    """Guided Grad-CAM: Grad-CAM times guided backpropagation to the pixels (Selvaraju et al., 2017).

    Grad-CAM is up-sampled bilinearly. A pixel gets the largest absolute value of its three channels, as gradients do in
    the pointing game (Simonyan et al., 2014; Zhang et al., 2016).

    Guided backpropagation lets a gradient through a ReLU where it is positive and the ReLU was open; a ReLU6 is open
    from 0 to 6. For other activations there is no such rule and they are refused. Guided are the activations of the
    backbone; what follows the feature map (a linear classifier, or parts and attention) gets plain gradients. The
    activations must be modules: a network that calls ``torch.relu`` itself would get plain gradients there, too.

    The grid of a sampler stays as it is: what is guided back is what the backbone saw, not where the model has looked.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255; no inference tensor.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, H, W], non-negative.

    Raises:
        ValueError: a backbone with other activations than ReLU and ReLU6, or with none; a model in training mode,
            classes that are not of these images and this model, or no Captum.
    """
    _check(model, images, classes)
    captum_attr = _captum()
    guided = _with_relus_for_captum(model)
    features, gradient = _sensitivity(model, images, classes)
    maps = _onto_images(model, _weighted(features, gradient), images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations")
        pixels = captum_attr.GuidedBackprop(_Projection(guided, gradient, _grid(model, images))).attribute(
            _leaf(images)
        )
    up = F.interpolate(maps[:, None], images.shape[2:], mode="bilinear", align_corners=False)
    return (pixels * up).detach().float().abs().amax(1)


def integrated_gradients(model: Model, images: Tensor, classes: Tensor, steps: int = 16) -> Tensor:
    """Integrated Gradients of the pixels along the straight line from a grey image (Sundararajan et al., 2017).

    Grey is the mean pixel of the backbone's training data, which it sees as 0. The integral is a Gauss-Legendre sum. A
    pixel gets the sum of its three channels, so a map sums to the logit minus that of the grey image, as nearly as the
    steps are fine.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255; no inference tensor.
        classes: The class to explain of every image, int64 [N].
        steps: Number of points of the sum.

    Returns:
        float32 [N, H, W].

    Raises:
        ValueError: a model in training mode, classes that are not of these images and this model, or no Captum.
    """
    _check(model, images, classes)
    pixels = _leaf(images)
    grey = model.backbone.pixel_mean.expand(1, -1, *images.shape[2:])
    method = _captum().IntegratedGradients(_Logits(model))
    one_step = len(images)  # of all images: more at once take more memory and no less time
    return method.attribute(pixels, grey, classes, n_steps=steps, internal_batch_size=one_step).detach().float().sum(1)


def factor_map(model: Model, images: Tensor, classes: Tensor, factorization: DeepFeatureFactorization) -> Tensor:
    """The factors of the feature map that speak for a class.

    A factor alone knows no class. What a class gains from factor f is, to first order, the gradient of its logit times
    what f makes up of the feature map, summed over the positions; every factor that it gains from is laid out over its
    positions with that weight, as ``contribution_map`` does with parts.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255.
        classes: The class to explain of every image, int64 [N].
        factorization: Fitted on feature maps of this model.

    Returns:
        float32 [N, h, w], of the size of the feature map, non-negative.

    Raises:
        ValueError: a model in training mode, classes that are not of these images and this model, or factors that are
            not fitted on its features.
    """
    _check(model, images, classes)
    features, gradient = _sensitivity(model, images, classes)
    amounts = torch.from_numpy(factorization.amounts(features.cpu().numpy())).to(gradient)
    parts = torch.from_numpy(factorization.parts).to(gradient)
    gain = torch.einsum("nchw,fc,nfhw->nf", gradient, parts, amounts).clamp(min=0)
    mass = amounts.sum((2, 3)).clamp(min=torch.finfo(amounts.dtype).tiny)
    return _onto_images(model, torch.einsum("nf,nfhw->nhw", gain / mass, amounts), images)


def guides(model: Model) -> bool:
    """Whether guided backpropagation is defined for a network: all activations of its backbone are ReLU or ReLU6."""
    activations = [module for _, module in _activations(model.backbone)]
    return bool(activations) and all(isinstance(module, nn.ReLU | nn.ReLU6) for module in activations)


class _Logits(nn.Module):
    """The model as Captum wants it: a module whose output is one tensor."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class _Projection(nn.Module):
    """The feature map times a fixed one, summed up: what is guided back from the map to the pixels."""

    def __init__(self, model: Model, onto: Tensor, nodes: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.onto, self.nodes = onto, nodes

    def forward(self, images: Tensor) -> Tensor:
        return (self.model.features(images, self.nodes) * self.onto).sum((1, 2, 3))


class _ReLU6(nn.ReLU):
    """ReLU6 as a kind of ReLU: Captum guides those alone, and ``nn.ReLU6`` is none."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input)


def _with_relus_for_captum(model: Model) -> Model:
    """A copy of the model, on the same parameters, in whose backbone Captum guides all activations."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    guided = copy.deepcopy(model, tensors)
    if not guides(guided):
        others = {type(module).__name__ for _, module in _activations(guided.backbone)} - {"ReLU", "ReLU6"}
        raise ValueError(
            "model: guided backpropagation expects a network whose activations are ReLU or ReLU6 modules, "
            f"got {', '.join(sorted(others)) or 'none'}"
        )
    for name, module in _activations(guided.backbone):
        if isinstance(module, nn.ReLU6):
            guided.backbone.set_submodule(name, _ReLU6())
    return guided


def _activations(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = backbone.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if type(module).__module__ in ACTIVATIONS]


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError:
        raise ValueError(
            "guided backpropagation and Integrated Gradients need Captum; pip install 'region-grouping[baselines]'"
        ) from None
    return captum.attr


@torch.no_grad()
def _grid(model: Model, images: Tensor) -> Tensor | None:
    """The nodes through which a model with a sampler sees images; None without one."""
    return model.sampler(images).nodes if model.sampler else None


def _sensitivity(model: Model, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The feature map and the gradient of the classes' logits to it, both float32 [N, C, h, w]."""
    if looks_twice(model):
        raise ValueError("model: expected one whose answer comes from the map that it groups, got a second stage")
    with torch.no_grad():
        features = model.features(images)
    with torch.enable_grad():
        x = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.describe(x).logits.gather(1, classes[:, None]).sum(), x)
    return features.float(), gradient.float()


def looks_twice(model: Model) -> bool:
    """Whether the answer comes from a second look at the image, so that no map of the whole image explains it."""
    return isinstance(model, RegionGroupingModel) and model.second_stage is not None


def _weighted(features: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of a feature map and the gradient to it, [N, h, w]."""
    return torch.einsum("nchw,nc->nhw", features, gradient.mean((2, 3))).clamp(min=0)


def _onto_images(model: Model, maps: Tensor, images: Tensor) -> Tensor:
    """Maps [N, h, w] of what the backbone sees as maps of the images, see ``SampledModel.onto_images``."""
    return model.onto_images(maps[:, None], images)[:, 0]


def _leaf(images: Tensor) -> Tensor:
    """Images that gradients can be taken of, whatever happens to the caller's."""
    return images.detach().float().requires_grad_()


def _check(model: Model, images: Tensor, classes: Tensor) -> None:
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode")
    if classes.shape != images.shape[:1] or classes.dtype != torch.int64:
        raise ValueError(
            f"classes: expected int64 [{len(images)}], one per image, got {classes.dtype} {list(classes.shape)}"
        )
    if len(classes) and not 0 <= classes.min() <= classes.max() < model.num_classes:
        raise ValueError(
            f"classes: expected 0 to {model.num_classes - 1}, got {classes.min().item()} to {classes.max().item()}"
        )
