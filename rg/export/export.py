"""Trained models for other programs: ONNX, and programs of torch.export. Neither needs the code of this package.

What such a file takes and gives, for N images and K parts:

images       float32 [N, 3, H, W], RGB in 0..255; normalised inside
places       float32 [N, 3], latitude and longitude in degrees, day of the year, nan for what is not known; like the
             output ``place`` only of a model with a term for places
logits       [N, classes]
assign       [N, K, h, w], sums to 1 over K; like the next, not of a plain network
attention    [N, K], sums to 1 over K; [N, L, K] for L attributes
place        [N, classes], what of the logits the place adds
part_map     int64 [N, H, W], the part of every pixel, from 0; of a model with a second stage alone

Batches have any size. Images have any height and width from a minimum on, unless the backbone takes one size only. Both
formats hold the same metadata: classes, parts, how to prepare images, sizes and versions (ONNX as its properties, JSON
each; torch.export as the extra file metadata.json).
"""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
import json
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.files import check_file, write_together
from rg.config import RunConfig
from rg.export import card
from rg.export.formats import FORMATS
from rg.model.backbones import Backbone
from rg.model.build import Model, said
from rg.model.maps import part_map
from rg.model.region_grouping import RegionGroupingModel
from rg.runs.confidence import read_confidence_of_input
from rg.runs.environment import environment
from rg.runs.folder import Classes, check_labelled, load_model
from rg.runs.part_names import read_parts

logger = logging.getLogger(__name__)

METADATA = "metadata.json"
INPUTS = ("images", "places")
OUTPUTS = ("logits", "assign", "attention")
PART_MAP = "part_map"
OPSET = 18
TOLERANCE = 1e-4
BATCHES = (1, 3)
MAX_UNLIKE = 1e-3  # share of the pixels that may go to another of two equally strong parts, as sums round otherwise

Program = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Which images an exported model takes.

    Attributes:
        any_size: Any height and width from ``side`` on; else squares of that side only.
        side: In pixels.
        stride: Pixels of the image per position of the map.
    """

    any_size: bool
    side: int
    stride: int

    def __str__(self) -> str:
        if self.any_size:
            return f"images of any height and width from {self.side} pixels on"
        return f"images of {self.side}x{self.side} pixels only"


def export(run: Path, format: str = "onnx", out: Path | None = None) -> tuple[Path, dict[str, float]]:
    """Write the model of a run for other programs, and a model card beside it.

    What is written has been run: on random images of two batch sizes and two shapes it gives what the model gives, up
    to 1e-4.

    Args:
        run: Run folder.
        format: onnx or torch-export.
        out: File to write, which ends in .onnx or .pt2; default ``run/model.onnx`` or ``run/model.pt2``. The card is
            called like the file, with .md behind.

    Returns:
        The file, and the largest difference of every output.

    Raises:
        ValueError: the run cannot be read, an argument is off, a package is missing, the network cannot be traced, or
            the exported model takes other sizes or gives other outputs. Then nothing is written.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    out = out or run / f"model{FORMATS[format]}"
    if out.suffix != FORMATS[format]:
        raise ValueError(f"out: expected a name that ends in {FORMATS[format]}, got {out.name!r}")
    beside = out.with_name(f"{out.name}.md")
    for path in (out, beside):
        check_file(path, "out")
    if format == "onnx":
        _require_onnx()
    model, config, classes = load_model(run)
    check_labelled(run, config)
    crop = config.input.test_size[1]
    sizes = find_sizes(model, crop)
    logger.info("%s: exporting for %s", run, sizes)
    metadata = describe(run, model, config, classes, sizes)
    traced = trace(model, sizes)
    content = (to_onnx if format == "onnx" else to_pt2)(traced, metadata)
    program = (read_onnx if format == "onnx" else read_pt2)(content)
    differences = compare(model, program, sizes, crop)
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{run}: {name} of the exported model differs by {difference:.1e} from that of the run, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
    page = card.model_card(run, out.name, metadata, differences)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_together({out: content, beside: page.encode()})
    return out, differences


