"""What training resumes from: folders ``step-00000012`` that are published whole or not at all.

model.safetensors           weights; batch-norm and other running statistics are the mean of all ranks
trained.safetensors         weights that learn, if those in model.safetensors are their moving average
queue.safetensors           occurrences of past steps, if the prior looks at them (loss.prior_queue)
momentum.safetensors        momentum of the optimiser, by the names of the parameters; of AdamW its two moments
rank-00000.safetensors      what one rank alone needs: random states, its own running statistics, counters
manifest.json               step, run, ranks, place in the data, and size and sha256 of every file

Nothing in them depends on the number of ranks but the files of the ranks, which another number does without. Where
hosts share no file system, each keeps all but the files of ranks elsewhere; a checkpoint counts if it is whole on all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from pipelines.files import atomic_write, sha256, write_json
from rg.distributed.group import Group, GroupError
from rg.runs.folder import WEIGHTS

MODEL, TRAINED, MOMENTUM = WEIGHTS, "trained.safetensors", "momentum.safetensors"
QUEUE, MANIFEST = "queue.safetensors", "manifest.json"
SHARED = (MODEL, MOMENTUM)

logger = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole on all ranks.

    Attributes:
        folder: Of the checkpoint.
        manifest: Content of manifest.json.
        same_ranks: It was made by as many ranks as there are now.
        rank: Index of this rank.
    """

    folder: Path
    manifest: dict[str, Any]
    same_ranks: bool
    rank: int

    def model(self) -> Tensors:
        """Weights and buffers that are evaluated."""
        return load_file(self.folder / MODEL)

    def trained(self) -> Tensors:
        """Weights and buffers that learn."""
        return load_file(self.folder / (TRAINED if TRAINED in self.manifest["files"] else MODEL))

    def momentum(self) -> Tensors:
        """What the optimiser kept, see ``Engine.momentum``."""
        return load_file(self.folder / MOMENTUM)

    def queue(self) -> Tensor | None:
        """Occurrences of past steps, None without a queue."""
        return load_file(self.folder / QUEUE)["occurrence"] if QUEUE in self.manifest["files"] else None

    def own(self) -> Tensors:
        """What this rank gave; nothing if the number of ranks is another."""
        return load_file(self.folder / rank_file(self.rank)) if self.same_ranks else {}


def rank_file(rank: int) -> str:
    """Name of the file of one rank."""
    return f"rank-{rank:05d}.safetensors"


def find(folder: Path, group: Group) -> Checkpoint | None:
    """The newest checkpoint that is whole on all ranks, None if there is no checkpoint at all.

    Args:
        folder: Of checkpoints.
        group: All ranks.

    Raises:
        GroupError: there are checkpoints, but none is whole on all ranks.
    """
    by_rank = group.collect(_names(folder))
    damaged: list[str] = []
    for name in sorted({name for names in by_rank for name in names}, reverse=True):
        manifest, damage = _examine(folder / name, group)
        reports = group.collect((group.ranks.name, damage, manifest.get("run")))
        damages = [f"{damage} on {rank}" for rank, damage, _ in reports if damage]
        if not damages and len({run for _, _, run in reports}) > 1:
            damages = ["the hosts hold checkpoints of different runs"]
        if not damages:
            if damaged:
                logger.warning("%s; continuing from %s instead", "; ".join(damaged), name)
            return Checkpoint(folder / name, manifest, manifest["ranks"] == group.ranks.world_size, group.ranks.rank)
        damaged.append(f"checkpoint {name} is damaged ({damages[0]})")
    if damaged:
        raise GroupError(f"{folder}: no checkpoint to resume from is whole: {'; '.join(damaged)}")
    return None


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"step-{'[0-9]' * 8}") if path.is_dir())


