"""Whether explanations are faithful: the same numbers for every method, into RUN/faithful.json, and image by image into
RUN/faithful_images.npz.

Pointing game (``pointing``), deletion and insertion (``curves``), removal of true parts from drawings (``removal``),
stability (``stability``), perturbation and randomisation (``columns``), each of the class that the model names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.pillow import show
from pipelines.datasets.interventions import Interventions
from pipelines.drawn.redraw import Scene as DrawnScene
from pipelines.drawn.redraw import redraw
from pipelines.drawn.split import DrawnSplit
from pipelines.files import atomic_write, check_file, sha256, write_json
from pipelines.images import open_rgb
from pipelines.peers import Alone, Peers
from pipelines.shards import reader
from pipelines.shards.manifest import Manifest
from pipelines.shards.reader import Reader
from pipelines.shards.samples import Sample
from pipelines.shards.storage import Location, resolve
from rg.attribution.account import Account, Batch
from rg.attribution.factorization import DeepFeatureFactorization
from rg.attribution.methods import BASELINES, factorize, methods
from rg.attribution.protocol import Protocol
from rg.attribution.randomization import survivors
from rg.attribution.removal import Removal, Scene, Sight, covering_by_part
from rg.attribution.values import Values, load_values, save_values
from rg.config import RunConfig, flatten
from rg.model.build import Model
from rg.model.device import pick_device
from rg.runs import inputs
from rg.runs.agreement import software
from rg.runs.folder import (
    FAITHFUL,
    FAITHFUL_IMAGES,
    WEIGHTS,
    Classes,
    check_labelled,
    load_config,
    load_model,
    read_json,
    read_record,
)
from rg.runs.pieces import Pieces, open_pieces

logger = logging.getLogger(__name__)

Scenes = Callable[[Sample], Scene]


def faithful(
    run: Path,
    data: Location,
    plain: Path | None = None,
    split: str | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 16,
    device: str = "auto",
    interventions: Path | None = None,
    peers: Peers | None = None,
    again: bool = True,
) -> dict[str, Any]:
    """Measures the explanations of a run; writes RUN/faithful.json and RUN/faithful_images.npz.

    What was measured lies in RUN/faithful.json.pieces until all is done, so one that was stopped goes on there.

    Args:
        run: Run folder, of region grouping or of a plain network.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        plain: Run folder of a plain network whose explanations are measured, too.
        split: Default: test if there is one, else val.
        protocol: How.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        interventions: Folder of FunnyBirds as published, if the shards are of it: its images without parts.
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
        loaded = [model_for(folder, manifest, device) for folder in folders]
        if plain is not None and loaded[-1][1].model.kind != "plain":
            raise ValueError(f"--plain: expected the run of a plain network, got one of region grouping: {plain}")
        return manifest, loaded

    manifest, loaded = peers.together(load)
    split = split or ("test" if "test" in manifest.splits else "val")
    scenes, reason = peers.together(lambda: _scenes(manifest, split, interventions))

    def choose() -> list[str]:
        samples = draw_samples(data, manifest, split, protocol.images, protocol.seed) if first else []
        if scenes is not None:
            for sample in samples:
                scenes(sample)  # raises if no part can be taken away
        return [sample.key for sample in samples]

    keys = peers.collect(peers.together(choose))[0]
    source = Chosen(data, split, keys, scenes)
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
    files = (run / FAITHFUL, run / FAITHFUL_IMAGES)
    there = not again and all(file.is_file() for file in files) and read_json(files[0]).items() >= digest.items()
    if peers.collect(there)[0]:
        logger.info("%s: measured already", run)
        return read_json(run / FAITHFUL) if first else {}
    with open_pieces(run / f"{FAITHFUL}.pieces", decisive, peers) as pieces:
        undefined, measured = [], []
        for number, (model, config) in enumerate(loaded):
            name = f"{config.model.kind}-{number}"
            found, why = _measure(name, model, config, source, protocol, batch_size, pieces)
            measured += found
            undefined.append({"undefined": why})

        def write() -> dict[str, Any]:
            if not pieces.first:
                return {}
            with atomic_write(run / FAITHFUL_IMAGES) as out:
                save_values(measured, out)
            rows = [
                model | _figures(values, manifest.parts) | why
                for model, values, why in zip(models, measured, undefined, strict=True)
            ]
            images = {"images_sha256": sha256(run / FAITHFUL_IMAGES)}
            write_json(run / FAITHFUL, result | {"models": rows} | digest | images)
            return result | {"models": rows} | digest | images

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
        for name in (FAITHFUL, FAITHFUL_IMAGES):
            check_file(run / name, "run")
    Reader(data, split or ("test" if "test" in manifest.splits else "val")).lost()


