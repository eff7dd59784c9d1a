"""Which rank reads what, in which order, and with which random numbers: pure functions of integers.

Training reads an endless stream of places 0, 1, 2, ... Epoch e holds the places e * size to (e + 1) * size - 1, in
which every sample occurs once, unless they have weights. The ranks share out every batch of the stream, so what a step
sees depends neither on the number of ranks nor on where a run was interrupted; to go on, the number of the next place
is all one needs to know.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

SHUFFLED = 16384  # neighbouring samples that are shuffled among each other, so that an epoch reads shard after shard
SHARDS, PIECE, SUBSTITUTE, OFFSET = 1, 2, 3, 4  # what random numbers are drawn for


class Stream:
    """The order of the samples.

    In every epoch the shards are shuffled, and then, as they follow each other, pieces of ``SHUFFLED`` samples. Samples
    are numbered through all shards.

    With weights, an epoch has as many places, and a sample as many of them as its share of all weights gives it: that
    number rounded down or up, and in the mean over epochs the number itself.

    Args:
        shard_sizes: Number of samples of every shard.
        seed: Decides the order.
        weights: Of all samples, positive int64; None for one place each.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, weights: np.ndarray | None = None) -> None:
        self.seed = seed
        self.size = sum(shard_sizes)
        self._weights = weights
        self._first = np.concatenate([[0], np.cumsum(shard_sizes)])
        self._piece = functools.lru_cache(maxsize=4)(self._shuffled_piece)
        self._shards = functools.lru_cache(maxsize=3)(self._shuffled_shards)
        self._ends = functools.lru_cache(maxsize=2)(self._ends_of_weights)
        self._order = functools.lru_cache(maxsize=2)(self._needed)

    def samples(self, first: int, end: int) -> list[int]:
        """The samples at the places ``first`` to ``end - 1``."""
        return [self._sample(place) for place in range(first, end)]

    def shards(self, first: int, last: int) -> tuple[list[int], int]:
        """In which order the shards are needed while the places ``first`` to ``last`` are read.

        Returns:
            All shards by where the stream next needs them, and how many of them are needed in the pieces of these
            places and in the piece that follows. Within a piece they are needed all the time.
        """
        return self._order(*self._piece_of(first), *self._piece_of(last))

    def _piece_of(self, place: int) -> tuple[int, int]:
        epoch, index = divmod(place, self.size)
        return epoch, index // SHUFFLED

    def _sample(self, place: int) -> int:
        return int(self._piece(*self._piece_of(place))[place % self.size % SHUFFLED])

    def _needed(self, epoch: int, piece: int, last_epoch: int, last_piece: int) -> tuple[list[int], int]:
        near = self._touched(epoch, piece)
        while (epoch, piece) <= (last_epoch, last_piece):
            epoch, piece = (epoch, piece + 1) if (piece + 1) * SHUFFLED < self.size else (epoch + 1, 0)
            near += self._touched(epoch, piece)
        this, then = (self._shards(number)[0].tolist() for number in (epoch, epoch + 1))
        later = this[this.index(near[-1]) + 1 :]
        return list(dict.fromkeys([*near, *later, *then])), len(set(near))

    def _touched(self, epoch: int, piece: int) -> list[int]:
        """The shards of a piece as they follow each other in the epoch."""
        touched = set(np.searchsorted(self._first, self._piece(epoch, piece), side="right").tolist())
        return [shard for shard in self._shards(epoch)[0].tolist() if shard + 1 in touched]

    def _shuffled_piece(self, epoch: int, piece: int) -> np.ndarray:
        indices = np.arange(piece * SHUFFLED, min(self.size, (piece + 1) * SHUFFLED))
        if self._weights is not None:
            indices = self._weighted(epoch, indices)
        samples = self._in_order(epoch, indices)
        return np.random.default_rng([PIECE, self.seed, epoch, piece]).permutation(samples)

    def _in_order(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The samples at some indices of an epoch whose shards are shuffled, and nothing else yet."""
        shards, starts = self._shards(epoch)
        which = np.searchsorted(starts, indices, side="right") - 1
        return self._first[shards[which]] + indices - starts[which]

    def _weighted(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Indices of the samples that lie under evenly spaced marks along the weights: systematic sampling."""
        ends = self._ends(epoch)
        total = int(ends[-1])
        offset = int(np.random.default_rng([OFFSET, self.seed, epoch]).integers(total))
        quotient, rest = divmod(total, self.size)
        marks = places * quotient + (places * rest + offset) // self.size
        return np.searchsorted(ends, marks, side="right")

    def _ends_of_weights(self, epoch: int) -> np.ndarray:
        """Sums of the weights up to every index of an epoch."""
        assert self._weights is not None
        return np.cumsum(self._weights[self._in_order(epoch, np.arange(self.size))])

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, and the index of the first sample of each."""
        shards = np.random.default_rng([SHARDS, self.seed, epoch]).permutation(len(self._first) - 1)
        ends = np.cumsum(np.diff(self._first)[shards])
        return shards, np.concatenate([[0], ends[:-1]])


def balancing_weights(labels: np.ndarray, exponent: float) -> np.ndarray:
    """Weights that draw a class of n samples as if it had n^(1 - exponent) of them.

    Args:
        labels: Class of every sample, int64; negative where it is not known, which weighs least.
        exponent: 0 leaves the classes as they are, 1 makes all of them equal.

    Returns:
        int64, from 1 to 2^20.
    """
    counts = np.bincount(labels[labels >= 0])
    present = counts[counts > 0]
    shares = (np.maximum(counts, 1) / present.min()) ** -exponent
    weights = np.maximum(1, np.rint(2**20 * shares)).astype(np.int64)
    return np.where(labels >= 0, weights[labels], weights[counts > 0].min())


def uniforms(seed: int, first: int, end: int) -> np.ndarray:
    """Four random numbers in [0, 1) for each of the places ``first`` to ``end - 1``: float64 [end - first, 4].

    A place owns one block of a Philox counter, so its numbers are the same whoever draws them together with others.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=first))
    return generator.random((end - first, 4))