def find_sizes(model: Model, crop: int) -> Sizes:
    """Which images the model takes.

    The minimum is what makes maps of 2x2 positions (below that, torch.export takes a size for a constant), or one that
    the smoothing window fits into.

    Args:
        model: In evaluation mode.
        crop: Side in pixels of the squares that it is tested on.
    """
    backbone = model.backbone
    if model.sampler or not _pads_traceably(backbone) or _map_side(backbone, crop + 1, crop + backbone.stride + 3) == 0:
        return Sizes(False, crop, backbone.stride)
    positions = 2
    if isinstance(model, RegionGroupingModel) and model.config.grouping.smoothing_padding == "valid":
        positions = max(positions, 2 * model.config.grouping.smoothing_radius + 1)
    high = positions * backbone.stride
    while _map_side(backbone, high, high) < positions:
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _map_side(backbone, middle, middle) >= positions else (middle, high)
    if backbone.coarsest > backbone.stride:
        high = max(high, 2 * backbone.coarsest)  # of networks that round down, too
    if isinstance(model, RegionGroupingModel) and model.second_stage:
        high *= model.second_stage.config.shrink
    return Sizes(True, high, backbone.stride)


@torch.no_grad()
def _map_side(backbone: Backbone, height: int, width: int) -> int:
    """The shorter side of the map of an image, 0 if the backbone takes no such image."""
    try:
        return min(backbone(torch.zeros(1, 3, height, width)).shape[2:])
    except (AssertionError, RuntimeError, ValueError):  # timm asserts; some networks fail in the middle
        return 0


def describe(run: Path, model: Model, config: RunConfig, classes: Classes, sizes: Sizes) -> dict[str, Any]:
    """The metadata of an exported model; all of it is JSON."""
    short_side, crop = config.input.test_size
    metadata: dict[str, Any] = {
        "classes": list(classes.names),
        "multi_label": classes.multi_label,
        "input": {
            "channels": "RGB",
            "range": [0, 255],
            "view": config.input.view,
            "short_side": short_side,
            "crop": crop,
            "interpolation": "bilinear",
            "antialias": True,
        },
        "confidence": _confidence(run, config),
        "size": {"any": sizes.any_size, "minimum" if sizes.any_size else "side": sizes.side, "stride": sizes.stride},
        "versions": environment() | {"opset": OPSET},
    }
    metadata["outputs"] = list(OUTPUTS[:1])
    if isinstance(model, RegionGroupingModel):
        metadata["outputs"] = [*OUTPUTS, PART_MAP] if model.second_stage else list(OUTPUTS)
        parts = read_parts(run, model.background.tolist(), config.model.grouping.background)
        metadata["parts"] = [{"name": part.name, "background": part.background} for part in parts]
        metadata["edits"] = model.edits.to_dict()
    if model.place is not None:
        metadata["places"] = ["latitude", "longitude", "day"]
        metadata["outputs"].append("place")
    return metadata


def _confidence(run: Path, config: RunConfig) -> dict[str, Any] | None:
    """What makes answers of the logits of the crop that the file is prepared for; None if it was not fitted."""
    confidence = read_confidence_of_input(run, config)
    if confidence is None:
        return None
    return {
        "temperature": confidence.temperature or 1.0,
        "threshold": min(confidence.least_probability, 1.0),  # no probability reaches 1
        "target_precision": confidence.target_precision,
        "dataset": confidence.dataset,
    }


