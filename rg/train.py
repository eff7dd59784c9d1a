"""Training: shards in, a run folder out.

config.json classes.json run.json     what runs (rg.run_folder)
checkpoints/                          to resume from: the engine's files and one file per rank
model.safetensors                     weights of the newest checkpoint
metrics.jsonl tensorboard/ train.log  what happened
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines import plan
from pipelines.geometry import Geometry
from pipelines.loader import Loader
from pipelines.manifest import Manifest
from pipelines.storage import Location, resolve
from rg import inputs, run_folder
from rg.config import RunConfig, differences
from rg.engine import LATEST, Engine, Ranks, connect, micro_batch
from rg.history import History, Meter
from rg.losses import classification_loss, occurrence_prior_loss
from rg.model import Model, ModelOutput, RegionGroupingModel, build_model
from rg.run_folder import Classes

logger = logging.getLogger(__name__)

CHECKPOINTS, LOG = "checkpoints", "train.log"
DICTIONARY_IMAGES = 256


def train(
    config: RunConfig,
    data: Location,
    out: Path,
    resume: bool = False,
    command: str | None = None,
    recipe: str | None = None,
) -> int:
    """Train one model.

    Args:
        config: The run.
        data: Folder of shards, or its URL, with a ``train`` split, and a ``val`` split if validation is on.
        out: Run folder; must not hold another run.
        resume: Continue the run in ``out`` from its newest checkpoint, exactly as if it had not stopped.
        command: What started the run, for the record.
        recipe: The recipe that the settings started from, for the record.

    Returns:
        Exit code: 0 when trained to the end, 128 + n when signal n stopped the run after a checkpoint.

    Raises:
        ValueError: data, configuration or run folder cannot be used.
    """
    manifest = Manifest.load(data)
    classes = Classes(manifest.classes, manifest.multi_label)
    steps = plan.steps_per_epoch(manifest.split("train").samples, config.train.global_batch)
    _check_run_folder(out, config, classes, manifest, resume)
    ranks = connect()
    validates = "val" in manifest.splits and config.train.validate_epochs > 0
    loader = _loader(config, data, "train", inputs.training_geometry(config.input), ranks)
    val_loader = _loader(config, data, "val", inputs.evaluation_geometry(config.input), ranks) if validates else None

    torch.manual_seed(config.seed)
    model = build_model(config.model, len(classes.names), classes.multi_label, pretrained=not resume)
    _check_map(config, model)
    if isinstance(model, RegionGroupingModel) and not resume and config.model.grouping.init == "kmeans":
        model.initialize_dictionary(_first_images(config, data, manifest), config.seed)
    engine = Engine(model, config, ranks, steps)
    step, rank_state = engine.load(out / CHECKPOINTS) if resume else (0, {})
    if rank_state:
        loader.resume(rank_state["loader"])

    if ranks.rank == 0:
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if resume:
            run_folder.save_weights(out, model)  # those of the checkpoint, in case the run died before writing them
        else:
            run_folder.save_config(out, config, classes)
            record = {"recipe": recipe, "command": command} | _record(data, manifest, ranks)
            run_folder.write_json(out / run_folder.RECORD, record)
    return _Run(config, out, engine, loader, val_loader, steps, step, rank_state).run()


def _loader(config: RunConfig, data: Location, split: str, geometry: Geometry, ranks: Ranks) -> Loader:
    return Loader(
        data,
        split,
        geometry,
        micro_batch(config, ranks),
        decoding=inputs.decoding(config.input, ranks.device, ranks.local_world_size),
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_damaged=config.input.max_damaged,
    )


def _check_run_folder(out: Path, config: RunConfig, classes: Classes, manifest: Manifest, resume: bool) -> None:
    if not resume:
        for name in (f"{CHECKPOINTS}/{LATEST}", run_folder.WEIGHTS):
            if (out / name).exists():
                raise ValueError(
                    f"--out: {out} holds a run already ({name}); continue it with --resume or choose another folder"
                )
        return
    started, trained_classes = run_folder.load_config(out)
    if not (out / CHECKPOINTS).is_dir():
        raise ValueError(f"--resume: {out} has no checkpoints to resume from")
    changed = differences(started, config)
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


def _record(data: Location, manifest: Manifest, ranks: Ranks) -> dict[str, Any]:
    return {
        "data": {
            "folder": resolve(data),
            "dataset": manifest.dataset,
            "options": manifest.options,
            "shards": _shard_sums(manifest),
        },
        "ranks": ranks.world_size,
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "environment": run_folder.environment(),
    }


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
        step: int,
        rank_state: dict[str, Any],
    ) -> None:
        self.config, self.out, self.engine = config, out, engine
        self.loader, self.val_loader = loader, val_loader
        self.steps_per_epoch, self.step = steps_per_epoch, step
        self.total = config.train.epochs * steps_per_epoch
        self.is_main = engine.ranks.rank == 0
        if rank_state:
            torch.set_rng_state(rank_state["rng"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(rank_state["cuda_rng"])
        self.meter = Meter(rank_state.get("meter"))

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        config = self.config.train
        stream = iter(self.loader)
        with _signals() as received, self._log(), History(self.out, self.step, self.is_main) as history:
            logger.info(
                "%s %d of %d steps (%d epochs of %d) on %s, global batch %d over %d ranks",
                "continue at" if self.step else "train",
                self.step or self.total,
                self.total,
                config.epochs,
                self.steps_per_epoch,
                self.engine.ranks.device,
                config.global_batch,
                self.engine.ranks.world_size,
            )
            with logging_redirect_tqdm(), self._bar() as bar:
                while self.step < self.total:
                    self._train_step(stream)
                    self.step += 1
                    bar.update()
                    epoch, rest = divmod(self.step, self.steps_per_epoch)
                    if self.step % config.log_steps == 0 or rest == 0:
                        record = self.meter.read(self.engine)
                        record["damaged"] = self.engine.total(self.loader.damaged)
                        history.write("train", self.step, self.step / self.steps_per_epoch, record)
                        self._show(bar, record)
                    stop = self.engine.any(bool(received))
                    if stop or rest == 0:
                        self.engine.average_buffers()
                    due = self.step == self.total or (rest == 0 and epoch % max(1, config.validate_epochs) == 0)
                    if self.val_loader and due:
                        self._validate(self.val_loader, history)
                    if stop or self.step == self.total or (rest == 0 and epoch % config.checkpoint_epochs == 0):
                        self._save()
                    if stop:
                        break
                    if rest == 0:
                        self.meter.start_clock()  # anew: the meter was read before validating and saving
            if self.step < self.total:
                logger.info("stopped by a signal at step %d of %d; continue with --resume", self.step, self.total)
                return 128 + (received[0] if received else signal.SIGTERM)
            logger.info("trained %d steps; the model is %s", self.step, self.out / run_folder.WEIGHTS)
            return 0

    def _train_step(self, stream: Iterator[Any]) -> None:
        loss_config = self.config.loss
        self.engine.model.train()
        for _ in range(self.config.train.accumulation):
            began = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - began
            output = self.engine(batch.images)
            labels = batch.labels.to(output.logits.device, non_blocking=True)
            classification = classification_loss(output.logits, labels)
            prior = torch.zeros_like(classification)
            if isinstance(output, ModelOutput):
                prior = occurrence_prior_loss(
                    self.engine.gather(output.occurrence), loss_config.prior_alpha, loss_config.prior_beta
                )
            loss = loss_config.classification_weight * classification + loss_config.prior_weight * prior
            self.engine.step(loss)
            with torch.no_grad():
                correct = _correct(output.logits, labels)
                self.meter.add(torch.stack([loss, classification, prior, correct]).detach(), waited)

    @torch.no_grad()
    def _validate(self, loader: Loader, history: History) -> None:
        """Accuracy and losses over the validation split, every sample counted once over all ranks."""
        model, ranks = self.engine.model, self.engine.ranks
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        for batch in loader:
            output = model(batch.images.to(ranks.device))
            labels = batch.labels.to(ranks.device)
            correct, loss = _correct(output.logits, labels), classification_loss(output.logits, labels)
            sums += len(labels) * torch.stack([correct, loss, torch.ones_like(loss)]).double()
        accuracy, loss, count = self.engine.sum(sums).tolist()
        record = {"accuracy": accuracy / count, "classification_loss": loss / count}
        history.write("validation", self.step, self.step / self.steps_per_epoch, record)
        logger.info("epoch %d: validation accuracy %.4f", self.step // self.steps_per_epoch, record["accuracy"])

    def _save(self) -> None:
        state: dict[str, Any] = {
            "loader": self.loader.state(),
            "rng": torch.get_rng_state(),
            "meter": self.meter.sums,
        }
        if torch.cuda.is_available():
            state["cuda_rng"] = torch.cuda.get_rng_state()
        self.engine.save(self.out / CHECKPOINTS, self.step, state, self.config.train.keep_checkpoints)
        if self.is_main:
            run_folder.save_weights(self.out, self.engine.model)

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


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        logger.info("%s: saving a checkpoint after this step", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
