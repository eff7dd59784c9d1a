"""Region grouping beside other explanations of the same images: pictures, a page, and a record of what was compared."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.batches.pillow import show
from pipelines.files import atomic_write, sha256, write_json
from pipelines.images import open_rgb
from rg.attribution.methods import BASELINES, KINDS, PARTS_NEEDED, factorize, methods
from rg.attribution.pointing import peaks
from rg.config import RunConfig
from rg.explain.colors import HEAT, css, ink_on, palette
from rg.explain.contributions import NOTABLE
from rg.explain.image_files import find_images, name_each
from rg.explain.pictures import bytes_uri, data_uri
from rg.model.build import Model
from rg.model.device import pick_device
from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.pages import heat_maps
from rg.pages.heat_maps import SIDE, Cell, Strip
from rg.pages.numbers import percent, signed
from rg.pages.templates import template
from rg.runs import inputs
from rg.runs.folder import WEIGHTS, Classes, load_model
from rg.runs.part_names import Part, read_parts
from rg.runs.part_pictures import read_part_pictures
from rg.runs.progress import progress_bar

PAGE, RECORD = "compare.html", "compare.json"
STEPS = 32  # of Integrated Gradients
SPOKE = 3  # parts that are named beside an image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One of the models that are compared.

    Attributes:
        run: Run folder.
        model: In evaluation mode.
        config: Of the run.
        classes: Of the run.
        left_out: Methods that are not shown.
    """

    run: Path
    model: Model
    config: RunConfig
    classes: Classes
    left_out: frozenset[str] = frozenset(BASELINES)

    @property
    def title(self) -> str:
        """What kind of model it is, for people."""
        return KINDS[self.config.model.kind].capitalize()

    def window(self, image: Image.Image) -> Window:
        """What the model is tested on of an image."""
        return inputs.evaluation_geometry(self.config.input).central_window(*image.size)


@dataclass(frozen=True)
class Answer:
    """The answer of a model to an image, and the maps that explain it.

    Attributes:
        label: The winning class, or the most probable attribute.
        probability: Of the label.
        peaks: For every method, x and y of the peak in pixels of the image; None where the method is not defined.
        strip: The maps.
        spoke: The parts that added most to the logit of the label, with what they added; none of a plain network.
    """

    label: str
    probability: float
    peaks: dict[str, tuple[float, float] | None]
    strip: Strip
    spoke: Sequence[tuple[Part, float]] = ()


@dataclass(frozen=True)
class Row:
    """One image: its file, the name of its picture, what the first model sees of it, and the answers of all models."""

    file: Path
    picture: str
    image: Image.Image
    answers: Sequence[Answer]


@dataclass(frozen=True)
class _Seen:
    """What a model sees of an image: its input uint8 [3, H, W], and the same pixels at the size of a picture."""

    pixels: Tensor
    window: Window
    picture: Image.Image


def compare(run: Path, paths: Sequence[Path], out: Path, plain: Path | None = None, device: str = "auto") -> Path:
    """Explain images by region grouping and by other methods, as the models see them when they are tested.

    Writes NAME.png for every image, compare.html with all of them, and compare.json. All maps of a model explain the
    class that it names. The factors of DFF are those of the compared images. An image that cannot be decoded is named,
    counted and left out.

    Args:
        run: Run folder; a method that is not defined for its model is shown as words that say why.
        paths: Images, and folders of images.
        out: Folder to write to.
        plain: Run folder of a plain network with the same classes, whose own methods are shown, too.
        device: cpu, cuda or auto.

    Returns:
        Path of the page.

    Raises:
        ValueError: a run or path cannot be used, no image can be decoded, or Captum is not installed.
    """
    files = find_images(paths, out)
    sides = [Side(run, *load_model(run))]
    if plain:
        sides.append(_plain_side(plain, sides[0]))
    for side in sides:
        side.model.to(pick_device(device))
    seen: list[list[_Seen]] = [[] for _ in sides]
    left_out = []
    readable = []
    for file in files:
        try:
            image = open_rgb(file)
        except (ValueError, OSError) as error:
            logger.warning("left out: %s", error)
            left_out.append(str(file))
            continue
        readable.append(file)
        for side, inputs_of_side in zip(sides, seen, strict=True):
            inputs_of_side.append(_see(image, side.window(image)))
    if not readable:
        raise ValueError(f"none of {len(files)} images could be decoded")

    answers = [list(_answers(side, inputs_of_side)) for side, inputs_of_side in zip(sides, seen, strict=True)]
    names = name_each(readable)
    rows = [
        Row(file, f"{names[str(file)]}.png", seen[0][n].picture, [of_side[n] for of_side in answers])
        for n, file in enumerate(readable)
    ]
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with atomic_write(out / row.picture) as stream:
            picture = heat_maps.sheet(row.file.name, row.image, [answer.strip for answer in row.answers])
            picture.save(stream, "PNG")
    write_json(out / RECORD, _record(sides, rows, left_out))
    with atomic_write(out / PAGE) as stream:
        stream.write(_page(sides, rows, left_out).encode())
    logger.info("%d images compared in %s, %d left out", len(rows), out / PAGE, len(left_out))
    return out / PAGE