def trace(model: Model, sizes: Sizes) -> torch.export.ExportedProgram:
    """The graph of a model in evaluation mode, from images to outputs.

    Raises:
        ValueError: torch.export does not understand the network.
    """
    N, H, W = (torch.export.Dim(name, min=least) for name, least in (("N", 1), ("H", sizes.side), ("W", sizes.side)))
    free = {0: N, 2: H, 3: W} if sizes.any_size else {0: N}
    extra = sizes.stride if sizes.any_size else 0
    inputs: tuple[Tensor, ...] = (torch.zeros(2, 3, sizes.side + extra, sizes.side + 2 * extra),)
    shapes: tuple[dict[int, Any], ...] = (free,)
    if model.place is not None:
        inputs, shapes = (*inputs, torch.zeros(2, 3)), (*shapes, {0: N})
    network = _Outputs(_traceable(model)).eval()
    try:
        program = torch.export.export(
            network,
            inputs,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # what it cannot prove of all sizes is checked when run
        )
    except Exception as error:  # torch.export passes on whatever the network raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.backbone.name: torch.export cannot trace the network ({reason})") from error
    for module in program.graph_module.modules():  # regions of autocast are modules of their own
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)  # lines of source, with the folders of this machine
    return program


class _Outputs(nn.Module):
    """What an exported model computes: the model without what it does not give."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, places: Tensor | None = None) -> dict[str, Tensor]:
        outputs = self._of_images(images)
        if (term := self.model.place_logits(places, None)) is None:
            return outputs
        return {**outputs, "logits": outputs["logits"] + term, "place": term}

    def _of_images(self, images: Tensor) -> dict[str, Tensor]:
        model = self.model
        if not isinstance(model, RegionGroupingModel):
            return {"logits": model(images).logits}
        if model.second_stage:
            assign, _ = model.dictionary.group(model.features(images))
            regions = model.look_again(images, assign)
            attention = model.attend(regions)
            answer = {"logits": model.classify(regions, attention), "assign": assign, "attention": attention}
            return answer | {PART_MAP: part_map(assign, (images.shape[2], images.shape[3]))}
        sampled = model.sampler(images) if model.sampler else None
        assign, regions = model.dictionary.group(model.encode(sampled.images if sampled else images))
        if sampled:
            assign = model.carry_back(assign, sampled, images)
        attention = model.attend(regions)
        logits = model.classify(regions, attention)
        assign, attention = model.edits.together(assign, 1), model.edits.together(attention, -1)
        return {"logits": logits, "assign": assign, "attention": attention}


class _SameConvolution(nn.Module):
    """timm's Conv2dSame, with padding whose traced size is a plain expression.

    The padding of TensorFlow depends on the size of the image: (k - 1) // 2 before and k // 2 after if the size is 1
    modulo the stride, less otherwise. Here the largest is added, and a window of the right size taken out of it.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        own = self.convolution
        for axis in (2, 3):
            kernel, stride = own.kernel_size[axis - 2], own.stride[axis - 2]
            size = x.shape[axis]
            wanted = (size - 1) // stride * stride + kernel
            before, after = (kernel - 1) // 2, kernel // 2
            x = F.pad(x, (0, 0, before, after) if axis == 2 else (before, after))
            start = before - (wanted - size) // 2
            x = x.index_select(axis, start + torch.arange(wanted, device=x.device))
        return F.conv2d(x, own.weight, own.bias, own.stride, 0, own.dilation, own.groups)


def _traceable(model: Model) -> Model:
    """A copy that torch.export traces for all sizes at once."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_same_convolution(child):
                setattr(module, name, _SameConvolution(child))  # type: ignore[arg-type]
    return model


def _pads_traceably(backbone: Backbone) -> bool:
    """Whether all that is padded as by TensorFlow is a convolution that ``_SameConvolution`` can stand in for."""
    padded = [module for module in backbone.modules() if type(module).__name__.endswith("Same")]
    return all(_is_same_convolution(module) for module in padded)


def _is_same_convolution(module: nn.Module) -> bool:
    from timm.layers import Conv2dSame

    if not isinstance(module, nn.Conv2d) or type(module) is not Conv2dSame or module.dilation != (1, 1):
        return False
    return all(kernel >= stride for kernel, stride in zip(module.kernel_size, module.stride, strict=True))


def to_pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """The content of a .pt2 file."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def read_pt2(content: bytes) -> Program:
    """What a .pt2 file computes."""
    return torch.export.load(io.BytesIO(content)).module()


