"""Region grouping beside other explanations of the same images: pictures, a page, and a record of what was compared."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.batches.pillow import show
from pipelines.files import atomic_write, check_folder, json_line, read_json_lines, sha256, write_json
from pipelines.images import open_rgb
from pipelines.locks import by_first, owned_folder
from pipelines.peers import Alone, Peers
from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.methods import BASELINES, KINDS, PARTS_NEEDED, Method, factorize, methods
from rg.attribution.pointing import peaks
from rg.config import RunConfig, flatten
from rg.explain import numbers
from rg.explain.colors import HEAT, css, ink_on, palette
from rg.explain.contributions import NOTABLE
from rg.explain.folder import version
from rg.explain.image_files import distinct_names, find_images, name_each
from rg.explain.pictures import ANSWERS, bytes_uri, data_uri
from rg.model.build import Model
from rg.model.device import pick_device
from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.pages import heat_maps
from rg.pages.heat_maps import SIDE, Cell, Strip
from rg.pages.numbers import percent, signed
from rg.pages.templates import template
from rg.runs import inputs
from rg.runs.confidence import Answer, Confidence, probabilities, read_confidence_of_input
from rg.runs.folder import WEIGHTS, Classes, check_labelled, load_model
from rg.runs.part_names import Part, read_parts
from rg.runs.part_pictures import read_part_pictures
from rg.runs.pieces import Pieces, open_pieces

PAGE, RECORD, LINES = "compare.html", "compare.json", "compare.jsonl"
STEPS = 32  # of Integrated Gradients
SPOKE = 3  # parts that are named beside an image

Line = dict[str, Any]  # what was found in one image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One of the models that are compared.

    Attributes:
        run: Run folder.
        model: In evaluation mode.
        config: Of the run.
        classes: Of the run.
        confidence: What was fitted on images as the model is tested on them.
        left_out: Methods that are not shown.
    """

    run: Path
    model: Model
    config: RunConfig
    classes: Classes
    confidence: Confidence | None
    left_out: frozenset[str] = frozenset(BASELINES)

    @classmethod
    def load(cls, run: Path, left_out: frozenset[str] = frozenset(BASELINES)) -> Side:
        """Read a run folder."""
        model, config, classes = load_model(run)
        check_labelled(run, config)
        return cls(run, model, config, classes, read_confidence_of_input(run, config), left_out)

    @property
    def title(self) -> str:
        """What kind of model it is, for people."""
        return KINDS[self.config.model.kind].capitalize()

    def window(self, image: Image.Image) -> Window:
        """What the model is tested on of an image."""
        return inputs.evaluation_geometry(self.config.input).central_window(*image.size)

    def pixels(self, image: Image.Image) -> Tensor:
        """The same as its input, uint8 [1, 3, H, W]."""
        shown = torch.from_numpy(show(image, self.window(image)).copy()).permute(2, 0, 1)[None]
        return shown.to(next(self.model.parameters()).device)

    def settings(self) -> dict[str, Any]:
        """What decides its answers, as JSON values."""
        confidence = asdict(self.confidence) if self.confidence else None
        names = asdict(self.classes)
        place = self.model.backbone.pixel_mean.device.type
        decisive = {"confidence": confidence, "config": flatten(asdict(self.config)), "classes": names, "device": place}
        return {"weights": sha256(self.run / WEIGHTS), "edits": self.model.edits.to_dict(), **decisive}


@dataclass(frozen=True)
class Judgement:
    """The answer of a model to an image, and the maps that explain it.

    Attributes:
        label: The winning class, or the most probable attribute.
        probability: Of the label.
        answer: Whether the model stands by the label.
        peaks: For every method, x and y of the peak in pixels of the image; None where the method is not defined.
        strip: The maps.
        spoke: Indices of the parts that added most to the logit of the label, with what they added; none of a plain
            network.
    """

    label: str
    probability: float
    answer: Answer
    peaks: dict[str, tuple[float, float] | None]
    strip: Strip
    spoke: Sequence[tuple[int, float]] = ()


