"""Training: shards in, a run folder out.

config.json classes.json run.json     what runs (rg.runs.folder)
checkpoints/                          to resume from (rg.training.checkpoints)
model.safetensors                     weights of the newest checkpoint
metrics.jsonl tensorboard/ train.log  what happened
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines import plan
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from pipelines.files import check_folder, write_json
from pipelines.locks import owned_folder
from pipelines.shards.manifest import Manifest
from pipelines.shards.samples import PART_MAP
from pipelines.shards.storage import Location, resolve
from rg.config import BOOKKEEPING, LossConfig, RunConfig, differences, flatten
from rg.distributed import ranks
from rg.distributed.group import Group, GroupError, PeerLostError, connect
from rg.distributed.heartbeat import Heartbeat
from rg.model.backbones import Backbone, trained_side
from rg.model.build import Model, build_model
from rg.model.region_grouping import RegionGroupingModel
from rg.runs import inputs
from rg.runs.agreement import agree
from rg.runs.environment import environment
from rg.runs.folder import CHECKPOINTS, RECORD, WEIGHTS, Classes, load_config, read_json, save_config, save_weights
from rg.runs.threads import limit_threads
from rg.training.activation_checkpointing import checkpoint_blocks
from rg.training.checkpoints import Checkpoint, Checkpoints, find
from rg.training.engine import Engine, check_engine, micro_batches
from rg.training.loop import Loop
from rg.training.objective import Objective
from rg.training.parameters import choose_learning, parameter_groups
from rg.training.scops_objective import ScopsObjective
from rg.training.warm_start import start_from

logger = logging.getLogger(__name__)

DICTIONARY_IMAGES = 256
DIVERGED, BAD_INPUT = 1, 2  # exit codes, as those of the command line
RESUMED = ("command", "ranks", "hosts", "device", "deepspeed", "environment")  # of run.json, anew for a resumed run
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# What these warn of, every rank meets alike; rank 0 tells it.
SAME_FOR_ALL = ("rg.training.checkpoints", "pipelines.batches.decoders", "pipelines.shards.reader")

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
            auto if there is one. With more ``train.epochs`` than before it goes on, after its end too, along the
            schedule of the learning rate that belongs to them.
        deepspeed: JSON file of how DeepSpeed shares out the work.
        command: What started the run, for the record.
        recipe: The recipe that the settings started from, for the record.

    Returns:
        Exit code: 0 when trained to the end, 75 when a signal stopped the run after a checkpoint.

    Raises:
        ValueError: data, configuration or run folder cannot be used, or another process is training into the folder.
        FloatingPointError: the loss is not finite any more.
    """
    waits = 2 * config.train.peer_timeout, config.train.join_timeout
    group = connect(ranks.discover(), *waits, setting="train.join_timeout")
    if group.ranks.rank:
        logging.getLogger("rg").setLevel(logging.WARNING)
        for name in SAME_FOR_ALL:
            logging.getLogger(name).setLevel(logging.ERROR)
    limit_threads(group.sharing)
    heartbeat = Heartbeat(group, config.train.peer_timeout)
    try:
        with ExitStack() as owned:
            loop = _set_up(config, data, out, resume, deepspeed, command, recipe, group, heartbeat, owned)
            # To the very end: a launcher signals the ranks one by one, and the last may have stopped because of the
            # first.
            with _signals(loop.received):
                code = loop.run()
                group.barrier()
                heartbeat.stop()
        return code
    except (GroupError, FloatingPointError) as error:
        heartbeat.stop()
        if group.ranks.local_rank == 0:  # once for every host
            raise
        raise SystemExit(DIVERGED if isinstance(error, FloatingPointError) else BAD_INPUT) from None
    except BaseException as error:
        if isinstance(error, PeerLostError):
            heartbeat.cut_off()
        heartbeat.fail(_reason(error))
        raise


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
    owned: ExitStack,
) -> Loop:
    """Everything up to the first step; the run folder is that of this run alone until ``owned`` is closed."""
    ranks = group.ranks
    group.together(lambda: check_folder(out, "--out"))
    manifest = group.together(lambda: Manifest.load(data))
    classes = Classes.of(manifest)
    group.together(lambda: check_engine(config, ranks))
    deepspeed_settings = group.together(lambda: _deepspeed_settings(deepspeed, config))
    objective = group.together(
        lambda: _objective(config, manifest, micro_batches(config, ranks.world_size), ranks.rank)
    )
    agree(group, _facts(config, manifest, deepspeed_settings, resume))
    # By one rank for all; a folder to resume that is not there is told of below.
    owns = ranks.rank == 0 and (resume != "yes" or out.is_dir())
    group.together(lambda: owned.enter_context(owned_folder(out)) if owns else None)
    checkpoint = find(out / CHECKPOINTS, group) if resume != "no" else None
    goes_on = group.together(lambda: _check_run_folder(out, config, classes, manifest, resume, checkpoint, ranks.rank))
    validates = "val" in manifest.splits and config.train.validate_epochs > 0 and objective.labelled
    training = inputs.growing_geometries(config.input, config.train.epochs)
    testing = inputs.evaluation_geometry(config.input)
    loader = group.together(lambda: _loader(config, data, "train", training, group))
    val_loader = group.together(lambda: _loader(config, data, "val", testing, group)) if validates else None
    steps = plan.steps_per_epoch(manifest.split("train").samples, config.train.global_batch)

    torch.manual_seed(config.seed)
    model, origin = group.together(lambda: _build(config, data, manifest, checkpoint))
    momentum = checkpoint.momentum() if checkpoint else None
    averages = checkpoint.model() if checkpoint and config.train.ema else None
    engine = Engine(model, config, group, steps, deepspeed_settings, momentum, averages)
    checkpoints = Checkpoints(
        out / CHECKPOINTS,
        group,
        config.train.keep_checkpoints,
        checkpoint.manifest["run"] if checkpoint else None,
        out / WEIGHTS,
    )
    record = {"recipe": recipe, "command": command, "run": checkpoints.run}
    if config.model.kind == "scops":
        record["saliency"] = config.model.scops.saliency
    record |= origin | _record(data, manifest, group, deepspeed_settings)
    if ranks.rank == 0:
        _write_record(out, config, classes, record, checkpoint if goes_on else None)
        if checkpoint:
            save_weights(out, engine.evaluated)  # those of the checkpoint, in case the run died before writing them
    loop = Loop(config, out, engine, objective, loader, val_loader, steps, checkpoints, heartbeat)
    if checkpoint:
        loop.resume(checkpoint)
    return loop


