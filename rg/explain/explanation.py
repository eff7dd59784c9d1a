"""An explanation: facts, the picture of them, and how both are saved."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.files import atomic_write
from rg.explain import pictures
from rg.explain.facts import Facts
from rg.explain.numbers import percent
from rg.explain.summary import summarize


@dataclass(frozen=True, repr=False)
class Explanation(Facts):
    """Why one image got its label; see ``Facts`` for what it holds."""

    def __repr__(self) -> str:
        if self.answer == "none":
            return f"Explanation(parts={len(self.parts)})"
        return f"Explanation(label={self.label!r}, probability={percent(self.probability)}, parts={len(self.parts)})"

    def __str__(self) -> str:
        return self.summary

    @cached_property
    def summary(self) -> str:
        """The explanation in at most two sentences, for people who do not read bars; see ``rg.explain.summary``."""
        return summarize(self)

    def to_dict(self) -> dict[str, Any]:
        """See ``Facts``; and the summary."""
        return {"summary": self.summary, **super().to_dict()}

    def _repr_html_(self) -> str:
        """The picture under its summary, for notebooks."""
        description = f"{self.label}, {percent(self.probability)}: the parts and what each adds to the logit"
        uri = pictures.data_uri(self.picture(), "png")
        image = f'<img src="{uri}" alt="{html.escape(description)}" style="max-width: 100%">'
        return f"<p>{html.escape(self.summary)}</p>{image}"

    def picture(self) -> Image.Image:
        """Image, parts, attribution and contributions side by side."""
        return pictures.panel(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the picture (.png, .webp) or the dictionary (.json), all or nothing.

        Raises:
            ValueError: another suffix.
            OSError: there is no such folder, or it cannot be written to.
        """
        path = Path(path)
        if path.suffix not in (".png", ".webp", ".json"):
            raise ValueError(f"path: expected a name that ends in .png, .webp or .json, got {path.name!r}")
        with atomic_write(path) as file:
            if path.suffix == ".json":
                file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())
            else:
                pictures.write(self.picture(), file, path.suffix[1:])


class Explanations(list[Explanation]):
    """Explanations of several images; in a notebook, their pictures one below the other."""

    def _repr_html_(self) -> str:
        """The pictures, for notebooks."""
        return "\n".join(explanation._repr_html_() for explanation in self)