def model_for(run: Path, manifest: Manifest, device: str) -> tuple[Model, RunConfig]:
    """The model of a run that names the classes of the data, on its device, and the settings of the run."""
    model, config, classes = load_model(run)
    check_labelled(run, config)
    classes.check(Classes.of(manifest), "--data", run)
    return model.requires_grad_(False).to(pick_device(device)).to(memory_format=torch.channels_last), config


def draw_samples(data: Location, manifest: Manifest, split: str, images: int, seed: int) -> list[Sample]:
    """So many samples, drawn at random from a split; all of them if it has fewer."""
    total = manifest.split(split).samples
    random = np.random.default_rng(seed)
    chosen = {*random.choice(total, min(images, total), replace=False).tolist()}
    return [sample for number, sample in enumerate(reader.read(data, split)) if number in chosen]


def drawn_split(manifest: Manifest, split: str) -> tuple[DrawnSplit | None, str]:
    """The split to draw again; or None, and why not."""
    try:
        return redraw(manifest, split), ""
    except ValueError as error:
        return None, str(error)


def _scenes(manifest: Manifest, split: str, interventions: Path | None) -> tuple[Scenes | None, str]:
    """How parts are taken away from samples; or None, and why they cannot be."""
    if interventions is not None:
        if manifest.dataset != "funnybirds":
            raise ValueError(f"--interventions: expected shards of funnybirds, got shards of {manifest.dataset}")
        return Interventions(interventions).scene, ""
    drawn, reason = drawn_split(manifest, split)
    return (None if drawn is None else lambda sample: DrawnScene(drawn, sample)), reason


@dataclass(frozen=True)
class Chosen:
    """The samples that are measured: keys of a split, and how parts are taken away from a sample, if they can be."""

    data: Location
    split: str
    keys: Sequence[str]
    scenes: Scenes | None

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
) -> tuple[list[Values], dict[str, str]]:
    """The values of one model, none on other processes than the first; and why a method is not defined for it."""
    chunks, images = source.chunks(batch_size), len(source.keys)

    def factors(_: Sequence[int], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
        def pixels() -> Iterator[Tensor]:
            for chunk in chunks:
                yield make_batch(model, config, source.read(chunk)).images
                advance(len(chunk))

        yield factorize(model, pixels(), images, config.model.grouping.num_parts, protocol.seed).components

    files = pieces.make(f"{name}-components", [images], factors, lambda found, out: np.save(out, found))
    components = pieces.peers.collect([np.load(file) for file in files])[0][0]
    compared = methods(model, DeepFeatureFactorization.of(components), protocol.integration, protocol.seed)

    explainers = {key: method.explain for key, method in compared.items() if method.explain}

    def work(numbers: Sequence[int], advance: Callable[[int], None]) -> Iterator[Values]:
        for number in numbers:
            samples = source.read(chunks[number])
            batch, account = make_batch(model, config, samples), Account(model, compared, protocol)
            classes, maps = account.add(batch, number)
            values = account.values(chunks[number])
            if source.scenes is not None:
                sights = list(map(Sight, map(source.scenes, samples), batch.windows))
                values = values.beside(
                    Removal(model, explainers, batch_size).values(chunks[number], sights, classes, maps)
                )
            advance(len(samples))
            yield values

    files = pieces.make(name, list(map(len, chunks)), work, lambda values, out: save_values([values], out))
    undefined = {key: method.undefined for key, method in compared.items() if method.undefined}
    return [Values.join([load_values(file)[0] for file in files])] if pieces.first else [], undefined


def _figures(values: Values, parts: Sequence[str]) -> dict[str, Any]:
    """What faithful.json holds of one model: its figures, and their intervals."""
    figures, ends = values.figures(), values.intervals()
    random = {key: of["mprt_full"] for key, of in figures["methods"].items() if key not in BASELINES}
    figures["survivors"] = survivors(random)
    if "thing_independence" in figures:
        figures.setdefault("covering", None)
    if figures.get("covering"):
        by_part, ends_by_part = covering_by_part(values, parts)
        pairs = sum(part["pairs"] for part in by_part.values())
        figures["covering"] |= {"pairs": pairs, "by_part": by_part}
        ends["covering"] |= {"by_part": ends_by_part}
    return figures | {"intervals": ends}


def make_batch(model: Model, config: RunConfig, samples: Sequence[Sample]) -> Batch:
    """Samples as the model sees them in ``evaluate``, on its device."""
    geometry = inputs.evaluation_geometry(config.input)
    windows = [geometry.central_window(sample.width, sample.height) for sample in samples]
    shown = [show(open_rgb(sample.jpeg), window) for sample, window in zip(samples, windows, strict=True)]
    images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)  # channels_last, as the model is
    return Batch(samples, windows, images.to(model.backbone.pixel_mean.device))