def _deepspeed_settings(path: Path | None, config: RunConfig) -> dict[str, Any]:
    """What the file of ``--deepspeed`` says; DeepSpeed is imported by those who use it alone."""
    if path is None:
        return {}
    if config.train.engine != "deepspeed":
        raise ValueError(f"--deepspeed: expected no file with train.engine = {config.train.engine}, got {path}")
    from rg.training.deepspeed_file import read_settings

    return read_settings(path)


def _objective(config: RunConfig, manifest: Manifest, sizes: Sequence[int], rank: int) -> Objective | ScopsObjective:
    """What the steps make small."""
    if config.model.place.on and not manifest.locations:
        raise ValueError(
            f"model.place.on: expected false, as the shards of {manifest.dataset} have no places, got true; "
            "docs/places.md says how to prepare some"
        )
    if config.model.kind != "scops":
        return Objective(config, sizes, rank)
    if config.model.scops.saliency == "mask" and PART_MAP not in manifest.fields:
        raise ValueError(
            f"model.scops.saliency: expected spectral_residual, as {manifest.dataset} has no masks, got mask"
        )
    return ScopsObjective(config.model.scops)


def _loader(
    config: RunConfig, data: Location, split: str, geometry: Geometry | Mapping[int, Geometry], group: Group
) -> Loader:
    ranks, training = group.ranks, split == "train"
    batch = config.train.global_batch // config.train.accumulation
    masked = config.model.kind == "scops" and config.model.scops.saliency == "mask"
    return Loader(
        data,
        split,
        geometry,
        batch if training else max(micro_batches(config, ranks.world_size)),
        annotations=training and masked,
        decoding=inputs.decoding(config.input, ranks.device, group.sharing),
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_damaged=config.input.max_damaged,
        balance=config.train.balance if training else 0.0,
        cache=inputs.cache(config.input),
    )


