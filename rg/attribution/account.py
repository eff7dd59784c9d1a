"""What every method is worth on some images, but for the removal of parts; a measure is an entry in ``Account.add``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.shards.samples import Sample
from rg.attribution.columns import other_maps, perturbation
from rg.attribution.curves import Curves, areas
from rg.attribution.maps import integrated_gradients
from rg.attribution.methods import Method, RandomMaps
from rg.attribution.pointing import pointing_game
from rg.attribution.protocol import Protocol
from rg.attribution.stability import under_noise, under_shift
from rg.attribution.values import Values
from rg.model.build import Model


@dataclass(frozen=True)
class Batch:
    """Some samples, the windows in which the model sees them, and what it sees: uint8 [N, 3, rows, columns]."""

    samples: Sequence[Sample]
    windows: list[Window]
    images: Tensor

    def boxes(self) -> list[np.ndarray]:
        """Boxes [B, 4] in pixels of the images."""
        none = np.empty((0, 4))
        return [
            window.move_boxes(none if sample.boxes is None else sample.boxes.astype(float))
            for sample, window in zip(self.samples, self.windows, strict=True)
        ]


class Account:
    """What the methods are worth on the images so far, but for the removal of parts."""

    def __init__(self, model: Model, compared: Mapping[str, Method], protocol: Protocol) -> None:
        self._model, self._compared, self._protocol = model, compared, protocol
        self._defined = {key: method.explain for key, method in compared.items() if method.explain}
        points = max(1, protocol.integration // 4)  # each map is made a dozen times
        self._coarse = self._defined | {"integrated_gradients": partial(integrated_gradients, model, steps=points)}
        self._values: dict[str, dict[str, list[float]]] = {key: defaultdict(list) for key in self._defined}
        self._ends: dict[str, list[float]] = defaultdict(list)
        self._right: list[float] = []

    def add(self, batch: Batch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes note of a batch of that number.

        Returns:
            The classes that the model names [N], and their maps [N, h, w] by every method.
        """
        images = batch.images
        for explain in self._defined.values():
            if isinstance(explain, RandomMaps):
                explain.begin(number)
        with torch.no_grad():
            classes = self._model(images).logits.argmax(1)
        for sample, named in zip(batch.samples, classes.tolist(), strict=True):
            self._right.append(np.nan if self._model.multi_label else float(sample.label == named))
        maps = {key: explain(images, classes) for key, explain in self._defined.items()}
        blur, grey = self._protocol.blur * min(images.shape[2:]), self._model.backbone.pixel_mean.flatten()
        curves = Curves(self._probability, images, classes, grey, blur, self._protocol.steps, self._protocol.seed)
        for name, values in curves.ends.items():
            self._ends[name] += values.tolist()
        for key, explain in self._defined.items():
            scores, explained = self._values[key], maps[key]
            hits = pointing_game(explained, batch.boxes(), (images.shape[2], images.shape[3]))
            scores["pointing_error"] += [np.nan if hit is None else float(not hit) for hit in hits]
            scores["deletion"] += areas(curves.deletion(explained)).tolist()
            scores["insertion"] += areas(curves.insertion(explained)).tolist()
            noisy = under_noise(explain, images, classes, explained, self._protocol.noise, self._protocol.seed)
            scores["noise_stability"] += noisy.tolist()
            shifted = under_shift(explain, images, classes, explained, self._model.backbone.stride)
            scores["shift_stability"] += shifted.tolist()
        seed = (self._protocol.seed, number)
        for key, column, measured in (
            *perturbation(self._model, self._probability, images, classes, maps, curves, seed),
            *other_maps(self._model, self._coarse, images, classes, seed),
        ):
            self._values[key][column] += measured.tolist()
        return classes, maps

    def values(self, keys: Sequence[str]) -> Values:
        """What was taken note of, of images with these keys."""
        model = {f"probability/{name}": np.array(values) for name, values in self._ends.items()}
        model["accuracy"] = np.array(self._right)
        return Values(
            keys,
            {key: {name: np.array(of) for name, of in by_name.items()} for key, by_name in self._values.items()},
            model,
        )

    @torch.no_grad()
    def _probability(self, images: Tensor, classes: Tensor) -> Tensor:
        """Of one class of every image: [N]."""
        logits = self._model(images).logits
        probabilities = torch.sigmoid(logits) if self._model.multi_label else torch.softmax(logits, 1)
        return probabilities.gather(1, classes[:, None])[:, 0]
