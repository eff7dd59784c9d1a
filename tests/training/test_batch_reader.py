"""Batches that are read before their step comes: the same ones, and a position that does not run ahead."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from pipelines.batches.decoding import Decoding
from pipelines.batches.geometry import Geometry
from pipelines.batches.loader import Loader
from rg.training.batch_reader import BatchReader
from tests.batches.test_cache import wait_for_readers


def load(data) -> Loader:
    return Loader(data, "train", Geometry(72, 64, training=True), 8, decoding=Decoding("pillow", 1))


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_and_positions_are_those_of_a_loader_that_reads_none_ahead(small_birds, ahead, busy):
    plain, reader = load(small_birds), BatchReader(load(small_birds))
    assert reader.position == plain.state()
    for number, expected in enumerate(itertools.islice(plain, 6)):
        batch, waited = reader.take()
        reader.read_ahead(ahead, lambda: busy)
        assert batch.keys == expected.keys
        assert reader.position == plain.state()
        assert (waited == 0) == (busy and number > 0)  # while a device computes, it does not wait
    reader.close()
    wait_for_readers()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


class Failing:
    """A loader of one batch, after which its storage is gone."""

    def __iter__(self) -> Iterator[str]:
        yield "first"
        raise OSError("train-00001.tar is gone")

    def state(self) -> dict[str, int]:
        return {}


def test_what_fails_ahead_ends_the_step_that_needs_it():
    reader = BatchReader(Failing())  # type: ignore[arg-type]
    reader.read_ahead(3, lambda: False)
    assert reader.take()[0] == "first"
    reader.read_ahead(3, lambda: False)
    with pytest.raises(OSError, match=r"train-00001\.tar is gone"):
        reader.take()
