"""The plan as properties of integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import plan


@given(size=st.integers(1, 10_000), world=st.integers(1, 64))
def test_ranges_are_disjoint_complete_and_equal(size, world):
    if size < world:
        with pytest.raises(ValueError, match=f"{size} samples cannot be shared by {world} ranks"):
            plan.shard_range(size, 0, world)
        return
    ranges = [plan.shard_range(size, rank, world) for rank in range(world)]
    assert [index for first, end in ranges for index in range(first, end)] == list(range(size))
    lengths = [end - first for first, end in ranges]
    assert max(lengths) - min(lengths) <= 1


@given(size=st.integers(1, 10_000), batch=st.integers(1, 512))
def test_an_epoch_is_the_fewest_steps_that_read_everything(size, batch):
    steps = plan.steps_per_epoch(size, batch)
    assert steps * batch >= size > (steps - 1) * batch


@given(samples=st.integers(0, 5_000), batch=st.integers(1, 300))
def test_batches_count_every_sample_once(samples, batch):
    sizes = plan.batch_sizes(samples, batch)
    assert sum(sizes) == samples
    assert all(size == batch for size in sizes[:-1])
    assert all(0 < size <= batch for size in sizes)


def test_there_is_no_such_rank():
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        plan.shard_range(10, 2, 2)
