"""The protocol of FunnyBirds (Hesse et al., ICCV 2023) for explanations of images whose parts can be taken away.

It asks for numbers only: how important an explanation calls each part and each thing in the background, and what the
model says of the image without some of them. With P(t) the parts that hold more than a share t of all attribution,

    synthetic data      CSDC: of a minimal set of parts that tells the class, the share in P(t); the best of such sets
    preservation        PC: the class stays when all parts but P(t) are taken away
    deletion check      DC: the class changes when P(t) is taken away
    distractibility     D: of the parts and things that are not needed, the share that is not in P(t)
    single deletion     SD: rank correlation of importance and fall of the logit over single parts
    target sensitivity  TS: which of two other classes owns which parts, told by their explanations
    completeness        ((CSDC + PC + DC) / 3 + D) / 2, at the t of ``THRESHOLDS`` at which it is best
    correctness         (SD + 1) / 2
    contrastivity       TS
    explainability      mean of completeness, correctness and contrastivity
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rg.attribution.stability import rank_correlation

CHECKS = "checks"  # the measure that holds those with a threshold: [N, 4, T]
NAMES = ("synthetic_data", "preservation", "deletion_check", "distractibility")
THRESHOLDS = np.linspace(0.01, 0.5, 80)
NEEDED = 0.05  # of the logit: what costs less when it is taken away is not needed
RANKED = 3  # parts that an image must show for a rank correlation

Removed = frozenset[str]
WHOLE: Removed = frozenset()
ClassParts = Mapping[str, Hashable]  # of a class its parts, and how they look


@dataclass(frozen=True)
class Importance:
    """What an explanation says of an image: the attribution in each part and thing, and in the whole image."""

    of: Mapping[str, float]
    total: float

    def important(self) -> list[Removed]:
        """For every threshold what holds more than that share of the attribution."""
        limits = THRESHOLDS * self.total
        return [frozenset(name for name, value in self.of.items() if value > limit) for limit in limits]


@dataclass(frozen=True)
class Subject:
    """An image and what a model says of it.

    Attributes:
        label: The class that it shows.
        named: The class that the model says.
        parts: Those that are seen.
        things: What can be taken away in the background.
        classes: The parts of all classes.
        logits: Of the image without some parts and things: float64 [C].
    """

    label: int
    named: int
    parts: Sequence[str]
    things: Sequence[str]
    classes: Sequence[ClassParts]
    logits: Callable[[Removed], np.ndarray]

    def fall(self, removed: Collection[str], label: int) -> float:
        """By how much the logit of a class falls without something."""
        return float(self.logits(WHOLE)[label] - self.logits(frozenset(removed))[label])

    def needless(self) -> Removed:
        """Parts and things without which the logit of the label falls by less than ``NEEDED`` of it, or grows."""
        limit = NEEDED * abs(float(self.logits(WHOLE)[self.label]))
        return frozenset(name for name in (*self.parts, *self.things) if self.fall([name], self.label) < limit)


def removals(subject: Subject, explained: Iterable[Importance]) -> set[Removed]:
    """All that ``scores`` asks the logits of an image without, given explanations of the class that it says."""
    parts = frozenset(subject.parts)
    asked = {frozenset([name]) for name in (*parts, *subject.things)} | {WHOLE}
    for importance in explained:
        for called in importance.important():
            asked |= {parts - called, parts & called}
    pair = rivals(subject.classes, subject.label, subject.parts)
    return asked | set(pair.owned) if pair else asked


def scores(subject: Subject, explain: Callable[[int], Importance]) -> dict[str, float | np.ndarray]:
    """What an explanation of one image is worth.

    Args:
        subject: The image.
        explain: Class -> what the explanation of that class says.

    Returns:
        ``CHECKS`` [4, T] and ``single_deletion``, nan where the image cannot tell, and ``target_sensitivity`` [2].
    """
    return {
        CHECKS: np.stack(
            [
                synthetic_data(subject, explain),
                *keeping_and_deleting(subject, explain(subject.named)),
                distractibility(subject, explain(subject.label)),
            ]
        ),
        "single_deletion": single_deletion(subject, explain(subject.label)),
        "target_sensitivity": target_sensitivity(subject, explain),
    }


def synthetic_data(subject: Subject, explain: Callable[[int], Importance]) -> np.ndarray:
    """CSDC by threshold [T]; nan where the model says another class, or no set of parts that are seen tells it."""
    sets = sufficient_sets(subject.classes, subject.label, subject.parts)
    if subject.named != subject.label or not sets:
        return np.full(len(THRESHOLDS), np.nan)
    called = explain(subject.label).important()
    return np.array([max(len(own & important) / len(own) for own in sets) for important in called])


def keeping_and_deleting(subject: Subject, importance: Importance) -> tuple[np.ndarray, np.ndarray]:
    """PC and DC by threshold [T], of an explanation of the class that the model says."""
    parts, named = frozenset(subject.parts), subject.named
    called = importance.important()
    kept = [subject.logits(parts - important).argmax() == named for important in called]
    lost = [subject.logits(parts & important).argmax() != named for important in called]
    return np.array(kept, dtype=np.float64), np.array(lost, dtype=np.float64)


def distractibility(subject: Subject, importance: Importance) -> np.ndarray:
    """D by threshold [T]; nan where everything is needed."""
    needless = subject.needless()
    if not needless:
        return np.full(len(THRESHOLDS), np.nan)
    return np.array([1 - len(important & needless) / len(needless) for important in importance.important()])


def single_deletion(subject: Subject, importance: Importance) -> float:
    """SD, -1 to 1; nan where fewer than ``RANKED`` parts are seen, or all are alike."""
    if len(subject.parts) < RANKED:
        return float("nan")
    said = np.array([[importance.of[name] for name in subject.parts]])
    falls = np.array([[subject.fall([name], subject.label) for name in subject.parts]])
    return float(rank_correlation(said, falls)[0])


def target_sensitivity(subject: Subject, explain: Callable[[int], Importance]) -> np.ndarray:
    """TS [2]: whether each of two rivals' explanations weighs its own parts more than the other rival's does.

    nan where there are no rivals, or where the model itself does not see it so: a rival's logit has to fall more
    without its own parts than without those of the other.
    """
    pair = rivals(subject.classes, subject.label, subject.parts)
    if pair is None:
        return np.full(2, np.nan)
    said = [explain(rival) for rival in pair.rivals]
    told = []
    for own, other in ((0, 1), (1, 0)):
        falls = [subject.fall(pair.owned[of], pair.rivals[own]) for of in (own, other)]
        if not falls[0] > falls[1]:
            return np.full(2, np.nan)
        weights = [sum(said[of].of[name] for name in pair.owned[own]) for of in (own, other)]
        told.append(float(weights[0] > weights[1]))
    return np.array(told)


def background_independence(subject: Subject) -> np.ndarray:
    """BI: of every thing in the background whether it is not needed: 0 or 1, float64 [things]."""
    needless = subject.needless()
    return np.array([name in needless for name in subject.things], dtype=np.float64)


def sufficient_sets(classes: Sequence[ClassParts], label: int, parts: Collection[str]) -> list[Removed]:
    """The smallest sets of parts that look together as in one class only, of the parts that are seen.

    A set is sufficient if no other class has all of it alike, and minimal if no smaller one in it is sufficient.
    """
    own = classes[label]
    seen = [name for name in own if name in parts]
    shared = {_alike(own, other, seen) for number, other in enumerate(classes) if number != label}
    found: list[Removed] = []
    for size in range(1, len(seen) + 1):
        for names in itertools.combinations(seen, size):
            some = frozenset(names)
            if not any(some <= alike for alike in shared) and not any(smaller < some for smaller in found):
                found.append(some)
    return found


@dataclass(frozen=True)
class Rivals:
    """Two other classes, and the parts that an image's class shares with the one and not with the other."""

    rivals: tuple[int, int]
    owned: tuple[Removed, Removed]


