"""Shards -> batches, through one DALI graph whose decoder runs on the CPU or on the GPU.

The crop window is drawn in pixels of the stored image, so only that window is decoded; then it is resized to the output
size. This is the paper's "short side to S, crop C x C" up to rounding the window to whole pixels:

    side = round(C / S * short side),   origin = uniform over all positions (training) or the central one (testing)

A point (x, y) of the stored image is then at ((x - x0) * C / side, (y - y0) * C / side) of the output, mirrored if the
image was flipped; landmarks, boxes and part maps follow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

from pipelines import plan
from pipelines.geometry import Geometry, central_start
from pipelines.manifest import Manifest, check_files
from pipelines.samples import ANNOTATION, JPEG, LABEL, PART_MAP, decode_annotation, decode_label

SHUFFLE_BUFFER = 8192


@dataclass(frozen=True)
class Batch:
    """Images and what is known about them. Coordinates are continuous pixels of the images in the batch.

    Attributes:
        images: uint8 [N, 3, C, C], channels_last, on the decoding device.
        labels: int64 [N], or [N, L] attributes.
        keys: Sample keys, N of them.
        landmarks: float32 [N, P, 2]; None without annotations.
        visibility: bool [N, P]; landmarks outside the window are not visible. None without annotations.
        boxes: N arrays float32 [B, 4], clipped to the window; boxes that lie outside it are dropped. None without
            annotations.
        part_maps: uint8 [N, C, C]; None without annotations.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    landmarks: Tensor | None = None
    visibility: Tensor | None = None
    boxes: list[np.ndarray] | None = None
    part_maps: Tensor | None = None


