"""Training: shards in, a run folder out.

config.json classes.json run.json     what runs (rg.run_folder)
checkpoints/                          to resume from (rg.checkpoint)
model.safetensors                     weights of the newest checkpoint
metrics.jsonl tensorboard/ train.log  what happened
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines import plan
from pipelines.geometry import Geometry
from pipelines.loader import Batch, Loader
from pipelines.manifest import Manifest
from pipelines.storage import Location, resolve
from rg import checkpoint, inputs, ranks, run_folder
from rg.activation_checkpointing import checkpoint_blocks
from rg.agreement import agree
from rg.checkpoint import MODEL, MOMENTUM, Checkpoints, Found
from rg.config import BOOKKEEPING, RunConfig, differences, flatten
from rg.engine import Engine, check_compiler, micro_batches, read_settings
from rg.group import Group, GroupError, connect
from rg.heartbeat import Heartbeat
from rg.history import History, Meter
from rg.host_copy import HostCopy
from rg.losses import classification_loss, occurrence_prior_loss
from rg.model import Model, ModelOutput, RegionGroupingModel, build_model
from rg.run_folder import Classes

logger = logging.getLogger(__name__)

CHECKPOINTS, LOG = "checkpoints", "train.log"
DICTIONARY_IMAGES = 256
DIVERGED, BAD_INPUT = 1, 2  # exit codes, as those of the command line
STOPPED = 75  # exit code of a run that saved a checkpoint because a signal asked it to stop: start it again
RESUMED = ("command", "ranks", "hosts", "device", "deepspeed", "environment")  # of run.json, told anew by a resumed run
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Resume = Literal["no", "yes", "auto"]


def train(
    config: RunConfig,
    data: Location,
    out: Path,
    resume: Resume = "no",
    deepspeed: Path | None = None,
    command: str | None = None,
    recipe: str | None = None,
) -> int:
    """Train one model, together with the other processes of the launch.

    Args:
        config: The run.
        data: Folder of shards, or its URL, with a ``train`` split, and a ``val`` split if validation is on.
        out: Run folder; must not hold another run. Hosts may share it or have one each.
        resume: Continue the run in ``out`` from its newest checkpoint, exactly as if it had not stopped: no, yes, or
            auto if there is one.
        deepspeed: JSON file of how DeepSpeed shares out the work.
        command: What started the run, for the record.
        recipe: The recipe that the settings started from, for the record.

    Returns:
        Exit code: 0 when trained to the end, 75 when a signal stopped the run after a checkpoint.

    Raises:
        ValueError: data, configuration or run folder cannot be used.
        FloatingPointError: the loss is not finite any more.
    """
    group = connect(ranks.discover(), 2 * config.train.peer_timeout)
    if group.ranks.rank:
        logging.getLogger("rg").setLevel(logging.WARNING)
    heartbeat = Heartbeat(group, config.train.peer_timeout)
    try:
        run = _set_up(config, data, out, resume, deepspeed, command, recipe, group, heartbeat)
        # To the very end: a launcher signals the ranks one by one, and the last may have stopped because of the first.
        with _signals(run.received):
            code = run.run()
            group.barrier()
            heartbeat.stop()
        return code
    except (GroupError, FloatingPointError) as error:
        heartbeat.stop()
        if group.ranks.local_rank == 0:  # once for every host
            raise
        raise SystemExit(DIVERGED if isinstance(error, FloatingPointError) else BAD_INPUT) from None
    except (dist.DistError, RuntimeError) as error:
        if _is_broken_connection(error):
            heartbeat.cut_off()
        heartbeat.fail(_reason(error))
        raise
    except BaseException as error:
        heartbeat.fail(_reason(error))
        raise


def _is_broken_connection(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "connection" in str(error).lower()


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _set_up(
    config: RunConfig,
    data: Location,
    out: Path,
    resume: Resume,
    deepspeed: Path | None,
    command: str | None,
    recipe: str | None,
    group: Group,
    heartbeat: Heartbeat,
) -> _Run:
    ranks = group.ranks
    manifest = group.together(lambda: Manifest.load(data))
    classes = Classes(manifest.classes, manifest.multi_label)
    how = group.together(lambda: read_settings(deepspeed) if deepspeed else {})
    group.together(lambda: micro_batches(config, ranks.world_size))
    group.together(lambda: check_compiler(config, ranks.device))
    agree(group, _facts(config, manifest, how, resume))
    found = checkpoint.find(out / CHECKPOINTS, group) if resume != "no" else None
    goes_on = group.together(lambda: _check_run_folder(out, config, classes, manifest, resume, found, ranks.rank))
    validates = "val" in manifest.splits and config.train.validate_epochs > 0
    training, testing = inputs.training_geometry(config.input), inputs.evaluation_geometry(config.input)
    loader = group.together(lambda: _loader(config, data, "train", training, group))
    val_loader = group.together(lambda: _loader(config, data, "val", testing, group)) if validates else None
    steps = plan.steps_per_epoch(manifest.split("train").samples, config.train.global_batch)

    torch.manual_seed(config.seed)
    model = group.together(lambda: _build(config, data, manifest, found))
    engine = Engine(model, config, group, steps, how, found.momentum() if found else None)
    checkpoints = Checkpoints(
        out / CHECKPOINTS,
        group,
        config.train.keep_checkpoints,
        found.manifest["run"] if found else None,
        out / run_folder.WEIGHTS,
    )
    record = {"recipe": recipe, "command": command, "run": checkpoints.run} | _record(data, manifest, group, how)
    if ranks.rank == 0:
        _write_record(out, config, classes, record, found if goes_on else None)
        if found:
            run_folder.save_weights(out, model)  # those of the checkpoint, in case the run died before writing them
    run = _Run(config, out, engine, loader, val_loader, steps, checkpoints, heartbeat)
    if found:
        run.resume(found)
    return run


def _loader(config: RunConfig, data: Location, split: str, geometry: Geometry, group: Group) -> Loader:
    ranks = group.ranks
    batch = config.train.global_batch // config.train.accumulation
    return Loader(
        data,
        split,
        geometry,
        batch if geometry.training else max(micro_batches(config, ranks.world_size)),
        decoding=inputs.decoding(config.input, ranks.device, ranks.local_world_size),
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_damaged=config.input.max_damaged,
    )


def _build(config: RunConfig, data: Location, manifest: Manifest, found: Found | None) -> Model:
    """The model at its start, or as the checkpoint has it; the same on all ranks."""
    model = build_model(config.model, len(manifest.classes), manifest.multi_label, pretrained=not found)
    _check_map(config, model)
    if found:
        model.load_state_dict(dict(found.model()))
    elif isinstance(model, RegionGroupingModel) and config.model.grouping.init == "kmeans":
        model.initialize_dictionary(_first_images(config, data, manifest), config.seed)
    if config.train.activation_checkpointing and not checkpoint_blocks(model.backbone):
        name = config.model.backbone.name
        raise ValueError(f"train.activation_checkpointing: expected a backbone that is made of blocks, got {name}")
    return model


def _facts(config: RunConfig, manifest: Manifest, how: dict[str, Any], resume: Resume) -> dict[str, Any]:
    """What the ranks must have in common beside code and versions."""
    settings = flatten(dataclasses.asdict(config))
    return settings | {"--deepspeed": how, "--resume": resume, "shards": _shard_sums(manifest)}


def _check_run_folder(
    out: Path,
    config: RunConfig,
    classes: Classes,
    manifest: Manifest,
    resume: Resume,
    found: Found | None,
    rank: int,
) -> bool:
    """Whether the folder holds a run to go on with; rank 0 looks closely, as other hosts may have checkpoints only."""
    if found is None:
        if resume == "yes":
            if rank == 0:
                run_folder.load_config(out)
            raise ValueError(f"--resume: {out} has no checkpoints to resume from")
        held = [*sorted((out / CHECKPOINTS).glob("step-*"))[:1], *out.glob(run_folder.WEIGHTS)]
        if held:
            raise ValueError(
                f"--out: {out} holds a run already ({held[0].relative_to(out)}); continue it with --resume or choose "
                "another folder"
            )
        return False
    if rank:
        return True
    started, trained_classes = run_folder.load_config(out)
    changed = {name: pair for name, pair in differences(started, config).items() if name not in BOOKKEEPING}
    if changed:
        name, (before, after) = next(iter(changed.items()))
        raise ValueError(
            f"--resume: {out} was started with {name} = {before!r}, now it is {after!r}"
            + (f" ({len(changed) - 1} more settings differ)" if len(changed) > 1 else "")
        )
    if trained_classes != classes:
        raise ValueError(
            f"--data: the {len(classes.names)} classes of the data are not the {len(trained_classes.names)} classes "
            f"that {out} was started with"
        )
    before = run_folder.read_json(out / run_folder.RECORD)["data"]["shards"]
    if before != _shard_sums(manifest):
        raise ValueError("--data: the training shards are not those that the run was started with (sha256 differ)")
    return True


def _check_map(config: RunConfig, model: Model) -> None:
    """Refuse crops that the backbone does not take, or whose map the smoothing window does not fit into."""
    grouping = config.model.grouping
    window = 2 * grouping.smoothing_radius + 1
    model.eval()
    for name, crop in (("input.crop", config.input.crop), ("input.test_crop", config.input.test_size[1])):
        try:
            with torch.no_grad():
                height, width = model.backbone(torch.zeros(1, 3, crop, crop)).shape[2:]
        except (AssertionError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{name}: {config.model.backbone.name} takes no {crop}x{crop} images ({reason})") from None
        windowed = config.model.kind == "region_grouping" and grouping.smoothing_padding == "valid"
        if windowed and min(height, width) < window:
            raise ValueError(
                f"{name}: {crop} pixels make a {height}x{width} map, smaller than the {window}x{window} smoothing "
                "window; use a larger crop or model.grouping.smoothing_padding = same"
            )
    model.train()


def _shard_sums(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.split("train").shards]


def _record(data: Location, manifest: Manifest, group: Group, how: dict[str, Any]) -> dict[str, Any]:
    ranks = group.ranks
    return {
        "data": {
            "folder": resolve(data),
            "dataset": manifest.dataset,
            "options": manifest.options,
            "shards": _shard_sums(manifest),
        },
        "ranks": ranks.world_size,
        "hosts": list(dict.fromkeys(group.collect(socket.gethostname()))),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "deepspeed": how,
        "environment": run_folder.environment(),
    }


def _write_record(out: Path, config: RunConfig, classes: Classes, record: dict[str, Any], found: Found | None) -> None:
    """config.json, classes.json and run.json; a resumed run adds what is new to the record of its beginning."""
    run_folder.save_config(out, config, classes)
    if found:
        before = run_folder.read_json(out / run_folder.RECORD)
        session = {"step": found.manifest["step"]} | {name: record[name] for name in RESUMED}
        record = before | {"resumed": [*before.get("resumed", []), session]}
    run_folder.write_json(out / run_folder.RECORD, record)


def _first_images(config: RunConfig, data: Location, manifest: Manifest) -> Tensor:
    """The same first training images on every rank, uint8 [N, 3, C, C] on the CPU."""
    count = min(DICTIONARY_IMAGES, manifest.split("train").samples)
    geometry = Geometry(config.input.short_side, config.input.crop, config.input.view)
    decoding = inputs.decoding(config.input, torch.device("cpu"))
    return next(iter(Loader(data, "train", geometry, count, decoding=decoding))).images


class _Run:
    """The loop and what it keeps."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        engine: Engine,
        loader: Loader,
        val_loader: Loader | None,
        steps_per_epoch: int,
        checkpoints: Checkpoints,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.out, self.engine = config, out, engine
        self.loader, self.val_loader = loader, val_loader
        self.steps_per_epoch, self.step = steps_per_epoch, 0
        self.total = config.train.epochs * steps_per_epoch
        self.checkpoints, self.heartbeat = checkpoints, heartbeat
        self.received: list[int] = []  # signals
        self.group, self.ranks = engine.group, engine.group.ranks
        self.is_main = self.ranks.rank == 0
        self.meter = Meter()
        self.skipped = self.skipped_in_a_row = 0
        self.accuracy: float | None = None  # of the last validation

    def resume(self, found: Found) -> None:
        """Go on behind a checkpoint; with another number of ranks, all but their own random states goes on exactly."""
        state = found.manifest
        self.step, self.skipped, self.skipped_in_a_row = state["step"], state["skipped"], state["skipped_in_a_row"]
        self.accuracy = state["score"]
        own = found.own()
        counters = json.loads(bytes(own["counters"].tolist())) if own else state["counters"]
        if not own and not self.is_main:
            counters = dict.fromkeys(counters, 0) | {"meter": None}
        self.loader.resume(state["loader"] | {name: counters[name] for name in ("read", "damaged")})
        self.meter = Meter(counters["meter"])
        if not own:
            torch.manual_seed(_stream_seed(self.config.seed, self.step, self.ranks.rank))
            return
        self.engine.set_statistics([own[name] for name in sorted(own) if name.startswith("statistic-")])
        torch.set_rng_state(own["random"])
        if "cuda-random" in own:
            torch.cuda.set_rng_state(own["cuda-random"])

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        config = self.config.train
        stream = iter(self.loader)
        with self._log(), History(self.out, self.step, self.is_main) as history:
            logger.info(
                "%s %d of %d steps (%d epochs of %d) on %s, global batch %d over %d ranks",
                "continue at" if self.step else "train",
                self.step or self.total,
                self.total,
                config.epochs,
                self.steps_per_epoch,
                self.ranks.device,
                config.global_batch,
                self.ranks.world_size,
            )
            stop = 0
            with logging_redirect_tqdm(), self._bar() as bar:
                while self.step < self.total and not stop:
                    epoch, rest = divmod(self.step, self.steps_per_epoch)
                    if rest == 0:
                        torch.manual_seed(_stream_seed(self.config.seed, epoch, self.ranks.rank))
                    stop, writing = self._train_step(stream)
                    self.step += 1
                    bar.update()
                    epoch, rest = divmod(self.step, self.steps_per_epoch)
                    if self.step % config.log_steps == 0 or rest == 0:
                        self._record(bar, history)
                    if self.checkpoints.pending and not writing:
                        self.checkpoints.settle()
                    ends = self.step == self.total
                    due = ends or (rest == 0 and epoch % max(1, config.validate_epochs) == 0)
                    if self.val_loader and due:
                        self._validate(self.val_loader, history)
                    steps_due = config.checkpoint_steps and self.step % config.checkpoint_steps == 0
                    if stop or ends or steps_due or (rest == 0 and epoch % config.checkpoint_epochs == 0):
                        self._save(wait=bool(stop or ends))
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
            logger.info("trained %d steps; the model is %s", self.step, self.out / run_folder.WEIGHTS)
            return 0

    def _train_step(self, stream: Iterator[Batch]) -> tuple[int, bool]:
        """One optimiser step; returns the signal that any rank has received, or 0, and whether any writes files."""
        self.engine.keep_statistics()
        self.engine.train_mode()
        skip, told = False, []
        flags = torch.zeros(1, 3)
        for micro in range(self.config.train.accumulation):
            self._at("reading data")
            began = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - began
            self._at("training")
            values, arriving = self._micro_step(batch)
            flags = arriving.wait()  # sent to all ranks before backward, which goes on meanwhile
            bad = bool(flags[:, 0].any())
            if flags[self.ranks.rank, 0]:
                self._name(batch, values)
            skip |= bad
            told.append((values, len(batch.labels), waited))
            self.engine.step(self.step, last=micro == self.config.train.accumulation - 1, skip=skip)
        if skip:
            self._skip()
        else:
            self.skipped_in_a_row = 0
            for values, count, waited in told:
                self.meter.add(values, count, waited)
        return int(flags[:, 1].max()), bool(flags[:, 2].any())

    def _micro_step(self, batch: Batch) -> tuple[Tensor, HostCopy]:
        """Forward and backward; returns loss, both its parts and accuracy of this rank [4], and the flags of all ranks.

        The flags are: the loss is not finite; a signal was received; files are being written.
        """
        config, sizes = self.config.loss, self.engine.sizes
        output = self.engine(batch.images)
        labels = batch.labels.to(output.logits.device, non_blocking=True)
        classification = classification_loss(output.logits, labels)
        occurrence = output.logits.new_zeros(len(labels), 0)
        if isinstance(output, ModelOutput):
            occurrence = output.occurrence
        finite = torch.isfinite(classification) & torch.isfinite(occurrence).all()
        news = torch.tensor([0.0, float(max(self.received, default=0)), float(self.checkpoints.busy)])
        flags = news.to(labels.device, non_blocking=True)
        flags[0] = (~finite).float()
        occurrence, all_flags = self.group.gather(occurrence, flags, sizes)
        arriving = HostCopy(all_flags)
        prior = torch.zeros_like(classification)
        if occurrence.shape[1]:
            prior = occurrence_prior_loss(occurrence, config.prior_alpha, config.prior_beta)
        share = self.engine.share * len(sizes)  # the engine takes the plain mean over the ranks
        self.engine.backward(config.classification_weight * share * classification + config.prior_weight * prior)
        with torch.no_grad():
            loss = config.classification_weight * classification + config.prior_weight * prior
            values = torch.stack([loss, classification, prior, _correct(output.logits, labels)])
        return values.detach(), arriving

    def _name(self, batch: Batch, values: Tensor) -> None:
        """Say which batch has a loss that is not finite."""
        logger.warning(
            "step %d: the loss is %g on %s, for %s; the step is left out on all ranks",
            self.step,
            values[0].item(),
            self.ranks.name,
            ", ".join(batch.keys),
        )

    def _skip(self) -> None:
        """Take back what a forward pass that was not finite left behind."""
        self.engine.take_back_statistics()
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.train.max_skipped:
            raise FloatingPointError(
                f"step {self.step}: the loss was not finite in {self.skipped_in_a_row} steps in a row "
                "(train.max_skipped); the checkpoints before are kept"
            )

    def _record(self, bar: tqdm, history: History) -> None:
        record = self.meter.read(self.engine)
        counts = torch.tensor([self.loader.damaged], dtype=torch.float64, device=self.ranks.device)
        record["damaged"], record["skipped"] = int(self.group.sum(counts).item()), self.skipped
        history.write("train", self.step, self.step / self.steps_per_epoch, record)
        if "loss" in record:
            self._show(bar, record)

    @torch.no_grad()
    def _validate(self, loader: Loader, history: History) -> None:
        """Accuracy and losses over the validation split, every sample counted once over all ranks."""
        model = self.engine.model
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        # Images of other shapes in another mode: compiling for them takes longer than it saves.
        with self.engine.averaged_statistics(), torch.compiler.set_stance("force_eager"):
            for batch in loader:
                self._at("validating")
                output = model(batch.images.to(self.ranks.device))
                labels = batch.labels.to(self.ranks.device)
                correct, loss = _correct(output.logits, labels), classification_loss(output.logits, labels)
                sums += len(labels) * torch.stack([correct, loss, torch.ones_like(loss)]).double()
        accuracy, loss, count = self.group.sum(sums).tolist()
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
        self.engine.check_weights()
        state = self.loader.state()
        counters = {"read": state.pop("read"), "damaged": state.pop("damaged"), "meter": self.meter.values()}
        own = {f"statistic-{number:04d}": value for number, value in enumerate(self.engine.statistics())}
        own = {name: value.cpu() for name, value in own.items()} | {
            "random": torch.get_rng_state(),
            "counters": torch.tensor(list(json.dumps(counters).encode()), dtype=torch.uint8),
        }
        if torch.cuda.is_available():
            own["cuda-random"] = torch.cuda.get_rng_state()
        about = {
            "score": self.accuracy if self.step % self.steps_per_epoch == 0 else None,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "loader": state,
            "counters": _total(self.group.collect(counters)),
        }
        momentum = self.engine.momentum()
        with self.engine.averaged_statistics():
            shared = {MODEL: self.engine.weights(), MOMENTUM: momentum} if self.checkpoints.leads else {}
        self.checkpoints.start(self.step, shared, own, about)
        if wait and not self.checkpoints.settle():
            raise GroupError(f"{self.out / CHECKPOINTS}: the last checkpoint cannot be written, is the disk full?")

    def _at(self, doing: str) -> None:
        self.heartbeat.at(f"at step {self.step} ({doing})")

    def _show(self, bar: tqdm, record: dict[str, float]) -> None:
        shown = {
            "loss": f"{record['loss']:.3f}",
            "prior": f"{record['prior_loss']:.3f}",
            "acc": f"{record['accuracy']:.3f}",
            "img/s": f"{record['images_per_second']:.0f}",
            "wait": f"{record['data_wait']:.0%}",
        }
        bar.set_postfix(shown)
        if bar.disable and self.is_main:
            left = (self.total - self.step) * self.config.train.global_batch / record["images_per_second"]
            text = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d/%d %s eta %s", self.step, self.total, text, tqdm.format_interval(left))

    def _bar(self) -> tqdm:
        hidden = not (self.is_main and sys.stderr.isatty())
        return tqdm(total=self.total, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)

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


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers, a scalar: the class, or the mean over attributes at probability 0.5."""
    predicted = logits.argmax(1) if labels.ndim == 1 else (logits > 0).to(labels.dtype)
    return (predicted == labels).float().mean()


def _stream_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of the random numbers that a model draws in an epoch, such as those of drop-out."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


def _total(counters: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the ranks."""
    sums = {name: sum(each[name] for each in counters) for name in ("read", "damaged")}
    return sums | {"meter": [sum(values) for values in zip(*(each["meter"] for each in counters), strict=True)]}


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Collects signals instead of dying of them; a second SIGINT interrupts at once."""

    def note(number: int, _: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        logger.info("%s: saving a checkpoint after this step", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