def substitute(size: int, seed: int, place: int, attempt: int) -> int:
    """The sample that takes a place whose own cannot be read; ``attempt`` counts from 1."""
    return int(np.random.default_rng([SUBSTITUTE, seed, place, attempt]).integers(size))


def rank_places(start: int, number: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last place of a rank in batch ``number`` of a stream that is read from ``start`` on.

    ``batch_size`` is that of all ranks together, who get equal shares of it or shares that differ by one.
    """
    first, end = shard_range(batch_size, rank, world_size)
    return start + number * batch_size + first, start + number * batch_size + end


def shard_range(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last sample of a rank when every sample is read once.

    The ranges of all ranks are disjoint, complete and differ by one sample at most.

    Raises:
        ValueError: a rank would get no sample, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
    if size < world_size:
        raise ValueError(f"{size} samples cannot be shared by {world_size} ranks; use at most {size} ranks")
    return size * rank // world_size, size * (rank + 1) // world_size


def steps_per_epoch(size: int, global_batch: int) -> int:
    """Optimiser steps of a training epoch: the first number of steps that reads ``size`` samples or more.

    All ranks take equally many full batches and nothing is padded. Samples that the last step reads beyond the end of
    an epoch are the first of the next epoch, which does not read them again.
    """
    if size < 1 or global_batch < 1:
        raise ValueError(f"expected at least one sample and a batch of at least 1, got {size} and {global_batch}")
    return -(-size // global_batch)


def shards_in_order(sizes: Sequence[int], first: int, end: int, place: int) -> tuple[list[int], int]:
    """In which order the shards are needed from a sample on, where a range of samples is read again and again.

    Args:
        sizes: Number of samples of every shard.
        first: Of the range.
        end: Of the range, past the last.
        place: The sample that is read next.

    Returns:
        The shards of the range by where they are next needed, and how many of them before the range begins again.
    """
    start, current, last = np.searchsorted(np.cumsum(sizes), [first, place, end - 1], side="right").tolist()
    return [*range(current, last + 1), *range(start, current)], last + 1 - current


def batch_ranges(first: int, end: int, batch_size: int) -> list[tuple[int, int]]:
    """First and past-the-last of batches that read every one of a range once; only the last may be smaller."""
    return [(start, min(start + batch_size, end)) for start in range(first, end, batch_size)]
