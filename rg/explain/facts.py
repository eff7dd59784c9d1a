"""Why one image got its label, as facts that anything can be drawn or written of.

A size is width and height, as in Pillow; a shape is height and width, as of arrays and tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from rg.explain.choices import Choices
from rg.runs.confidence import Answer

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Shape = tuple[int, int]  # height and width
Size = tuple[int, int]  # width and height


MOSTLY = 0.75  # share of an image from which on nothing is said of the rest; the crop of 7/8 of a square has 0.77


@dataclass(frozen=True)
class PartExplanation:
    """One part in one image.

    Attributes:
        index: Number of the part, 0 to K - 1.
        name: What people call it (part_names.json of the run), else the true parts that it mostly covers where the data
            knows them, else "part 3".
        strongest: int8 [H, W], the strongest part of every pixel of the image, -1 where the model saw nothing; the same
            array for all parts.
        center: x, y of the soft centre in pixels of the image.
        occurrence: t_k in (0, 1), how surely the part occurs.
        frequency: Share of the images that the run was evaluated on in which the part occurs; None if nobody knows.
        attention: a_k, the weight of the part; all parts sum to 1, or to less if some are off.
        contribution: What the part adds to the logit of the label; with the constant, all parts sum to the logit.
        rival_contribution: The same for the logit of the rival; 0 without one.
        background: Whether the part shows surroundings or hardly counts, as seen over the training images or as said in
            part_names.json.
        off: Whether people have switched the part off, so that it counts for nothing.
        merged_into: Number of the part that has all that this one had, as people have merged it; None if it is one.
    """

    index: int
    name: str
    strongest: np.ndarray = field(repr=False)
    center: tuple[float, float]
    occurrence: float
    attention: float
    contribution: float
    rival_contribution: float
    background: bool
    frequency: float | None = None
    off: bool = False
    merged_into: int | None = None

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W] at image size: positions where this part has the largest assignment."""
        return self.strongest == self.index


@dataclass(frozen=True)
class PlaceExplanation:
    """What where and when one photo was taken adds, beside what the image says.

    Attributes:
        located: Whether the model was told latitude and longitude.
        dated: Whether it was told the day of the year.
        contribution: What that adds to the logit of the label; with the parts and the constant it sums to the logit.
        rival_contribution: The same for the logit of the rival; 0 without one.
        label_without: Name of the class that wins by the image alone.
    """

    located: bool
    dated: bool
    contribution: float
    rival_contribution: float
    label_without: str

    @property
    def name(self) -> str:
        """What the model was told."""
        return "place and date" if self.located and self.dated else "place" if self.located else "date"


@dataclass(frozen=True)
class Rival:
    """The class that the label is compared with: why this and not that.

    Attributes:
        label: Name of the class.
        probability: Of the class, 0 to 1.
        logit: Of the class.
        constant: Part of that logit that no part accounts for.
    """

    label: str
    probability: float
    logit: float
    constant: float


