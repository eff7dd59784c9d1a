"""Collectives of three ranks with unequal shares, against one process that has everything."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.peers import Alone
from rg.distributed.batch_norm import synchronize
from rg.distributed.group import Group, GroupError, PeerLostError, collectives, connect
from rg.distributed.ranks import Ranks
from rg.model.losses import occurrence_prior_loss
from tests.support.forked import CONTEXT
from tests.support.world import World, join

SIZES = (3, 1, 2)
PRIOR = (2e-3, 1e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with World(len(SIZES), tmp_path_factory.mktemp("world") / "store") as world:
        yield world


def share(group: Group, whole: Tensor) -> Tensor:
    """The rows of this rank."""
    return whole.split(SIZES)[group.ranks.rank]


def gather(group: Group, whole: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    rank = group.ranks.rank
    return group.gather(share(group, whole), flags[rank], SIZES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [4, 1, 0])
def test_every_rank_gets_the_rows_and_flags_of_all(world, dtype, width):
    whole = torch.randn(sum(SIZES), width, dtype=dtype)
    flags = torch.tensor([[0, 15, 1], [1, 0, 0], [0, 0, 1]])
    for rows, all_flags in world(gather, whole, flags):
        torch.testing.assert_close(rows, whole, rtol=0, atol=0)
        torch.testing.assert_close(all_flags, flags.float(), rtol=0, atol=0)


def test_a_flag_arrives_beside_rows_that_are_not_finite(world):
    whole = torch.tensor([[1.0], [torch.nan], [2.0], [torch.inf], [3.0], [4.0]])
    flags = torch.tensor([[1.0], [1.0], [0.0]])
    for rows, all_flags in world(gather, whole, flags):
        assert torch.equal(rows.nan_to_num(), whole.nan_to_num())
        assert torch.equal(all_flags, flags)


def gradient(group: Group, whole: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The prior's loss, and the gradient of a weight, averaged over the ranks as the engine does."""
    weight.requires_grad_()
    rows, _ = group.gather(share(group, whole) * weight, torch.zeros(2), SIZES)
    loss = occurrence_prior_loss(rows, *PRIOR)
    loss.backward()
    assert weight.grad is not None
    return loss.detach(), group.sum(weight.grad) / group.ranks.world_size


def test_the_prior_over_the_ranks_is_that_of_one(world):
    """Equation 2 sorts the whole batch, so neither loss nor gradient is a mean of those of the shares."""
    torch.manual_seed(0)
    whole = torch.rand(sum(SIZES), 5, dtype=torch.float64)
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    single = weight.clone().requires_grad_()
    expected = occurrence_prior_loss(whole * single, *PRIOR)
    expected.backward()
    for loss, grad in world(gradient, whole, weight):
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grad, single.grad)
    parts = torch.stack([occurrence_prior_loss(part * weight, *PRIOR) for part in whole.split(SIZES)])
    assert not torch.isclose((parts * torch.tensor(SIZES)).sum() / sum(SIZES), expected.detach(), rtol=1e-3)


def gradient_of_rows(group: Group, whole: Tensor, factors: Tensor) -> Tensor:
    own = share(group, whole).clone().requires_grad_()
    rows, _ = group.gather(own, torch.zeros(1), SIZES)
    (rows * factors).sum().backward()
    assert own.grad is not None
    return own.grad


def test_the_gradient_of_own_rows_is_scaled_by_the_number_of_ranks(world):
    """The engine divides by it; the gradients of the rows of others are theirs to compute."""
    whole, factors = torch.randn(2, sum(SIZES), 3)
    torch.testing.assert_close(torch.cat(world(gradient_of_rows, whole, factors)), len(SIZES) * factors)


def test_one_rank_alone_gathers_nothing():
    rows = torch.rand(4, 2, requires_grad=True)
    gathered, flags = Group(Ranks()).gather(rows, torch.tensor([0, 9]), [4])
    assert gathered is rows
    assert flags.tolist() == [[0, 9]]


def reduce(group: Group) -> tuple:
    rank = group.ranks.rank
    values = torch.tensor([1.0 + rank, 10.0 * rank], dtype=torch.float64)
    group.barrier()
    return (
        group.sum(values.clone()).tolist(),
        group.collect({"rank": rank, "name": None}),
    )


def test_sums_and_values_of_all_ranks(world):
    everyone = [{"rank": rank, "name": None} for rank in range(3)]
    expected = ([6.0, 30.0], everyone)
    assert world(reduce) == [expected] * 3


def test_sums_and_values_of_one_rank():
    assert reduce(Group(Ranks())) == ([1.0, 0.0], [{"rank": 0, "name": None}])


def check(group: Group, reasons: list[Exception | None]) -> object:
    """What ``together`` returns, or the error that it raises, as text."""
    reason = reasons[group.ranks.rank]

    def fail() -> int:
        if reason:
            raise reason
        return 10 * group.ranks.rank

    try:
        return group.together(fail)
    except GroupError as error:
        return str(error)


def test_a_check_that_passes_on_all_ranks_gives_each_its_own(world):
    assert world(check, [None] * 3) == [0, 10, 20]


def test_a_check_that_fails_on_one_rank_stops_all_with_its_reason(world):
    host = socket.gethostname()
    message = f"rank 1 ({host}): --data: x is missing"
    assert world(check, [None, ValueError("--data: x is missing"), None]) == [message] * 3
    (denied,) = set(world(check, [None, None, PermissionError(13, "Permission denied", "/data")]))
    assert denied == f"rank 2 ({host}): [Errno 13] Permission denied: '/data'"