def _examine(checkpoint: Path, group: Group) -> tuple[dict[str, Any], str | None]:
    """The manifest, and which file is not as it was written; the first rank of a host reads the large ones whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        files, ranks = manifest["files"], manifest["ranks"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, f"{MANIFEST} is missing or not whole"
    own = rank_file(group.ranks.rank)
    for name in (*SHARED, own) if ranks == group.ranks.world_size else SHARED:
        if name not in files:
            return manifest, f"{name} is missing"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return manifest, f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return manifest, f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        reads_whole = name == own or (name in (*SHARED, TRAINED, QUEUE) and group.ranks.local_rank == 0)
        if reads_whole and sha256(path) != expected["sha256"]:
            return manifest, f"{name} is not the file that was written, its sha256 differs"
    return manifest, None


class Checkpoints:
    """The folder of checkpoints while a run writes them.

    Args:
        folder: Of checkpoints; made if missing.
        group: All ranks.
        keep: Newest checkpoints that stay, beside the one with the best score.
        run: Identity of the run, None for a new one.
        weights: Where the weights of the newest checkpoint are put as well.
    """

    def __init__(self, folder: Path, group: Group, keep: int, run: str | None, weights: Path) -> None:
        self._folder, self._group, self._keep, self._weights = folder, group, keep, weights
        self.run = group.collect(run or uuid.uuid4().hex)[0]
        group.together(lambda: folder.mkdir(parents=True, exist_ok=True))
        self._leader = self._first_on_this_storage()
        if self.leads:
            for left_over in folder.glob(".step-*"):
                shutil.rmtree(left_over)
        group.barrier()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, dict[str, Any], Future[dict[str, Any]]] | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank writes the shared files of its storage."""
        return self._leader == self._group.ranks.rank

    @property
    def busy(self) -> bool:
        """Whether files of this rank are being written."""
        return self._writing is not None and not self._writing[2].done()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was started and not yet settled: the same on all ranks."""
        return self._writing is not None

    @property
    def newest(self) -> str | None:
        """Name of the newest checkpoint that is published, None if there is none."""
        return next(reversed(_names(self._folder)), None)

    def _first_on_this_storage(self) -> int:
        """The lowest rank whose files this rank can see."""
        ranks = self._group.ranks
        mark = f".rank-{self.run}"
        self._group.together((self._folder / f"{mark}-{ranks.rank}").touch)
        leader = next(rank for rank in range(ranks.world_size) if (self._folder / f"{mark}-{rank}").exists())
        self._group.barrier()
        (self._folder / f"{mark}-{ranks.rank}").unlink()
        return leader

    def start(self, step: int, shared: Mapping[str, Tensors], own: Tensors, facts: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, in the background; all ranks call this at the same step.

        Args:
            step: Optimiser steps taken.
            shared: File name -> tensors that are the same on all ranks; those of ranks that do not lead are ignored.
            own: Tensors of this rank, that nobody changes any more.
            facts: Plain values for the manifest, of rank 0.
        """
        assert self._writing is None
        files = {name: tensors for name, tensors in shared.items() if self.leads}
        files[rank_file(self._group.ranks.rank)] = own
        written = self._pool.submit(_write, self._folder / f".{_name(step)}", files)
        self._writing = step, dict(facts), written

    def settle(self) -> bool:
        """Publish what was started, once all ranks have written their files; if any could not, keep what there was.

        Returns:
            Whether it was published.
        """
        assert self._writing is not None
        step, facts, written = self._writing
        self._writing = None
        files: dict[str, Any] = {}
        reason = None
        try:
            files = written.result()
        except Exception as error:  # safetensors and the file system have errors of their own
            reason = str(error).partition("\n")[0]
        reports = self._group.collect((self._group.ranks.name, self._leader, files, reason))
        failed = [f"{name}: {reason}" for name, _, _, reason in reports if reason]
        if not failed:
            failed = self._publish(step, facts, [files for _, leader, files, _ in reports if leader == self._leader])
        if failed:
            if self.leads:
                shutil.rmtree(self._folder / f".{_name(step)}", ignore_errors=True)
            logger.warning(
                "step %d: the checkpoint cannot be written (%s); the newest is %s",
                *(step, failed[0], self.newest or "none"),
            )
            return False
        if self.leads:
            self._prune(step)
        self._group.barrier()
        return True

    def _publish(self, step: int, facts: Mapping[str, Any], files: list[dict[str, Any]]) -> list[str]:
        """Give the folder its manifest and its name on every storage; returns who could not."""
        reason = None
        partial, final = self._folder / f".{_name(step)}", self._folder / _name(step)
        try:
            if self.leads:
                merged = {name: file for part in files for name, file in sorted(part.items())}
                head = {"step": step, "run": self.run, "ranks": self._group.ranks.world_size}
                write_json(partial / MANIFEST, head | dict(facts) | {"files": merged})
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
                _sync(self._folder)
            if self._group.ranks.rank == 0:
                with atomic_write(self._weights) as file, (final / MODEL).open("rb") as model:
                    shutil.copyfileobj(model, file)
        except OSError as error:
            reason = str(error)
        return [f"{name}: {reason}" for name, reason in self._group.collect((self._group.ranks.name, reason)) if reason]

    def _prune(self, step: int) -> None:
        """Drop all but the newest and the best; also those of later steps, which a resumed run did not go on from."""
        earlier = [name for name in _names(self._folder) if name <= _name(step)]
        kept = set(earlier[-self._keep :])
        scores = {name: _score(self._folder / name) for name in earlier}
        best = max(scores, key=lambda name: (scores[name], name))
        if scores[best] >= 0:
            kept.add(best)
        for name in set(_names(self._folder)) - kept:
            shutil.rmtree(self._folder / name)

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown()


def _score(checkpoint: Path) -> float:
    """Validation accuracy; -1 where it was not measured."""
    try:
        score = json.loads((checkpoint / MANIFEST).read_bytes()).get("score")
    except (OSError, ValueError):
        return -1
    return -1 if score is None else score


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(folder: Path, files: Mapping[str, Tensors]) -> dict[str, Any]:
    """Write safetensors files to the disk; returns their sizes and sums."""
    folder.mkdir(exist_ok=True)
    written = {}
    for name, tensors in files.items():
        content = save(dict(tensors))
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return written


def _sync(folder: Path) -> None:
    """Make a new name in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
