"""What a model says when a true part of a drawn object is not there, and whether its explanations knew.

The protocol of FunnyBirds (``funnybirds``) on our own drawings, of which things in the background can go, too.

Parts that cannot be seen take no part. The attribution in a part is that inside its outline and, as in the paper, a few
pixels around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.batches.pillow import show
from pipelines.drawn.scenes import SCENERY
from rg.attribution.funnybirds import (
    NEEDED,
    WHOLE,
    ClassParts,
    Importance,
    Removed,
    Subject,
    background_independence,
    removals,
    rivals,
    scores,
)
from rg.attribution.stability import Explain
from rg.attribution.values import COVERED_BY, Values
from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel

AROUND = 2 / 256  # of the short side, that the outline of a part is widened by
COVERING = tuple(
    f"covering/{name}" for name in ("fall", "others", "most", "chance", "counts", "half", "most_where_both")
)
BARE: Removed = frozenset([SCENERY])


class Scene(Protocol):
    """An image of which parts and things can be taken away."""

    @property
    def label(self) -> int:
        """The class that it shows."""

    @property
    def part_names(self) -> Sequence[str]:
        """Of all parts, seen or not."""

    @property
    def class_parts(self) -> Sequence[ClassParts]:
        """Of each class the parts in which classes differ, and how they look."""

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]."""

    @property
    def bare(self) -> bool:
        """Whether all ``SCENERY`` can be taken away at once."""

    @property
    def parts(self) -> Mapping[str, np.ndarray]:
        """The parts that can be seen, and where: bool [H, W]."""

    @property
    def things(self) -> Mapping[str, np.ndarray]:
        """The things in the background, and where: bool [H, W]."""

    def without(self, hidden: Collection[str]) -> np.ndarray:
        """The image without some parts and things: uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Sight:
    """What a model sees of a scene: the scene through the window of the model."""

    scene: Scene
    window: Window

    def image(self, hidden: Removed) -> Tensor:
        """uint8 [3, rows, columns]."""
        pixels = self.scene.without(hidden) if hidden else self.scene.pixels
        return torch.from_numpy(np.array(show(Image.fromarray(pixels), self.window))).permute(2, 0, 1)

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Where the parts that are seen are: bool [rows, columns] each."""
        seen = {name: self.window.move_part_map(mask) for name, mask in self.scene.parts.items()}
        return {name: mask for name, mask in seen.items() if mask.any()}

    @cached_property
    def things(self) -> dict[str, np.ndarray]:
        """Where the things in the background are, but for those outside the window: bool [rows, columns] each."""
        moved = {name: (mask, self.window.move_part_map(mask)) for name, mask in self.scene.things.items()}
        return {name: seen for name, (mask, seen) in moved.items() if seen.any() or not mask.any()}

    @cached_property
    def near(self) -> dict[str, np.ndarray]:
        """Where parts and things are, and a few pixels around them: bool [rows, columns] each."""
        masks = {**self.parts, **self.things}
        if not masks:
            return {}
        reach = round(AROUND * min(self.window.rows, self.window.columns))
        stacked = torch.from_numpy(np.stack(list(masks.values()))).float()
        wide = F.max_pool2d(stacked[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0
        return dict(zip(masks, wide.numpy(), strict=True))

    def importance(self, values: np.ndarray) -> Importance:
        """What a map [rows, columns] says."""
        return Importance(
            {name: float(values[mask].sum(dtype=np.float64)) for name, mask in self.near.items()},
            float(values.sum(dtype=np.float64)),
        )


@dataclass(frozen=True)
class Answer:
    """What the model says of an image: logits [C], and contributions [K] to that of the class of the whole, if any."""

    logits: np.ndarray
    contributions: np.ndarray | None


class Removal:
    """Takes parts away from images, and tells what the model and its explanations made of it.

    Args:
        model: In evaluation mode.
        explainers: Method -> images [N, 3, H, W] in 0..255 and classes [N] -> maps [N, h, w].
        batch_size: Images at once.
    """

    def __init__(self, model: Model, explainers: Mapping[str, Explain], batch_size: int) -> None:
        self._model, self._explainers, self._batch_size = model, explainers, batch_size

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
        named = classes.tolist()
        up = {key: self._up(of, sights) for key, of in maps.items()}
        said = {
            key: [{own: sight.importance(values)} for sight, own, values in zip(sights, named, of, strict=True)]
            for key, of in up.items()
        }
        pairs = [rivals(sight.scene.class_parts, sight.scene.label, list(sight.parts)) for sight in sights]
        true = [sight.scene.label for sight in sights]
        others = [[pair.rivals[k] if pair else own for pair, own in zip(pairs, named, strict=True)] for k in (0, 1)]
        for labels in (true, *others):
            if labels == named:
                continue
            for key, of in self._explain(sights, torch.tensor(labels, device=classes.device)).items():
                for by_label, sight, label, values in zip(said[key], sights, labels, of, strict=True):
                    by_label.setdefault(label, sight.importance(values))

        answers: dict[tuple[int, Removed], Answer] = {}
        subjects = [
            Subject(
                sight.scene.label,
                own,
                list(sight.parts),
                list(sight.things),
                sight.scene.class_parts,
                lambda removed, n=n: answers[n, removed].logits,  # type: ignore[misc]
            )
            for n, (sight, own) in enumerate(zip(sights, named, strict=True))
        ]
        wanted = [
            removals(subject, (by_image[n][own] for by_image in said.values()))
            for n, (subject, own) in enumerate(zip(subjects, named, strict=True))
        ]
        bare = [{BARE} if sight.scene.bare else set() for sight in sights]
        asked = [sorted(own | more, key=sorted) for own, more in zip(wanted, bare, strict=True)]
        answers |= self._ask(sights, classes, asked)

        stays = [float(answers[n, BARE].logits.argmax() == own) if bare[n] else np.nan for n, own in enumerate(named)]
        methods = {}
        for key, by_image in said.items():
            found = [
                scores(subject, by_label.__getitem__) for subject, by_label in zip(subjects, by_image, strict=True)
            ]
            methods[key] = {name: np.array([of[name] for of in found]) for name in found[0]}
            outside = list(map(_outside, sights, up[key]))
            methods[key]["outside"] = np.where(np.array(stays) == 1, outside, np.nan)
        things = [background_independence(subject) for subject in subjects]
        independent = np.full((len(sights), max(map(len, things))), np.nan)
        for row, of in zip(independent, things, strict=True):
            row[: len(of)] = of
        model = {"background_independence": np.array(stays), "thing_independence": independent}
        if isinstance(self._model, RegionGroupingModel):
            model |= self._cover(self._model, sights, classes, answers)
        return Values(keys, methods, model)

    def _explain(self, sights: Sequence[Sight], labels: Tensor) -> dict[str, np.ndarray]:
        """Maps of a class of each image [N, rows, columns] by every method."""
        images = torch.stack([sight.image(WHOLE) for sight in sights]).to(labels.device)
        return {key: self._up(explain(images, labels), sights) for key, explain in self._explainers.items()}

    @staticmethod
    def _up(maps: Tensor, sights: Sequence[Sight]) -> np.ndarray:
        """Maps [N, h, w] at the size of the images."""
        size = sights[0].window.rows, sights[0].window.columns
        return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0].cpu().numpy()

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
            answers |= dict(zip(chunk, map(Answer, output.logits.double().cpu().numpy(), contributions), strict=True))
        return answers

    @torch.no_grad()
    def _cover(
        self,
        model: RegionGroupingModel,
        sights: Sequence[Sight],
        classes: Tensor,
        answers: Mapping[tuple[int, Removed], Answer],
    ) -> dict[str, np.ndarray]:
        """For every true part the discovered part that covers it, and how the contributions fall without it: [N, P].

        A true part counts if the logit falls by ``NEEDED`` of it. One that does not, or that no discovered part covers
        by half, asks for what there is not.
        """
        images = torch.stack([sight.image(WHOLE) for sight in sights]).to(model.dictionary.centers.device)
        assign = model(images).assign
        names = sights[0].scene.part_names
        found = {name: np.full((len(sights), len(names)), np.nan) for name in (*COVERING, COVERED_BY)}
        for n, (sight, named) in enumerate(zip(sights, classes.tolist(), strict=True)):
            whole, maps = answers[n, WHOLE], self._up(assign[n], sights)
            assert whole.contributions is not None
            for name in sight.parts:
                without = answers[n, frozenset([name])]
                change = whole.contributions - without.contributions
                shares = maps[:, sight.parts[name]].mean(1)
                k = int(shares.argmax())
                others = np.abs(np.delete(change, k)).mean() if len(change) > 1 else np.nan
                most = float(np.abs(change).argmax() == k)
                counts = whole.logits[named] - without.logits[named] >= NEEDED * abs(whole.logits[named])
                half = shares[k] > 0.5
                asked = most if counts and half else np.nan
                numbers = (change[k], others, most, 1 / len(change), float(counts), float(half), asked, k)
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
            own = Values(
                values.keys,
                {},
                {key.split("/")[1]: values.model[key][:, p] for key in COVERING if key != "covering/chance"},
            )
            figures, ends[name] = own.figures(), own.intervals()
            by_part[name] = figures | {"pairs": counts.total(), "covering": counts.most_common(1)[0][0]}
    return by_part, ends


def _outside(sight: Sight, values: np.ndarray) -> float:
    """Share of the positive part of a map [rows, columns] outside of all parts; nan without any."""
    positive = values.clip(min=0)
    total = positive.sum()
    inside = sum(positive[mask].sum() for mask in sight.parts.values())
    return float(1 - inside / total) if total > 0 else float("nan")
