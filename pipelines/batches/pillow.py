"""The windows decoded by Pillow, in threads: for machines without DALI."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from pipelines.batches.decoding import DecodeError, Decoding
from pipelines.batches.geometry import Window
from pipelines.formats import open_image


class PillowDecoder:
    """``pipelines.batches.decoding.Decoder`` by Pillow; it decodes whole images, so it takes longer than DALI.

    Args:
        decoding: Of which only the threads, and where the pixels lie, matter here.
    """

    device = torch.device("cpu")
    version = f"Pillow {PIL.__version__}"

    def __init__(self, decoding: Decoding) -> None:
        self._pool = ThreadPoolExecutor(decoding.thread_count, thread_name_prefix="decoder")
        self._batches: deque[list[Future[np.ndarray]]] = deque()
        self._pinned = decoding.pinned

    def submit(self, jpegs: Sequence[bytes], windows: Sequence[Window]) -> None:
        """See ``Decoder.submit``."""
        self._batches.append([self._pool.submit(self._decode, *image) for image in zip(jpegs, windows, strict=True)])

    def result(self) -> Tensor:
        """See ``Decoder.result``."""
        images = [image.result() for image in self._batches.popleft()]
        out = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=self._pinned)
        np.stack(images, out=out.numpy())
        return out

    @staticmethod
    def _decode(jpeg: bytes, window: Window) -> np.ndarray:
        try:
            with open_image(io.BytesIO(jpeg)) as image:
                return show(image.convert("RGB"), window)
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from None


def show(image: Image.Image, window: Window) -> np.ndarray:
    """What a window shows of a decoded RGB image: uint8 [rows, columns, 3].

    Raises:
        ValueError: the window reaches beyond the image.
    """
    box = (window.x0, window.y0, window.x0 + window.width, window.y0 + window.height)
    if box[2] > image.width or box[3] > image.height:
        raise ValueError(f"the image is {image.width}x{image.height}, too small for the window {box}")
    pixels = image.crop(box).resize((window.columns, window.rows), Image.Resampling.BILINEAR)
    if window.flipped:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if window.brightness == 1:
        return np.asarray(pixels)
    return np.rint(np.asarray(pixels, np.float32) * np.float32(window.brightness)).clip(0, 255).astype(np.uint8)
