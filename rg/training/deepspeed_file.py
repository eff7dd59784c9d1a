"""The file of ``--deepspeed``: what it may say of how ranks share the work, checked before anything starts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rg.training.deepspeed_driver import LARGEST_STAGE, SECTIONS

SET_BY = {  # settings of DeepSpeed that say what is trained, and the settings of a run that decide them
    "fp16": "train.precision",
    "bf16": "train.precision",
    "torch_autocast": "train.precision",
    "amp": "train.precision",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
    "gradient_clipping": "optimizer.clip_norm",
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.global_batch",
    "gradient_accumulation_steps": "train.accumulation",
    "elasticity": "train.global_batch, which any number of ranks shares out",
    "steps_per_print": "train.log_steps",
    "checkpoint": "train.checkpoint_steps",
}


SWITCHES = ("prescale_gradients", "disable_allgather", "wall_clock_breakdown", "memory_breakdown", "dump_state")
OTHERS = ("communication_data_type", "gradient_predivide_factor", "zero_allow_untested_optimizer")
COMMUNICATED = ("fp32", "fp16", "bf16")


def read_settings(path: Path) -> dict[str, Any]:
    """DeepSpeed settings of how the ranks share the work: stage, buckets, communication.

    Raises:
        ValueError: no JSON, a setting that says what is trained (a recipe does), one that DeepSpeed does not know or
            that does not apply here, or a value that it does not take; with the file and the name of the setting.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise ValueError(f"--deepspeed: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"--deepspeed: {path} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"--deepspeed: {path}: expected an object of settings, got {type(content).__name__}")
    for name, value in content.items():
        if name in SET_BY:
            raise ValueError(f"--deepspeed: {path} sets {name}, which is set by {SET_BY[name]}; it may only say how")
        if reason := _misfit(name, value):
            raise ValueError(f"--deepspeed: {path}: {reason}")
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return content


def _misfit(name: str, value: Any) -> str | None:
    """Why a setting cannot be used, None if it can."""
    got = f"got {json.dumps(value)}"
    if name in SECTIONS:
        if not isinstance(value, dict):
            return f"{name}: expected an object of settings such as {{...}}, {got}"
        return (name == "zero_optimization" and _misfit_of_zero(value)) or _misfit_of_section(name, value)
    if name in SWITCHES:
        return None if isinstance(value, bool) else f"{name}: expected true or false, {got}"
    if name == "zero_allow_untested_optimizer":  # the optimisers here, which the tests run with
        return None if value is True else f"{name}: expected true, {got}"
    if name == "communication_data_type":
        return None if value in COMMUNICATED else f"{name}: expected one of {', '.join(COMMUNICATED)}, {got}"
    if name == "gradient_predivide_factor":
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return None if number else f"{name}: expected a positive number, {got}"
    return f"{name}: {_unknown(name, [*SECTIONS, *SWITCHES, *OTHERS])}"


def _misfit_of_zero(section: Mapping[str, Any]) -> str | None:
    stage = section.get("stage", 0)
    if isinstance(stage, bool) or not isinstance(stage, int):
        return f"zero_optimization.stage: expected a whole number from 0 to {LARGEST_STAGE}, got {json.dumps(stage)}"
    if stage not in range(LARGEST_STAGE + 1):
        return (
            f"expected zero_optimization.stage 0 to {LARGEST_STAGE}, got {stage}; a model of this "
            "size fits every GPU, and its parameters are needed whole"
        )
    for name in ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param", "zenflow"):
        value = section.get(name)
        if value and not (isinstance(value, dict) and value.get("device") == "none"):
            return f"zero_optimization.{name}: leave it out; a model of this size and its momentum fit every GPU"
    return None


def _misfit_of_section(section: str, values: Mapping[str, Any]) -> str | None:
    """What DeepSpeed's own description of a section says against it."""
    kind = SECTIONS[section]
    try:
        kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = [field.alias or field_name for field_name, field in kind.model_fields.items()]
            return f"{section}.{name}: {_unknown(name, known)}"
        return f"{section}.{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {json.dumps(first['input'])}"
    return None


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return "unknown setting; " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}")