def to_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """The content of an .onnx file."""
    import onnx

    inputs = INPUTS if "places" in metadata else INPUTS[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations between torch and onnxscript, which users cannot mend
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=metadata["outputs"],
            verbose=False,
        )
    assert exported is not None
    content = exported.model_proto
    _name_sizes(content.graph)
    onnx.helper.set_model_props(content, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(content, full_check=True)
    return content.SerializeToString()


def _name_sizes(graph: Any) -> None:
    """Call the free sizes N, H and W, as this module does, and not as torch.export does."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {axis.dim_param: name for axis, name in zip(axes, "NCHW", strict=True) if axis.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), axis.dim_param)


def read_onnx(content: bytes) -> Program:
    """What an .onnx file computes, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        taken = [given.name for given in session.get_inputs()]
        values = session.run(names, {name: value.numpy() for name, value in zip(taken, inputs, strict=True)})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format: onnx needs {', '.join(missing)}; pip install 'region-grouping[export]'")


@torch.inference_mode()
def compare(model: Model, program: Program, sizes: Sizes, crop: int) -> dict[str, float]:
    """The largest difference of every output between a model and what was made of it, on random images.

    Of a model with a second stage those images count of which all pixels go to the same parts in both.

    Args:
        model: In evaluation mode, on the CPU.
        program: What was made of it.
        sizes: Which images it takes.
        crop: Side in pixels of the squares that it is tested on.

    Raises:
        ValueError: the exported model takes no images of these sizes.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(sizes.side, sizes.side)]
    if sizes.any_size:
        shapes = [(sizes.side, sizes.side + 1), (max(crop, sizes.side), max(crop, sizes.side) + sizes.stride // 2)]
    differences: dict[str, list[Tensor]] = {}
    for N, (height, width) in itertools.product(BATCHES, shapes):
        images = 255 * torch.rand(N, 3, height, width, generator=generator)
        places = _random_places(N, generator) if model.place is not None else None
        expected = said(model, images, places)._asdict()
        try:
            outputs = program(images) if places is None else program(images, places)
        except Exception as error:  # PyTorch and onnxruntime share no exception but this
            reason = str(error).splitlines()[0]
            raise ValueError(f"the exported model takes no {N} images of {height}x{width} pixels ({reason})") from error
        alike = torch.full((N,), True)
        if PART_MAP in outputs:
            expected[PART_MAP] = part_map(expected["assign"], (height, width))
            unlike = (outputs[PART_MAP] != expected[PART_MAP]).float()
            if unlike.mean() > MAX_UNLIKE:
                raise ValueError(f"{unlike.mean():.1%} of the pixels go to other parts in the exported model")
            alike = unlike.sum((1, 2)) == 0
        for name, value in outputs.items():
            if value.shape != expected[name].shape:
                raise ValueError(
                    f"{name} of the exported model: expected {list(expected[name].shape)} for {N} images of "
                    f"{height}x{width} pixels, got {list(value.shape)}"
                )
            if alike.any():
                difference = (value - expected[name])[alike].abs().max()
                differences.setdefault(name, []).append(difference)
                logger.debug("%d images %dx%d, %s: %.1e", N, height, width, name, difference)
    if not differences:
        raise ValueError("the exported model gives pixels of every random image to other parts than the model does")
    return {name: float(torch.stack(largest).max()) for name, largest in differences.items()}  # a NaN stays one


def _random_places(count: int, generator: torch.Generator) -> Tensor:
    """Places float32 [count, 3]: the first with a date, the second without, of all others nothing is known."""
    low, high = torch.tensor([-90.0, -180.0, 1.0]), torch.tensor([90.0, 180.0, 366.0])
    places = low + (high - low) * torch.rand(count, 3, generator=generator)
    places[1:, 2] = torch.nan
    places[2:] = torch.nan
    return places
