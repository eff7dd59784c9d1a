"""What a model says when a true part of a drawn object is not there, and whether its explanations knew.

The checks of FunnyBirds (Hesse et al., ICCV 2023) on our own drawings. An explanation calls a part, or the scenery
behind the object, important if more than a share t of its positive attribution lies there. Single deletion asks no
threshold: it is the rank correlation, over the parts of an image, of the attribution inside a part with the fall of the
logit when that part is taken away. With a threshold,

    preservation      the class stays when all parts but the important ones are taken away
    deletion check    the class changes when the important parts are taken away
    distractibility   share of what the class does not need, parts and scenery, that is not called important

and as in that paper they are given for the t at which their mean is best.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.batches.pillow import show
from pipelines.drawn.redraw import Scene
from pipelines.drawn.split import SCENERY
from rg.attribution.stability import rank_correlation
from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
NOT_NEEDED = 0.05  # of the logit: what is taken away at less cost was not needed
RANKED = 3  # parts that an image must show for a rank correlation

Removed = frozenset[str]
WHOLE: Removed = frozenset()


@dataclass(frozen=True)
class Sight:
    """What a model sees of a drawn scene: the scene through the window of the model."""

    scene: Scene
    window: Window

    def image(self, hidden: Removed) -> Tensor:
        """uint8 [3, rows, columns]."""
        pixels = self.scene.without(hidden) if hidden else self.scene.pixels
        return torch.from_numpy(np.array(show(Image.fromarray(pixels), self.window))).permute(2, 0, 1)

    @cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """Where the parts and then the scenery are seen: bool [rows, columns] each; what is not seen is left out."""
        places = {**self.scene.parts, SCENERY: self.scene.scenery}
        seen = {name: self.window.move_part_map(mask) for name, mask in places.items()}
        return {name: mask for name, mask in seen.items() if mask.any()}

    @property
    def parts(self) -> list[str]:
        """The parts that are seen."""
        return [name for name in self.masks if name != SCENERY]


@dataclass(frozen=True)
class Answer:
    """What the model says of an image, with the class of the whole image: its logit and contributions [K], if any."""

    winner: int
    logit: float
    contributions: np.ndarray | None


@dataclass
class Scores:
    """What one method is worth on the images so far; nan where an image cannot tell."""

    single_deletion: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    checks: list[np.ndarray] = field(default_factory=list)  # preservation, deletion check, distractibility: [3, T]

    def summary(self) -> dict[str, float | None]:
        """Means over the images, the checks at their best threshold."""
        by_threshold = [[mean(values) for values in check] for check in np.stack(self.checks).transpose(1, 2, 0)]
        best = max(range(len(THRESHOLDS)), key=lambda t: mean(check[t] for check in by_threshold) or 0.0)
        preservation, deletion_check, distractibility = by_threshold
        return {
            "single_deletion": mean(self.single_deletion),
            "preservation": preservation[best],
            "deletion_check": deletion_check[best],
            "distractibility": distractibility[best],
            "threshold": THRESHOLDS[best],
            "outside": mean(self.outside),
        }


class Removal:
    """Takes parts away from images, and keeps account of what the model and its explanations made of it.

    Args:
        model: In evaluation mode.
        batch_size: Images at once.
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._scores: defaultdict[str, Scores] = defaultdict(Scores)
        self._independent: list[bool] = []
        self._covering: list[tuple[str, int, np.ndarray]] = []

    def add(self, sights: Sequence[Sight], classes: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Takes note of some images.

        Args:
            sights: N images.
            classes: int64 [N], what the model says of them.
            maps: Maps [N, h, w] of those classes by every method, of any size.
        """
        alone = [{frozenset([name]) for name in sight.masks} | {WHOLE, frozenset([SCENERY])} for sight in sights]
        answers = self._ask(sights, classes, alone)
        up = {key: self._up(values[:, None], sights)[:, 0].cpu().numpy() for key, values in maps.items()}
        sets = [
            {hidden for values in up.values() for pair in _hidden(sight, values[n]) for hidden in pair}
            for n, sight in enumerate(sights)
        ]
        answers |= self._ask(sights, classes, [wanted - asked for wanted, asked in zip(sets, alone, strict=True)])
        for n, sight in enumerate(sights):
            mine = {hidden: answer for (image, hidden), answer in answers.items() if image == n}
            self._independent.append(mine[frozenset([SCENERY])].winner == mine[WHOLE].winner)
            for key, values in up.items():
                self._score(self._scores[key], sight, values[n], mine)
        if isinstance(self._model, RegionGroupingModel):
            self._cover(self._model, sights, answers)

    def state(self) -> dict[str, Any]:
        """What was taken note of so far, as JSON values."""
        scores = {
            key: {
                "single_deletion": values.single_deletion,
                "outside": values.outside,
                "checks": [check.tolist() for check in values.checks],
            }
            for key, values in self._scores.items()
        }
        covering = [[name, part, falls.tolist()] for name, part, falls in self._covering]
        return {"scores": scores, "independent": self._independent, "covering": covering}

    def take(self, state: Mapping[str, Any]) -> None:
        """Take note of what another one has taken note of, of images that follow those of this one."""
        for key, values in state["scores"].items():
            scores = self._scores[key]
            scores.single_deletion += values["single_deletion"]
            scores.outside += values["outside"]
            scores.checks += [np.array(check) for check in values["checks"]]
        self._independent += state["independent"]
        self._covering += [(name, part, np.array(falls)) for name, part, falls in state["covering"]]

    def results(self) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
        """For every method its numbers, and those of the model itself."""
        covering = self._summarize_covering() if self._covering else None
        model_results = {"background_independence": mean(self._independent), "covering": covering}
        return {key: scores.summary() for key, scores in self._scores.items()}, model_results

    @staticmethod
    def _up(maps: Tensor, sights: Sequence[Sight]) -> Tensor:
        """Maps [N, K, h, w] at the size of the images."""
        size = sights[0].window.rows, sights[0].window.columns
        return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _ask(
        self, sights: Sequence[Sight], classes: Tensor, wanted: Sequence[Iterable[Removed]]
    ) -> dict[tuple[int, Removed], Answer]:
        """What the model says of every image without what is wanted of it."""
        asked = [(n, hidden) for n, removals in enumerate(wanted) for hidden in removals]
        answers: dict[tuple[int, Removed], Answer] = {}
        for start in range(0, len(asked), self._batch_size):
            chunk = asked[start : start + self._batch_size]
            images = torch.stack([sights[n].image(hidden) for n, hidden in chunk]).to(classes.device)
            asked_classes = classes[[n for n, _ in chunk]][:, None]
            output = self._model(images)
            contributions: Sequence[np.ndarray | None] = [None] * len(chunk)
            if isinstance(self._model, RegionGroupingModel):
                contributions = list(self._model.contributions(output, asked_classes)[0][:, 0].double().cpu().numpy())
            winners, logits = output.logits.argmax(1).tolist(), output.logits.gather(1, asked_classes)[:, 0].tolist()
            answers |= dict(zip(chunk, map(Answer, winners, logits, contributions), strict=True))
        return answers

    @staticmethod
    def _score(scores: Scores, sight: Sight, values: np.ndarray, answers: Mapping[Removed, Answer]) -> None:
        """What a map [rows, columns] of one image is worth."""
        whole = answers[WHOLE]
        fall = {name: whole.logit - answers[frozenset([name])].logit for name in sight.masks}
        parts = sight.parts
        inside = np.array([[values[sight.masks[name]].sum() for name in parts]])
        falls = np.array([[fall[name] for name in parts]])
        ranked = len(parts) >= RANKED
        scores.single_deletion.append(float(rank_correlation(inside, falls)[0]) if ranked else np.nan)

        shares = _shares(sight, values)
        independent = answers[frozenset([SCENERY])].winner == whole.winner
        tells = independent and values.max() > 0
        scores.outside.append(1 - sum(shares[name] for name in parts) if tells else np.nan)

        needless = {name for name, by in fall.items() if by < NOT_NEEDED * abs(whole.logit)}
        checks = []
        for threshold, (others, important) in zip(THRESHOLDS, _hidden(sight, values), strict=True):
            preserved = answers[others].winner == whole.winner
            deleted = answers[important].winner != whole.winner
            called = {name for name, share in shares.items() if share > threshold}
            undistracted = 1 - len(called & needless) / len(needless) if needless else np.nan
            checks.append((preserved, deleted, undistracted))
        scores.checks.append(np.array(checks, dtype=np.float64).T)

    @torch.no_grad()
    def _cover(
        self, model: RegionGroupingModel, sights: Sequence[Sight], answers: Mapping[tuple[int, Removed], Answer]
    ) -> None:
        """For every true part the discovered part that covers it, and how all contributions fall without it."""
        images = torch.stack([sight.image(WHOLE) for sight in sights]).to(model.dictionary.centers.device)
        assign = self._up(model(images).assign, sights)
        for n, sight in enumerate(sights):
            whole = answers[n, WHOLE].contributions
            assert whole is not None
            for name in sight.parts:
                without = answers[n, frozenset([name])].contributions
                covering = int(assign[n].cpu().numpy()[:, sight.masks[name]].mean(1).argmax())
                self._covering.append((name, covering, whole - without))

    def _summarize_covering(self) -> dict[str, Any]:
        """Mean fall of the covering parts, mean absolute change of the others, overall and for every true part."""
        by_part: defaultdict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for name, covering, falls in self._covering:
            by_part[name].append((covering, falls))
        pairs = [(covering, falls) for _, covering, falls in self._covering]
        return {
            **_falls(pairs),
            "chance": 1 / len(pairs[0][1]),
            "by_part": {
                name: _falls(changes) | {"covering": Counter(k for k, _ in changes).most_common(1)[0][0]}
                for name, changes in by_part.items()
            },
        }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what was measured (is neither nan nor None), None if nothing was."""
    array = np.array(list(values), dtype=np.float64)
    return None if np.isnan(array).all() else float(np.nanmean(array))


def _shares(sight: Sight, values: np.ndarray) -> dict[str, float]:
    """Share of the positive attribution in every part and in the scenery; 0 for a map without any."""
    positive = values.clip(min=0)
    total = positive.sum() or 1.0
    return {name: float(positive[mask].sum() / total) for name, mask in sight.masks.items()}


def _hidden(sight: Sight, values: np.ndarray) -> list[tuple[Removed, Removed]]:
    """For every threshold the parts that a map [rows, columns] does not call important, and those that it does."""
    shares, parts = _shares(sight, values), frozenset(sight.parts)
    important = [frozenset(name for name in parts if shares[name] > threshold) for threshold in THRESHOLDS]
    return [(parts - called, called) for called in important]


def _falls(pairs: Sequence[tuple[int, np.ndarray]]) -> dict[str, Any]:
    """Of pairs of a covering part and the falls of all contributions [K]."""
    falls = [change[k] for k, change in pairs]
    others = [np.abs(np.delete(change, k)).mean() if len(change) > 1 else np.nan for k, change in pairs]
    return {
        "pairs": len(pairs),
        "fall": mean(falls),
        "others": mean(others),
        "most": mean(float(np.abs(change).argmax() == k) for k, change in pairs),
    }