@dataclass(frozen=True)
class Facts:
    """Why one image got its label, as numbers and maps.

    Attributes:
        label: Name of the winning class (or of the most probable attribute).
        probability: Of the label, 0 to 1.
        logit: Of the label, before the softmax (or sigmoid).
        constant: Part of the logit that no part accounts for.
        top_k: Names and probabilities of the best classes, best first.
        rival: The runner-up, or the class that was asked for; None if there is one class only.
        attribution: float32 [H, W] at image size: the pixel attribution Q^T a, every pixel's expected attention.
        assign: float32 [K, h, w]: the assignment Q of the feature map, that of the window.
        parts: All K parts, by index.
        image: uint8 [H, W, 3], the upright image; all pixels here are those of it.
        window: x0, y0, x1, y1 in pixels: what the model saw of the image.
        source: Path of the image, if it came from a file.
        answer: Whether the model stands by the label: "label"; "unsure", its probability is below the threshold of the
            run; "unknown", no known part fits what the image shows; "none", the model names no class, so that the label
            is empty and all that is said of labels and logits is 0.
        multi_label: Whether labels are attributes, each with a probability of its own, rather than classes.
        calibrated: Whether the probabilities are those of a temperature that was fitted (see ``Confidence``).
        zoom: What a sampler made of the window: float32 [L, L, 2], x and y as shares of its sides of places that the
            backbone saw evenly spaced, from edge to edge; None without a sampler.
        photo_size: Width and height of the photo in its own pixels, of which the image may be a smaller copy; None if
            they are those of the image.
        place: What where and when the photo was taken adds; None if the model was told neither.
        choices: What the answer becomes if parts are switched off; None of attributes, and where no class is named.
    """

    label: str
    probability: float
    logit: float
    constant: float
    top_k: list[tuple[str, float]]
    rival: Rival | None
    attribution: np.ndarray
    assign: np.ndarray
    parts: list[PartExplanation]
    image: np.ndarray
    window: Box
    source: str | None = None
    answer: Answer = "label"
    multi_label: bool = False
    calibrated: bool = False
    photo_size: Size | None = None
    zoom: np.ndarray | None = None
    place: PlaceExplanation | None = None
    choices: Choices | None = None

    @property
    def seen(self) -> float:
        """Share of the image that the model saw: that of the window."""
        rows, columns = self.image.shape[:2]
        return share_seen(self.window, columns, rows)

    def contribution_map(self, versus_rival: bool = False) -> np.ndarray:
        """What every pixel adds to the logit of the label.

        Every part hands out its contribution over its pixels in proportion to its assignment there.

        Args:
            versus_rival: To the logit of the label minus that of the rival.

        Returns:
            float32 [H, W]; sums to the logit (or the difference of logits) without the constant and without what the
            place adds, 0 outside the window.
        """
        x0, y0, x1, y1 = (round(value) for value in self.window)
        out = np.zeros(self.image.shape[:2], dtype=np.float32)
        for part in self.parts:
            value = part.contribution - (part.rival_contribution if versus_rival else 0)
            share = up_sampled(self.assign[part.index], (y1 - y0, x1 - x0))
            total = share.sum(dtype=np.float64)
            out[y0:y1, x0:x1] += value * (share / total if total > 0 else 1 / share.size)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values, in pixels of the photo; areas are shares of the window."""
        x0, y0, x1, y1 = self.window
        rows, columns = self.image.shape[:2]
        width, height = self.photo_size or (columns, rows)
        x_scale, y_scale = width / columns, height / rows
        area = max(1.0, (x1 - x0) * (y1 - y0))
        strongest = self.parts[0].strongest
        pixels = np.bincount(strongest[strongest >= 0], minlength=len(self.parts))
        rival = self.rival
        return {
            "source": self.source,
            "width": width,
            "height": height,
            "seen": self.seen,
            "window": [round(value, 2) for value in scaled(self.window, x_scale, y_scale)],
            "answer": self.answer,
            "label": self.label,
            "probability": self.probability,
            "calibrated": self.calibrated,
            "multi_label": self.multi_label,
            "logit": self.logit,
            "constant": self.constant,
            "top_k": [{"label": name, "probability": probability} for name, probability in self.top_k],
            "rival": asdict(rival) if rival else None,
            "place": asdict(self.place) if self.place else None,
            "parts": [
                {
                    "part": part.index,
                    "name": part.name,
                    "background": part.background,
                    "off": part.off,
                    "merged_into": part.merged_into,
                    "center": [round(part.center[0] * x_scale, 2), round(part.center[1] * y_scale, 2)],
                    "area": float(pixels[part.index] / area),
                    "occurrence": part.occurrence,
                    "frequency": part.frequency,
                    "attention": part.attention,
                    "contribution": part.contribution,
                    "rival_contribution": part.rival_contribution,
                }
                for part in self.parts
            ],
        }


AnyFacts = TypeVar("AnyFacts", bound=Facts)


def crop_to_window(explanation: AnyFacts) -> AnyFacts:
    """The same explanation of nothing but the pixels that the model saw."""
    x0, y0, x1, y1 = (round(value) for value in explanation.window)
    strongest = explanation.parts[0].strongest[y0:y1, x0:x1]
    return replace(
        explanation,
        image=explanation.image[y0:y1, x0:x1],
        attribution=explanation.attribution[y0:y1, x0:x1],
        parts=[
            replace(part, strongest=strongest, center=(part.center[0] - x0, part.center[1] - y0))
            for part in explanation.parts
        ],
        window=(0.0, 0.0, float(x1 - x0), float(y1 - y0)),
        photo_size=None,
    )


def share_seen(window: Sequence[float], width: int, height: int) -> float:
    """Share of an image that lies in a window; of a panorama, or of a photo of which a square is cut, it may be little.

    Args:
        window: x0, y0, x1, y1 in pixels of the image.
        width: Of the image.
        height: Of the image.
    """
    x0, y0, x1, y1 = window
    return min(1.0, (x1 - x0) * (y1 - y0) / (width * height))


def scaled(box: Box, x_scale: float, y_scale: float) -> Box:
    """The same box of an image that has been resized by these factors."""
    x0, y0, x1, y1 = box
    return x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale


def up_sampled(values: np.ndarray, shape: Shape) -> np.ndarray:
    """One map [h, w] up-sampled bilinearly: float32 of that shape."""
    up = F.interpolate(torch.from_numpy(values)[None, None], shape, mode="bilinear", align_corners=False)
    return up[0, 0].numpy()


def covering(window: Box, shape: Shape) -> Box:
    """The window, wide enough to cover a whole pixel of an image of that shape when it is rounded."""
    height, width = shape
    x0, y0, x1, y1 = window
    (x0, x1), (y0, y1) = _whole_pixel(x0, x1, width), _whole_pixel(y0, y1, height)
    return x0, y0, x1, y1


def _whole_pixel(low: float, high: float, length: int) -> tuple[float, float]:
    if round(low) < round(high):
        return low, high
    first = min(math.floor(low), length - 1)
    return first, first + 1


def at_image_size(
    assign: np.ndarray, attention: np.ndarray, window: Box, shape: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest part and the attribution of every pixel, after bilinear up-sampling.

    One part at a time, so that a large photograph does not need K maps of its size.

    Args:
        assign: Of one image, float32 [K, h, w].
        attention: [K].
        window: x0, y0, x1, y1: what the maps cover of the image, in whole pixels.
        shape: H, W of the image.

    Returns:
        strongest: int8 [H, W], -1 outside the window.
        attribution: Q^T a, float32 [H, W], 0 outside the window.
    """
    x0, y0, x1, y1 = (round(value) for value in window)
    inside = (slice(y0, y1), slice(x0, x1))
    strongest, attribution = np.full(shape, -1, dtype=np.int8), np.zeros(shape, dtype=np.float32)
    largest = np.zeros((y1 - y0, x1 - x0), dtype=np.float32)
    for k, weight in enumerate(attention.tolist()):
        values = up_sampled(assign[k], (y1 - y0, x1 - x0))
        attribution[inside] += weight * values
        strongest[inside][values > largest] = k
        np.maximum(largest, values, out=largest)
    return strongest, attribution
