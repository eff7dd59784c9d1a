"""Shards -> batches: what to read (``plan``), reading it ahead (``reader``), and pixels from a decoder.

A sample that turns out to be damaged is named, counted and left out: in training another one takes its place, so that
batches stay full and everything else stays as it would have been; a test sees one image less.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import plan
from pipelines.batches.decoders import make_decoder
from pipelines.batches.decoding import DecodeError, Decoder, Decoding
from pipelines.batches.geometry import Geometry, Window
from pipelines.images import jpeg_defect
from pipelines.places import UNKNOWN
from pipelines.shards.cache import Cache
from pipelines.shards.reader import DamagedSampleError, Reader
from pipelines.shards.samples import PART_MAP, Sample, decode
from pipelines.shards.storage import Location

ATTEMPTS = 100  # samples that are tried for a place in training
READ_AHEAD = 4  # batches whose bytes are read before they are decoded
SHARDS_AHEAD = 8  # that a cache holds in testing, from the last one that is read on
COUNTED = 1000  # samples that a share of damaged ones refers to at least

logger = logging.getLogger(__name__)

Content = tuple[str, dict[str, bytes]]  # key and fields of a sample


@dataclass(frozen=True)
class Batch:
    """Images and what is known about them. Coordinates are continuous pixels of the images in the batch.

    Attributes:
        images: uint8 [N, 3, rows, columns], channels_last, on the decoding device.
        labels: int64 [N], or [N, L] attributes.
        keys: Sample keys, N of them.
        landmarks: float32 [N, P, 2]; None without annotations.
        visibility: bool [N, P]; landmarks outside the window are not visible. None without annotations.
        boxes: N arrays float32 [B, 4], clipped to the window; boxes that lie outside it are dropped. None without
            annotations.
        part_maps: uint8 [N, rows, columns]; None without annotations.
        numbers: Of the samples in their split, N of them.
        places: float32 [N, 3], latitude and longitude in degrees and the day of the year; nan for what is not known.
            None of a data set without places.
        answers: bool [N, classes], which are right; None if these are the labels alone.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    landmarks: Tensor | None = None
    visibility: Tensor | None = None
    boxes: list[np.ndarray] | None = None
    part_maps: Tensor | None = None
    numbers: Sequence[int] = ()
    places: Tensor | None = None
    answers: Tensor | None = None


@dataclass(frozen=True)
class _Place:
    """What was read for a place of the stream (in training) or for a sample of the split (in testing).

    ``damaged`` is number -> reason of the samples that were tried in vain; the sample is None if that was all.
    """

    place: int
    damaged: dict[int, str]
    number: int = -1
    sample: Sample | None = None
    window: Window | None = None


