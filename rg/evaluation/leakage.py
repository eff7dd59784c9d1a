"""Whether answers depend on what surrounds the object, into RUN/leakage.json.

All pixels that are farther than a margin from the object become others: another scenery, noise, or grey. What a model
says of the object alone stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.batches.pillow import show
from pipelines.drawn.redraw import Scene
from pipelines.drawn.split import DrawnSplit
from pipelines.files import check_file, sha256, write_json
from pipelines.peers import Alone, Peers
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from pipelines.shards.samples import Sample
from pipelines.shards.storage import Location, resolve
from rg.attribution.account import Batch
from rg.attribution.faithful import Chosen, draw_samples, drawn_split, make_batch, model_for
from rg.attribution.surroundings import ask, changed, movement, surroundings
from rg.config import RunConfig, flatten
from rg.evaluation.intervals import PerImage, intervals
from rg.evaluation.leakage_protocol import Protocol
from rg.model.build import Model
from rg.model.maps import part_map
from rg.model.plain import PlainModel
from rg.runs.folder import LEAKAGE, WEIGHTS, read_record
from rg.runs.pieces import open_pieces

CHANGES = ("scenery", "noise", "grey")
WHOLE = "whole"

Values = dict[str, list[float]]  # change/margin/measure -> a value of every image


def leakage(
    run: Path,
    data: Location,
    split: str | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 16,
    device: str = "auto",
    peers: Peers | None = None,
) -> dict[str, Any]:
    """Measures how far the answers of a run move with the surroundings of the object; writes RUN/leakage.json.

    What was measured lies in RUN/leakage.json.pieces until all is done, so one that was stopped goes on there.

    Args:
        run: Run folder, of region grouping or of a plain network.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        protocol: How.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        peers: Processes that call this with the same arguments and share the images; the first writes.

    Returns:
        What leakage.json holds. Nothing on other processes than the first.

    Raises:
        ValueError: run, data or split cannot be used; there are no masks and no parts; or drawn images are drawn
            differently now than when their shards were written.
    """
    protocol, peers = protocol or Protocol(), peers or Alone()
    first = peers.ranks.rank == 0

    def prepare() -> tuple[Manifest, Model, RunConfig]:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        check_file(run / LEAKAGE, "run")
        manifest = Manifest.load(data)
        Reader(data, split or _default(manifest)).lost()
        return manifest, *model_for(run, manifest, device)

    manifest, model, config = peers.together(prepare)
    split = split or _default(manifest)
    drawn, _ = drawn_split(manifest, split)

    def draw() -> tuple[list[str], bool]:
        samples = draw_samples(data, manifest, split, protocol.images, protocol.seed) if first else []
        if first and len(samples) < 2:
            raise ValueError(f"--split: expected at least 2 images, got {len(samples)} in {split}")
        if drawn is not None:
            for sample in samples:
                Scene(drawn, sample)  # raises if it cannot be drawn again
        masks = all(sample.part_map is not None for sample in samples)
        return [sample.key for sample in samples], _uses_masks(protocol, masks, model)

    keys, masks = peers.collect(peers.together(draw))[0]
    measure = Measure(model, config, Chosen(data, split, keys, None), drawn, protocol, masks)
    described = {
        "data": resolve(data),
        "dataset": manifest.dataset,
        "split": split,
        "shards": {split: manifest.split(split).sha256},
        "samples": len(keys),
        "protocol": asdict(protocol),
        "object": "masks" if masks else "parts",
        "recipe": read_record(run).get("recipe"),
        "weights": sha256(run / WEIGHTS),
        "kind": config.model.kind,
    }
    decisive = {name: value for name, value in described.items() if name != "data"}
    place = model.backbone.pixel_mean.device.type
    decisive |= {"config": flatten(asdict(config)), "batch_size": batch_size, "device": place}
    with open_pieces(run / f"{LEAKAGE}.pieces", decisive, peers) as pieces:
        numbers = [range(start, min(start + batch_size, len(keys))) for start in range(0, len(keys), batch_size)]

        def work(own: Sequence[int], advance: Callable[[int], None]) -> Iterator[Values]:
            for number in own:
                yield measure(numbers[number])
                advance(len(numbers[number]))

        def write(values: Values, out: IO[bytes]) -> None:
            out.write(json.dumps(values).encode())

        files = pieces.make("leakage", list(map(len, numbers)), work, write)

        def finish() -> dict[str, Any]:
            if not pieces.first:
                return {}
            parts = [json.loads(file.read_bytes()) for file in files]
            values = {name: [value for part in parts for value in part[name]] for name in parts[0]}
            result = described | _figures(values) | {"images": {"keys": keys} | _nested(values)}
            write_json(run / LEAKAGE, result)
            return result

        return peers.together(finish)


def _default(manifest: Manifest) -> str:
    return "test" if "test" in manifest.splits else "val"


def _uses_masks(protocol: Protocol, masks: bool, model: Model) -> bool:
    """Whether the object is that of the masks of the data, or else that of the parts of the model."""
    wants_masks = protocol.object == "masks" or (protocol.object == "auto" and masks)
    if wants_masks and not masks:
        raise ValueError("--object: expected auto or parts, as there are images without a mask, got masks")
    if not wants_masks and isinstance(model, PlainModel):
        got = f"{protocol.object} and {'' if masks else 'no '}masks"
        raise ValueError(f"--object: expected masks in the data for a plain network, which has no parts, got {got}")
    return wants_masks


class Measure:
    """Measures some of the images that were chosen, by their numbers among them."""

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        source: Chosen,
        drawn: DrawnSplit | None,
        protocol: Protocol,
        masks: bool,
    ) -> None:
        self._model, self._config, self._source, self._drawn = model, config, source, drawn
        self._protocol, self._masks = protocol, masks
        order = np.random.default_rng(protocol.seed).permutation(len(source.keys))
        self._lender = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))

    def __call__(self, numbers: Sequence[int]) -> Values:
        """Values of images: change/margin/measure, and answers to the whole images under ``WHOLE``."""
        samples, lenders = (
            self._source.read([self._source.keys[number] for number in chosen])
            for chosen in (numbers, [self._lender[number] for number in numbers])
        )
        batch = make_batch(self._model, self._config, samples)
        objects = self._objects(batch)
        before = ask(self._model, batch.images)
        size = np.abs(before.contributions).mean(1) if before.contributions is not None else None
        values: Values = {
            f"{WHOLE}/accuracy": _right(before.logits, samples),
            f"{WHOLE}/contribution": [np.nan] * len(samples) if size is None else size.tolist(),
        }
        others = {
            "scenery": self._scenery(lenders),
            "noise": self._noise(numbers, batch.images),
            "grey": self._grey(batch.images),
        }
        for margin in self._protocol.margins:
            where = surroundings(objects, margin)
            share = where.mean((1, 2))
            for name in CHANGES:
                images = changed(batch.images, others[name], where)
                after = ask(self._model, images, before.classes)
                moved = movement(before, after, self._model.multi_label)
                moved |= {"accuracy": np.array(_right(after.logits, samples)), "changed": share}
                for measure, found in moved.items():
                    values[f"{name}/{margin}/{measure}"] = np.where(share > 0, found, np.nan).tolist()
        return values

    def _objects(self, batch: Batch) -> np.ndarray:
        """Where the object is, bool [N, H, W]."""
        if self._masks:
            maps = [sample.part_map for sample in batch.samples if sample.part_map is not None]
            moved = [window.move_part_map(own) for own, window in zip(maps, batch.windows, strict=True)]
            return np.stack(moved) > 0
        assert not isinstance(self._model, PlainModel)
        with torch.no_grad():
            assign = self._model(batch.images).assign.float()
        strongest = part_map(assign, (batch.images.shape[2], batch.images.shape[3]))
        return ~self._model.background[strongest].cpu().numpy()

    def _scenery(self, lenders: Sequence[Sample]) -> Tensor:
        """Images without their objects: drawn again without, or with grey in their place. uint8 [N, 3, H, W]."""
        batch = make_batch(self._model, self._config, lenders)
        if self._drawn is None:
            return torch.where(torch.as_tensor(self._objects(batch))[:, None], self._grey(batch.images), batch.images)
        parts = self._drawn.part_names
        empty = [Image.fromarray(Scene(self._drawn, sample).without(parts)) for sample in lenders]
        shown = np.stack([show(image, window) for image, window in zip(empty, batch.windows, strict=True)])
        return torch.from_numpy(shown).permute(0, 3, 1, 2)

    def _noise(self, numbers: Sequence[int], images: Tensor) -> Tensor:
        """Independent uniform pixels that depend on the number of the image alone."""
        streams = [np.random.default_rng([self._protocol.seed, number]) for number in numbers]
        noise = np.stack([stream.integers(0, 256, images.shape[1:], np.uint8) for stream in streams])
        return torch.from_numpy(noise)

    def _grey(self, images: Tensor) -> Tensor:
        """The mean pixel of the backbone's training data."""
        return self._model.backbone.pixel_mean.round().to(torch.uint8).expand_as(images)


def _right(logits: np.ndarray, samples: Sequence[Sample]) -> list[float]:
    """Whether the class is named rightly, or the share of the attributes that are called rightly."""
    labels = np.array([sample.label for sample in samples])
    right = logits.argmax(1) == labels if labels.ndim == 1 else ((logits > 0) == labels).mean(1)
    return right.astype(np.float64).tolist()


def _figures(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean, 95 % interval and number of images of all that was measured, by change and margin."""
    samples = PerImage()
    for name, column in values.items():
        samples.mean(name, np.array(column))
    means, ends = samples.figures(), intervals(samples)
    figures = {
        name: {"mean": means[name], "interval": ends.get(name), "images": int(np.isfinite(column).sum())}
        for name, column in values.items()
    }
    return _nested(figures)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``a/b/c`` -> a -> b -> c."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        place = tree
        for step in above:
            place = place.setdefault(step, {})
        place[last] = [None if np.isnan(entry) else entry for entry in value] if isinstance(value, list) else value
    return tree
