"""Fine-grained predictions rolled up a taxonomy: from species to genus and super-category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import softmax

from rg.evaluation.rows import Rows, check_finite, slices

HYBRID = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Level:
    """A level of the taxonomy above the classes.

    Attributes:
        groups: Name of every group.
        index: int64 [C], the group of every class.
    """

    groups: tuple[str, ...]
    index: np.ndarray


def levels(classes: Sequence[str], super_categories: Sequence[str]) -> dict[str, Level]:
    """The levels that names tell, the finest first; none of them has but one group.

    ``genus`` is there if the names of all classes begin with a capitalised word and one in lower case, as those of
    species do (*Anas crecca*), of subspecies (*Anas crecca carolinensis*) and hybrids (*Quercus × bebbiana*); English
    names written like that (*Blue jay*) cannot be told from them. An animal and a plant may have a genus of the same
    name (*Morus*): genera of different super-categories are different groups, and these are named after both.

    Args:
        classes: Name of every class.
        super_categories: Super-category of every class; empty if there are none.

    Returns:
        Level by name, of ``genus`` and ``super_category`` those that there are; groups are sorted by name.

    Raises:
        ValueError: the super-categories are not one per class.
    """
    if super_categories and len(super_categories) != len(classes):
        raise ValueError(
            f"super_categories: expected one for each of {len(classes)} classes, got {len(super_categories)}"
        )
    by_name = {}
    words = [name.replace(HYBRID, " ").split() for name in classes]
    if all(len(name) >= 2 and name[0][0].isupper() and name[1].islower() for name in words):
        genera = [(name[0], home) for name, home in zip(words, super_categories or [""] * len(words), strict=True)]
        homes = Counter(genus for genus, _ in set(genera))
        by_name["genus"] = _level([f"{genus} ({home})" if homes[genus] > 1 else genus for genus, home in genera])
    by_name["super_category"] = _level(super_categories)
    return {name: level for name, level in by_name.items() if len(level.groups) > 1}


def roll_up(probabilities: np.ndarray, level: Level) -> np.ndarray:
    """The probability of a group: the sum of those of its classes.

    Args:
        probabilities: [N, C], any floating point type; summed in float64.
        level: Of the same C classes.

    Returns:
        float64 [N, G].

    Raises:
        ValueError: the level is one of other classes.
    """
    C, G = len(level.index), len(level.groups)
    if probabilities.ndim != 2 or probabilities.shape[1] != C:
        raise ValueError(f"probabilities: expected [N, {C}], got {list(probabilities.shape)}")
    membership = csr_array((np.ones(C), (np.arange(C), level.index)), shape=(C, G))
    return np.concatenate([probabilities[rows] @ membership for rows in slices(probabilities)])


def accuracies(
    logits: np.ndarray | Rows, labels: np.ndarray, levels: Mapping[str, Level]
) -> dict[str, dict[str, float]]:
    """How often the group is right at every level, whichever of its classes it was.

    The best group and the group of the best class differ where several classes of a group share its probability.

    Args:
        logits: [N, C], finite.
        labels: int [N], 0 to C - 1.
        levels: As ``levels`` returns them.

    Returns:
        For every level, as fractions of the images: ``accuracy`` of the group with the largest sum of probabilities,
        and ``accuracy_of_best_class``, that of the group of the class with the largest probability.

    Raises:
        ValueError: logits or labels are not as above, or there are none.
    """
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits: expected [N, C], got {list(logits.shape)}")
    N, C = logits.shape
    check_finite(logits)
    if labels.shape != (N,):
        raise ValueError(f"labels: expected [{N}], got {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= C:
        raise ValueError(f"labels: expected 0 to {C - 1}, got {labels.min()} to {labels.max()}")
    right = {name: np.zeros(2, dtype=np.int64) for name in levels}
    for rows in slices(logits):
        block, truth = logits[rows], labels[rows]
        probabilities = softmax(block.astype(np.float64), axis=1)
        best = block.argmax(1)
        for name, level in levels.items():
            answers = np.stack([roll_up(probabilities, level).argmax(1), level.index[best]])
            right[name] += (answers == level.index[truth]).sum(1)
    names = ("accuracy", "accuracy_of_best_class")
    return {level: dict(zip(names, (counts / N).tolist(), strict=True)) for level, counts in right.items()}


def _level(names: Sequence[str]) -> Level:
    groups, index = np.unique(names, return_inverse=True)
    return Level(tuple(groups.tolist()), index.astype(np.int64))
