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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from rg.attribution.checks import CHECKS, THRESHOLDS
from rg.attribution.stability import rank_correlation
from rg.attribution.values import COVERED_BY, Values
from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel

NOT_NEEDED = 0.05  # of the logit: what is taken away at less cost was not needed
RANKED = 3  # parts that an image must show for a rank correlation
COVERING = ("covering/fall", "covering/others", "covering/most", "covering/chance")

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


class Removal:
    """Takes parts away from images, and keeps account of what the model and its explanations made of it.

    Args:
        model: In evaluation mode.
        batch_size: Images at once.
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size

    def values(
        self, keys: Sequence[str], sights: Sequence[Sight], classes: Tensor, maps: Mapping[str, Tensor]
    ) -> Values:
        """What is measured of some images.

        Args:
            keys: Of N images.
            sights: The images.
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
        mine = [
            {hidden: answer for (image, hidden), answer in answers.items() if image == n} for n in range(len(sights))
        ]
        methods = {}
        for key, values in up.items():
            scored = [_score(*triple) for triple in zip(sights, values, mine, strict=True)]
            methods[key] = {name: np.array([scores[name] for scores in scored]) for name in scored[0]}
        independent = [of[frozenset([SCENERY])].winner == of[WHOLE].winner for of in mine]
        model = {"background_independence": np.array(independent, dtype=np.float64)}
        if isinstance(self._model, RegionGroupingModel):
            model |= self._cover(self._model, sights, answers)
        return Values(keys, methods, model)

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

    @torch.no_grad()
    def _cover(
        self, model: RegionGroupingModel, sights: Sequence[Sight], answers: Mapping[tuple[int, Removed], Answer]
    ) -> dict[str, np.ndarray]:
        """For every true part the discovered part that covers it, and how the contributions fall without it: [N, P]."""
        images = torch.stack([sight.image(WHOLE) for sight in sights]).to(model.dictionary.centers.device)
        assign = self._up(model(images).assign, sights)
        names = sights[0].scene.part_names
        found = {name: np.full((len(sights), len(names)), np.nan) for name in (*COVERING, COVERED_BY)}
        for n, sight in enumerate(sights):
            whole = answers[n, WHOLE].contributions
            assert whole is not None
            for name in sight.parts:
                change = whole - answers[n, frozenset([name])].contributions
                k = int(assign[n].cpu().numpy()[:, sight.masks[name]].mean(1).argmax())
                others = np.abs(np.delete(change, k)).mean() if len(change) > 1 else np.nan
                numbers = (change[k], others, float(np.abs(change).argmax() == k), 1 / len(change), k)
                for key, number in zip(found, numbers, strict=True):
                    found[key][n, names.index(name)] = number
        return found


def covering_by_part(values: Values, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the true parts that were seen, by their names: the figures of ``COVERING``, and their intervals.

    ``pairs`` is the number of images, ``covering`` the discovered part that covers the true one most often.
    """
    by_part, ends = {}, {}
    for p, name in enumerate(names):
        covered_by = values.model[COVERED_BY][:, p]
        counts = Counter(covered_by[~np.isnan(covered_by)].astype(int).tolist())
        if counts:
            own = Values(values.keys, {}, {key.split("/")[1]: values.model[key][:, p] for key in COVERING[:3]})
            figures, ends[name] = own.figures(), own.intervals()
            by_part[name] = figures | {"pairs": counts.total(), "covering": counts.most_common(1)[0][0]}
    return by_part, ends


def _score(sight: Sight, values: np.ndarray, answers: Mapping[Removed, Answer]) -> dict[str, float | np.ndarray]:
    """What a map [rows, columns] of one image is worth."""
    whole = answers[WHOLE]
    fall = {name: whole.logit - answers[frozenset([name])].logit for name in sight.masks}
    parts = sight.parts
    inside = np.array([[values[sight.masks[name]].sum() for name in parts]])
    falls = np.array([[fall[name] for name in parts]])
    ranked = len(parts) >= RANKED
    single_deletion = float(rank_correlation(inside, falls)[0]) if ranked else np.nan

    shares = _shares(sight, values)
    independent = answers[frozenset([SCENERY])].winner == whole.winner
    tells = independent and values.max() > 0
    outside = 1 - sum(shares[name] for name in parts) if tells else np.nan

    needless = {name for name, by in fall.items() if by < NOT_NEEDED * abs(whole.logit)}
    checks = []
    for threshold, (others, important) in zip(THRESHOLDS, _hidden(sight, values), strict=True):
        preserved = answers[others].winner == whole.winner
        deleted = answers[important].winner != whole.winner
        called = {name for name, share in shares.items() if share > threshold}
        undistracted = 1 - len(called & needless) / len(needless) if needless else np.nan
        checks.append((preserved, deleted, undistracted))
    by_threshold = np.array(checks, dtype=np.float64).T
    return {"single_deletion": single_deletion, CHECKS: by_threshold, "outside": outside}


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
