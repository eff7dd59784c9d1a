"""The loop of training: steps, validation, checkpoints and their record, until the end or a signal."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.batches.loader import Batch, Loader
from rg.config import RunConfig
from rg.distributed.group import GroupError
from rg.distributed.heartbeat import Heartbeat
from rg.distributed.host_copy import HostCopy
from rg.model.build import said
from rg.model.losses import classification_loss
from rg.model.noise import image_seeds
from rg.runs.folder import CHECKPOINTS, LOG, WEIGHTS
from rg.runs.progress import progress_bar
from rg.training.batch_reader import BatchReader
from rg.training.captured_step import CapturedStep, Outputs, side_stream
from rg.training.checkpoints import MODEL, MOMENTUM, QUEUE, TRAINED, Checkpoint, Checkpoints
from rg.training.engine import Engine
from rg.training.history import History, Meter
from rg.training.micro_step import Inputs, MicroStep, right_share
from rg.training.objective import Objective
from rg.training.scops_objective import ScopsObjective
from rg.training.step_flags import StepFlags

logger = logging.getLogger(__name__)

STOPPED = 75  # exit code of a run that saved a checkpoint because a signal asked it to stop: start it again
SHOWN = {"prior_loss": "prior", "accuracy": "acc"}  # on the line of progress, beside the loss


class _Taken(NamedTuple):
    """A micro batch of a step: its images, what came of them, and the seconds that they were waited for."""

    keys: Sequence[str]
    values: Tensor
    rows: Tensor
    flags: StepFlags
    waited: float


class Loop:
    """The steps of a run, and what it keeps of them.

    Args:
        config: The run.
        out: Run folder.
        engine: Takes the steps.
        objective: What they make small.
        loader: Of training images.
        val_loader: Of validation images, or None.
        steps_per_epoch: Optimiser steps.
        checkpoints: Where to write them.
        heartbeat: Is told what this rank is doing.

    Attributes:
        received: Numbers of the signals that came; if there are any, the current step is the last one.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        engine: Engine,
        objective: Objective | ScopsObjective,
        loader: Loader,
        val_loader: Loader | None,
        steps_per_epoch: int,
        checkpoints: Checkpoints,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.out, self.engine = config, out, engine
        self.loader, self.val_loader = loader, val_loader
        self.batches = BatchReader(loader)
        self.steps_per_epoch, self.step = steps_per_epoch, 0
        self.total = config.train.epochs * steps_per_epoch
        self.checkpoints, self.heartbeat = checkpoints, heartbeat
        self.received: list[int] = []
        self.group, self.ranks = engine.group, engine.group.ranks
        self.is_main = self.ranks.rank == 0
        self.objective = objective
        self._remember(objective.past)
        self.micro_step = MicroStep(config, engine, objective)
        self.captured = CapturedStep(self._on_device) if config.train.capture else None
        self.shrinking_steps = config.model.sampler.shrink_epochs * steps_per_epoch
        self.meter = Meter(self.objective.names, labelled=objective.labelled)
        self.skipped = self.skipped_in_a_row = 0
        self.accuracy: float | None = None  # of the last validation

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on behind a checkpoint; with another number of ranks, all but their own random states goes on exactly."""
        state = checkpoint.manifest
        self.step, self.skipped, self.skipped_in_a_row = state["step"], state["skipped"], state["skipped_in_a_row"]
        self.accuracy = state["score"]
        self._remember(checkpoint.queue())
        own = checkpoint.own()
        counters = json.loads(bytes(own["counters"].tolist())) if own else state["counters"]
        if not own and not self.is_main:
            counters = dict.fromkeys(counters, 0) | {"meter": None}
        self.loader.resume(state["loader"] | {name: counters[name] for name in ("read", "damaged")})
        self.batches = BatchReader(self.loader)
        self.meter = Meter(self.objective.names, counters["meter"], self.objective.labelled)
        if not own:
            torch.manual_seed(_stream_seed(self.config.seed, self.step, self.ranks.rank))
            return
        self.engine.set_statistics([own[name] for name in sorted(own) if name.startswith("statistic-")])
        torch.set_rng_state(own["random"])
        if "cuda-random" in own:
            torch.cuda.set_rng_state(own["cuda-random"])

    def _remember(self, past: Tensor | None) -> None:
        """Let the objective have occurrences of past steps, where the others are computed."""
        self.objective.past = None if past is None else past.to(self.ranks.device)

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        with self._log(), closing(self.batches), side_stream(self.ranks.device) if self.captured else nullcontext():
            return self._run()

    def _run(self) -> int:
        config = self.config.train
        with History(self.out, self.step, self.is_main) as history:
            self._log_start()
            stop, due = 0, False
            with logging_redirect_tqdm(), self._bar() as bar:
                while self.step < self.total and not stop:
                    epoch, rest = divmod(self.step, self.steps_per_epoch)
                    if rest == 0:
                        torch.manual_seed(_stream_seed(self.config.seed, epoch, self.ranks.rank))
                    flags = self._train_step()
                    stop = flags.signal
                    self.step += 1
                    bar.update()
                    epoch, rest = divmod(self.step, self.steps_per_epoch)
                    if self.step % config.log_steps == 0 or rest == 0:
                        self._record(bar, history)
                    if self.checkpoints.pending and not flags.writing:
                        self.checkpoints.settle()
                    ends = self.step == self.total
                    validation_due = ends or (rest == 0 and epoch % max(1, config.validate_epochs) == 0)
                    sound = not self.skipped_in_a_row
                    if self.val_loader and validation_due:
                        self._validate(self.val_loader, history)
                        sound = True
                    steps_due = config.checkpoint_steps > 0 and self.step % config.checkpoint_steps == 0
                    due = due or steps_due or (rest == 0 and epoch % config.checkpoint_epochs == 0)
                    # Weights that give no finite loss may be lost ones, which must not push out those of before.
                    if stop or ends or (due and sound):
                        self._save(wait=bool(stop or ends))
                        due = False
                    if rest == 0:
                        self.meter.start_clock()  # anew: the meter was read before validating and saving
            self.checkpoints.close()
            if stop and self.step < self.total:
                logger.info(
                    "stopped by %s at step %d of %d; continue with --resume",
                    signal.Signals(stop).name,
                    self.step,
                    self.total,
                )
                return STOPPED
            left_out = f", {self.skipped} of them left out as the loss was not finite" if self.skipped else ""
            logger.info("trained %s%s; the model is %s", _count(self.step, "step"), left_out, self.out / WEIGHTS)
            return 0

    def _log_start(self) -> None:
        config = self.config.train
        steps = f"train {_count(self.total, 'step')}"
        if self.step:
            steps = f"continue at step {self.step} of {self.total}"
        logger.info(
            "%s (%s of %d) on %s, global batch %d over %s",
            steps,
            _count(config.epochs, "epoch"),
            self.steps_per_epoch,
            self.ranks.device,
            config.global_batch,
            _count(self.ranks.world_size, "rank"),
        )

    def _train_step(self) -> StepFlags:
        """One optimiser step; returns the flags of its last micro step."""
        self.engine.train_mode()
        shrinking = self.step < self.shrinking_steps
        if self.engine.model.sampler:
            self.engine.model.sampler.shrinking = shrinking
        # Every image is made small to a side of its own, which the host has to know.
        captured = None if shrinking else self.captured
        taken = self._launch() if captured is None else self._replay(captured)
        if any(any(micro.flags.not_finite) for micro in taken):
            self._skip()
        else:
            self.skipped_in_a_row = 0
            for micro in taken:
                self.objective.remember(micro.rows)
                self.meter.add(micro.values, len(micro.keys), micro.waited)
        return taken[-1].flags

    def _launch(self) -> list[_Taken]:
        """A step, micro batch by micro batch."""
        self.engine.keep_statistics()
        taken: list[_Taken] = []
        for micro in range(self.config.train.accumulation):
            taken.append(self._launch_micro_batch(*self._read(), micro))
            skip = any(any(each.flags.not_finite) for each in taken)
            self.engine.step(self.step, last=micro == self.config.train.accumulation - 1, skip=skip)
        return taken

    def _launch_micro_batch(self, batch: Batch, waited: float, micro: int) -> _Taken:
        losses = self.micro_step.forward(self._inputs(batch, micro))
        arriving = HostCopy(losses.flags)  # sent to all ranks before backward, which goes on meanwhile
        values = self.micro_step.backward(losses)
        taken = _Taken(batch.keys, values, losses.rows, StepFlags.unpack(arriving.wait()), waited)
        self._warn_if_not_finite(taken)
        return taken

    def _replay(self, captured: CapturedStep) -> list[_Taken]:
        """A step from a CUDA graph, which leaves it out on the device itself. The next one is read meanwhile."""
        accumulation = self.config.train.accumulation
        read = [self._read() for _ in range(accumulation)]
        inputs = [self._inputs(batch, micro) for micro, (batch, _) in enumerate(read)]
        self.engine.set_rates(self.step)
        outputs = captured(inputs)
        arriving = HostCopy(torch.stack([micro.flags for micro in outputs]))
        if self.step + 1 < self.total and not self.received:
            self._at("reading data")
            self.batches.read_ahead(accumulation, lambda: arriving.is_due)
            self._at("training")
        all_flags = arriving.wait()
        taken = [
            _Taken(batch.keys, micro.values, micro.rows, StepFlags.unpack(flags), waited)
            for (batch, waited), micro, flags in zip(read, outputs, all_flags, strict=True)
        ]
        for micro in taken:
            self._warn_if_not_finite(micro)
        if not any(any(micro.flags.not_finite) for micro in taken):
            self.engine.follow(self.step)
        return taken

    def _on_device(self, inputs: Sequence[Inputs]) -> list[Outputs]:
        """What of a step a CUDA graph holds."""
        self.engine.keep_statistics()
        outputs = []
        for micro in inputs:
            losses = self.micro_step.forward(micro)
            outputs.append(Outputs(self.micro_step.backward(losses), losses.rows, losses.flags))
            not_finite = torch.stack([each.flags[:, 0] for each in outputs]).amax()
            self.engine.end_micro_batch(not_finite)
        return outputs

    def _read(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that it was waited for."""
        self._at("reading data")
        read = self.batches.take()
        self._at("training")
        return read

    def _inputs(self, batch: Batch, micro: int) -> Inputs:
        """What a micro batch of the step is computed from."""
        flags = StepFlags.of_host(max(self.received, default=0), self.checkpoints.busy)
        return self.micro_step.inputs(batch, flags, self._seeds(micro) if self.micro_step.draws else None)

    def _seeds(self, micro: int) -> Tensor:
        """Seeds of the images of this rank in a micro batch of the step, int64 [N] on the CPU."""
        sizes, rank = self.engine.sizes, self.ranks.rank
        return image_seeds(self.config.seed, self.step, micro, sum(sizes[:rank]), sizes[rank])

    def _warn_if_not_finite(self, micro: _Taken) -> None:
        if micro.flags.not_finite[self.ranks.rank]:
            logger.warning(
                "step %d: the loss is %g on %s, for %s; the step is left out on all ranks",
                self.step,
                micro.values[0].item(),
                self.ranks.name,
                ", ".join(micro.keys),
            )

    def _skip(self) -> None:
        """Take back what a forward pass that was not finite left behind."""
        self.engine.take_back_statistics()
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.train.max_skipped:
            raise self._diverged(
                f"the loss was not finite in {_count(self.skipped_in_a_row, 'step')} in a row (train.max_skipped)"
            )

    def _diverged(self, reason: str) -> FloatingPointError:
        """What ends a run whose numbers are lost; all ranks call this."""
        if self.checkpoints.pending:
            self.checkpoints.settle()
        return FloatingPointError(
            f"step {self.step}: {reason}; the newest checkpoint is {self.checkpoints.newest or 'none'}; "
            "start again with a lower optimizer.lr, or more optimizer.warmup_epochs"
        )

    def _record(self, bar: tqdm, history: History) -> None:
        record = self.meter.read(self.engine)
        counts = torch.tensor([self.batches.position["damaged"]], dtype=torch.float64, device=self.ranks.device)
        record["damaged"], record["skipped"] = int(self.group.sum(counts).item()), self.skipped
        history.write("train", self.step, self.step / self.steps_per_epoch, record)
        if "loss" in record:
            self._show(bar, record)

    @torch.no_grad()
    def _validate(self, loader: Loader, history: History) -> None:
        """Accuracy and losses over the validation split, every sample counted once over all ranks."""
        model = self.engine.evaluated
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        # Images of other shapes in another mode: compiling for them takes longer than it saves.
        with self.engine.averaged_statistics(), torch.compiler.set_stance("force_eager"):
            for batch in loader:
                self._at("validating")
                output = said(model, batch.images.to(self.ranks.device), batch.places)
                labels = batch.labels.to(self.ranks.device)
                answers = None if batch.answers is None else batch.answers.to(self.ranks.device)
                correct = right_share(output.logits, labels, answers)
                loss = classification_loss(output.logits, labels, answers=answers)
                sums += len(labels) * torch.stack([correct, loss, torch.ones_like(loss)]).double()
        accuracy, loss, count = self.group.sum(sums).tolist()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss of the validation images is {loss:g}")
        self.accuracy = accuracy / count
        record = {"accuracy": self.accuracy, "classification_loss": loss / count}
        history.write("validation", self.step, self.step / self.steps_per_epoch, record)
        logger.info("epoch %d: validation accuracy %.4f", self.step // self.steps_per_epoch, record["accuracy"])

    def _save(self, wait: bool) -> None:
        """Begin to write a checkpoint, and stay until it is published where nothing comes after it.

        Raises:
            GroupError: it is the last one, and cannot be written.
        """
        self._at("saving")
        if self.checkpoints.pending:
            self.checkpoints.settle()
        if not self.engine.has_finite_weights():
            raise self._diverged("the weights are not finite any more")
        state = dict(self.batches.position)
        counters = {"read": state.pop("read"), "damaged": state.pop("damaged"), "meter": self.meter.values()}
        own = {f"statistic-{number:04d}": value for number, value in enumerate(self.engine.statistics())}
        own = {name: value.cpu() for name, value in own.items()} | {
            "random": torch.get_rng_state(),
            "counters": torch.tensor(list(json.dumps(counters).encode()), dtype=torch.uint8),
        }
        if torch.cuda.is_available():
            own["cuda-random"] = torch.cuda.get_rng_state()
        facts = {
            "score": self.accuracy if self.step % self.steps_per_epoch == 0 else None,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "loader": state,
            "counters": _total(self.group.collect(counters)),
        }
        momentum = self.engine.momentum()
        with self.engine.averaged_statistics():
            shared = {MODEL: self.engine.weights(), MOMENTUM: momentum} if self.checkpoints.leads else {}
            if self.checkpoints.leads and self.config.train.ema:
                shared[TRAINED] = self.engine.trained_weights()
            if self.checkpoints.leads and self.objective.past is not None:
                shared[QUEUE] = {"occurrence": self.objective.past.cpu().clone()}
        self.checkpoints.start(self.step, shared, own, facts)
        if wait and not self.checkpoints.settle():
            folder = self.out / CHECKPOINTS
            raise GroupError(f"{folder}: the last checkpoint cannot be written, is the disk full?")

    def _at(self, doing: str) -> None:
        self.heartbeat.at(f"at step {self.step} ({doing})")

    def _show(self, bar: tqdm, record: dict[str, float]) -> None:
        shown = {
            "loss": f"{record['loss']:.3f}",
            **{text: f"{record[name]:.3f}" for name, text in SHOWN.items() if name in record},
            "img/s": f"{record['images_per_second']:.0f}",
            "wait": f"{record['data_wait']:.0%}",
        }
        bar.set_postfix(shown)
        if bar.disable and self.is_main:
            seconds = (self.total - self.step) * self.config.train.global_batch / record["images_per_second"]
            text = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d/%d %s eta %s", self.step, self.total, text, tqdm.format_interval(seconds))

    def _bar(self) -> tqdm:
        return progress_bar(
            total=self.total, initial=self.step, unit="step", leave=True, shown=self.is_main, dynamic_ncols=True
        )

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Log lines also go to the run folder."""
        if not self.is_main:
            yield
            return
        handler = logging.FileHandler(self.out / LOG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger("rg").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("rg").removeHandler(handler)
            handler.close()


def _count(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _stream_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of the random numbers that a model draws in an epoch, such as those of drop-out."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


def _total(counters: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the ranks."""
    sums = {name: sum(rank[name] for rank in counters) for name in ("read", "damaged")}
    return sums | {"meter": [sum(values) for values in zip(*(rank["meter"] for rank in counters), strict=True)]}
