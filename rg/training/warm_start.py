"""A run that starts from the weights of another one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.files import sha256
from rg.model.build import Model
from rg.model.region_grouping import RegionGroupingModel
from rg.model.weights import fit, load_weights
from rg.runs.folder import WEIGHTS

SHOWN = 5  # names in a line of the log
SHARE = "attention_share"

logger = logging.getLogger(__name__)


def start_from(model: Model, source: Path) -> dict[str, Any]:
    """Fill a model with those tensors of another one that fit; layers of other classes or parts stay as they are.

    So does the dictionary, if one of the two has a background slot and the other has not. A second stage that the other
    one lacks begins with the statistics of the backbone.

    Args:
        model: To fill.
        source: Run folder, one of its checkpoints, or a file of weights.

    Returns:
        For the record: the file, its sha256, how many tensors were taken, and the names of those that were not.

    Raises:
        ValueError: there are no weights, or they are of another backbone.
    """
    path = source / WEIGHTS if source.is_dir() else source
    expected = model.state_dict()
    try:
        state = fit(load_weights(path, "model.init"), expected)
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"model.init: {path} {error}") from None
    left = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
    if SHARE in expected and SHARE in state and _has_slot(state[SHARE]) != _has_slot(expected[SHARE]):
        # Of as many entries, the last one is a part here and the background there.
        left = [name for name in expected if name in left or name == SHARE or name.startswith("dictionary.")]
    misfits = [name for name in left if name.startswith("backbone.")]
    if misfits:
        raise ValueError(
            f"model.init: {path} does not fit the backbone: {len(misfits)} tensors are missing or of another shape, "
            f"the first is {misfits[0]}; weights of a backbone alone are for model.backbone.weights"
        )
    model.load_state_dict({name: state[name] for name in expected if name not in left}, strict=False)
    looks_twice = isinstance(model, RegionGroupingModel) and model.second_stage
    if looks_twice and any(name.startswith("second_stage.statistics.") for name in left):
        looks_twice.start_from(model.backbone)
    names = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
    logger.info("model.init: %d of %d tensors are those of %s", len(expected) - len(left), len(expected), path)
    if left:
        logger.info("model.init: new are %s", names)
    return {"file": str(path.resolve()), "sha256": sha256(path), "taken": len(expected) - len(left), "left": left}


def _has_slot(attention_share: Tensor) -> bool:
    return bool(attention_share[-1] == 0)
