"""How leakage is measured: the settings of ``leakage``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How leakage is measured.

    Attributes:
        images: Number of images, drawn at random from the split; all of them if it has fewer.
        seed: Of that draw, of the noise, and of which image lends another its scenery.
        margins: Pixels, of those that the model sees, that are kept around the object: one measurement for each.
        object: What the object is: the masks of the data, the parts that the model itself takes for no background, or
            the masks where the data have them, else the parts (auto).
    """

    images: int = 100
    seed: int = 0
    margins: tuple[int, ...] = (0, 8, 16, 32)
    object: Literal["auto", "masks", "parts"] = "auto"

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"images: expected at least 2, which lend each other their scenery, got {self.images}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if not self.margins or min(self.margins) < 0 or list(self.margins) != sorted(set(self.margins)):
            raise ValueError(f"margins: expected pixels from 0 on in ascending order, got {self.margins}")