def _plain_side(run: Path, main: Side) -> Side:
    model, config, classes = load_model(run)
    if isinstance(model, RegionGroupingModel):
        raise ValueError(f"--plain: expected the run of a plain network (model.kind), got one with parts: {run}")
    main.classes.check(classes, "--plain", main.run)
    return Side(run, model, config, classes, frozenset(BASELINES) | PARTS_NEEDED)


def _see(image: Image.Image, window: Window) -> _Seen:
    scale = SIDE / max(window.columns, window.rows)
    picture_size = (max(1, round(window.columns * scale)), max(1, round(window.rows * scale)))
    box = (window.x0, window.y0, window.x0 + window.width, window.y0 + window.height)
    picture = image.crop(box).resize(picture_size, Image.Resampling.BICUBIC)
    return _Seen(torch.from_numpy(show(image, window).copy()).permute(2, 0, 1), window, picture)


def _answers(side: Side, seen: Sequence[_Seen]) -> Iterator[Answer]:
    """The answers to all images, one by one: so few need no batches."""
    device = next(side.model.parameters()).device
    pixels = [one.pixels[None].to(device) for one in seen]
    parts = side.config.model.grouping.num_parts
    factors = factorize(side.model, pixels, len(pixels), parts, side.config.seed)
    compared = {
        key: method
        for key, method in methods(side.model, factors, STEPS, side.config.seed).items()
        if key not in side.left_out
    }
    for one, image in zip(progress_bar(seen, desc=side.title), pixels, strict=True):
        with torch.no_grad():
            output = side.model(image)
            logits = output.logits.float()
        probabilities = torch.sigmoid(logits) if side.classes.multi_label else torch.softmax(logits, 1)
        winner = probabilities.argmax(1)
        label, probability = side.classes.names[winner[0]], float(probabilities[0, winner[0]])
        spoke = _spoke(side, output, winner)
        cells: list[Cell] = []
        places: dict[str, tuple[float, float] | None] = {}
        for key, method in compared.items():
            picture, places[key] = None, None
            if method.explain:
                values = method.explain(image, winner)[0].cpu()
                picture = heat_maps.overlay(one.picture, values, 1 / parts if key == "attribution" else 0.0)
                places[key] = _peak(values, one.window)
            cells.append(Cell(method.name, picture, method.undefined))
        yield Answer(label, probability, places, Strip(f"{side.title}: {label}, {percent(probability)}", cells), spoke)


def _spoke(side: Side, output: ModelOutput, winner: Tensor) -> list[tuple[Part, float]]:
    """The parts of one image that added most to the logit of the winner, as far as they stand out."""
    if not isinstance(side.model, RegionGroupingModel):
        return []
    with torch.no_grad():
        adds = side.model.contributions(output, winner[:, None])[0][0, 0].tolist()
    parts = read_parts(side.run, side.model.background.tolist())
    most = sorted(parts, key=lambda part: -adds[part.index])[:SPOKE]
    return [(part, adds[part.index]) for part in most if adds[part.index] >= NOTABLE]


def _peak(values: Tensor, window: Window) -> tuple[float, float]:
    """Where a map is largest, in pixels of the image."""
    x, y = peaks(values[None], (window.rows, window.columns))[0].tolist()
    x, y = window.x0 + x * window.width / window.columns, window.y0 + y * window.height / window.rows
    return round(x, 2), round(y, 2)


def _record(sides: Sequence[Side], rows: Sequence[Row], left_out: Sequence[str]) -> dict[str, Any]:
    """compare.json."""
    return {
        "models": [
            {
                "title": side.title,
                "run": str(side.run),
                "weights": sha256(side.run / WEIGHTS),
                "backbone": side.config.model.backbone.name,
                "methods": [
                    {"name": name, "title": cell.title, "why_not": cell.why_not or None}
                    for name, cell in zip(answer.peaks, answer.strip.cells, strict=True)
                ],
            }
            for side, answer in zip(sides, rows[0].answers, strict=True)
        ],
        "images": [
            {
                "file": str(row.file),
                "picture": row.picture,
                "answers": [
                    {"label": answer.label, "probability": answer.probability, "peaks": answer.peaks}
                    for answer in row.answers
                ],
            }
            for row in rows
        ],
        "left_out": list(left_out),
    }


def _page(sides: Sequence[Side], rows: Sequence[Row], left_out: Sequence[str]) -> str:
    titles, undefined = [], []
    for number, side in enumerate(sides):
        columns = list(zip(*(row.answers[number].strip.cells for row in rows), strict=True))
        titles.append([cells[0].title for cells in columns if any(cell.picture for cell in cells)])
        undefined += [
            f"{cells[0].title} is not defined for {KINDS[side.config.model.kind]}: {cells[0].why_not}."
            for cells in columns
            if not any(cell.picture for cell in cells)
        ]
    page = template("rg.pages", PAGE, percent=percent, signed=signed, uri=data_uri, zip=zip)
    count = sides[0].config.model.grouping.num_parts
    colors, row = palette(count), read_part_pictures(sides[0].run, count)
    return page.render(
        sides=sides,
        rows=rows,
        titles=titles,
        undefined=undefined,
        left_out=left_out,
        heat=HEAT,
        colors=[css(color) for color in colors],
        inks=[css(ink_on(color)) for color in colors],
        part_pictures=row and bytes_uri(row, "webp"),
    )
