"""One, two and three processes take the same steps on the same global batches (``benchmarks.world_sizes``)."""

from __future__ import annotations

import pytest

from benchmarks import world_sizes

DRAWN, SIZE, STEPS = 64, 48, 3
# Everything is in fp64 but DeepSpeed's sum of the gradients of several ranks, in fp32, which rounds at 6e-8 of the
# largest; the steps that follow make a few times of it.
LIMIT = 1e-6
MODES = [
    "synchronised",
    "frozen",
    "synchronised, 2 micro batches, clipped",
    "synchronised, activation checkpointing",
    "synchronised, ZeRO 1",
    "synchronised, every term",
    "synchronised, DDP, every term",
    "synchronised, SSN",
    "synchronised, TASN",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "birds"
    world_sizes.draw(folder, STEPS * world_sizes.GLOBAL_BATCH, DRAWN)
    return folder


@pytest.fixture(scope="module")
def alone(data):
    return world_sizes.measure(data, 1, MODES, SIZE)


def test_two_ranks_take_the_steps_of_one(data, alone):
    together = world_sizes.measure(data, 2, MODES, SIZE)
    for mode in MODES:
        found = world_sizes.difference(alone[mode], together[mode])
        assert len(together[mode]["loss"]) == STEPS
        assert (found["gradients"] is None) == ("ZeRO" in mode)
        assert all(value < LIMIT for value in found.values() if value is not None), (mode, found)


def test_shares_that_differ_by_an_image_change_nothing(data, alone):
    """16 images are 6, 5 and 5."""
    found = world_sizes.difference(alone["frozen"], world_sizes.measure(data, 3, ["frozen"], SIZE)["frozen"])
    assert all(value < LIMIT for value in found.values()), found


def test_activation_checkpointing_changes_nothing(alone):
    """Of one rank; two, whose batch norms talk to each other in the backward pass, too, are compared with it above."""
    found = world_sizes.difference(alone["synchronised"], alone["synchronised, activation checkpointing"])
    assert set(found.values()) == {0.0}


def test_training_changes_the_weights_by_more_than_the_limit(alone):
    """So that equal weights mean equal steps."""
    of_other_models = ("every term", "SSN", "TASN")
    for mode in [mode for mode in MODES[1:] if not mode.endswith(of_other_models)]:
        same = "ZeRO" in mode or "checkpointing" in mode
        assert world_sizes.difference(alone[MODES[0]], alone[mode])["loss"] > 100 * LIMIT or same


def test_the_layout_of_the_weights_changes_no_step(alone):
    """Stage 0 keeps weights in channels_last, ZeRO as runs of a flat tensor; the fused step takes both."""
    found = world_sizes.difference(alone["synchronised"], alone["synchronised, ZeRO 1"])
    for name in (
        "weights",
        "momentum",
    ):  # a step that mixed up layouts would get the weights right and not the momentum
        assert found[name] is not None
        assert found[name] < LIMIT
