"""confidence.json of a run: what turns its logits into an answer. ``python -m rg evaluate`` fits it."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pipelines.files import write_json
from rg.runs.folder import CONFIDENCE, has_weights, of_view, read_json

logger = logging.getLogger(__name__)


Answer: TypeAlias = Literal["label", "unsure", "unknown"]


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
        images: Validation images that all of this was fitted on.
        dataset: Name of their data set.
        weights: sha256 of the weights of the model.
        shards: Digest of the validation split (``Split.sha256``); None in a file of an earlier version.
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

    def answer(self, probability: float, presence: float) -> Answer:
        """What to say of an image: its label, that the model is unsure, or that it shows nothing known."""
        if self.presence_limit is not None and presence < self.presence_limit:
            return "unknown"
        return "label" if probability >= self.least_probability else "unsure"

    @property
    def least_probability(self) -> float:
        """Of an answer that is given; infinite if none is to be."""
        return math.inf if self.threshold is None else self.threshold


def write_confidence(path: Path, confidence: Confidence) -> None:
    """Write confidence.json, all or nothing."""
    write_json(path, asdict(confidence))


def read_confidence(run: Path, view: str | None = None) -> Confidence | None:
    """The confidence of a run; None if it was not fitted, or with other weights.

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
    if not has_weights(run, confidence.weights):
        logger.warning("%s: was fitted with other weights, so probabilities are not calibrated; evaluate again", path)
        return None
    return confidence
