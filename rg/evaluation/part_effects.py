"""What switching off each part of a run would do, and which two could be one: of one pass over a split, RUN/parts.json.

The backbone sees every image once. For every part the classifier is asked once more, without that part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.batches.decoders import pick_decoder
from pipelines.batches.loader import Batch, Loader
from pipelines.files import check_file, sha256, write_json
from pipelines.peers import Alone, Peers
from pipelines.shards.storage import Location, resolve
from rg.config import flatten
from rg.evaluation.passes import Passes
from rg.evaluation.plan import Plan, make_plan
from rg.evaluation.tally import Answers, threshold
from rg.model.build import said
from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.runs import inputs
from rg.runs.folder import PARTS, WEIGHTS, check_labelled
from rg.runs.part_names import Part, read_parts
from rg.runs.pieces import open_pieces

PAIRS = 5  # that are told of


@dataclass
class Effects(Answers):
    """What a model says of the images, with all parts and without each.

    Attributes:
        without: The class int64 [n, K] that is named without each part, or which attributes hold, int8 [n, K, L].
        occurrence: float32 [n, K].
        attention: float32 [n, K], the mean over attributes.
        wins: float32 [n, K], share of the positions at which a part is the strongest.
        contributions: float32 [n, K], to the logit of the class (or attribute) with the largest.
        overlap: [K, K] inner products of the assignment maps, summed over images.
    """

    without: list[Tensor] = field(default_factory=list)
    occurrence: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    wins: list[Tensor] = field(default_factory=list)
    contributions: list[Tensor] = field(default_factory=list)
    overlap: np.ndarray | int = 0

    def add(self, batch: Batch, output: ModelOutput, without: Tensor, contributions: Tensor) -> None:
        """Take note of one batch: logits without each part [n, K, classes], contributions [n, K]."""
        self.answer(batch, output.logits)
        holds = batch.labels.ndim == 2
        self.without.append((without > self.threshold).to(torch.int8) if holds else without.argmax(2))
        self.occurrence.append(output.occurrence)
        self.attention.append(output.attention if output.attention.ndim == 2 else output.attention.mean(1))
        self.wins.append(F.one_hot(output.assign.argmax(1), output.assign.shape[1]).float().mean((1, 2)))
        self.contributions.append(contributions)
        maps = output.assign.transpose(0, 1).flatten(1)
        self.overlap = self.overlap + (maps @ maps.T).numpy()


def part_effects(
    run: Path,
    data: Location,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    peers: Peers | None = None,
) -> tuple[dict[str, Any], Effects]:
    """Look at one split once; writes RUN/parts.json.

    What was looked at lies in RUN/parts.json.pieces until all is done, so one that was stopped goes on there.

    Args:
        run: Run folder.
        data: Folder of shards, or its URL, with the classes that the run was trained on.
        split: Default: test if there is one, else val.
        batch_size: Images at once.
        device: cpu, cuda or auto.
        peers: Processes that call this with the same arguments and share the images; the first writes.

    Returns:
        What parts.json holds, and what was seen of every image. Nothing on other processes than the first.

    Raises:
        ValueError: run, data or split cannot be used, the run has no parts or names no class, or its folder
            cannot be written to.
    """
    peers = peers or Alone()
    plan = peers.together(lambda: _plan(run, data, split, batch_size, device))
    config, place = plan.config, next(plan.model.parameters()).device

    def load(name: str, view: str, pieces: Sequence[range]) -> Loader:
        whole = view == "whole"
        stride = plan.model.backbone.stride
        geometry = inputs.whole_geometry(config.input, stride) if whole else inputs.evaluation_geometry(config.input)
        return inputs.evaluation_loader(config.input, data, name, geometry, batch_size, place, pieces, peers.sharing)

    source = {
        "dataset": plan.manifest.dataset,
        "split": plan.split,
        "shards": {plan.split: plan.manifest.split(plan.split).sha256},
        "weights": sha256(run / WEIGHTS),
        "edits": plan.model.edits.to_dict(),
        "evaluation": flatten(asdict(plan.evaluation)),
    }
    decoder = pick_decoder(inputs.tested_on(config.input, place).decoder, place)
    decisive = {"batch_size": batch_size, "device": place.type, "decoder": decoder, "run": flatten(asdict(config))}
    with open_pieces(run / f"{PARTS}.pieces", source | decisive, peers) as pieces:
        passes = Passes(pieces, data, plan.manifest, load, batch_size, config.input.max_damaged)
        seen = _look(plan, passes)

        def finish() -> tuple[dict[str, Any], Effects]:
            if not pieces.first:
                return {}, seen
            model = plan.model
            assert isinstance(model, RegionGroupingModel)
            parts = read_parts(run, model.background.tolist(), config.model.grouping.background)
            centers = F.normalize(model.dictionary.centers.detach().double().cpu(), dim=1)
            result = {"data": resolve(data)} | source | _figures(seen, parts, (centers @ centers.T).numpy())
            write_json(run / PARTS, result)
            return result, seen

        return peers.together(finish)


def _plan(run: Path, data: Location, split: str | None, batch_size: int, device: str) -> Plan:
    plan = make_plan(run, data, split, batch_size, device, None)
    if not isinstance(plan.model, RegionGroupingModel):
        check_labelled(run, plan.config)
        raise ValueError(f"{run}: holds a plain network, which has no parts to switch off (model.kind)")
    check_file(run / PARTS, "run")
    return plan


def _look(plan: Plan, passes: Passes) -> Effects:
    model, evaluation = plan.model, plan.evaluation
    assert isinstance(model, RegionGroupingModel)
    device = next(model.parameters()).device

    def take(effects: Effects, batch: Batch) -> None:
        images = batch.images.to(device)
        with torch.inference_mode():
            output = said(model, images, batch.places)
            without = model.logits_without_each(output)
            contributions, _ = model.contributions(output, output.logits.argmax(1, keepdim=True))
            if evaluation.flip:  # the mean with mirror images, as ``evaluate`` has it
                mirrored = said(model, images.flip(3), batch.places)
                output = output._replace(logits=(output.logits + mirrored.logits) / 2)
                without = (without + model.logits_without_each(mirrored)) / 2
        effects.add(batch, output.on_host(), without.float().cpu(), contributions[:, 0].float().cpu())

    def new() -> Effects:
        return Effects(plan.manifest, threshold(evaluation))

    return passes.tally("parts", plan.split, evaluation.view, new, take)


def _figures(seen: Effects, parts: Sequence[Part], similarity: np.ndarray) -> dict[str, Any]:
    """Accuracies with and without each part, what classes rest on, and pairs of parts that could be one."""
    labels, predicted = torch.cat(seen.labels).numpy(), torch.cat(seen.predicted).numpy()
    without = torch.cat(seen.without).numpy()
    count = seen.manifest.num_classes
    shares = shares_of_classes(torch.cat(seen.contributions).numpy(), torch.cat(seen.best).numpy(), count)
    means = {
        name: torch.cat(rows).double().mean(0).tolist()
        for name, rows in (("occurrence", seen.occurrence), ("attention", seen.attention), ("area", seen.wins))
    }
    rows = []
    for part in parts:
        answers = without[:, part.index]
        rows.append(
            {"part": part.index, "name": part.name, "background": part.background, "slot": part.slot, "off": part.off}
            | {"merged_into": part.merged_into}
            | {name: values[part.index] for name, values in means.items()}
            | {"accuracy_without": float((answers == labels).mean()), "changed": float((answers != predicted).mean())}
            | {"class_accuracy_without": class_accuracies(answers, labels, count)}
            | {"class_shares": [None if np.isnan(row[part.index]) else float(row[part.index]) for row in shares]}
        )
    return {
        "damaged": seen.damaged,
        "samples": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "classes": list(seen.manifest.classes),
        "multi_label": seen.manifest.multi_label,
        "class_images": [len(labels)] * count if labels.ndim == 2 else np.bincount(labels, minlength=count).tolist(),
        "class_accuracy": class_accuracies(predicted, labels, count),
        "parts": rows,
        "pairs": pairs(np.asarray(seen.overlap), similarity, parts, means),
    }


def class_accuracies(answers: np.ndarray, labels: np.ndarray, count: int) -> list[float | None]:
    """Accuracy of every class, or attribute: [n] or [n, L] each; None for a class without images."""
    right = answers == labels
    if labels.ndim == 2:
        return right.mean(0).tolist()
    images = np.bincount(labels, minlength=count)
    hits = np.bincount(labels, weights=right, minlength=count)
    return [float(hit / number) if number else None for hit, number in zip(hits, images, strict=True)]


def shares_of_classes(contributions: np.ndarray, explained: np.ndarray, count: int) -> np.ndarray:
    """How far classes rest on parts: what a part adds on average, as a share of what all parts add or take.

    Args:
        contributions: [n, K], to the logit of the class that an image got.
        explained: int [n], these classes.
        count: Of classes.

    Returns:
        float64 [classes, K], -1 to 1, of which the sizes sum to 1; nan for a class that no image got.
    """
    sums = np.zeros((count, contributions.shape[1]))
    np.add.at(sums, explained, contributions.astype(np.float64))
    total = np.abs(sums).sum(1, keepdims=True)
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


def pairs(
    overlap: np.ndarray, similarity: np.ndarray, parts: Sequence[Part], means: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """The pairs of parts that lie at the same places most, as candidates to be one.

    Args:
        overlap: [K, K] inner products of the assignment maps, summed over images.
        similarity: [K, K] cosines of the centres.
        parts: Names and kinds; the background slot and merged parts are left out.
        means: Of the split: ``attention`` and ``area`` [K], which add up when two are merged.
    """
    lengths = np.sqrt(np.diag(overlap).clip(min=np.finfo(np.float64).tiny))
    cosines = overlap / np.outer(lengths, lengths)
    open_parts = [part.index for part in parts if not part.slot and part.merged_into is None]
    ranked = sorted(combinations(open_parts, 2), key=lambda pair: -cosines[pair])
    return [
        {"parts": [i, j], "overlap": float(cosines[i, j]), "similarity": float(similarity[i, j])}
        | {name: means[name][i] + means[name][j] for name in ("attention", "area")}
        for i, j in ranked[:PAIRS]
    ]