def rivals(classes: Sequence[ClassParts], label: int, parts: Collection[str]) -> Rivals | None:
    """The two other classes that share equally many parts with a class, and as different ones as can be.

    The paper takes the first two classes that share two of the five parts each, none of them the same. That is the
    first pair with the fewest parts in common and, of these, the most parts of its own; which is taken here, as other
    data need not have two such classes.

    Returns:
        None if there is no such pair.
    """
    own = classes[label]
    seen = [name for name in own if name in parts]
    others = [number for number in range(len(classes)) if number != label]
    alike = np.array([[classes[number].get(name) == own[name] for name in seen] for number in others], dtype=np.int64)
    if not alike.size:
        return None
    owned, common = alike @ (1 - alike).T, alike @ alike.T
    first, second = np.nonzero(np.triu((owned == owned.T) & (owned > 0), 1))
    if not len(first):
        return None
    best = np.lexsort((-owned[first, second], common[first, second]))[0]  # stable: the first of equals
    a, b = int(first[best]), int(second[best])
    sets = [frozenset(name for name, shares in zip(seen, alike[k], strict=True) if shares) for k in (a, b)]
    return Rivals((others[a], others[b]), (sets[0] - sets[1], sets[1] - sets[0]))


def at_best_threshold(means: np.ndarray) -> dict[str, np.ndarray]:
    """The checks at the threshold with the best completeness.

    Args:
        means: Over images, float64 [R, 4, T]; nan where nothing was measured.

    Returns:
        Each of ``NAMES``, ``completeness`` and ``threshold``: float64 [R].
    """
    known = np.where(np.isnan(means), 0.0, means)
    best = (known[:, :3].mean(1) + known[:, 3]).argmax(1)
    chosen = means[np.arange(len(means)), :, best]
    return dict(zip(NAMES, chosen.T, strict=True)) | {
        "completeness": (chosen[:, :3].mean(1) + chosen[:, 3]) / 2,
        "threshold": np.where(np.isnan(chosen).all(1), np.nan, THRESHOLDS[best]),
    }


def dimensions(figures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``correctness``, ``contrastivity`` and ``explainability`` of the other figures of a method: float64 [R]."""
    correctness, contrastivity = (figures["single_deletion"] + 1) / 2, figures["target_sensitivity"]
    mean = np.mean([figures["completeness"], correctness, contrastivity], axis=0)
    return {"correctness": correctness, "contrastivity": contrastivity, "explainability": mean}


def _alike(own: ClassParts, other: ClassParts, names: Sequence[str]) -> Removed:
    return frozenset(name for name in names if other.get(name) == own[name])
