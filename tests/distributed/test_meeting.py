"""How ranks come together: who is missing is told, and which devices they may have."""

import logging
import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from rg.distributed import meeting
from rg.distributed.meeting import Arrival, conflict, meet
from rg.distributed.ranks import Ranks, discover, gpu_of
from tests.support.ports import free_port


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def clock(monkeypatch):
    """Time passes where somebody sleeps, and only there."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))


def hold_first(monkeypatch, ready):
    """Rank 0 does not look for the others until a function of its store is true."""
    gather = meeting._gather

    def held(store, ranks, *others):
        while ranks.rank == 0 and not ready(store):
            time.sleep(0.01)
        return gather(store, ranks, *others)

    monkeypatch.setattr(meeting, "_gather", held)


def rank(number, port, **options):
    return Ranks(number, 3, number, 3, ("127.0.0.1", port), **options)


@pytest.mark.usefixtures("clock")
def test_who_is_missing_is_told_and_why_it_is_expected(port, caplog):
    caplog.set_level(logging.WARNING)
    variables = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=3"
    with pytest.raises(ConnectionError) as ended:
        meet(rank(0, port, variables=variables), None, 60, "train.join_timeout")
    told = f"at 127.0.0.1:{port}, 55 s at most (train.join_timeout); the environment tells of 3 ranks: {variables}"
    assert [message.partition(" waits for ")[2] for message in caplog.messages] == [f"ranks 1, 2 {told}"]
    assert "waited 60 s (train.join_timeout) for ranks 1, 2 at" in str(ended.value)
    assert variables in str(ended.value)


def meet_all(port, gpus):
    """What becomes of every rank, rank 0 coming last."""
    results, stores = {}, []

    def arrive(number):
        time.sleep(0.5 * (number == 0))
        try:
            stores.append(meet(rank(number, port), gpus[number], 20))  # it ends with the object of rank 0
            results[number] = stores[-1].get("rank/1") and "met"
        except ValueError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=arrive, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_meet_though_the_first_one_comes_last(port):
    assert meet_all(port, [None] * 3) == dict.fromkeys(range(3), "met")


@pytest.mark.usefixtures("clock")
def test_a_rank_that_waits_for_the_first_one_says_so_alone(port, caplog, capfd):
    environment = dict(os.environ)
    with pytest.raises(ConnectionError, match=rf"waited 60 s \(train.join_timeout\) for rank 0 at 127.0.0.1:{port}"):
        meet(Ranks(1, 3, 0, 1, ("127.0.0.1", port)), None, 60, "train.join_timeout")
    assert len(caplog.messages) == 1
    assert capfd.readouterr().err == ""  # PyTorch's traces
    assert dict(os.environ) == environment


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("number,awaited", [(0, "its own address"), (1, "rank 0 at")])
def test_an_address_that_does_not_resolve_is_told(monkeypatch, caplog, capfd, number, awaited):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectionError, match=rf"waited 60 s .* for {awaited} no.such.invalid:4000 \(\[Errno -\d\] "):
        meet(Ranks(number, 2, 0, 1, ("no.such.invalid", 4000)), None, 60, "train.join_timeout")
    assert len(caplog.messages) == 1
    assert capfd.readouterr().err == ""  # PyTorch's warnings


def test_a_rank_that_comes_while_the_first_one_gives_up_is_told(port, monkeypatch):
    hold_first(monkeypatch, lambda store: store.check(["rank/1"]))

    def give_up():
        with pytest.raises(ConnectionError, match=r"waited 0\.1 s"):
            meet(rank(0, port), None, 0.1)

    first = threading.Thread(target=give_up)
    first.start()
    with pytest.raises(ConnectionError, match="cannot join the others: rank 0 has given up or is lost"):
        meet(rank(1, port), None, 20)
    first.join()


def test_a_conflict_is_told_to_all(port):
    reasons = meet_all(port, ["GPU-a", "GPU-b", "GPU-a"])
    assert len(reasons) == 3
    assert len(set(reasons.values())) == 1
    assert reasons[1].startswith("rank 0 (")
    assert "rank 2" in reasons[1]


def test_a_rank_that_is_there_twice_is_refused_and_the_others_wait_for_who_is_missing(port, monkeypatch):
    reasons = []
    hold_first(monkeypatch, lambda _: reasons)

    def arrive(number, error):
        try:
            meet(rank(number, port, variables=f"RANK={number}"), None, 20 if number else 0.1)
        except error as ended:  # its traceback holds the store, and goes with it
            reasons.append(str(ended))

    threads = [
        threading.Thread(target=arrive, args=(0, ConnectionError)),
        threading.Thread(target=arrive, args=(1, (ValueError, ConnectionError))),
        threading.Thread(target=arrive, args=(1, (ValueError, ConnectionError))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        sum("has said that it is rank 1, too; give each process a number of its own (RANK=1)" in r for r in reasons)
        == 1
    )
    assert sum("for rank 2 at" in reason for reason in reasons) == 1


def test_a_port_that_is_taken_has_a_remedy():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConnectionError, match=rf"^MASTER_PORT: {port} is taken on this host.* set MASTER_PORT to"):
            meet(rank(0, port), None, 5)


@pytest.mark.parametrize(
    "visible,gpus",
    [
        ([8] * 8, range(8)),  # torchrun, DeepSpeed: all see all
        ([1] * 4, [0] * 4),  # one of its own: --gpus-per-task=1, CUDA_VISIBLE_DEVICES, a MIG slice
        ([2] * 4, [0, 1, 0, 1]),  # two of its own each, or pairs that share two
        ([4] * 2, [0, 1]),  # fewer ranks than GPUs
        ([0] * 2, [0, 0]),  # CPUs
    ],
)
def test_a_rank_takes_one_of_the_gpus_that_it_sees(visible, gpus):
    assert [gpu_of(rank, count) for rank, count in enumerate(visible)] == list(gpus)


@pytest.mark.parametrize(
    "gpus,words",
    [
        ([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")], None),
        ([("a", None), ("b", None)], None),
        ([("a", "GPU-1"), ("a", "GPU-1")], "rank 0 and rank 1 have one GPU (GPU-1)"),
        ([("a", "GPU-1"), ("b", None)], "rank 1 sees no GPU, but others do"),
    ],
)
def test_two_ranks_have_two_gpus(gpus, words):
    message = conflict([Arrival(f"rank {rank}", host, gpu) for rank, (host, gpu) in enumerate(gpus)])
    assert message is None if words is None else message.startswith(words)


def test_the_variables_that_were_believed_are_kept():
    slurm = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_JOB_ID": "7", "MASTER_ADDR": "node1"}
    assert discover(slurm).variables == (
        "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=4"
    )