class Loader:
    """Batches of one split for one rank.

    Training is an endless stream of full, shuffled batches; testing is one pass in which every sample appears once.

    Args:
        folder: Folder of shards.
        split: Name of the split.
        geometry: Window, output size and augmentation.
        batch_size: Images of a batch on this rank.
        annotations: Also deliver landmarks, boxes and part maps, as far as the data set has them.
        decoder: ``cpu``, or ``mixed`` for GPU decoding.
        threads: CPU threads of the pipeline; 0 takes the cores of the machine divided by ``local_world_size``.
        seed: Seed of shuffling and augmentation; ranks differ.
        rank: Rank of this process.
        world_size: Number of ranks.
        local_rank: GPU of this process.
        local_world_size: Ranks on this machine.
        state: What ``state()`` returned; the stream goes on from there, augmentation included.

    Raises:
        ValueError: no such split, files that do not agree with the manifest, fewer samples than ranks.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        geometry: Geometry,
        batch_size: int,
        *,
        annotations: bool = False,
        decoder: str = "cpu",
        threads: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_world_size: int = 1,
        state: bytes | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        content = self.manifest.split(split)
        check_files(folder, self.manifest, split)
        self.split = split
        self.geometry = geometry
        self.batch_size = batch_size
        self.annotations = annotations
        self.part_maps = annotations and PART_MAP in self.manifest.fields
        self.device = torch.device("cuda", local_rank) if decoder == "mixed" else torch.device("cpu")
        self.range = plan.shard_range(content.samples, rank, world_size)
        graph = pipeline_def(_graph, enable_checkpointing=True)(
            tars=[str(folder / shard.tar) for shard in content.shards],
            indexes=[str(folder / shard.index) for shard in content.shards],
            geometry=geometry,
            part_maps=self.part_maps,
            decoder=decoder,
            rank=rank,
            world_size=world_size,
            shuffle_seed=seed,
            batch_size=batch_size,
            num_threads=threads or max(1, (os.cpu_count() or 1) // local_world_size),
            device_id=local_rank if decoder == "mixed" else None,
            seed=seed + 7919 * rank + 1,
            checkpoint=state,
        )
        self.pipeline = graph
        self._guarded(graph.build)

    def __iter__(self) -> Iterator[Batch]:
        if self.geometry.training:
            while True:
                yield self._read(self.batch_size)
        for size in plan.batch_sizes(self.range[1] - self.range[0], self.batch_size):
            yield self._read(size)

    def state(self) -> bytes:
        """The position of the stream, shuffling and augmentation included, after the last delivered batch."""
        return self.pipeline.checkpoint()

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """DALI's errors are many lines; this makes them one that says what to do."""
        try:
            return call()
        except RuntimeError as error:
            reason = next((line for line in str(error).splitlines() if "rror" in line), str(error).splitlines()[0])
            raise ValueError(
                f"{self.folder}: split {self.split} cannot be read ({reason.strip()}); "
                "find what is wrong with `python -m rg verify`"
            ) from None

    def _read(self, size: int) -> Batch:
        """The next batch, of which the first ``size`` samples are real."""
        jpegs, images, labels, annotations, windows, *part_maps = self._guarded(self.pipeline.run)
        keys = [_key(jpegs[index].source_info()) for index in range(size)]
        batch = Batch(
            images=_to_torch(images, self.device)[:size].permute(0, 3, 1, 2),
            labels=torch.tensor([decode_label(_bytes(labels, i), key) for i, key in enumerate(keys)]),
            keys=keys,
        )
        if not self.annotations:
            return batch
        return self._annotate(
            batch,
            [decode_annotation(_bytes(annotations, i), key) for i, key in enumerate(keys)],
            np.array(windows.as_tensor())[:size],
            _to_torch(part_maps[0], torch.device("cpu"))[:size].squeeze(3) if self.part_maps else None,
        )

    def _annotate(
        self, batch: Batch, annotations: list[dict[str, Any]], windows: np.ndarray, part_maps: Tensor | None
    ) -> Batch:
        landmarks = visibility = boxes = None
        if self.manifest.landmarks:
            points = np.array([annotation["landmarks"] for annotation in annotations], dtype=np.float64)
            visible = np.array([annotation["visibility"] for annotation in annotations], dtype=bool)
            points = np.stack([self._move(p, window) for p, window in zip(points, windows, strict=True)])
            inside = ((points >= 0) & (points < self.geometry.crop)).all(2)
            landmarks = torch.from_numpy(points.astype(np.float32))
            visibility = torch.from_numpy(visible & inside)
        if any("boxes" in annotation for annotation in annotations):
            boxes = [
                self._move_boxes(np.array(annotation.get("boxes", []), dtype=np.float64).reshape(-1, 4), window)
                for annotation, window in zip(annotations, windows, strict=True)
            ]
        return Batch(batch.images, batch.labels, batch.keys, landmarks, visibility, boxes, part_maps)

    def _move(self, points: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Points [P, 2] of the stored image -> pixels of the output; window is (y0, x0, side, flipped)."""
        y0, x0, side, flipped = window
        moved = (points - (x0, y0)) * (self.geometry.crop / side)
        if flipped:
            moved[:, 0] = self.geometry.crop - moved[:, 0]
        return moved

    def _move_boxes(self, boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
        first, second = self._move(boxes[:, :2], window), self._move(boxes[:, 2:], window)
        moved = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
        moved = moved.clip(0, self.geometry.crop)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])].astype(np.float32)


def pick_decoder(setting: str, device: torch.device) -> str:
    """cpu or mixed, for a setting of cpu, mixed or auto (mixed where the model is on a GPU).

    Raises:
        ValueError: mixed without a GPU.
    """
    if setting == "mixed" and device.type != "cuda":
        raise ValueError(f"input.decoder: mixed needs a GPU, but the device is {device}; use auto or cpu")
    return ("mixed" if device.type == "cuda" else "cpu") if setting == "auto" else setting


def _graph(
    tars: list[str],
    indexes: list[str],
    geometry: Geometry,
    part_maps: bool,
    decoder: str,
    rank: int,
    world_size: int,
    shuffle_seed: int,
) -> tuple[Any, ...]:
    training, crop = geometry.training, geometry.crop
    fields: Any = fn.readers.webdataset(
        paths=tars,
        index_paths=indexes,
        ext=[JPEG, LABEL, ANNOTATION] + [PART_MAP] * part_maps,
        shard_id=rank,
        num_shards=world_size,
        stick_to_shard=True,
        pad_last_batch=not training,
        random_shuffle=training,
        initial_fill=SHUFFLE_BUFFER,
        seed=shuffle_seed,
        missing_component_behavior="error",
        name="reader",
    )
    jpeg, label, annotation, *part_png = fields
    extent = fn.peek_image_shape(jpeg)[0:2]
    side = geometry.side(fn.reductions.min(extent))
    if training:
        # Uniform over the extent - side + 1 whole positions.
        where = fn.random.uniform(range=[0.0, 1.0], shape=[2])
        start = dali_math.min(dali_math.floor((extent - side + 1) * where), extent - side)
    else:
        start = central_start(extent, side)
    start, side = fn.cast(start, dtype=types.FLOAT), fn.cast(side, dtype=types.FLOAT)
    flipped = fn.random.coin_flip(probability=geometry.flip, dtype=types.INT32) if training else types.Constant(0)
    square = fn.stack(side, side)

    images = fn.decoders.image_slice(
        jpeg,
        start,
        square,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        device=decoder,
        # The CPU decoder does this; without it the GPU up-samples chroma by repetition and the pixels differ.
        jpeg_fancy_upsampling=True,
    )
    images = fn.resize(images, size=[crop, crop])
    if training:
        images = fn.flip(images, horizontal=flipped)
        if geometry.jitter:
            brightness, contrast, saturation = (
                fn.random.uniform(range=[1 - geometry.jitter, 1 + geometry.jitter]) for _ in range(3)
            )
            images = fn.color_twist(images, brightness=brightness, contrast=contrast, saturation=saturation)

    window = fn.cat(start, fn.stack(side), fn.stack(fn.cast(flipped, dtype=types.FLOAT)))
    outputs = [jpeg, images, label, annotation, window]
    if part_maps:
        part_map = fn.decoders.image(part_png[0], output_type=types.GRAY, device="cpu")
        part_map = fn.slice(part_map, start, square, axes=[0, 1], normalized_anchor=False, normalized_shape=False)
        part_map = fn.resize(part_map, size=[crop, crop], interp_type=types.INTERP_NN)
        outputs.append(fn.flip(part_map, horizontal=flipped) if training else part_map)
    return tuple(outputs)


def _to_torch(tensors: Any, device: torch.device) -> Tensor:
    """A DALI batch of equal shapes -> a uint8 tensor of its own memory; device is where DALI left the batch."""
    dense = tensors.as_tensor()
    out = torch.empty(dense.shape(), dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return feed_ndarray(dense, out, cuda_stream=stream)


def _bytes(tensors: Any, index: int) -> bytes:
    return np.array(tensors[index]).tobytes()


def _key(source_info: str) -> str:
    """``<tar>:<offset>:<key>.jpg`` -> key."""
    return source_info.rsplit(":", 1)[1].split(".", 1)[0]
