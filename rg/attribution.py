"""The baselines of the paper: CAM, Grad-CAM and Guided Grad-CAM of a plain network, and deep feature factorisation.

Grad-CAM and Guided Grad-CAM are those of Captum, which the extra ``baselines`` installs.
"""

from __future__ import annotations

import copy
import warnings
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import NMF
from torch import Tensor, nn

from rg.plain import PlainModel

ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


def cam(model: PlainModel, images: Tensor, classes: Tensor) -> Tensor:
    """Class activation maps: the classifier, without its bias, applied to every position (Zhou et al., 2016).

    The mean of a map plus the bias is the logit.

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
        return torch.einsum("nchw,nc->nhw", features.float(), model.classifier.weight[classes].float())


def grad_cam(model: PlainModel, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of the last feature map (Selvaraju et al., 2017).

    Positive parts only, as in that paper: a map is 0 everywhere if nothing speaks for the class. Behind global average
    pooling and a linear classifier it is ReLU(CAM) / (h w).

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255; no inference tensor.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, h, w], of the size of the last feature map.

    Raises:
        ValueError: a model in training mode, classes that are not of these images and this model, or no Captum.
    """
    _check(model, images, classes)
    method = _captum().LayerGradCam(_Logits(model), model.backbone)
    return method.attribute(_leaf(images), target=classes, relu_attributions=True)[:, 0].detach().float()


def guided_grad_cam(model: PlainModel, images: Tensor, classes: Tensor) -> Tensor:
    """Guided Grad-CAM: Grad-CAM times guided backpropagation to the pixels (Selvaraju et al., 2017).

    Grad-CAM is up-sampled bilinearly. A pixel gets the largest absolute value of its three channels, as gradients do in
    the pointing game (Simonyan et al., 2014; Zhang et al., 2016).

    Guided backpropagation lets a gradient through a ReLU where it is positive and the ReLU was open; a ReLU6 is open
    from 0 to 6. For other activations there is no such rule and they are refused. Activations must be modules: a
    network that calls ``torch.relu`` itself would get plain gradients there.

    Args:
        model: In evaluation mode.
        images: [N, 3, H, W], uint8 or float in 0..255; no inference tensor.
        classes: The class to explain of every image, int64 [N].

    Returns:
        float32 [N, H, W], non-negative.

    Raises:
        ValueError: a network with other activations than ReLU and ReLU6, or with none; a model in training mode,
            classes that are not of these images and this model, or no Captum.
    """
    _check(model, images, classes)
    captum_attr = _captum()
    guided = _with_relus_for_captum(model)
    method = captum_attr.GuidedGradCam(_Logits(guided), guided.backbone)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations")
        attribution = method.attribute(_leaf(images), target=classes, interpolate_mode="bilinear")
    return attribution.detach().float().abs().amax(1)


def guides(model: PlainModel) -> bool:
    """Whether guided backpropagation is defined for the network: all of its activations are ReLU or ReLU6."""
    activations = [module for _, module in _activations(model)]
    return bool(activations) and all(isinstance(module, nn.ReLU | nn.ReLU6) for module in activations)


class DeepFeatureFactorization:
    """Parts as the non-negative factors of feature maps (Collins et al., 2018).

    The features X of all positions, one row each, are factorised into W H with W, H >= 0: every row of H is the feature
    of a part, and W says how much of it there is at every position. Features are clamped at 0, which costs nothing
    behind a ReLU.

    Args:
        parts: Number of parts.
        seed: Seed of the factorisation.
    """

    def __init__(self, parts: int, seed: int) -> None:
        if parts < 1:
            raise ValueError(f"parts: expected at least 1, got {parts}")
        self.factorization = NMF(parts, max_iter=1000, random_state=seed)

    def fit(self, features: np.ndarray) -> DeepFeatureFactorization:
        """Find the parts in feature maps [N, C, h, w] of any network.

        Raises:
            ValueError: another shape, or features that are not finite.
        """
        _check_features(features)
        self.factorization.fit(np.maximum(features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1]), 0))
        return self

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Assignment of positions to parts, in the form of ``ModelOutput.assign``.

        How much there is of a part is measured with its feature at unit length; the factorisation alone leaves the
        scale open.

        Args:
            features: [N, C, h, w] of the network that was fitted on.

        Returns:
            float32 [N, parts, h, w]; sums to 1 over the parts, 0 where a feature has nothing of any part.

        Raises:
            ValueError: another shape, features that are not finite, or nothing fitted yet.
        """
        _check_features(features)
        N, C, h, w = features.shape
        rows = np.maximum(features.transpose(0, 2, 3, 1).reshape(-1, C), 0)
        amounts = self.factorization.transform(rows) * np.linalg.norm(self.factorization.components_, axis=1)
        total = amounts.sum(1, keepdims=True)
        shares = np.divide(amounts, total, out=np.zeros_like(amounts), where=total > 0)
        return shares.reshape(N, h, w, -1).transpose(0, 3, 1, 2).astype(np.float32)


class _Logits(nn.Module):
    """The model as Captum wants it: a module whose output is one tensor."""

    def __init__(self, model: PlainModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class _ReLU6(nn.ReLU):
    """ReLU6 as a kind of ReLU: Captum guides those alone, and ``nn.ReLU6`` is none."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input)


def _with_relus_for_captum(model: PlainModel) -> PlainModel:
    """A copy of the model, on the same parameters, all of whose activations Captum guides."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    guided = copy.deepcopy(model, tensors)
    if not guides(guided):
        others = {type(module).__name__ for _, module in _activations(guided)} - {"ReLU", "ReLU6"}
        raise ValueError(
            "model: guided backpropagation expects a network whose activations are ReLU or ReLU6 modules, "
            f"got {', '.join(sorted(others)) or 'none'}"
        )
    for name, module in _activations(guided):
        if isinstance(module, nn.ReLU6):
            guided.set_submodule(name, _ReLU6())
    return guided


def _activations(model: PlainModel) -> list[tuple[str, nn.Module]]:
    modules = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if type(module).__module__ in ACTIVATIONS]


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError:
        raise ValueError("Grad-CAM and Guided Grad-CAM need Captum; pip install 'region-grouping[baselines]'") from None
    return captum.attr


def _leaf(images: Tensor) -> Tensor:
    """Images that gradients can be taken of, whatever happens to the caller's."""
    return images.detach().float().requires_grad_()


def _check(model: PlainModel, images: Tensor, classes: Tensor) -> None:
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


def _check_features(features: np.ndarray) -> None:
    if features.ndim != 4:
        raise ValueError(f"features: expected [N, C, h, w], got {list(features.shape)}")
