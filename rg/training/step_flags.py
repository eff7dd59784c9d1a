"""What the ranks tell each other in every step: a few numbers that travel beside the occurrences of the parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepFlags:
    """The flags of all ranks.

    Attributes:
        not_finite: Whether the loss is not finite, for every rank.
        signal: Number of a signal that any rank has received, 0 if none has.
        writing: Whether any rank is writing files.
    """

    not_finite: tuple[bool, ...]
    signal: int
    writing: bool

    @staticmethod
    def of_host(signal: int, writing: bool) -> Tensor:
        """What the host of this rank knows: float32 [2] on the CPU.

        Args:
            signal: Number of a signal that this rank has received, or 0.
            writing: Whether this rank is writing files.
        """
        return torch.tensor([float(signal), float(writing)])

    @staticmethod
    def pack(finite: Tensor, of_host: Tensor) -> Tensor:
        """The flags of this rank, for a collective.

        Args:
            finite: Whether the loss is finite: bool scalar, for which the host does not wait.
            of_host: What the host knows, on the same device.

        Returns:
            float32 [3].
        """
        return torch.cat([(~finite).float()[None], of_host])

    @classmethod
    def unpack(cls, flags: Tensor) -> StepFlags:
        """What ``pack`` returned on every rank: [world, 3] on the CPU."""
        not_finite, signals, writing = flags.unbind(1)
        return cls(tuple(not_finite.bool().tolist()), int(signals.max()), bool(writing.any()))
