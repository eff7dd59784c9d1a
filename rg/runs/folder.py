"""What a finished run is: files that load without DeepSpeed, and the record of how they came to be.

config.json          the ``RunConfig``; also a valid ``--config`` file
classes.json         names of the classes, and whether they are attributes
model.safetensors    weights and buffers
run.json             command, data set, versions: enough to repeat the run
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipelines.files import atomic_write, check_content, sha256, write_json
from pipelines.shards.manifest import Manifest, Schema
from rg.config import RunConfig
from rg.model.build import Model, build_model
from rg.model.edits import Edits
from rg.model.plain import PlainModel
from rg.model.region_grouping import RegionGroupingModel
from rg.model.scops import ScopsModel
from rg.runs.part_entries import edits

logger = logging.getLogger(__name__)

# Every name of a file in a run folder, by what writes it.
CONFIG, CLASSES, WEIGHTS, RECORD = "config.json", "classes.json", "model.safetensors", "run.json"
CHECKPOINTS, HISTORY, TENSORBOARD, LOG = "checkpoints", "metrics.jsonl", "tensorboard", "train.log"
METRICS, PREDICTIONS, CONFIDENCE = "metrics.json", "predictions.jsonl", "confidence.json"
FAITHFUL, FAITHFUL_IMAGES, LEAKAGE, REPORT = "faithful.json", "faithful_images.npz", "leakage.json", "report.html"
PART_NAMES, PART_PICTURES = "part_names.json", "part_pictures.webp"
PARTS, PARTS_PAGE = "parts.json", "parts.html"


@dataclass(frozen=True)
class Classes:
    """What the outputs of the model mean.

    Attributes:
        names: Name of every class or attribute.
        multi_label: Attributes (one sigmoid each) instead of classes (one softmax).
    """

    names: tuple[str, ...]
    multi_label: bool = False

    @classmethod
    def of(cls, schema: Schema) -> Classes:
        """Those of a data set."""
        return cls(schema.classes, schema.multi_label)

    def __str__(self) -> str:
        return f"{len(self.names)} {'attributes' if self.multi_label else 'classes'}"

    def check(self, others: Classes, argument: str, run: Path) -> None:
        """Refuse data, or another run, that means something else than a run.

        Args:
            others: Classes of what ``argument`` names.
            argument: What to blame, such as ``--data``.
            run: The run that has these classes.

        Raises:
            ValueError: the classes, their order or their kind differ.
        """
        if others == self:
            return
        message = f"{argument}: expected the {self} of {run}, got {others}"
        if str(others) == str(self):
            pairs = enumerate(zip(self.names, others.names, strict=True))
            number, (expected, name) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            message += f", but number {number} is {name!r} instead of {expected!r}"
        raise ValueError(message)


def of_view(name: str, view: str | None) -> str:
    """Name of a file of ``evaluate`` for another view than that of the run: metrics.json -> metrics.whole.json."""
    path = Path(name)
    return f"{path.stem}.{view}{path.suffix}" if view else name


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        keys: What it has to hold.

    Raises:
        ValueError: it is missing, no JSON, no object, or lacks a key.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent}: not a run folder (no {path.name})")
    check_content(path, str(path), "a JSON object")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON, or cut short ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(keys)}, but {', '.join(missing)} is missing")
    return content


def read_record(run: Path) -> dict[str, Any]:
    """What run.json says of how the run came to be; nothing where the file is gone, which takes nothing else away.

    Raises:
        ValueError: the file is there and no record.
    """
    if not (run / RECORD).is_file():
        logger.warning("%s: has no %s, so how it was trained is not known", run, RECORD)
        return {}
    record = read_json(run / RECORD)
    data = record.get("data", {"dataset": None})
    if not (isinstance(data, dict) and "dataset" in data):
        raise ValueError(f"{run / RECORD}: expected data with the name of a dataset, got {data!r}")
    return record


def save_config(run: Path, config: RunConfig, classes: Classes) -> None:
    """Write config.json and classes.json."""
    write_json(run / CONFIG, dataclasses.asdict(config))
    write_json(run / CLASSES, dataclasses.asdict(classes))


def load_config(run: Path) -> tuple[RunConfig, Classes]:
    """Read config.json and classes.json.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    content = read_json(run / CLASSES, "names", "multi_label")
    names = content["names"]
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{run / CLASSES}: expected a list of names under names, got {names!r}")
    try:
        classes = Classes(tuple(names), bool(content["multi_label"]))
        return RunConfig.from_dict(read_json(run / CONFIG)), classes
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{run}: {CONFIG} or {CLASSES} is no file of this program ({error!r})") from None
    except ValueError as error:
        raise error if str(run) in str(error) else ValueError(f"{run / CONFIG}: {error}") from None


