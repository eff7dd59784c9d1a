"""Photos explained: parts, pictures, folders of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rg.explain.explainer import Explainer as Explainer


def __getattr__(name: str) -> Any:
    """``rg.explain.Explainer``, imported when it is first used."""
    if name == "Explainer":
        from rg.explain.explainer import Explainer

        return Explainer
    raise AttributeError(f"module 'rg.explain' has no attribute {name!r}")
