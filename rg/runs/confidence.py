"""confidence.json of a run: what turns its logits into an answer. ``python -m rg evaluate`` fits it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import expit, softmax

from pipelines.files import write_json
from rg.config import RunConfig
from rg.runs.folder import CONFIDENCE, is_as_measured, of_view, read_json

logger = logging.getLogger(__name__)


Answer: TypeAlias = Literal["label", "unsure", "unknown", "none"]
FEWEST_FOR_TEMPERATURE = 50  # a fitted parameter costs 1 / (2 N) nats an image (Akaike, 1974): here a hundredth
CHANCE, HIGHEST_TARGET = 0.05, 0.99  # see fewest_for_threshold
LEAST, MOST = float(np.finfo(np.float64).tiny), float(np.nextafter(1, 0))  # of a probability


@dataclass(frozen=True)
class Confidence:
    """What turns the logits of a run into an answer.

    Attributes:
        temperature: Probabilities are softmax(logits / T), or sigmoid(logits / T); None for T = 1.
        threshold: Answers of a lower probability are "unsure"; None if none reaches the target: all answers are.
        presence_limit: Images of a lower presence (see ``ModelOutput``) are "unknown"; None where that is off.
        target_precision: Share of the answers given that are to be right.
        false_alarms: Share of images with known parts that may be called unknown.
        coverage: Share of the validation answers that were given.
        precision: Share of those that were right; None if none was given.
        images: Validation images that all of this was fitted on, but for what ``too_few`` names.
        dataset: Name of their data set.
        weights: sha256 of the weights of the model.
        shards: Digest of the validation split (``Split.sha256``); None in a file of an earlier version.
        edits: Which parts of the model were off or merged (see ``Edits.to_dict``).
    """

    temperature: float | None
    threshold: float | None
    presence_limit: float | None
    target_precision: float
    false_alarms: float
    coverage: float
    precision: float | None
    images: int
    dataset: str
    weights: str
    shards: str | None = None
    edits: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, probability: float, presence: float) -> Answer:
        """What to say of an image: its label, that the model is unsure, or that it shows nothing known."""
        if self.presence_limit is not None and presence < self.presence_limit:
            return "unknown"
        return "label" if probability >= self.least_probability else "unsure"

    @property
    def too_few(self) -> dict[str, int]:
        """What was not fitted because there were too few images, and how many it takes."""
        fewest = {
            "temperature": FEWEST_FOR_TEMPERATURE,
            "threshold": fewest_for_threshold(self.target_precision),
            "presence limit": fewest_for_limit(self.false_alarms),
        }
        return {name: count for name, count in fewest.items() if self.images < count}

    @property
    def least_probability(self) -> float:
        """Of an answer that is given; infinite if none is to be."""
        return math.inf if self.threshold is None else self.threshold


def fewest_for_threshold(target_precision: float) -> int:
    """Images from which on a share of right answers can be told.

    N answers that are all right show a share of p only if that many would rarely be right by chance were it lower:
    p^N is at most 5 %. A target above 99 % asks for as many images as 99 %.
    """
    return math.ceil(math.log(CHANCE) / math.log(min(target_precision, HIGHEST_TARGET)))


def fewest_for_limit(false_alarms: float) -> int:
    """Images from which on a limit of presence can keep its promise: of N + 1 images one is the least of all.

    That one is called unknown, so the share of false alarms is 1 / (N + 1) at least.
    """
    return math.ceil(1 / false_alarms - 1 - 1e-9) if false_alarms else 0


def basis(images: int, too_few: Mapping[str, int]) -> str:
    """How many images a confidence rests on, in words.

    Args:
        images: See ``Confidence``.
        too_few: See ``Confidence``.
    """
    if not too_few:
        return f"fitted on {images} validation images"
    missing = ", ".join(f"{name} (takes {count})" for name, count in too_few.items())
    return f"{images} validation images, too few for: {missing}"


def probabilities(logits: np.ndarray, temperature: float | None, multi_label: bool) -> np.ndarray:
    """The probabilities of all classes or attributes: the one place where logits become such.

    Args:
        logits: [N, C], finite.
        temperature: See ``Confidence``.
        multi_label: A sigmoid each instead of one softmax.

    Returns:
        float64 [N, C], neither 0 nor 1: a network is never certain, though rounding may say so.
    """
    scaled = logits.astype(np.float64) / (temperature or 1.0)
    values = expit(scaled) if multi_label else softmax(scaled, axis=1)
    return values.clip(LEAST, MOST)


def write_confidence(path: Path, confidence: Confidence) -> None:
    """Write confidence.json, all or nothing."""
    write_json(path, asdict(confidence))


def read_confidence_of_input(run: Path, config: RunConfig) -> Confidence | None:
    """What was fitted on images as the input of the run says, such as their central square; else that of the run."""
    other = None if config.evaluation.view == "input" else read_confidence(run, "input")
    return other or read_confidence(run)


def read_confidence(run: Path, view: str | None = None) -> Confidence | None:
    """The confidence of a run; None if it was not fitted, or with other weights, or other parts off or merged.

    Args:
        run: Run folder.
        view: That it was fitted in, if that is not the one of the run.

    Raises:
        ValueError: the file is none of this program.
    """
    path = run / of_view(CONFIDENCE, view)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        confidence = Confidence(**content)
    except TypeError as error:
        raise ValueError(f"{path}: no file of this program ({error})") from None
    for name in ("temperature", "threshold", "presence_limit", "target_precision", "false_alarms", "images"):
        if not isinstance(content[name], int | float | None):
            raise ValueError(f"{path}: {name}: expected a number, got {content[name]!r}")
    if not is_as_measured(run, content):
        logger.warning("%s: was fitted with other weights or parts, so nothing is calibrated; evaluate again", path)
        return None
    if confidence.too_few:
        logger.warning("%s: %s", path, basis(confidence.images, confidence.too_few))
    return confidence
