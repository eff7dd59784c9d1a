"""The model: backbone, dictionary of parts, attention, classifier, and its losses."""

from __future__ import annotations

import importlib
from typing import Any

MODELS = {
    "Model": "rg.model.build",
    "ModelOutput": "rg.model.region_grouping",
    "RegionGroupingModel": "rg.model.region_grouping",
    "build_model": "rg.model.build",
}


def __getattr__(name: str) -> Any:
    """The models, imported when they are first used: losses and maps alone need no backbone."""
    if name in MODELS:
        return getattr(importlib.import_module(MODELS[name]), name)
    raise AttributeError(f"module 'rg.model' has no attribute {name!r}")