def compare(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    plain: Path | None = None,
    device: str = "auto",
    peers: Peers | None = None,
) -> Path:
    """Explain images by region grouping and by other methods, as the models see them when they are tested.

    Writes NAME.png for every image as it goes, and at the end compare.jsonl with what it found, compare.json and
    compare.html with all of them. All maps of a model explain the class that it names. The factors of DFF are those of
    the compared images. An image that cannot be decoded is named, counted and left out. A run that was stopped goes on
    where it was; with other images, runs or weights it begins anew.

    Args:
        run: Run folder; a method that is not defined for its model is shown as words that say why.
        paths: Images, and folders of images.
        out: Folder to write to.
        plain: Run folder of a plain network with the same classes, whose own methods are shown, too.
        device: cpu, cuda or auto.
        peers: Processes that call this with the same arguments and share the images; the first writes the page.

    Returns:
        Path of the page.

    Raises:
        ValueError: a run or path cannot be used, ``out`` cannot be written to, no image can be decoded, or Captum is
            not installed.
    """
    peers = peers or Alone()
    first = peers.ranks.rank == 0

    def load() -> tuple[list[Path], list[Side]]:
        check_folder(out, "--out")
        sides = [Side.load(run)]
        if plain:
            sides.append(_plain_side(plain, sides[0]))
        for side in sides:
            side.model.to(pick_device(device))
        return find_images(paths, out) if first else [], sides

    files, sides = peers.together(load)
    files = peers.collect(files)[0]
    versions = peers.collect([f"{file} {version(file)}" for file in files] if first else [])[0]
    settings = {
        "models": [side.settings() for side in sides],
        "images": hashlib.sha256("\n".join(versions).encode(errors="surrogateescape")).hexdigest(),  # DFF looks at all
    }
    with by_first(peers, owned_folder(out)), open_pieces(out / f"{LINES}.pieces", settings, peers) as pieces:
        lines = peers.collect(_whole(out, settings) if first else None)[0]
        if lines is None:
            lines = _compare_all(sides, files, out, settings, pieces)
        else:
            logger.info("%d images are compared already", lines["images"])

        def write() -> None:
            if first:
                write_json(out / RECORD, _record(sides, out, lines["left_out"]))
                with atomic_write(out / PAGE) as stream:
                    for text in _page(sides, out, lines["left_out"]):
                        stream.write(text.encode())

        peers.together(write)
    logger.info("%d images compared in %s, %d left out", lines["images"], out / PAGE, len(lines["left_out"]))
    return out / PAGE


