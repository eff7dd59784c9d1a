"""Numbers on their way from a device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy on the host of what is computed on the device, of which the device may get ahead.

    ``Tensor.cpu()`` waits for everything that the device was asked for before, a whole backward pass for example. This
    copy travels on a stream of its own, which waits only for what had been asked for when the copy was begun.

    Args:
        values: On any device; small.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            stream = _stream(values.device)
            stream.wait_stream(torch.cuda.current_stream(values.device))
            with torch.cuda.stream(stream):
                self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                self._values.copy_(values, non_blocking=True)
                self._event = stream.record_event()
            values.record_stream(stream)  # its memory is not used again before it has been read

    @property
    def is_due(self) -> bool:
        """Whether the device still computes them."""
        return self._event is not None and not self._event.query()

    def wait(self) -> Tensor:
        """The numbers, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)
    return _STREAMS[device]
