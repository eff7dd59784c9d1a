"""Whether explanations are faithful: the same numbers for every method, into RUN/faithful.json.

Pointing game (``pointing``), deletion and insertion (``curves``), removal of true parts from drawings (``removal``)
and stability (``stability``), each of the class that the model names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.geometry import Window
from pipelines.batches.pillow import show
from pipelines.drawn.redraw import Scene, redraw
from pipelines.drawn.split import DrawnSplit
from pipelines.files import check_file, sha256, write_json
from pipelines.images import open_rgb
from pipelines.peers import Alone, Peers
from pipelines.shards import reader
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from pipelines.shards.samples import Sample
from pipelines.shards.storage import Location, resolve
from rg.attribution.curves import Curves, areas
from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.methods import Method, RandomMaps, factorize, methods
from rg.attribution.pointing import pointing_game
from rg.attribution.removal import Removal, Sight, mean
from rg.attribution.stability import under_noise, under_shift
from rg.config import RunConfig, flatten
from rg.model.build import Model
from rg.model.device import pick_device
from rg.runs import inputs
from rg.runs.agreement import software
from rg.runs.folder import FAITHFUL, WEIGHTS, Classes, check_labelled, load_config, load_model, read_json, read_record
from rg.runs.pieces import Pieces, open_pieces

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """How explanations are measured.

    Attributes:
        images: Number of images, drawn at random from the split; all of them if it has fewer.
        seed: Of that draw, of random maps, of noise and of the factors of DFF.
        steps: In how many steps all pixels are deleted, or inserted.
        blur: Standard deviation of the blur that insertion starts from, as a share of the short side.
        noise: Standard deviation of the noise that a map should withstand, in grey levels.
        integration: Points of the sum of Integrated Gradients.
    """

    images: int = 100
    seed: int = 0
    steps: int = 10
    blur: float = 0.05
    noise: float = 4.0
    integration: int = 16

    def __post_init__(self) -> None:
        for name in ("images", "steps", "integration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        for name in ("blur", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.blur > 0.3:
            raise ValueError(f"blur: expected at most 0.3 of the short side, got {self.blur}")


def faithful(
    run: Path,
    data: Location,
    plain: Path | None = None,
    split: str | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 16,
    device: str = "auto",
    peers: Peers | None = None,
    again: bool = True,
) -> dict[str, Any]:
    """Measures the explanations of a run; writes RUN/faithful.json.

    What was measured lies in RUN/faithful.json.pieces until all is done, so one that was stopped goes on there.

    Args:
        run: Run folder, of region grouping or of a plain network.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        plain: Run folder of a plain network whose explanations are measured, too.
        split: Default: test if there is one, else val.
        protocol: How.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        peers: Processes that call this with the same arguments and share the images; the first writes.
        again: Measure also what faithful.json holds already of the same settings, code and versions.

    Returns:
        What faithful.json holds: errors and shares as fractions, None for what cannot be told. Nothing on other
        processes than the first.

    Raises:
        ValueError: runs, data or split cannot be used, Captum is not installed, or drawn images are drawn differently
            now than when their shards were written.
    """
    protocol, peers = protocol or Protocol(), peers or Alone()
    first = peers.ranks.rank == 0
    folders = [folder for folder in (run, plain) if folder is not None]

    def load() -> tuple[Manifest, list[tuple[Model, RunConfig]]]:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        check([run], data, split)
        manifest = Manifest.load(data)
        loaded = [_load(folder, manifest, device) for folder in folders]
        if plain is not None and loaded[-1][1].model.kind != "plain":
            raise ValueError(f"--plain: expected the run of a plain network, got one of region grouping: {plain}")
        return manifest, loaded

    manifest, loaded = peers.together(load)
    split = split or ("test" if "test" in manifest.splits else "val")
    drawn, reason = _drawn(manifest, split)

    def choose() -> list[str]:
        samples = _choose(data, manifest, split, protocol) if first else []
        if drawn is not None:
            for sample in samples:
                Scene(drawn, sample)  # raises if it cannot be drawn again
        return [sample.key for sample in samples]

    keys = peers.collect(peers.together(choose))[0]
    source = Chosen(data, split, keys, drawn)
    models = [
        {"run": str(folder), "recipe": read_record(folder).get("recipe")}
        | {"weights": sha256(folder / WEIGHTS), "edits": model.edits.to_dict(), "kind": config.model.kind}
        for folder, (model, config) in zip(folders, loaded, strict=True)
    ]
    result = {
        "data": resolve(data),
        "dataset": manifest.dataset,
        "split": split,
        "shards": {split: manifest.split(split).sha256},
        "samples": len(keys),
        "protocol": asdict(protocol),
        "removal": reason or "measured",
    }
    device_type = loaded[0][0].backbone.pixel_mean.device.type
    configs = [flatten(asdict(config)) for _, config in loaded]
    weights = [model["weights"] for model in models]
    decisive = {name: value for name, value in result.items() if name != "data"}
    edits = [model["edits"] for model in models]
    decisive |= {
        "weights": weights,
        "edits": edits,
        "configs": configs,
        "batch_size": batch_size,
        "device": device_type,
    }
    text = json.dumps({**decisive, **software()}, sort_keys=True)
    digest = {"settings_sha256": hashlib.sha256(text.encode()).hexdigest()}
    there = not again and (run / FAITHFUL).is_file() and read_json(run / FAITHFUL).items() >= digest.items()
    if peers.collect(there)[0]:
        logger.info("%s: measured already", run)
        return read_json(run / FAITHFUL) if first else {}
    with open_pieces(run / f"{FAITHFUL}.pieces", decisive, peers) as pieces:
        measured = [
            _measure(f"{config.model.kind}-{number}", model, config, source, protocol, batch_size, pieces)
            for number, (model, config) in enumerate(loaded)
        ]

        def write() -> dict[str, Any]:
            if not pieces.first:
                return {}
            rows = [model | figures for model, figures in zip(models, measured, strict=True)]
            write_json(run / FAITHFUL, result | {"models": rows} | digest)
            return result | {"models": rows} | digest

        return peers.together(write)


def check(runs: Sequence[Path], data: Location, split: str | None = None) -> None:
    """Refuse what ``faithful`` could not use, or write to, before the first of several runs is measured.

    Raises:
        ValueError: a run is none, has other classes or cannot be written to; or a file of the split is missing.
    """
    manifest = Manifest.load(data)
    for run in runs:
        _, classes = load_config(run)
        classes.check(Classes.of(manifest), "--data", run)
        read_record(run)
        check_file(run / FAITHFUL, "run")
    Reader(data, split or ("test" if "test" in manifest.splits else "val")).lost()


def _load(run: Path, manifest: Manifest, device: str) -> tuple[Model, RunConfig]:
    model, config, classes = load_model(run)
    check_labelled(run, config)
    classes.check(Classes.of(manifest), "--data", run)
    return model.requires_grad_(False).to(pick_device(device)).to(memory_format=torch.channels_last), config


def _choose(data: Location, manifest: Manifest, split: str, protocol: Protocol) -> list[Sample]:
    """Samples drawn at random from a split."""
    total = manifest.split(split).samples
    random = np.random.default_rng(protocol.seed)
    chosen = {*random.choice(total, min(protocol.images, total), replace=False).tolist()}
    return [sample for number, sample in enumerate(reader.read(data, split)) if number in chosen]


def _drawn(manifest: Manifest, split: str) -> tuple[DrawnSplit | None, str]:
    """The split to draw again; or None, and why not."""
    try:
        return redraw(manifest, split), ""
    except ValueError as error:
        return None, str(error)


@dataclass(frozen=True)
class Chosen:
    """The samples that are measured: keys of a split, and that split to draw again, if it was drawn."""

    data: Location
    split: str
    keys: Sequence[str]
    drawn: DrawnSplit | None

    def chunks(self, size: int) -> list[Sequence[str]]:
        """The keys, so many at a time."""
        return [self.keys[start : start + size] for start in range(0, len(self.keys), size)]

    def read(self, keys: Sequence[str]) -> list[Sample]:
        """Samples by their keys."""
        return list(reader.read(self.data, self.split, keys))


def _measure(
    name: str,
    model: Model,
    config: RunConfig,
    source: Chosen,
    protocol: Protocol,
    batch_size: int,
    pieces: Pieces,
) -> dict[str, Any]:
    """What faithful.json holds of one model; nothing on other processes than the first."""
    chunks, images = source.chunks(batch_size), len(source.keys)

    def factors(_: Sequence[int], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
        def pixels() -> Iterator[Tensor]:
            for chunk in chunks:
                yield _batch(model, config, source.read(chunk)).images
                advance(len(chunk))

        yield factorize(model, pixels(), images, config.model.grouping.num_parts, protocol.seed).components

    files = pieces.make(f"{name}-components", [images], factors, lambda found, out: np.save(out, found))
    components = pieces.peers.collect([np.load(file) for file in files])[0][0]
    compared = methods(model, DeepFeatureFactorization.of(components), protocol.integration, protocol.seed)

    def work(numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            samples = source.read(chunks[number])
            account, removal = _Account(model, compared, protocol), Removal(model, batch_size)
            batch = _batch(model, config, samples)
            classes, maps = account.add(batch, number)
            if source.drawn is not None:
                scenes = [Scene(source.drawn, sample) for sample in samples]
                removal.add(list(map(Sight, scenes, batch.windows)), classes, maps)
            advance(len(samples))
            yield {"account": account.state(), "removal": removal.state()}

    def write(state: dict[str, Any], out: IO[bytes]) -> None:
        out.write(json.dumps(state).encode())

    account, removal = _Account(model, compared, protocol), Removal(model, batch_size)
    for file in pieces.make(name, list(map(len, chunks)), work, write):
        state = json.loads(file.read_bytes())
        account.take(state["account"])
        removal.take(state["removal"])
    if not pieces.first:
        return {}
    result = account.results()
    if source.drawn is not None:
        by_method, model_results = removal.results()
        result |= model_results
        for key, values in by_method.items():
            result["methods"][key] |= values
    return result


@dataclass(frozen=True)
class _Batch:
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


def _batch(model: Model, config: RunConfig, samples: Sequence[Sample]) -> _Batch:
    geometry = inputs.evaluation_geometry(config.input)
    windows = [geometry.central_window(sample.width, sample.height) for sample in samples]
    shown = [show(open_rgb(sample.jpeg), window) for sample, window in zip(samples, windows, strict=True)]
    images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)  # channels_last, as the model is
    return _Batch(samples, windows, images.to(model.backbone.pixel_mean.device))


class _Account:
    """What the methods are worth on the images so far, but for the removal of parts."""

    def __init__(self, model: Model, compared: Mapping[str, Method], protocol: Protocol) -> None:
        self._model, self._compared, self._protocol = model, compared, protocol
        self._defined = {key: method.explain for key, method in compared.items() if method.explain}
        self._values: dict[str, dict[str, list[float]]] = {key: defaultdict(list) for key in self._defined}
        self._ends: dict[str, list[float]] = defaultdict(list)
        self._right: list[bool] = []

    def add(self, batch: _Batch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
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
        self._right += [sample.label == c for sample, c in zip(batch.samples, classes.tolist(), strict=True)]
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
        return classes, maps

    def state(self) -> dict[str, Any]:
        """What was taken note of so far, as JSON values."""
        return {"values": self._values, "ends": self._ends, "right": self._right}

    def take(self, state: Mapping[str, Any]) -> None:
        """Take note of what another one has taken note of, of images that follow those of this one."""
        for key, by_name in state["values"].items():
            for name, values in by_name.items():
                self._values[key][name] += values
        for name, values in state["ends"].items():
            self._ends[name] += values
        self._right += state["right"]

    def results(self) -> dict[str, Any]:
        """Means over the images."""
        return {
            "accuracy": None if self._model.multi_label else mean(self._right),
            "probability": {name: mean(values) for name, values in self._ends.items()},
            "methods": {
                key: {name: mean(values) for name, values in by_name.items()} for key, by_name in self._values.items()
            },
            "undefined": {key: method.undefined for key, method in self._compared.items() if method.undefined},
        }

    @torch.no_grad()
    def _probability(self, images: Tensor, classes: Tensor) -> Tensor:
        """Of one class of every image: [N]."""
        logits = self._model(images).logits
        probabilities = torch.sigmoid(logits) if self._model.multi_label else torch.softmax(logits, 1)
        return probabilities.gather(1, classes[:, None])[:, 0]
