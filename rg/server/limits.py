"""How much ``serve`` takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much the server takes on.

    Attributes:
        megabytes: Of one upload, at most.
        megapixels: Of one picture, at most.
        side: Pixels; larger pictures are scaled down to this longest side before the model sees them.
        waiting: Requests that may wait for the model or send their picture; more are refused with status 503.
        upload_seconds: In which a picture must have arrived.
        answer_seconds: In which an answer must be there, from the first byte of the request on.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    side: int = 1280
    waiting: int = 64
    upload_seconds: float = 60.0
    answer_seconds: float = 180.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limits.{name}: expected more than 0, got {value}")

    @property
    def bytes(self) -> int:
        """Of one upload."""
        return round(self.megabytes * 1e6)
