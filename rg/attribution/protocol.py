"""How explanations are measured: the settings of ``faithful``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How explanations are measured.

    Attributes:
        images: Number of images, drawn at random from the split; all of them if it has fewer.
        seed: Of that draw, of random maps, of noise and of the factors of DFF.
        steps: In how many steps all pixels are deleted, or inserted.
        blur: Standard deviation of the blur that insertion starts from, as a share of the short side.
        noise: Standard deviation of the noise that a map should withstand, in grey levels.
        integration: Points of the sum of Integrated Gradients.
    """

    images: int = 100
    seed: int = 0
    steps: int = 10
    blur: float = 0.05
    noise: float = 4.0
    integration: int = 16

    def __post_init__(self) -> None:
        for name in ("images", "steps", "integration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        for name in ("blur", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.blur > 0.3:
            raise ValueError(f"blur: expected at most 0.3 of the short side, got {self.blur}")