def _build(
    config: RunConfig, data: Location, manifest: Manifest, checkpoint: Checkpoint | None
) -> tuple[Model, dict[str, Any]]:
    """The model at its start, or as the checkpoint has it, the same on all ranks; and for the record what it is of."""
    pretrained = not checkpoint and config.model.init == "none"
    model = build_model(config.model, len(manifest.classes), manifest.multi_label, pretrained)
    _check_map(config, model)
    choose_learning(model, config.model.backbone)
    parameter_groups(model, config.optimizer)
    origin: dict[str, Any] = {}
    if checkpoint:
        model.load_state_dict(dict(checkpoint.trained()))
    elif config.model.init != "none":
        origin = {"init": start_from(model, Path(config.model.init))}
    has_centers = checkpoint or (origin and "dictionary.centers" not in origin["init"]["left"])
    if not has_centers and isinstance(model, RegionGroupingModel) and config.model.grouping.init != "random":
        images = _first_images(config, data, manifest)
        model.initialize_dictionary(images, config.seed, of_batches=_starts_with_statistics_of_batches(config))
    if config.train.activation_checkpointing and not checkpoint_blocks(model.backbone):
        name = config.model.backbone.name
        raise ValueError(f"train.activation_checkpointing: expected a backbone that is made of blocks, got {name}")
    return model, origin


def _starts_with_statistics_of_batches(config: RunConfig) -> bool:
    """Whether the dictionary starts on features as training will normalise them.

    Only for a salient start, whose parts stay where they begin.
    """
    frozen = config.model.backbone.frozen_statistics or config.train.batch_norm == "frozen"
    return config.model.grouping.init == "salient" and not frozen and config.model.backbone.train == "all"


def _facts(config: RunConfig, manifest: Manifest, deepspeed_settings: dict[str, Any], resume: Resume) -> dict[str, Any]:
    """What the ranks must have in common beside code and versions."""
    settings = flatten(dataclasses.asdict(config))
    return settings | {"--deepspeed": deepspeed_settings, "--resume": resume, "shards": _shard_sums(manifest)}


def _check_run_folder(
    out: Path,
    config: RunConfig,
    classes: Classes,
    manifest: Manifest,
    resume: Resume,
    checkpoint: Checkpoint | None,
    rank: int,
) -> bool:
    """Whether the folder holds a run to go on with; rank 0 looks closely, as other hosts may have checkpoints only."""
    if checkpoint is None:
        if resume == "yes":
            if rank == 0:
                load_config(out)
            raise ValueError(f"--resume: {out} has no checkpoints to resume from")
        remains = [*sorted((out / CHECKPOINTS).glob("step-*"))[:1], *out.glob(WEIGHTS)]
        if remains:
            raise ValueError(
                f"--out: {out} holds a run already ({remains[0].relative_to(out)}); "
                "continue it with --resume or choose another folder"
            )
        return False
    if rank:
        return True
    started, trained_classes = load_config(out)
    changed = {name: pair for name, pair in differences(started, config).items() if name not in BOOKKEEPING}
    epochs, more_epochs = changed.get("train.epochs", (0, 0))
    if more_epochs > epochs:
        del changed["train.epochs"]
        logger.info(
            "train.epochs: %d before, now %d; the learning rate goes on along the schedule of %d",
            *(epochs, more_epochs, more_epochs),
        )
    if changed:
        name, (before, after) = next(iter(changed.items()))
        raise ValueError(
            f"--resume: {out} was started with {name} = {before!r}, now it is {after!r}"
            + (f" ({len(changed) - 1} more settings differ)" if len(changed) > 1 else "")
            + "; resume with the settings that it has, or with more train.epochs"
        )
    trained_classes.check(classes, "--data", out)
    if read_json(out / RECORD, "data")["data"]["shards"] != _shard_sums(manifest):
        raise ValueError("--data: the training shards are not those that the run was started with (sha256 differ)")
    return True