class Loader:
    """Batches of one split for one rank.

    Training is an endless stream of full, shuffled batches that the ranks share out (see ``plan``); testing is one pass
    in which every sample appears once.

    Args:
        data: Folder of shards, or its URL.
        split: Name of the split.
        geometry: Window, output size and augmentation; or several, by the epoch from which on each is that of training.
        batch_size: Images of a batch: in training of all ranks together, in testing of this rank.
        annotations: Also deliver landmarks, boxes and part maps, as far as the data set has them.
        decoding: How images are decoded; by default by DALI on the CPU.
        seed: Seed of shuffling and augmentation, the same on all ranks.
        rank: Rank of this process.
        world_size: Number of ranks.
        pieces: In testing, the samples to read, one range after another, and no batch of two; by default those of the
            rank, in one piece.
        max_damaged: Share of damaged samples, of those read and of at least 1000, above which the loader stops.
        cache: Where shards are kept on the way; without, samples are read one by one in training.
        balance: In training, a class of n samples is drawn as if it had n^(1 - balance) of them.

    Attributes:
        manifest: Of the folder.
        split: Name of the split.
        samples: Number of samples of the split.
        damaged: How often this rank met a damaged sample.

    Raises:
        ValueError: a batch with no image for a rank, no such split, a file is missing, too many samples are lost, or
            fewer samples than ranks.
        OSError: the storage does not answer.
    """

    def __init__(
        self,
        data: Location,
        split: str,
        geometry: Geometry | Mapping[int, Geometry],
        batch_size: int,
        *,
        annotations: bool = False,
        decoding: Decoding | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pieces: Sequence[range] | None = None,
        max_damaged: float = 0.01,
        balance: float = 0.0,
        cache: Cache | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self._reader = Reader(data, split, cache)
        self.manifest, self.samples = self._reader.manifest, self._reader.size
        self._geometries = {0: geometry} if isinstance(geometry, Geometry) else dict(geometry)
        geometry = self._geometries[0]
        self._pieces = [range(*plan.shard_range(self.samples, rank, world_size))] if pieces is None else pieces
        self._data, self.split = data, split
        first, end = plan.shard_range(batch_size, rank, world_size) if geometry.training else (0, batch_size)
        self._geometry, self._batch_size, self._global_batch = geometry, end - first, batch_size
        self._annotations = annotations
        self._part_maps = annotations and PART_MAP in self.manifest.fields
        self._decoding = decoding or Decoding()
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._max_damaged = max_damaged
        self._stop_if_too_many(self._reader.lost(), self.samples)
        self._balance = balance
        self._stream = plan.Stream([shard.samples for shard in self._reader.shards], seed, self._weights())
        self._spare: Decoder | None = self._new_decoder()
        self._fingerprint = self._describe(self._spare.version)
        self._unusable: dict[int, str] = {}  # number -> reason, of images that the decoder refused
        self._named: set[int] = set()
        self._next = self._read = self.damaged = 0

    def __iter__(self) -> Iterator[Batch]:
        """Begins behind the last batch that was delivered (training), or with the first (testing)."""
        decoder, self._spare = self._spare or self._new_decoder(), None
        pool = ThreadPoolExecutor(self._reader.storage.concurrency, thread_name_prefix="reader")
        batches = self._batches(pool)
        decoding: deque[list[_Place]] = deque()
        submitted = 0
        try:
            while True:
                decoding.extend(itertools.islice(batches, self._decoding.prefetch - len(decoding)))
                if not decoding:
                    return
                try:
                    while submitted < len(decoding):
                        _submit(decoder, decoding[submitted])
                        submitted += 1
                    images = decoder.result() if _good(decoding[0]) else None
                except DecodeError as error:
                    decoding = self._without_undecodable(decoding, error)
                    decoder, submitted = self._new_decoder(), 0
                    continue
                places, submitted = decoding.popleft(), submitted - 1
                self._account(places)
                if images is not None:
                    yield self._batch(_good(places), images)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._reader.rest()

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[list[_Place]]:
        """What is to be decoded together, read ahead; whole images are put together by their size."""
        ranges = self._training_ranges() if self._geometry.training else self._testing_ranges()
        reading = deque(self._start_reading(pool, *places) for places in itertools.islice(ranges, READ_AHEAD))
        by_size: dict[tuple[int, int] | None, list[_Place]] = {}
        ends = {piece.stop for piece in self._pieces}
        while reading:
            places = [place for chunk in reading.popleft() for place in chunk.result()]
            reading.extend(self._start_reading(pool, *places) for places in itertools.islice(ranges, 1))
            if self._geometry.view != "whole":
                yield places
                continue
            for place in places:
                size = (place.window.columns, place.window.rows) if place.window else None
                by_size.setdefault(size, []).append(place)
                if len(by_size[size]) == self._batch_size:
                    yield by_size.pop(size)
            if places[-1].place + 1 in ends:
                yield from by_size.values()
                by_size.clear()

    def state(self) -> dict[str, Any]:
        """Where the stream is after the last delivered batch, and what tells it from other streams: plain values."""
        return self._fingerprint | {"next": self._next, "read": self._read, "damaged": self.damaged}

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on where ``state()`` was asked for, on any rank, augmentation included; to be called before iterating.

        Raises:
            ValueError: it belongs to another stream; the message names what differs.
        """
        for name, value in self._fingerprint.items():
            if state.get(name) != value:
                raise ValueError(
                    f"{self._data}: the checkpoint belongs to batches with {name} = {state.get(name)!r}, now it is "
                    f"{value!r}; the run cannot go on exactly"
                )
        self._next, self._read, self.damaged = state["next"], state["read"], state["damaged"]

    def _describe(self, decoder: str) -> dict[str, Any]:
        """Whatever decides the batches. The number of ranks does not: they share out the same ones."""
        first, *later = self._geometries.items()
        geometry = asdict(first[1])
        balance = {"balance": self._balance} if self._balance else {}  # which earlier checkpoints do not name
        if self._geometry.view != "whole":
            del geometry["stride"]  # decides nothing then, and checkpoints of 0.2.0 do not name it
        return {
            "shards": self.manifest.split(self.split).sha256,
            "split": self.split,
            "seed": self._seed,
            "global batch": self._global_batch,
            **geometry,
            **({"later": [[epoch, each.short_side, each.crop] for epoch, each in later]} if later else {}),
            **balance,
            "decoder": decoder,
            "numpy": ".".join(np.__version__.split(".")[:2]),  # its permutations may change with the version
        }

    def _weights(self) -> np.ndarray | None:
        """Weights of the samples, None if all are drawn alike."""
        if not self._balance:
            return None
        if self.manifest.multi_label:
            raise ValueError(f"train.balance: expected 0 for attributes, got {self._balance}")
        logger.info("%s: reading the classes of %d samples", self.split, self.samples)
        return plan.balancing_weights(self._reader.labels(), self._balance)

    def _new_decoder(self) -> Decoder:
        return make_decoder(self._decoding, self._batch_size)

    def _probe(self) -> Decoder:
        """A decoder for one image at a time."""
        return make_decoder(replace(self._decoding, prefetch=1), 1)

    def _training_ranges(self) -> Iterator[tuple[int, int]]:
        start = self._next
        for number in itertools.count():
            yield plan.rank_places(start, number, self._global_batch, self._rank, self._world_size)

    def _testing_ranges(self) -> Iterator[tuple[int, int]]:
        for piece in self._pieces:
            yield from plan.batch_ranges(piece.start, piece.stop, self._batch_size)

    def _start_reading(self, pool: ThreadPoolExecutor, first: int, end: int) -> list[Future[list[_Place]]]:
        """Reads places in chunks, so many that the batches read ahead keep all threads busy."""
        if self._reader.cached:
            self._reader.need(*self._needed(first, end))
        length = -(-READ_AHEAD * self._batch_size // self._reader.storage.concurrency)
        if not self._geometry.training:  # neighbours in a shard
            length = max(length, self._reader.together)
        return [pool.submit(self._read_places, start, min(start + length, end)) for start in range(first, end, length)]

    def _needed(self, first: int, end: int) -> tuple[list[int], int]:
        """In which order the shards are needed while a batch is read, and how many of them are to be held."""
        if self._geometry.training:
            return self._stream.shards(self._next, end - 1)  # behind what was delivered
        sizes = [shard.samples for shard in self._reader.shards]
        span = self._pieces[0].start, self._pieces[-1].stop
        earliest = max(span[0], first - READ_AHEAD * self._batch_size)  # that may still be read
        order, left = plan.shards_in_order(sizes, *span, earliest)
        left_at_end = plan.shards_in_order(sizes, *span, end - 1)[1]
        return order, min(left, left - left_at_end + SHARDS_AHEAD)

    def _read_places(self, first: int, end: int) -> list[_Place]:
        places = range(first, end)
        numbers = self._stream.samples(first, end) if self._geometry.training else places
        uniforms = plan.uniforms(self._seed, first, end).tolist() if self._geometry.training else [()] * len(places)
        found = self._reader.read_together(numbers)
        return [self._read_place(*each, found) for each in zip(places, numbers, uniforms, strict=True)]

    def _read_place(self, place: int, number: int, uniforms: Sequence[float], found: Mapping[int, Content]) -> _Place:
        """Reads a sample; in training, if it is damaged, another one in its stead."""
        damaged: dict[int, str] = {}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                sample = self._read_sample(number, found)
                window = self._geometry_at(place).window(sample.width, sample.height, uniforms)
                return _Place(place, damaged, number, sample, window)
            except DamagedSampleError as error:
                damaged[number] = str(error)
            if not self._geometry.training:
                break
            number = plan.substitute(self.samples, self._seed, place, attempt)
        return _Place(place, damaged)

    def _geometry_at(self, place: int) -> Geometry:
        """That of the batch in which a place is, whose first place decides."""
        if len(self._geometries) == 1:
            return self._geometry
        epoch = place // self._global_batch * self._global_batch // self.samples
        return self._geometries[max(start for start in self._geometries if start <= epoch)]

    def _read_sample(self, number: int, found: Mapping[int, Content]) -> Sample:
        if number in self._unusable:
            raise DamagedSampleError(self._unusable[number])
        key, fields = found.get(number) or self._reader.read(number)
        if not self._part_maps:
            fields.pop(PART_MAP, None)
        try:
            sample = decode(key, fields)
            problem, *_ = [*self.manifest.violations(sample), jpeg_defect(sample.jpeg, sample.width, sample.height)]
        except Exception as error:  # a damaged field can break its parser in any way
            problem = str(error) or type(error).__name__
        if problem:
            raise DamagedSampleError(f"{self._reader.name(number)}: {problem.removeprefix(f'{key}: ')}")
        return sample

    def _without_undecodable(self, batches: Iterable[list[_Place]], error: DecodeError) -> deque[list[_Place]]:
        """Batches of which one cannot be decoded, without the images that cannot be decoded alone either."""
        decoder = self._probe()
        replaced = 0
        usable: deque[list[_Place]] = deque()
        for places in batches:
            usable.append([])
            for place in places:
                while place.sample:
                    try:
                        _submit(decoder, [place])
                        decoder.result()
                        break
                    except DecodeError as reason:
                        self._unusable[place.number] = f"{self._reader.name(place.number)}: {reason}"
                        (place,) = self._read_places(place.place, place.place + 1)
                        decoder = self._probe()
                        replaced += 1
                usable[-1].append(place)
        if not replaced:
            raise ValueError(f"{self._data}: a batch cannot be decoded, though each of its images can ({error})")
        return usable

    def _account(self, places: Sequence[_Place]) -> None:
        """Counts what was delivered, names what was damaged, stops if that is too much."""
        self._next += self._global_batch
        for place in places:
            for number, reason in place.damaged.items():
                if number not in self._named:
                    logger.warning("left out %s", reason)
                self._named.add(number)
            if self._geometry.training and place.sample is None:
                raise ValueError(f"{self._data}: {ATTEMPTS} samples of the split {self.split} in a row are damaged")
            self.damaged += len(place.damaged)
            self._read += len(place.damaged) + (place.sample is not None)
        self._stop_if_too_many(self.damaged, self._read)

    def _stop_if_too_many(self, damaged: int, read: int) -> None:
        check_damaged(damaged, read, self._max_damaged, self._data, self.split)

    def _batch(self, places: Sequence[_Place], images: Tensor) -> Batch:
        samples = [place.sample for place in places if place.sample]
        windows = [place.window for place in places if place.window]
        labels = torch.tensor([sample.label for sample in samples])
        keys, numbers = [sample.key for sample in samples], [place.number for place in places if place.sample]
        taken = None
        if self.manifest.locations:
            taken = torch.tensor([sample.place.numbers if sample.place else UNKNOWN for sample in samples])
        answers = None
        if any(sample.answers for sample in samples):
            answers = torch.zeros(len(samples), len(self.manifest.classes), dtype=torch.bool)
            for row, sample in zip(answers, samples, strict=True):
                row[list(sample.answers or [sample.label])] = True
        batch = Batch(images.permute(0, 3, 1, 2), labels, keys, numbers=numbers, places=taken, answers=answers)
        return self._annotated(batch, samples, windows) if self._annotations else batch

    def _annotated(self, batch: Batch, samples: Sequence[Sample], windows: Sequence[Window]) -> Batch:
        landmarks = visibility = boxes = part_maps = None
        if self.manifest.landmarks:
            both = list(zip(samples, windows, strict=True))
            moved = np.stack([window.move(np.asarray(sample.landmarks, float)) for sample, window in both])
            inside = ((moved >= 0) & (moved < (windows[0].columns, windows[0].rows))).all(2)
            landmarks = torch.from_numpy(moved.astype(np.float32))
            visibility = torch.from_numpy(np.stack([np.asarray(sample.visibility) for sample in samples]) & inside)
        if any(sample.boxes is not None for sample in samples):
            none = np.empty((0, 4))
            boxes = [
                window.move_boxes(none if sample.boxes is None else sample.boxes.astype(float))
                for sample, window in zip(samples, windows, strict=True)
            ]
        if self._part_maps:
            maps = [
                window.move_part_map(np.asarray(sample.part_map))
                for sample, window in zip(samples, windows, strict=True)
            ]
            part_maps = torch.from_numpy(np.stack(maps))
        return replace(batch, landmarks=landmarks, visibility=visibility, boxes=boxes, part_maps=part_maps)


def check_damaged(damaged: int, read: int, limit: float, data: Location, split: str) -> None:
    """Refuse that so many samples of those read are damaged.

    Args:
        damaged: How many are.
        read: How many were read, damaged ones too.
        limit: Share of those, and of at least 1000, that may be damaged.
        data: Of the split, for the message.
        split: Its name.

    Raises:
        ValueError: they are more.
    """
    if damaged > limit * max(read, COUNTED):
        raise ValueError(
            f"{data}: {damaged} of {read} samples of the split {split} are damaged, more than a share of {limit:g} "
            "(input.max_damaged); mend the shards with `python -m rg verify --repair`"
        )


def _good(places: Sequence[_Place]) -> list[_Place]:
    """The places for which there is a sample."""
    return [place for place in places if place.sample]


def _submit(decoder: Decoder, places: Sequence[_Place]) -> None:
    """Starts decoding the places for which there is a sample, if there are any."""
    samples = [place.sample.jpeg for place in places if place.sample]
    if samples:
        decoder.submit(samples, [place.window for place in places if place.window])
