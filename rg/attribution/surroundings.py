"""What a model says when all that surrounds the object is another: how far its answers move.

Features of a deep network mix a large neighbourhood of every position, so a part can carry what lies beside the object.
What does not depend on the surroundings stays as it is to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel


@dataclass(frozen=True)
class Answers:
    """What a model says of N images.

    Attributes:
        logits: float64 [N, L].
        probabilities: float64 [N, L].
        classes: int64 [N], whose logit the contributions are of.
        contributions: Of the K parts that are no background slot, float64 [N, K]; None of a model without parts.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray
    contributions: np.ndarray | None


@torch.no_grad()
def ask(model: Model, images: Tensor, classes: np.ndarray | None = None) -> Answers:
    """What a model says of images.

    Args:
        model: In evaluation mode.
        images: uint8 or float [N, 3, H, W] in 0..255.
        classes: The classes of which contributions are asked, int64 [N]; those that the model names if None.
    """
    output = model(images)
    logits = output.logits.double()
    named = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
    contributions = None
    if isinstance(model, RegionGroupingModel):
        values = model.contributions(output, named[:, None])[0][:, 0, : model.num_parts]
        contributions = values.double().cpu().numpy()
    probabilities = torch.sigmoid(logits) if model.multi_label else torch.softmax(logits, 1)
    return Answers(logits.cpu().numpy(), probabilities.cpu().numpy(), named.cpu().numpy(), contributions)


def movement(before: Answers, after: Answers, multi_label: bool) -> dict[str, np.ndarray]:
    """How far answers have moved, a value for every image.

    Args:
        before: Of the images as they are.
        after: Of the same images changed, with the contributions to the same classes.
        multi_label: Attributes instead of classes.

    Returns:
        float64 [N] each. answer: 1 where another class is named, or the share of attributes that are called otherwise.
        probability: half the sum of the absolute changes of all probabilities (total variation), or their mean for
        attributes. logit: absolute change of the logit of the class that was named. contributions: mean absolute change
        of the contributions of the parts to that logit; nan of a model without parts.
    """
    moved = np.abs(after.probabilities - before.probabilities)
    if multi_label:
        answer = ((before.logits > 0) != (after.logits > 0)).mean(1)
        probability = moved.mean(1)
    else:
        answer = (before.logits.argmax(1) != after.logits.argmax(1)).astype(np.float64)
        probability = moved.sum(1) / 2
    rows = np.arange(len(answer))
    logit = np.abs(after.logits - before.logits)[rows, before.classes]
    contributions = np.full(len(answer), np.nan)
    if before.contributions is not None and after.contributions is not None:
        contributions = np.abs(after.contributions - before.contributions).mean(1)
    return {"answer": answer, "probability": probability, "logit": logit, "contributions": contributions}


def surroundings(objects: np.ndarray, margin: float) -> np.ndarray:
    """The pixels that are farther than a margin from an object.

    Args:
        objects: bool [N, H, W].
        margin: In pixels, between the middles of two of them; with 0, all pixels outside of the object.

    Returns:
        bool [N, H, W]; none of an image without an object.
    """
    far = [distance_transform_edt(~one) > margin if one.any() else np.zeros_like(one) for one in objects]
    return np.stack(far)


def changed(images: Tensor, others: Tensor, where: np.ndarray) -> Tensor:
    """Images [N, 3, H, W] with the pixels of others, uint8 [N, 3, H, W], in some places, bool [N, H, W]."""
    return torch.where(torch.as_tensor(where, device=images.device)[:, None], others.to(images.device), images)