def _check_map(config: RunConfig, model: Model) -> None:
    """Refuse crops that the backbone does not take, or whose map the smoothing window does not fit into.

    Behind a sampler the backbone sees what that makes of a crop, and the first of two stages a crop made smaller.
    """
    grouping, sampler = config.model.grouping, config.model.sampler
    window = 2 * grouping.smoothing_radius + 1
    model.eval()
    seen = {"input.crop": config.input.crop, "input.test_crop": config.input.test_size[1]}
    if config.input.smallest_crop:
        if model.sampler or not model.takes_any_size(config.input.crop):
            what = "a sampler" if model.sampler else config.model.backbone.name
            raise ValueError(f"input.smallest_crop: expected 0, as {what} takes images of one size only")
        seen["input.smallest_crop"] = min(
            geometry.crop for geometry in inputs.growing_geometries(config.input, config.train.epochs).values()
        )
    if model.sampler:
        _map_size(model.sampler.network, sampler.network, "model.sampler.glimpse", sampler.glimpse)
        seen = {"model.sampler.size": sampler.size}
    seen = {name: side // config.model.second_stage.shrink for name, side in seen.items()}
    for name, side in seen.items():
        height, width = _map_size(model.backbone, config.model.backbone.name, name, side)
        windowed = config.model.kind == "region_grouping" and grouping.smoothing_padding == "valid"
        if windowed and min(height, width) < window:
            raise ValueError(
                f"{name}: {side} pixels make a {height}x{width} map, smaller than the {window}x{window} smoothing "
                "window; use more or model.grouping.smoothing_padding = same"
            )
        if config.model.kind == "region_grouping" and name != "input.test_crop":
            _check_terms(config.loss, name, side, (height, width))
    model.train()


@torch.no_grad()
def _map_size(backbone: Backbone, network: str, name: str, side: int) -> tuple[int, int]:
    """Height and width of the map of images of ``side`` pixels, which the setting ``name`` says."""
    try:
        height, width = backbone(torch.zeros(1, 3, side, side)).shape[2:]
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        stride = backbone.stride
        below, above = side // stride * stride, -(-side // stride) * stride
        remedy = f"; take {trained}, which it was trained on" if (trained := trained_side(network)) != side else ""
        if side % stride:
            remedy = f"; take a multiple of {stride}, such as {below or above} or {above}"
        raise ValueError(f"{name}: {network} takes no {side}x{side} images ({reason}){remedy}") from None
    return height, width


def _check_terms(loss: LossConfig, name: str, side: int, shape: tuple[int, int]) -> None:
    """Refuse terms whose windows do not fit into the map [H, W] of so many pixels, which the setting ``name`` says."""
    presence, background = 3 + 2 * loss.presence_margin, 3
    for term, weight, least in (
        ("presence", loss.presence_weight, presence),
        ("background", loss.background_weight, background),
        ("border", loss.border_weight, 3),
    ):
        if weight and min(shape) < least:
            raise ValueError(
                f"{name}: {side} pixels make a {shape[0]}x{shape[1]} map, and loss.{term}_weight needs one of at "
                f"least {least}x{least}; use more or a finer model.backbone.stride"
            )


def _shard_sums(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.split("train").shards]


def _record(data: Location, manifest: Manifest, group: Group, deepspeed_settings: dict[str, Any]) -> dict[str, Any]:
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
        "deepspeed": deepspeed_settings,
        "environment": environment(),
    }


def _write_record(
    out: Path, config: RunConfig, classes: Classes, record: dict[str, Any], checkpoint: Checkpoint | None
) -> None:
    """config.json, classes.json and run.json; a resumed run adds what is new to the record of its beginning."""
    save_config(out, config, classes)
    if checkpoint:
        first = read_json(out / RECORD)
        session = {"step": checkpoint.manifest["step"]} | {name: record[name] for name in RESUMED}
        record = first | {"resumed": [*first.get("resumed", []), session]}
    write_json(out / RECORD, record)


def _first_images(config: RunConfig, data: Location, manifest: Manifest) -> Tensor:
    """The same first training images on every rank, uint8 [N, 3, C, C] on the CPU."""
    count = min(DICTIONARY_IMAGES, manifest.split("train").samples)
    if config.model.grouping.init == "salient":
        geometry = inputs.evaluation_geometry(config.input)
    else:
        geometry = Geometry(config.input.short_side, config.input.crop, config.input.view)
    decoding = inputs.decoding(config.input, torch.device("cpu"))
    return next(iter(Loader(data, "train", geometry, count, decoding=decoding))).images


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Collects signals instead of dying of them; a second SIGINT interrupts at once."""

    def note(number: int, _: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        logger.info("%s: saving a checkpoint after this step", signal.Signals(number).name)

    handlers = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
