"""What launchers say in the environment, as their documentation and sources have it."""

from __future__ import annotations

import os
import stat
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rg.distributed.ranks import LAUNCHED, Ranks, discover, exported

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "4000"}


def torchrun(**changed: str) -> dict[str, str]:
    """The second of two processes on the second of two hosts."""
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    return ranks | MASTER | {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"} | changed


def deepspeed(**changed: str) -> dict[str, str]:
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    return ranks | MASTER | {"CROSS_RANK": "1", "CROSS_SIZE": "2"} | changed


def mpirun(**changed: str) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "3412", strict=True)} | changed


def hydra(**changed: str) -> dict[str, str]:
    """What ``mpiexec -n 4 -ppn 2`` of MPICH sets."""
    return {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"} | changed


def srun(**changed: str) -> dict[str, str]:
    """The second task on the last of four hosts with 2, 2, 2 and 3 tasks."""
    step = {"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "3"}
    job = {"SLURM_STEP_TASKS_PER_NODE": "2(x3),3", "SLURM_STEP_NODELIST": "node[1-4]", "SLURM_JOB_ID": "123456"}
    return step | job | changed


def one_task_per_host(hosts: int, host: int) -> dict[str, str]:
    places = {"SLURM_PROCID": str(host), "SLURM_NODEID": str(host), "SLURM_STEP_NUM_TASKS": str(hosts)}
    return srun(**places, SLURM_LOCALID="0", SLURM_STEP_TASKS_PER_NODE=f"1(x{hosts})")


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    "environment,expected",
    [
        (torchrun(), Ranks(3, 4, 1, 2, ("node1", 4000))),
        (deepspeed(), Ranks(3, 4, 1, 2, ("node1", 4000))),
        (mpirun() | MASTER, Ranks(3, 4, 1, 2, ("node1", 4000))),
        (hydra() | MASTER, Ranks(3, 4, 1, 2, ("node1", 4000))),
        (srun(PMI_RANK="7", PMI_SIZE="9") | MASTER, Ranks(7, 9, 1, 3, ("node1", 4000))),  # srun --mpi=pmi2
        (srun() | MASTER, Ranks(7, 9, 1, 3, ("node1", 4000))),
        (without(torchrun(), "LOCAL_WORLD_SIZE"), Ranks(3, 4, 1, 4, ("node1", 4000))),  # set by hand
        (torchrun(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"), Ranks()),
    ],
)
def test_every_launcher_is_understood(environment, expected):
    assert discover(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        MASTER,  # such as a batch script sets for its srun
        {"WORLD_SIZE": "4", "LOCAL_RANK": "1"},
        without(srun(SLURM_PROCID="0", SLURM_LOCALID="0"), "SLURM_STEP_NUM_TASKS"),  # the batch script itself
        srun(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_STEP_NUM_TASKS="1"),  # srun --pty bash
        without(srun(), "SLURM_PROCID"),  # salloc
    ],
)
def test_a_process_that_no_launcher_started_is_alone(environment):
    assert discover(environment) == Ranks(0, 1, 0, 1, None)


@pytest.mark.parametrize(
    "environment,message",
    [
        (without(torchrun(), "WORLD_SIZE"), "RANK is set in the environment but not WORLD_SIZE; start with a launcher"),
        (without(torchrun(), "LOCAL_RANK"), "RANK is set in the environment but not LOCAL_RANK"),
        (without(mpirun(), "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_RANK is set .* but not OMPI_COMM_WORLD_SIZE"),
        (without(srun(), "SLURM_LOCALID"), "SLURM_PROCID is set in the environment but not SLURM_LOCALID"),
        (torchrun(RANK="one"), "^RANK: expected a whole number in the environment, got 'one'"),
        (torchrun(RANK="-1"), "^RANK: expected a whole number in the environment, got '-1'"),
        (torchrun(LOCAL_WORLD_SIZE=""), "^LOCAL_WORLD_SIZE: expected a whole number in the environment, got ''"),
        (srun(SLURM_STEP_NUM_TASKS="many"), "^SLURM_STEP_NUM_TASKS: expected a whole number"),
        (srun(SLURM_NODEID="last"), "^SLURM_NODEID: expected a whole number in the environment, got 'last'"),
        (torchrun(RANK="4"), "^RANK: expected less than WORLD_SIZE = 4, got 4"),
        (torchrun(LOCAL_RANK="2"), "^LOCAL_RANK: expected less than LOCAL_WORLD_SIZE = 2, got 2"),
        (deepspeed(LOCAL_RANK="2"), "^LOCAL_RANK: expected less than LOCAL_SIZE = 2, got 2"),
        (torchrun(RANK="0", WORLD_SIZE="0"), "^RANK: expected less than WORLD_SIZE = 0, got 0"),
        (srun(SLURM_PROCID="9"), "^SLURM_PROCID: expected less than SLURM_STEP_NUM_TASKS = 9, got 9"),
        (srun(SLURM_NODEID="4"), r"^SLURM_NODEID: expected a host of SLURM_STEP_TASKS_PER_NODE = '2\(x3\),3', got 4"),
        (srun(SLURM_STEP_TASKS_PER_NODE=""), "^SLURM_NODEID: expected a host of SLURM_STEP_TASKS_PER_NODE = ''"),
        (
            without(torchrun(), "MASTER_ADDR"),
            "^MASTER_ADDR, MASTER_PORT: expected .* got '' and '4000'",
        ),
        (hydra(PMI_RANK="4"), "^PMI_RANK: expected less than PMI_SIZE = 4, got 4"),
        (mpirun(), "^MASTER_ADDR, MASTER_PORT: expected address and port of rank 0 in the environment"),
        (torchrun(MASTER_PORT="http"), "^MASTER_ADDR, MASTER_PORT: .* got 'node1' and 'http'"),
        (srun(**MASTER | {"MASTER_PORT": "70000"}), "^MASTER_ADDR, MASTER_PORT: .* got 'node1' and '70000'"),
    ],
)
def test_what_cannot_be_is_named(environment, message):
    with pytest.raises(ValueError, match=message):
        discover(environment)


def test_torchrun_in_srun_is_one_task_per_host():
    """srun says which agent this is, torchrun which process."""
    assert discover(one_task_per_host(2, 1) | torchrun()) == discover(torchrun())
    assert discover(one_task_per_host(2, 1) | deepspeed()) == discover(deepspeed())
    # Hosts that do not have equally many GPUs: 4 and 2.
    smaller = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert discover(one_task_per_host(2, 1) | torchrun(**smaller)) == Ranks(5, 6, 1, 2, ("node1", 4000))
    # An elastic run that a host has left.
    assert discover(one_task_per_host(3, 2) | torchrun()) == discover(torchrun())


def test_torchrun_in_several_tasks_on_a_host_is_refused():
    with pytest.raises(ValueError, match=r"srun started 9 tasks, 3 on this host, .*\(--ntasks-per-node=1\)"):
        discover(srun() | torchrun())
    with pytest.raises(ValueError, match="srun started 2 tasks, 1 on this host, but RANK tells of 3 hosts"):
        discover(one_task_per_host(2, 1) | torchrun(GROUP_WORLD_SIZE="3"))


def test_mpirun_in_a_slurm_job_is_believed():
    """Its daemons on the other hosts are tasks of a step of srun, one fewer than hosts."""
    environment = mpirun(OMPI_COMM_WORLD_RANK="4", OMPI_COMM_WORLD_SIZE="6") | MASTER
    assert discover(one_task_per_host(2, 1) | environment) == Ranks(4, 6, 1, 2, ("node1", 4000))


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_leftovers_of_another_launch_are_refused(launcher):
    """RANK from a shell in which someone tried by hand, and what really started this process."""
    by_hand = without(launcher(), "GROUP_WORLD_SIZE", "CROSS_SIZE", "TORCHELASTIC_RUN_ID", "CROSS_RANK")
    with pytest.raises(ValueError, match="RANK says rank 3 of 4, srun says rank 7 of 9; unset what is left over"):
        discover(srun() | by_hand)
    with pytest.raises(ValueError, match="RANK says rank 3 of 4, mpirun says rank 2 of 4; unset what is left over"):
        discover(mpirun(OMPI_COMM_WORLD_RANK="2") | by_hand)
    assert discover(mpirun() | by_hand).rank == 3  # some scripts pass on what mpirun says


def test_two_mpi_ranks_in_one_task_of_several_on_the_host_are_refused():
    with pytest.raises(ValueError, match="mpirun says rank 3 of 4, srun says rank 7 of 9"):
        discover(srun() | mpirun() | MASTER)


def compressed(counts: list[int]) -> str:
    """As Slurm writes them: 2(x3),1 for 2, 2, 2, 1."""
    runs = [(count, len(list(run))) for count, run in groupby(counts)]
    return ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20).filter(lambda counts: sum(counts) > 1))
def test_every_layout_of_slurm_gives_every_task_its_place(counts):
    """Block distribution; the tasks are walked host by host, independently of how their numbers are written."""
    rank = 0
    for host, count in enumerate(counts):
        for local_rank in range(count):
            step = {"SLURM_PROCID": rank, "SLURM_LOCALID": local_rank, "SLURM_NODEID": host}
            step |= {"SLURM_STEP_NUM_TASKS": sum(counts), "SLURM_STEP_TASKS_PER_NODE": compressed(counts)}
            found = discover({name: str(value) for name, value in step.items()} | MASTER)
            assert found == Ranks(rank, sum(counts), local_rank, count, ("node1", 4000))
            rank += 1


def scontrol(folder: Path, script: str) -> None:
    """Make `scontrol` a shell script."""
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


ANSWER = '[ "$*" = "show hostnames node[1-4]" ] && printf "node1\\nnode2\\nnode3\\nnode4\\n"'


def test_srun_meets_on_the_first_host_of_the_step(tmp_path, monkeypatch):
    scontrol(tmp_path, ANSWER)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    address, port = discover(srun()).master  # type: ignore[misc]
    assert address == "node1"
    assert 1024 < port < 32768, "ports from there on are given to outgoing connections"
    assert discover(srun()).master == (address, port), "all tasks of a job"
    assert discover(srun(SLURM_JOB_ID="123457")).master != (address, port), "jobs on the same host"
    # What is set is kept, also one of the two.
    assert discover(srun(MASTER_PORT="4000")).master == ("node1", 4000)
    assert discover(srun(MASTER_ADDR="10.0.0.9")).master == ("10.0.0.9", port)


@pytest.mark.parametrize("script", ["exit 1", "true", None])
def test_a_scontrol_that_does_not_answer_is_one_line(tmp_path, monkeypatch, script):
    if script:
        scontrol(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^MASTER_ADDR: expected the host of rank 0 .* scontrol does not tell it"):
        discover(srun())


def test_libraries_find_their_place_only_while_they_look(monkeypatch):
    """What this process starts later, such as another launch, is not to take itself for a rank of this one."""
    for name in (*LAUNCHED, *MASTER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = dict(os.environ)
    with exported(Ranks(3, 4, 1, 2, ("node1", 4000))):
        assert discover() == Ranks(3, 4, 1, 4, ("node1", 4000))
    assert dict(os.environ) == before
