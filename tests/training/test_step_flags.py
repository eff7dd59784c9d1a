"""What the ranks tell each other in every step."""

import signal

import pytest
import torch

from rg.training.step_flags import StepFlags


def flags(*ranks):
    packed = [StepFlags.pack(torch.tensor(finite), StepFlags.of_host(*rest)) for finite, *rest in ranks]
    return StepFlags.unpack(torch.stack(packed))


def test_nothing_to_tell():
    assert flags((True, 0, False), (True, 0, False)) == StepFlags((False, False), 0, False)


@pytest.mark.parametrize("rank", range(3))
def test_what_any_rank_has_to_say_reaches_all(rank):
    ranks = [(True, 0, False)] * 3
    for news, expected in (
        ((False, 0, False), StepFlags(tuple(number == rank for number in range(3)), 0, False)),
        ((True, signal.SIGUSR1, False), StepFlags((False,) * 3, signal.SIGUSR1, False)),
        ((True, 0, True), StepFlags((False,) * 3, 0, True)),
    ):
        assert flags(*ranks[:rank], news, *ranks[rank + 1 :]) == expected


def test_of_two_signals_all_ranks_hear_of_the_same():
    assert flags((True, 2, False), (True, 15, False), (True, 0, False)).signal == 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_flags_travel_in_every_precision_as_they_are(number):
    packed = StepFlags.pack(torch.tensor(False), StepFlags.of_host(number, True))
    assert (packed.dtype, packed.tolist()) == (torch.float32, [1.0, number, 1.0])
    for dtype in (torch.float16, torch.bfloat16):
        assert StepFlags.unpack(packed[None].to(dtype).float()) == StepFlags((True,), number, True)
