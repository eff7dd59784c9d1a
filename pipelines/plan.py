"""Which rank reads what, and how long an epoch is: pure functions of integers."""

from __future__ import annotations


def shard_range(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last sample of a rank, in the order of the index.

    The ranges of all ranks are disjoint, complete and differ by one sample at most. This is DALI's own rule for its
    readers, so the loader can tell which samples of a padded batch are real.

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

    Training reads an endless stream, in which every rank sees each of its samples once per cycle. So all ranks take
    equally many full batches, nothing is padded, and what an epoch reads too much it does not read in the next.
    """
    if size < 1 or global_batch < 1:
        raise ValueError(f"expected at least one sample and a batch of at least 1, got {size} and {global_batch}")
    return -(-size // global_batch)


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """Sizes of the batches that read every one of ``samples`` exactly once; only the last may be smaller."""
    full, rest = divmod(samples, batch_size)
    return [batch_size] * full + ([rest] if rest else [])
