"""The plan as properties of integers."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import plan
from pipelines.plan import SHUFFLED, Stream

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(shards=sizes, seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_sample_once(shards, seed, epoch):
    stream = Stream(shards, seed)
    size = sum(shards)
    assert sorted(stream.samples(epoch * size, (epoch + 1) * size)) == list(range(size))


@given(shards=sizes, seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_a_stream_is_the_same_however_it_is_cut(shards, seed, cuts):
    edges = [0, *sorted(cuts), 2000]
    pieces = [Stream(shards, seed).samples(first, end) for first, end in itertools.pairwise(edges)]
    assert [sample for piece in pieces for sample in piece] == Stream(shards, seed).samples(0, 2000)


@given(
    start=st.integers(0, 500),
    batch=st.integers(12, 60),
    worlds=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_the_ranks_share_out_the_same_global_batches(start, batch, worlds):
    """Whatever the number of ranks; also where it changes from batch to batch of a resumed run."""
    place = start
    for world in worlds:
        ranges = [plan.rank_places(place, 0, batch, rank, world) for rank in range(world)]
        assert [p for first, end in ranges for p in range(first, end)] == list(range(place, place + batch))
        assert {end - first for first, end in ranges} <= {batch // world, -(-batch // world)}
        assert plan.rank_places(place, 3, batch, 0, world)[0] == place + 3 * batch
        place += batch


def test_shards_are_read_in_another_order_every_epoch_but_one_after_the_other():
    """Of 5 pieces each touches only the shards that follow each other in it, two of them not as a whole."""
    shards, size = [1000] * 80, 80_000
    orders = []
    for epoch in range(2):
        samples = np.array(Stream(shards, 1).samples(epoch * size, (epoch + 1) * size))
        pieces = [samples[start : start + SHUFFLED] // 1000 for start in range(0, size, SHUFFLED)]
        assert all(len(set(piece)) <= SHUFFLED // 1000 + 2 for piece in pieces)
        orders.append([set(piece) for piece in pieces])
    assert orders[0] != orders[1]


def test_the_order_is_random():
    """Neighbours of the stream come from anywhere: the correlation of 50,000 pairs is 0 up to 5 standard errors."""
    samples = np.array(Stream([50_000], 7).samples(0, 50_000))[: 3 * SHUFFLED]
    assert abs(np.corrcoef(samples[:-1] % SHUFFLED, samples[1:] % SHUFFLED)[0, 1]) < 5 / np.sqrt(len(samples))
    assert Stream([5000], 7).samples(0, 5000) != Stream([5000], 8).samples(0, 5000)
    assert Stream([5000], 7).samples(0, 5000) != Stream([5000], 7).samples(5000, 10_000)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), first=st.integers(0, 2**40), count=st.integers(1, 20), cut=st.integers(0, 20))
def test_a_place_keeps_its_random_numbers(seed, first, count, cut):
    middle = first + min(cut, count)
    whole = plan.uniforms(seed, first, first + count)
    halves = np.concatenate([plan.uniforms(seed, first, middle), plan.uniforms(seed, middle, first + count)])
    assert np.array_equal(whole, halves)


def test_random_numbers_are_uniform_and_differ_between_places_and_seeds():
    numbers = plan.uniforms(3, 0, 20_000)
    assert len(np.unique(numbers)) == numbers.size
    assert not np.isin(plan.uniforms(4, 0, 20_000), numbers).any()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # The means of 20,000 uniform numbers, up to 5 standard errors; no correlation of two of the four.
    assert np.abs(numbers.mean(0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 20_000)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 5 / np.sqrt(20_000)


def test_substitutes_are_drawn_from_all_samples():
    drawn = Counter(plan.substitute(10, 1, place, attempt) for place in range(300) for attempt in (1, 2))
    assert set(drawn) == set(range(10))
    assert plan.substitute(10**6, 1, 5, 1) == plan.substitute(10**6, 1, 5, 1)
    assert plan.substitute(10**6, 1, 5, 1) != plan.substitute(10**6, 1, 5, 2)


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


@given(first=st.integers(0, 100), samples=st.integers(0, 5_000), batch=st.integers(1, 300))
def test_batches_count_every_sample_once(first, samples, batch):
    ranges = plan.batch_ranges(first, first + samples, batch)
    assert [number for start, end in ranges for number in range(start, end)] == list(range(first, first + samples))
    assert all(end - start == batch for start, end in ranges[:-1])
    assert all(0 < end - start <= batch for start, end in ranges)


def test_there_is_no_such_rank():
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        plan.shard_range(10, 2, 2)


@given(shards=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 3), exponent=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_balanced_epoch_has_the_counts_of_its_weights(shards, seed, epoch, exponent):
    size = sum(shards)
    labels = np.random.default_rng(seed).integers(5, size=size) ** 2
    stream = Stream(shards, seed, plan.balancing_weights(labels, exponent))
    samples = np.array(stream.samples(epoch * size, (epoch + 1) * size))
    classes, of_sample, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = counts.astype(float) ** (1 - exponent)
    expected = size * (by_class / by_class.sum() / counts)[of_sample]
    assert np.abs(np.bincount(samples, minlength=size) - expected).max() < 1 + 1e-4 * size
    for label, share in zip(classes, size * by_class / by_class.sum(), strict=True):
        assert abs((labels[samples] == label).sum() - share) < len(shards) * 5 + 1


def test_every_sample_of_a_large_class_has_its_turn():
    labels = np.repeat([0, 1], [900, 100])
    stream = Stream([1000], 0, plan.balancing_weights(labels, 1.0))
    counts = np.bincount(stream.samples(0, 40_000), minlength=1000)
    assert counts[:900].sum() == counts[900:].sum() == 20_000
    np.testing.assert_allclose(counts, np.repeat([40 * 1000 / 1800, 40 * 5.0], [900, 100]), atol=14)


def test_a_balanced_stream_is_the_same_however_it_is_cut():
    weights = plan.balancing_weights(np.arange(500) % 7, 0.5)
    whole = Stream([200, 300], 3, weights).samples(0, 1500)
    assert [Stream([200, 300], 3, weights).samples(place, place + 1)[0] for place in (0, 499, 500, 1499)] == [
        whole[place] for place in (0, 499, 500, 1499)
    ]


def test_classes_of_equal_size_and_unknown_ones_weigh_the_same():
    weights = plan.balancing_weights(np.array([0, 2, 0, 2, -1]), 1.0)
    assert set(weights) == {2**20}
    assert plan.balancing_weights(np.array([0, 0, 0, 0, 1, -1]), 0.5).tolist() == [2**19] * 4 + [2**20, 2**19]


@given(
    sizes=sizes,
    seed=st.integers(0, 99),
    place=st.integers(0, 3000),
    span=st.integers(0, 300),
    piece=st.integers(1, 50),
    weighted=st.booleans(),
)
def test_shards_are_told_in_the_order_in_which_a_stream_needs_them(sizes, seed, place, span, piece, weighted):
    """Beside a walk along the stream, piece after piece."""
    size = sum(sizes)
    weights = np.random.default_rng(seed).integers(1, 9, size) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHUFFLED", piece)
        stream = Stream(sizes, seed, weights)
        order, count = stream.shards(place, place + span)
        epoch, index = divmod(place, size)
        of_sample = np.repeat(np.arange(len(sizes)), sizes)
        first_use: dict[int, int] = {}
        number = last = 0
        start = epoch * size + index // piece * piece
        while start < place + span + 3 * size:
            last = number if start <= place + span else last
            end = min(start + piece, (start // size + 1) * size)
            for shard in of_sample[stream.samples(start, end)]:
                first_use.setdefault(int(shard), number)
            start, number = end, number + 1
    assert sorted(order) == list(range(len(sizes)))
    assert set(order[:count]) == {shard for shard, use in first_use.items() if use <= last + 1}
    if not weighted:  # with weights, an epoch may leave a shard out
        assert [first_use[shard] for shard in order] == sorted(first_use.values())


@given(sizes=sizes, data=st.data())
def test_shards_of_a_range_that_is_read_again_and_again(sizes, data):
    first = data.draw(st.integers(0, sum(sizes) - 1))
    end = data.draw(st.integers(first + 1, sum(sizes)))
    place = data.draw(st.integers(first, end - 1))
    of_sample = np.repeat(np.arange(len(sizes)), sizes)
    expected = dict.fromkeys(of_sample[[*range(place, end), *range(first, place)]].tolist())
    assert plan.shards_in_order(sizes, first, end, place) == (list(expected), len({*of_sample[place:end]}))
