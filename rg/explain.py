"""Explanations: which parts the model found in an image, and how much each counted for the label."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.folder import SUFFIXES
from pipelines.geometry import central_start
from pipelines.images import open_rgb
from pipelines.manifest import atomic_write
from rg import inputs, pictures, run_folder
from rg.config import RunConfig
from rg.metrics import part_centers
from rg.model import RegionGroupingModel
from rg.run_folder import Classes

logger = logging.getLogger(__name__)

VIEWS = ("auto", "whole", "crop")
MAX_ASPECT = 4
ImageLike = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class PartExplanation:
    """One part in one image.

    Attributes:
        index: Number of the part, 0 to K - 1.
        mask: bool [H, W] at image size: positions where this part has the largest assignment.
        center: x, y of the soft centre in pixels of the image.
        occurrence: t_k in (0, 1), how surely the part occurs.
        attention: a_k, the weight of the part; all parts sum to 1.
        contribution: What the part adds to the logit of the label; with the constant, all parts sum to the logit.
        background: Whether the part shows surroundings or hardly counts, as seen over the training images.
    """

    index: int
    mask: np.ndarray = field(repr=False)
    center: tuple[float, float]
    occurrence: float
    attention: float
    contribution: float
    background: bool


@dataclass(frozen=True)
class Explanation:
    """Why one image got its label.

    Attributes:
        label: Name of the winning class (or of the most probable attribute).
        probability: Of the label, 0 to 1.
        logit: Of the label, before the softmax (or sigmoid).
        constant: Part of the logit that no part accounts for.
        top_k: Names and probabilities of the best classes, best first.
        attribution: float32 [H, W] at image size: the pixel attribution Q^T a, every pixel's expected attention.
        parts: All K parts, by index.
        image: uint8 [H, W, 3], the upright image.
        window: x0, y0, x1, y1 in pixels: what the model saw of the image.
        source: Path of the image, if it came from a file.
    """

    label: str
    probability: float
    logit: float
    constant: float
    top_k: list[tuple[str, float]]
    attribution: np.ndarray
    parts: list[PartExplanation]
    image: np.ndarray
    window: tuple[float, float, float, float]
    source: str | None = None

    def __repr__(self) -> str:
        return f"Explanation(label={self.label!r}, probability={self.probability:.4g}, parts={len(self.parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values; areas are shares of the window."""
        x0, y0, x1, y1 = self.window
        area = max(1.0, (x1 - x0) * (y1 - y0))
        return {
            "source": self.source,
            "width": self.image.shape[1],
            "height": self.image.shape[0],
            "window": [round(value, 2) for value in self.window],
            "label": self.label,
            "probability": self.probability,
            "logit": self.logit,
            "constant": self.constant,
            "top_k": [{"label": name, "probability": probability} for name, probability in self.top_k],
            "parts": [
                {
                    "part": part.index,
                    "background": part.background,
                    "center": [round(value, 2) for value in part.center],
                    "area": float(part.mask.sum() / area),
                    "occurrence": part.occurrence,
                    "attention": part.attention,
                    "contribution": part.contribution,
                }
                for part in self.parts
            ],
        }

    def picture(self) -> Image.Image:
        """Image, parts, attribution and contributions side by side."""
        return pictures.panel(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the picture (.png) or the dictionary (.json), all or nothing.

        Raises:
            ValueError: another suffix.
            OSError: there is no such folder, or it cannot be written to.
        """
        path = Path(path)
        if path.suffix not in (".png", ".json"):
            raise ValueError(f"path: expected a name that ends in .png or .json, got {path.name!r}")
        with atomic_write(path) as file:
            if path.suffix == ".png":
                self.picture().save(file, "PNG")
            else:
                file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())


class Explainer:
    """A trained model that explains images. Made by ``rg.load``.

    Attributes:
        model: In evaluation mode.
        config: Of the run.
        classes: Names of the classes.
        device: Where the model runs.
    """

    def __init__(self, model: RegionGroupingModel, config: RunConfig, classes: Classes, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.config = config
        self.classes = classes
        self.device = device

    @classmethod
    def load(cls, run: str | os.PathLike, device: str = "auto") -> Explainer:
        """Read a run folder; see ``rg.load``."""
        model, config, classes = run_folder.load_region_grouping(Path(run))
        return cls(model, config, classes, pick_device(device))

    def explain(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
    ) -> Any:
        """Explain one image or a list of images.

        Args:
            images: A path, a PIL image (any mode, size and orientation) or a uint8 array [H, W, 3], or a list of them.
            view: ``whole`` shows the model the whole image (fully convolutional, at the size of testing); ``crop`` the
                central square that it is tested on; ``auto`` the whole image if the backbone takes images of any size.
            top_k: Number of best classes to name.
            batch_size: Images at once, if they have the same shape.

        Returns:
            An ``Explanation``, or a list of them in the order of the images.

        Raises:
            ValueError: an image cannot be decoded, an argument is off, or the whole image is asked for and the backbone
                takes no other size than that of testing.
        """
        single = isinstance(images, ImageLike | bytes) or not isinstance(images, Iterable)
        found = list(self.stream([images] if single else images, view=view, top_k=top_k, batch_size=batch_size))  # type: ignore[list-item, arg-type]
        return found[0] if single else found

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
        failed: Callable[[str], None] | None = None,
    ) -> Iterator[Explanation]:
        """Like ``explain``, one explanation after the other, holding one batch of images at a time.

        ``failed`` is called with one line for an image that cannot be read, which is then left out; without it, that is
        an error.
        """
        if view not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {view!r}")
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"top_k, batch_size: expected at least 1, got {top_k}, {batch_size}")
        if view == "auto":
            view = self._auto_view
        elif view == "whole" and not self._takes_any_size:
            name, crop = self.config.model.backbone.name, self.config.input.test_size[1]
            raise ValueError(f"view: expected crop or auto, as {name} takes images of {crop}x{crop} only, got {view!r}")
        waiting: list[tuple[np.ndarray, Tensor, tuple[float, float, float, float], str | None]] = []
        for image in images:
            source = os.fspath(image) if isinstance(image, str | os.PathLike) else None
            try:
                pixels = _open(image)
            except (ValueError, OSError) as error:
                if failed is None:
                    raise
                failed(str(error))
                continue
            seen, window = self._view(pixels, view)
            if waiting and (len(waiting) == batch_size or waiting[0][1].shape != seen.shape):
                yield from self._explain(waiting, top_k)
                waiting = []
            waiting.append((np.asarray(pixels), seen, window, source))
        if waiting:
            yield from self._explain(waiting, top_k)

    @cached_property
    def _takes_any_size(self) -> bool:
        """Whether the backbone takes images of other shapes than the square that it is tested on."""
        return self.model.backbone.takes_any_size(self.config.input.test_size[1])

    @cached_property
    def _auto_view(self) -> str:
        if self.config.input.view == "stretch":
            return "crop"
        if self._takes_any_size:
            return "whole"
        name, crop = self.config.model.backbone.name, self.config.input.test_size[1]
        logger.warning("%s takes images of %dx%d only: explaining the central square of every image", name, crop, crop)
        return "crop"

    def _view(self, image: Image.Image, view: str) -> tuple[Tensor, tuple[float, float, float, float]]:
        """uint8 [3, h, w] for the model, and the box of the image that it shows."""
        geometry = inputs.evaluation_geometry(self.config.input)
        width, height = image.size
        short, stride = min(width, height), self.model.backbone.stride
        if view == "crop":
            seen = geometry.central_window(width, height)
            extent, size = (seen.width, seen.height), (seen.columns, seen.rows)
        else:
            # Whole positions of the feature map; a panorama is cut to its middle before it fills the memory.
            extent = (min(width, MAX_ASPECT * short), min(height, MAX_ASPECT * short))
            size = tuple(max(1, round(geometry.short_side * length / short / stride)) * stride for length in extent)  # type: ignore[assignment]
        x0, y0 = central_start(width, extent[0]), central_start(height, extent[1])
        window = (x0, y0, x0 + extent[0], y0 + extent[1])
        resized = image.crop(window).resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1), window

    @torch.inference_mode()
    def _explain(self, waiting: list[Any], top_k: int) -> Iterator[Explanation]:
        output = self.model(torch.stack([seen for _, seen, _, _ in waiting]).to(self.device))
        logits = output.logits
        probabilities = torch.sigmoid(logits) if self.classes.multi_label else torch.softmax(logits, 1)
        best = probabilities.topk(min(top_k, logits.shape[1]), dim=1)
        winner = best.indices[:, :1]
        contributions, constant = self.model.contributions(output, winner)
        attention = output.attention
        if self.classes.multi_label:
            attention = attention[torch.arange(len(waiting)), winner[:, 0]]
        background = self.model.background.cpu().numpy()
        centers = part_centers(output.assign).cpu().numpy()
        for n, (pixels, _, window, source) in enumerate(waiting):
            strongest, attribution = at_image_size(output.assign[n], attention[n], window, pixels.shape[:2])
            x0, y0, x1, y1 = window
            yield Explanation(
                label=self.classes.names[winner[n, 0]],
                probability=float(best.values[n, 0]),
                logit=float(logits[n, winner[n, 0]]),
                constant=float(constant[n, 0]),
                top_k=[
                    (self.classes.names[index], float(value))
                    for index, value in zip(best.indices[n].tolist(), best.values[n].tolist(), strict=True)
                ],
                attribution=attribution,
                parts=[
                    PartExplanation(
                        index=k,
                        mask=strongest == k,
                        center=(float(x0 + centers[n, k, 0] * (x1 - x0)), float(y0 + centers[n, k, 1] * (y1 - y0))),
                        occurrence=float(output.occurrence[n, k]),
                        attention=float(attention[n, k]),
                        contribution=float(contributions[n, 0, k]),
                        background=bool(background[k]),
                    )
                    for k in range(output.assign.shape[1])
                ],
                image=pixels,
                window=window,
                source=source,
            )


def _open(image: ImageLike) -> Image.Image:
    """Upright RGB."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return Image.fromarray(image)
        got = f"{image.dtype} {list(image.shape)}"
    elif isinstance(image, ImageLike):
        return open_rgb(image)
    else:
        got = type(image).__name__
    raise ValueError(f"images: expected a path, a PIL image or a uint8 array [H, W, 3], or a list of them, got {got}")


def at_image_size(
    assign: Tensor, attention: Tensor, window: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest part and the attribution of every pixel, after bilinear up-sampling.

    One part at a time, so that a large photograph does not need K maps of its size.

    Args:
        assign: Of one image [K, h, w].
        attention: [K].
        window: x0, y0, x1, y1: what the maps cover of the image, in whole pixels.
        size: H, W of the image.

    Returns:
        strongest: int8 [H, W], -1 outside the window.
        attribution: Q^T a, float32 [H, W], 0 outside the window.
    """
    x0, y0, x1, y1 = (round(value) for value in window)
    inside = (slice(y0, y1), slice(x0, x1))
    strongest, attribution = np.full(size, -1, dtype=np.int8), np.zeros(size, dtype=np.float32)
    largest = np.zeros((y1 - y0, x1 - x0), dtype=np.float32)
    for k, weight in enumerate(attention.tolist()):
        up = F.interpolate(assign[None, None, k].float(), largest.shape, mode="bilinear", align_corners=False)
        values = up[0, 0].cpu().numpy()
        attribution[inside] += weight * values
        strongest[inside][values > largest] = k
        np.maximum(largest, values, out=largest)
    return strongest, attribution


def pick_device(device: str) -> torch.device:
    """The device of that name; auto is a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} is not available ({str(error).splitlines()[0]})") from None
    return picked


def explain_files(run: Path, paths: Sequence[Path], out: Path, view: str, batch_size: int, device: str) -> None:
    """Explain files and folders of files; writes NAME.json and NAME.png for each image.

    An image that cannot be decoded is named, counted and left out.

    Raises:
        ValueError: a path does not exist, or no image could be explained.
    """
    files = _image_files(paths)
    names = _output_names(files)
    explainer = Explainer.load(run, device)
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []

    def leave_out(reason: str) -> None:
        logger.warning("left out: %s", reason)
        left_out.append(reason)

    hidden = not sys.stderr.isatty()
    with logging_redirect_tqdm(), tqdm(total=len(files), unit="image", disable=hidden) as bar:
        for explanation in explainer.stream(files, view=view, batch_size=batch_size, failed=leave_out):
            assert explanation.source is not None
            name = names[Path(explanation.source)]
            explanation.save(out / f"{name}.json")
            explanation.save(out / f"{name}.png")
            bar.update()
            logger.info("%s: %s (%.1f %%)", explanation.source, explanation.label, 100 * explanation.probability)
    if len(left_out) == len(files):
        raise ValueError(f"none of {len(files)} images could be decoded")
    logger.info("%d images explained in %s, %d left out", len(files) - len(left_out), out, len(left_out))


def _image_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.is_file():
            files.append(path)
        elif set("*?") & set(str(path)):
            raise ValueError(f"{path}: no file matches this pattern")
        else:
            raise ValueError(f"{path}: no such file or folder")
    if not files:
        raise ValueError(f"no images ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(files))


def _output_names(files: Sequence[Path]) -> dict[Path, str]:
    """One name per file: its stem, with its folder's name in front (and a number) where stems repeat."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        if name in taken:
            name = f"{file.parent.name}-{file.stem}"
        while name in taken:
            number += 1
            name = f"{file.parent.name}-{file.stem}-{number}"
        taken.add(name)
        names[file] = name
    return names
