"""One DALI graph that decodes the windows on the CPU or on the GPU. The only file that knows DALI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia import dali
from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from pipelines.batches.decoding import DecodeError, Decoding
from pipelines.batches.geometry import Window

INPUTS = ("jpegs", "starts", "shapes", "sizes", "first_corners", "last_corners", "brightness")


class DaliDecoder:
    """``pipelines.batches.decoding.Decoder`` by DALI.

    Args:
        decoding: With the decoder ``cpu`` or ``mixed``.
        batch_size: Most images of a batch.
    """

    def __init__(self, decoding: Decoding, batch_size: int) -> None:
        mixed = decoding.decoder == "mixed"
        self.device = torch.device("cuda", decoding.gpu) if mixed else torch.device("cpu")
        self.version = f"DALI {dali.__version__} {decoding.decoder}"
        self._pipeline = pipeline_def(_graph)(
            decoding,
            batch_size=batch_size,
            num_threads=decoding.thread_count,
            device_id=decoding.gpu if mixed else None,
            prefetch_queue_depth=decoding.prefetch,
        )
        self._pipeline.build()
        self._pinned = decoding.pinned and not mixed
        self._missing = decoding.prefetch  # batches; DALI starts once its queue is full

    def submit(self, jpegs: Sequence[bytes], windows: Sequence[Window]) -> None:
        """See ``Decoder.submit``."""
        self._feed(
            [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs],
            np.array([(window.y0, window.x0) for window in windows], np.float32),
            np.array([(window.height, window.width) for window in windows], np.float32),
            np.array([(window.rows, window.columns) for window in windows], np.float32),
            np.array([(0, window.width if window.flipped else 0) for window in windows], np.float32),
            np.array([(window.height, 0 if window.flipped else window.width) for window in windows], np.float32),
            np.array([window.brightness for window in windows], np.float32),
        )

    def result(self) -> Tensor:
        """See ``Decoder.result``."""
        while self._missing:  # a stream shorter than the queue: it is filled up, what comes of that is never asked for
            self._feed(*self._last)
        with _errors():
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            # Bound to the stream of the copy: else the host would wait for all that this stream has still to do.
            (images,) = self._pipeline.share_outputs(cuda_stream=stream)
            dense = images.as_tensor()
            out = torch.empty(dense.shape(), dtype=torch.uint8, device=self.device, pin_memory=self._pinned)
            feed_ndarray(dense, out, cuda_stream=stream)
            self._pipeline.release_outputs()
        return out

    def _feed(self, *inputs: Any) -> None:
        for name, data in zip(INPUTS, inputs, strict=True):
            self._pipeline.feed_input(name, data)
        if self._missing:
            self._missing -= 1
            self._last = inputs
        if not self._missing:
            with _errors():
                self._pipeline.schedule_run()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Makes one line of DALI's many: that which says what is wrong."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
        raise DecodeError(lines[0].rstrip(" :") if lines else str(error).partition("\n")[0]) from None


def _graph(decoding: Decoding) -> Any:
    jpegs, starts, shapes, sizes, first, last, brightness = (fn.external_source(name=name) for name in INPUTS)
    mixed = decoding.decoder == "mixed"
    images: Any = fn.decoders.image_slice(
        jpegs,
        starts,
        shapes,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        device=decoding.decoder,
        # The CPU decoder does this; without it the GPU up-samples chroma by repetition and the pixels differ.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=decoding.hardware_load if mixed else None,
        preallocate_width_hint=decoding.largest_width if mixed else None,
        preallocate_height_hint=decoding.largest_height if mixed else None,
    )
    # A region that ends left of its start comes out mirrored; flipping afterwards would cost another pass.
    images = fn.resize(images, size=sizes, roi_start=first, roi_end=last)
    return fn.brightness(images, brightness=brightness)