def save_weights(run: Path, model: Model) -> None:
    """Write model.safetensors, all or nothing."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(run / WEIGHTS) as file:
        file.write(save(state))


def has_weights(run: Path, digest: str) -> bool:
    """Whether the weights of a run have that sha256: whether they are those that something was measured of."""
    return sha256(run / WEIGHTS) == digest


def read_edits(run: Path, config: RunConfig | None = None) -> Edits:
    """Which parts people have switched off or merged in part_names.json; none without the file.

    Args:
        run: Run folder.
        config: Of the run; read if None.

    Raises:
        ValueError: the file is none, or the model names no class, or has no parts, so that there is nothing to switch.
    """
    path = run / PART_NAMES
    if not path.is_file():
        return Edits()
    model = (config or load_config(run)[0]).model
    grouping = model.grouping
    if model.kind == "plain":
        return Edits()
    found = edits(path, read_json(path), grouping.slots, grouping.num_parts if grouping.background else None)
    if found and model.kind == "scops":
        raise ValueError(f"{path}: expected names and background only, as the run learned without labels, got {found}")
    return found


def is_as_measured(run: Path, measured: Mapping[str, Any]) -> bool:
    """Whether a run has the weights and the edits that something was measured with.

    Args:
        run: Run folder.
        measured: What a file of the run says of it: ``weights``, their sha256, and ``edits``; no edits in a file of an
            earlier version.
    """
    same = read_edits(run).to_dict() == (measured.get("edits") or {})
    return same and has_weights(run, measured.get("weights", ""))


def check_measured(run: Path, measured: Mapping[str, Any], verb: str) -> None:
    """Refuse what was measured of weights that the run has no more, or with other parts off or merged.

    Args:
        run: Run folder.
        measured: See ``is_as_measured``.
        verb: Of the command line, which measured it.

    Raises:
        ValueError: the weights or the edits are others.
    """
    if not has_weights(run, measured["weights"]):
        raise ValueError(f"{run}: was trained on since it was measured; run `python -m rg {verb}` again")
    if not is_as_measured(run, measured):
        raise ValueError(
            f"{run}: {PART_NAMES} switches off or merges other parts than when it was measured; "
            f"run `python -m rg {verb}` again"
        )


def check_shards(run: Path, measured: Mapping[str, Any], manifest: Manifest, verb: str) -> None:
    """Refuse what was measured on other samples than those that are there now.

    Args:
        run: Run folder.
        measured: What a file of the run holds under ``shards``: the digest of every split that was read; empty in a
            file of an earlier version, where nobody knows.
        manifest: Of the shards that are there now; splits that it lacks are not compared.
        verb: Of the command line, which measured.

    Raises:
        ValueError: a split holds other samples.
    """
    for name, digest in measured.items():
        if name in manifest.splits and manifest.split(name).sha256 != digest:
            raise ValueError(
                f"--data: expected the {name} split that {run} was measured on, got other shards (sha256 differ); "
                f"run `python -m rg {verb}` again"
            )


def load_model(run: Path) -> tuple[Model, RunConfig, Classes]:
    """The trained model of a run, on the CPU and in evaluation mode, with parts off and merged as people said.

    Raises:
        ValueError: the folder holds no run, no weights yet, weights that do not fit its configuration, or a
            part_names.json that cannot be.
    """
    config, classes = load_config(run)
    model = build_model(config.model, len(classes.names), classes.multi_label, pretrained=False)
    if not (run / WEIGHTS).is_file():
        raise ValueError(f"{run}: holds no {WEIGHTS}; the run has not reached its first checkpoint")
    check_content(run / WEIGHTS, str(run / WEIGHTS), "the weights of the run")
    try:
        weights = load_file(run / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{run / WEIGHTS}: no safetensors file, or cut short ({error})") from None
    misfit = _misfit(model.state_dict(), weights)
    if misfit:
        raise ValueError(f"{run / WEIGHTS}: does not fit {CONFIG} ({misfit})")
    model.load_state_dict(weights)
    model.edits = read_edits(run, config)
    return model.eval(), config, classes


def load_region_grouping(run: Path) -> tuple[RegionGroupingModel, RunConfig, Classes]:
    """``load_model`` where parts that speak for a class are needed.

    Raises:
        ValueError: see there; or the run holds a plain network, or names no class.
    """
    model, config, classes = load_with_parts(run)
    check_labelled(run, config)
    assert isinstance(model, RegionGroupingModel)
    return model, config, classes


def load_with_parts(run: Path) -> tuple[RegionGroupingModel | ScopsModel, RunConfig, Classes]:
    """``load_model`` where parts are needed.

    Raises:
        ValueError: see there; or the run holds a plain network.
    """
    model, config, classes = load_model(run)
    if isinstance(model, PlainModel):
        raise ValueError(f"{run}: holds a plain network, which has no parts to show (model.kind)")
    return model, config, classes


def check_labelled(run: Path, config: RunConfig) -> None:
    """Refuse a run that names no class, where one is needed.

    Raises:
        ValueError: the run learned without labels.
    """
    if config.model.kind == "scops":
        raise ValueError(
            f"{run}: expected a run that names classes, got one of model.kind = scops, which learned without labels"
        )


def _misfit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not as expected, None if all are."""
    for name in [*expected, *weights]:
        if name not in weights:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not expected"
        if expected[name].shape != weights[name].shape:
            return f"{name}: expected shape {list(expected[name].shape)}, got {list(weights[name].shape)}"
    return None
