"""Which process of how many this is, as the launcher says.

torchrun and DeepSpeed's launcher set RANK and its companions; srun and the mpirun of Open MPI, and that of MPICH and
Intel MPI, have names of their own. Where two of them speak, they must not contradict each other.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")  # MPICH and Intel MPI
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
HOSTS = ("GROUP_WORLD_SIZE", "CROSS_SIZE")  # by torchrun and DeepSpeed's launcher, which srun may have started


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run.

    Attributes:
        rank: From 0.
        world_size: Number of processes.
        local_rank: From 0 on this host.
        local_world_size: Number of processes on this host.
        master: Address and port that rank 0 listens on; None if there is no other rank.
        gpu: Number of the GPU of this process, among those that it sees.
        variables: Of the environment, which tell this, for messages.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master: tuple[str, int] | None = None
    gpu: int = 0
    variables: str = field(default="", compare=False)

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        return torch.device("cuda", self.gpu) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def name(self) -> str:
        """For messages."""
        return f"rank {self.rank} ({socket.gethostname()})"


def discover(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read what torchrun, DeepSpeed's launcher, srun or mpirun say; alone if none of them says anything.

    Args:
        environment: Variables.

    Returns:
        The place of this process.

    Raises:
        ValueError: variables are missing, are no such numbers, or contradict each other.
    """
    claims = {
        launcher: ranks
        for launcher, ranks in (
            ("RANK", _launched(environment)),
            ("mpirun", _mpi(environment)),
            ("srun", _slurm(environment)),
        )
        if ranks
    }
    if not claims:
        return Ranks()
    first, *others = claims.items()
    for other in others:
        _compare(first, other, next((_number(environment, name) for name in HOSTS if name in environment), None))
    ranks = first[1]
    if ranks.world_size == 1:
        return ranks
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return replace(ranks, master=_master(environment, first[0]), gpu=gpu_of(ranks.local_rank, visible))


def gpu_of(local_rank: int, visible: int) -> int:
    """Number of the GPU of a rank among those that it sees.

    Launchers show a rank all GPUs of its host (torchrun, DeepSpeed), one of its own (Slurm's --gpus-per-task, a
    CUDA_VISIBLE_DEVICES or a MIG slice for each), or those of its socket. Whether ranks got the same one, they tell
    each other when they meet.

    Args:
        local_rank: From 0 on this host.
        visible: GPUs that the rank sees, 0 on a CPU.
    """
    return local_rank % visible if visible else 0


@contextmanager
def exported(ranks: Ranks) -> Iterator[None]:
    """Inside, the environment says where this process belongs, for libraries that look there.

    They take LOCAL_RANK for the number of the GPU, so it is that where there is one.

    Afterwards it is as before: what this process starts later is not to take itself for one of these ranks.
    """
    original = dict(os.environ)
    device = ranks.gpu if ranks.device.type == "cuda" else ranks.local_rank
    places = dict(zip(LAUNCHED, map(str, (ranks.rank, ranks.world_size, device)), strict=True))
    if OPEN_MPI[2] in original:  # DeepSpeed compares it with LOCAL_RANK
        places[OPEN_MPI[2]] = places["LOCAL_RANK"]
    if ranks.master:
        places |= {"MASTER_ADDR": ranks.master[0], "MASTER_PORT": str(ranks.master[1])}
    os.environ.update(places)
    try:
        yield
    finally:
        for name in places:
            if name in original:
                os.environ[name] = original[name]
            else:
                del os.environ[name]


def _launched(environment: Mapping[str, str]) -> Ranks | None:
    if "RANK" not in environment:
        return None
    # torchrun says LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE.
    size = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environment), "WORLD_SIZE")
    return _ranks(environment, (*LAUNCHED, size))


def _mpi(environment: Mapping[str, str]) -> Ranks | None:
    """What mpirun says; srun can set PMI_RANK too, but no place on the host."""
    names = next((names for names in (OPEN_MPI, HYDRA) if names[2] in environment), None)
    return _ranks(environment, names) if names else None


def _slurm(environment: Mapping[str, str]) -> Ranks | None:
    """What srun says; a batch script or a shell of one task says nothing of ranks."""
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in environment:
        return None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    # Such as 2(x3),1: three hosts of two tasks and one of one.
    pieces = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    by_host = [int(count) for count, times in pieces for _ in range(int(times or 1))]
    host = _number(environment, "SLURM_NODEID")
    if host >= len(by_host):
        raise ValueError(f"SLURM_NODEID: expected a host of SLURM_STEP_TASKS_PER_NODE = {tasks!r}, got {host}")
    return _ranks({**environment, "SLURM_STEP_TASKS_PER_NODE": str(by_host[host])}, SLURM)


def _ranks(environment: Mapping[str, str], names: tuple[str, ...]) -> Ranks:
    numbers = []
    for name in names:
        if name not in environment:
            raise ValueError(f"{names[0]} is set in the environment but not {name}; start with a launcher")
        numbers.append(_number(environment, name))
    rank, world_size, local_rank, local_world_size = numbers
    for name, size_name, place, size in (
        (names[0], names[1], rank, world_size),
        (names[2], names[3], local_rank, local_world_size),
    ):
        if place >= size:
            raise ValueError(f"{name}: expected less than {size_name} = {size}, got {place}")
    variables = " ".join(f"{name}={environment[name]}" for name in names)
    return Ranks(rank, world_size, local_rank, local_world_size, variables=variables)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number in the environment, got {text!r}")
    return int(text)


def _compare(first: tuple[str, Ranks], other: tuple[str, Ranks], hosts: int | None) -> None:
    """Raise if two launchers mean different processes; hosts of the inner one, None if it has no agents on them."""
    (inner, ours), (outer, theirs) = first, other
    if hosts is not None:  # an agent on each host, started by the other launcher
        if theirs.local_world_size > 1 or hosts > theirs.world_size:
            raise ValueError(
                f"{outer} started {theirs.world_size} tasks, {theirs.local_world_size} on this host, but {inner} tells "
                f"of {hosts} hosts with a launcher each; start one task per host (--ntasks-per-node=1)"
            )
    elif inner == "mpirun" and theirs.local_world_size == 1:
        return  # mpirun starts a daemon on each other host by srun, whose variables the ranks there inherit
    elif (ours.rank, ours.world_size) != (theirs.rank, theirs.world_size):
        raise ValueError(
            f"{inner} says rank {ours.rank} of {ours.world_size}, {outer} says rank {theirs.rank} of "
            f"{theirs.world_size}; unset what is left over from another launch"
        )


def _master(environment: Mapping[str, str], launcher: str) -> tuple[str, int]:
    """What is set; srun sets nothing, so the first host of the step and a port below those of outgoing connections."""
    address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if launcher == "srun":
        address = address or _first_host(environment.get("SLURM_STEP_NODELIST", ""))
        port = port or str(20000 + _number(environment, "SLURM_JOB_ID") % 10000)
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            "MASTER_ADDR, MASTER_PORT: expected address and port of rank 0 in the environment, "
            f"got {address!r} and {port!r}"
        )
    return address, int(port)


def _first_host(hosts: str) -> str:
    try:
        listing = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
        return listing.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ValueError(
            f"MASTER_ADDR: expected the host of rank 0 in the environment, as scontrol does not tell it ({error})"
        ) from None