def test_reasons_that_differ_are_all_told(world):
    (message,) = set(world(check, [ValueError("one"), None, ValueError("two")]))
    host = socket.gethostname()
    assert message == f"rank 0 ({host}): one; rank 2 ({host}): two"


def test_a_reason_that_all_ranks_share_is_told_once(world):
    assert world(check, [ValueError("--out: exists")] * 3) == ["--out: exists"] * 3


def test_an_error_without_words_stops_all_ranks_too(world):
    host = socket.gethostname()
    (message,) = set(world(check, [None, OSError(), None]))
    assert str(message).startswith(f"rank 1 ({host}): ")


def test_a_failed_check_of_one_rank_alone_is_raised_as_it_is():
    with pytest.raises(FileNotFoundError, match="nothing"):
        Group(Ranks()).together(lambda: Path("nothing").read_text())


def count(group: Group) -> tuple[int, int, list[int]]:
    """Two counters when all have added to them, the last rank after the others; and the first while one waits."""
    first, second = group.counter(), group.counter()
    seen: list[int] = []
    if group.ranks.rank == group.ranks.world_size - 1:
        while first(0) < 20:  # the others have added, and wait
            pass
    first(10)
    second(1)
    group.wait(lambda: seen.append(first(0)))
    return first(0), second(0), seen


def test_counters_are_shared_and_tell_how_far_others_are_while_one_waits(world):
    for first, second, seen in world(count):
        assert (first, second) == (30, 3)
        assert seen == sorted(seen)


def test_a_counter_of_one_rank():
    for peers in (Alone(), Group(Ranks())):
        one, other = peers.counter(), peers.counter()
        assert [one(2), one(0), one(3), other(1)] == [2, 2, 5, 1]
        peers.wait(lambda: pytest.fail("nobody to wait for"))


def sum_all(group: Group) -> None:
    group.sum(torch.ones(3))


def gather_all(group: Group) -> None:
    group.gather(torch.ones(1, 2), torch.zeros(1), (1, 1))


def collect_all(group: Group) -> None:
    group.collect({"rank": group.ranks.rank})


def normalize(group: Group, backend: str | None = None) -> None:
    model = synchronize(nn.Sequential(nn.BatchNorm1d(3)), group.ranks.device)
    if backend:
        model.compile(backend=backend)
    with collectives():
        model(torch.randn(4, 3)).sum().backward()


WORK = [
    sum_all,
    gather_all,
    collect_all,
    Group.barrier,
    normalize,
    functools.partial(normalize, backend="aot_eager"),
]


def leave_or_lose(rank: int, store: Path, work: Callable[[Group], None], results: Any) -> None:
    """Rank 1 leaves after the first time, without a word."""
    group = join(rank, 2, store)
    work(group)
    if rank == 1:
        os._exit(0)
    try:
        while True:
            work(group)
    except Exception as error:
        results.put((type(error).__name__, type(error.__cause__).__name__, str(error) == str(error.__cause__)))


@pytest.mark.parametrize("work", WORK, ids=lambda work: getattr(work, "__name__", "compiled"))
def test_a_rank_that_is_lost_is_an_error_of_its_own(tmp_path, work):
    results = CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=leave_or_lose, args=(rank, tmp_path / "store", work, results)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    assert results.get(timeout=180) == ("PeerLostError", "RuntimeError", True)
    for process in ranks:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    "error,lost",
    [
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (dist.DistNetworkError("the store has gone"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"), True),
        (RuntimeError("[/src/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms"), True),
        (RuntimeError("[enforce fail at /src/gloo/gloo/allreduce.cc:12] ptr != nullptr"), True),
        (RuntimeError("the connection to the database was closed"), False),
        (RuntimeError("Gloo: no connection [see gloo/manual.md:12]"), False),
        (ValueError("[/src/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_errors_of_others_are_no_lost_rank(error, lost):
    with pytest.raises(Exception) as caught, collectives():  # noqa: PT011
        raise error
    assert isinstance(caught.value, PeerLostError) == lost
    assert (caught.value.__cause__ if lost else caught.value) is error


JOIN = """
import json, os, sys
import torch
from rg.distributed.group import connect
from rg.distributed.ranks import discover
group = connect(discover(), 60)
found = {"total": group.sum(torch.ones(1)).item(), "ranks": group.collect(group.ranks.rank)}
if group.ranks.rank == 0:
    print(json.dumps(found))
"""


def test_processes_of_torchrun_join(tmp_path):
    script = tmp_path / "join.py"
    script.write_text(JOIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == '{"total": 2.0, "ranks": [0, 1]}\n'


def connect_to_nobody(rank: int, port: int) -> str:
    try:
        connect(Ranks(rank, 2, 0, 1, ("127.0.0.1", port)), 1, join_timeout=1)
    except ConnectionError as error:
        return str(error)
    return "connected"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_peers_do_not_come_says_so(rank):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listening, so that rank 1 is refused
        port = taken.getsockname()[1] if rank else 0
        with CONTEXT.Pool(1) as pool:
            message = pool.apply(connect_to_nobody, (rank, port))
    assert message.startswith(f"rank {rank} ({socket.gethostname()}) of 2 cannot join the others: waited 1 s ")
    assert ("for rank 1 at 127.0.0.1:" if rank == 0 else "for rank 0 at 127.0.0.1:") in message
    assert "\n" not in message


def connect_alone() -> tuple[bool, float]:
    group = connect(Ranks(), 60)
    return dist.get_world_size() == 1, group.sum(torch.ones(1)).item()


def test_one_process_alone_needs_no_port():
    with CONTEXT.Pool(1) as pool:
        assert pool.apply(connect_alone) == (True, 1)
