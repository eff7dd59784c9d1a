"""Interpretable fine-grained recognition by region grouping.

    import rg
    model = rg.load("runs/demo")
    explanation = model.explain("bird.jpg")
    print(explanation.label, explanation.probability)
    explanation.save("bird.png")

Submodules are imported when they are first used, so ``import rg`` is quick and needs neither DALI nor DeepSpeed.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from rg.malloc import keep_freed_memory

if TYPE_CHECKING:
    from pipelines.places import Place
    from rg.explain.explainer import Explainer

__version__ = "0.2.0"
__all__ = ["Place", "__version__", "keep_freed_memory", "load"]

MODULES = {  # public name -> where it stands
    "card": "rg.export.card",
    "config": "rg.config",
    "evaluate": "rg.evaluation.evaluate",
    "explain": "rg.explain",
    "losses": "rg.model.losses",
    "malloc": "rg.malloc",
    "metrics": "rg.evaluation.metrics",
    "model": "rg.model",
    "recipes": "rg.recipes",
    "report": "rg.pages.report",
    "train": "rg.training.train",
}


def load(run: str | os.PathLike, device: str = "auto") -> Explainer:
    """The trained model of a run folder, ready to explain images.

    Args:
        run: Folder that ``python -m rg train`` wrote.
        device: cpu, cuda, cuda:1, ..., or auto for a GPU where there is one.

    Raises:
        ValueError: the folder holds no finished run.
    """
    from rg.explain.explainer import Explainer

    return Explainer.load(run, device)


def __getattr__(name: str) -> Any:
    if name == "Place":
        return importlib.import_module("pipelines.places").Place
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    raise AttributeError(f"module 'rg' has no attribute {name!r}")
