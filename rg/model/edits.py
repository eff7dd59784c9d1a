"""What people have changed of the parts that a model found: which are switched off, and which are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """Parts that are switched off or merged; none of a model as it was trained.

    A part that is off has attention 0, and the attention of the others stays as it is: a logit loses exactly what that
    part adds to it. A part that is merged into another gives it all that it has, map, attention and contributions, so
    that no logit changes; it keeps its number, and zeros.

    Attributes:
        off: Numbers of the parts that are off, ascending, with all that are merged into them.
        merged: Number of a part -> number of the part that it is merged into, which is merged into none.
    """

    off: tuple[int, ...] = ()
    merged: Mapping[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.off or self.merged)

    def __str__(self) -> str:
        """In words; empty without any."""
        alone = [k for k in self.off if k not in self.merged]
        return ", ".join(
            [
                *(f"part {k} switched off" for k in alone),
                *(f"part {k} merged into part {into}" for k, into in self.merged.items()),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; empty without any."""
        merged = {str(k): into for k, into in self.merged.items()}
        return {"off": list(self.off), "merged": merged} if self else {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Edits:
        """Those that ``to_dict`` has told."""
        merged = values.get("merged", {})
        return cls(tuple(values.get("off", ())), {int(k): into for k, into in merged.items()})

    def switched(self, attention: Tensor) -> Tensor:
        """Attention [..., K] with 0 for the parts that are off."""
        if not self.off:
            return attention
        heard = [0.0 if k in self.off else 1.0 for k in range(attention.shape[-1])]
        return attention * torch.tensor(heard, dtype=attention.dtype, device=attention.device)

    def together(self, values: Tensor, dim: int) -> Tensor:
        """Values of the parts, K of them along ``dim``: each has those that are merged into it added, and these 0."""
        if not self.merged:
            return values
        parts = list(values.unbind(dim))
        for k, into in self.merged.items():
            parts[into] = parts[into] + parts[k]
            parts[k] = torch.zeros_like(parts[k])
        return torch.stack(parts, dim)