def _compare_all(
    sides: Sequence[Side], files: Sequence[Path], out: Path, settings: Mapping[str, Any], pieces: Pieces
) -> dict[str, Any]:
    """Writes pictures and lines of all images; the first line says what they are of, and is what this returns."""
    found: list[DeepFeatureFactorization] = []
    left_out: dict[str, str] = {}
    for number, side in enumerate(sides):
        rest = [file for file in files if str(file) not in left_out]
        named = pieces.make(f"components-{number}", [len(rest)], partial(_factorize, side, rest), _save_factors)
        components, undecodable = pieces.peers.collect([_load_factors(file) for file in named])[0][0]
        found.append(DeepFeatureFactorization.of(components))
        left_out |= undecodable
    readable = [file for file in files if str(file) not in left_out]
    pictures, titles = name_each(readable), distinct_names(readable)
    compared = [_methods(side, factors) for side, factors in zip(sides, found, strict=True)]

    def work(numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[Line]:
        for number in numbers:
            file = readable[number]
            yield _compare(sides, compared, file, titles[file], out / f"{pictures[str(file)]}.png")
            advance(1)

    head = {"settings": settings, "images": len(readable), "left_out": list(left_out)}
    written = pieces.make("images", [1] * len(readable), work, lambda line, stream: stream.write(json_line(line)))

    def gather() -> None:
        if pieces.first:
            with atomic_write(out / LINES) as stream:
                stream.write(json_line(head))
                for piece in written:
                    stream.write(piece.read_bytes())

    pieces.peers.together(gather)
    return head


def _whole(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first line of what was found before by the same settings, if all pictures are there."""
    if not (out / LINES).is_file():
        return None
    lines = read_json_lines(out / LINES)
    head = next(lines, {})
    if head.get("settings") != json.loads(json.dumps(settings)):
        return None
    return head if all((out / line["picture"]).is_file() for line in lines) else None


def read_lines(out: Path) -> Iterator[Line]:
    """What was found in the images, one after the other."""
    lines = read_json_lines(out / LINES)
    next(lines)
    yield from lines


def _plain_side(run: Path, main: Side) -> Side:
    side = Side.load(run, frozenset(BASELINES) | PARTS_NEEDED)
    if isinstance(side.model, RegionGroupingModel):
        raise ValueError(f"--plain: expected the run of a plain network (model.kind), got one with parts: {run}")
    main.classes.check(side.classes, "--plain", main.run)
    return side


def _factorize(
    side: Side, files: Sequence[Path], _: Sequence[int], advance: Callable[[int], None]
) -> Iterator[tuple[DeepFeatureFactorization, dict[Path, str]]]:
    """The factors of all images, and those that cannot be decoded, with the reasons.

    Raises:
        ValueError: no image can be decoded.
    """
    left_out: dict[Path, str] = {}

    def pixels() -> Iterator[Tensor]:
        for file in files:
            try:
                yield side.pixels(open_rgb(file))
            except (ValueError, OSError) as error:
                logger.warning("left out: %s", error)
                left_out[file] = str(error)
            advance(1)
        if len(left_out) == len(files):
            raise ValueError(f"none of {len(files)} images could be decoded")

    parts, seed = side.config.model.grouping.num_parts, side.config.seed
    logger.info("%s: factors of %d images", side.title, len(files))
    yield factorize(side.model, pixels(), len(files), parts, seed), left_out


def _save_factors(found: tuple[DeepFeatureFactorization, dict[Path, str]], out: IO[bytes]) -> None:
    factors, left_out = found
    text = json.dumps({str(file): reason for file, reason in left_out.items()})
    np.savez(out, components=factors.components, left_out=np.frombuffer(text.encode(), np.uint8))


def _load_factors(file: Path) -> tuple[np.ndarray, dict[str, str]]:
    with np.load(file) as arrays:
        return arrays["components"], json.loads(arrays["left_out"].tobytes())


def _methods(side: Side, factors: DeepFeatureFactorization) -> dict[str, Method]:
    """The methods to show of a model."""
    named = methods(side.model, factors, STEPS, side.config.seed).items()
    return {key: method for key, method in named if key not in side.left_out}


def _compare(
    sides: Sequence[Side], compared: Sequence[dict[str, Method]], file: Path, title: str, picture: Path
) -> Line:
    """The line of an image, whose picture is written."""
    image = open_rgb(file)
    judgements = [_judge(side, named, image) for side, named in zip(sides, compared, strict=True)]
    seen = _seen(image, sides[0].window(image))
    sheet = heat_maps.sheet(title, seen, [judgement.strip for judgement in judgements])
    with atomic_write(picture) as stream:
        sheet.save(stream, "PNG")
    return {
        "file": str(file),
        "title": title,
        "picture": picture.name,
        "image": data_uri(seen),
        "answers": [
            {
                "label": judgement.label,
                "probability": judgement.probability,
                "answer": judgement.answer,
                "peaks": judgement.peaks,
                "spoke": judgement.spoke,
                "cells": [
                    {"title": cell.title, "picture": cell.picture and data_uri(cell.picture), "why_not": cell.why_not}
                    for cell in judgement.strip.cells
                ],
            }
            for judgement in judgements
        ],
    }


def _seen(image: Image.Image, window: Window) -> Image.Image:
    """What a model sees of an image, at the size of a picture."""
    scale = SIDE / max(window.columns, window.rows)
    size = (max(1, round(window.columns * scale)), max(1, round(window.rows * scale)))
    box = (window.x0, window.y0, window.x0 + window.width, window.y0 + window.height)

    return image.crop(box).resize(size, Image.Resampling.BICUBIC)


def _judge(side: Side, compared: dict[str, Method], image: Image.Image) -> Judgement:
    """The answer to one image: so few need no batches."""
    window, pixels, parts = side.window(image), side.pixels(image), side.config.model.grouping.num_parts
    picture = _seen(image, window)
    with torch.no_grad():
        output = side.model(pixels)
    logits = output.logits.float()
    winner = logits.argmax(1)
    temperature = side.confidence.temperature if side.confidence else None
    probability = float(probabilities(logits.cpu().numpy(), temperature, side.classes.multi_label).max())
    presence = float(output.presence) if isinstance(output, ModelOutput) else math.inf
    answer = side.confidence.answer(probability, presence) if side.confidence else "label"
    cells: list[Cell] = []
    places: dict[str, tuple[float, float] | None] = {}
    for key, method in compared.items():
        overlay, places[key] = None, None
        if method.explain:
            values = method.explain(pixels, winner)[0].cpu()
            overlay = heat_maps.overlay(picture, values, 1 / parts if key == "attribution" else 0.0)
            places[key] = _peak(values, window)
        cells.append(Cell(method.name, overlay, method.undefined))
    label = side.classes.names[int(winner)]
    words = f", {ANSWERS[answer]}" if ANSWERS[answer] else ""
    heading = f"{side.title}: {label}, {numbers.percent(probability)}{words}"
    return Judgement(label, probability, answer, places, Strip(heading, cells), _spoke(side, output, winner))


def _spoke(side: Side, output: ModelOutput, winner: Tensor) -> list[tuple[int, float]]:
    """The parts of one image that added most to the logit of the winner, as far as they stand out."""
    if not isinstance(side.model, RegionGroupingModel):
        return []
    with torch.no_grad():
        adds = side.model.contributions(output, winner[:, None])[0][0, 0].tolist()
    most = sorted(range(len(adds)), key=lambda part: -adds[part])[:SPOKE]
    return [(part, adds[part]) for part in most if adds[part] >= NOTABLE]


def _peak(values: Tensor, window: Window) -> tuple[float, float]:
    """Where a map is largest, in pixels of the image."""
    x, y = peaks(values[None], (window.rows, window.columns))[0].tolist()
    x, y = window.x0 + x * window.width / window.columns, window.y0 + y * window.height / window.rows
    return round(x, 2), round(y, 2)


def _record(sides: Sequence[Side], out: Path, left_out: Sequence[str]) -> dict[str, Any]:
    """compare.json."""
    first = next(read_lines(out))
    return {
        "models": [
            {
                "title": side.title,
                "run": str(side.run),
                "weights": sha256(side.run / WEIGHTS),
                "backbone": side.config.model.backbone.name,
                "methods": [
                    {"name": name, "title": cell["title"], "why_not": cell["why_not"] or None}
                    for name, cell in zip(answer["peaks"], answer["cells"], strict=True)
                ],
            }
            for side, answer in zip(sides, first["answers"], strict=True)
        ],
        "images": [
            {
                "file": line["file"],
                "picture": line["picture"],
                "answers": [
                    {name: answer[name] for name in ("label", "probability", "answer", "peaks")}
                    for answer in line["answers"]
                ],
            }
            for line in read_lines(out)
        ],
        "left_out": list(left_out),
    }


def _page(sides: Sequence[Side], out: Path, left_out: Sequence[str]) -> Iterator[str]:
    first = next(read_lines(out))
    titles = [[cell["title"] for cell in answer["cells"] if cell["picture"]] for answer in first["answers"]]
    undefined = [
        f"{cell['title']} is not defined for {KINDS[side.config.model.kind]}: {cell['why_not']}."
        for side, answer in zip(sides, first["answers"], strict=True)
        for cell in answer["cells"]
        if not cell["picture"]
    ]
    model, run, config = sides[0].model, sides[0].run, sides[0].config
    parts: tuple[Part, ...] = ()
    if isinstance(model, RegionGroupingModel):
        parts = read_parts(run, model.background.tolist(), config.model.grouping.background)
    colors = palette(len(parts)) if parts else []
    row = read_part_pictures(run, len(parts)) if parts else None
    page = template("rg.pages", PAGE, percent=percent, signed=signed, zip=zip)
    return page.generate(
        sides=sides,
        titles=titles,
        undefined=undefined,
        rows=read_lines(out),
        parts=parts,
        left_out=left_out,
        heat=HEAT,
        answers=ANSWERS,
        colors=[css(color) for color in colors],
        inks=[css(ink_on(color)) for color in colors],
        part_pictures=row and bytes_uri(row, "webp"),
    )
