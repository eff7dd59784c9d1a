"""A cluster on one machine, for tests of launching and of faults.

Every host is a set of Linux namespaces: its own processes, host name, network card ``eth0`` with its own address, an
sshd, /run and /dev/shm. A bridge joins them, in a namespace of its own too, so nothing appears outside, names and
addresses never clash, and all is gone when the process that made it is, even if killed. The file system is shared,
like NFS between real hosts. Needs root and Debian's iproute2, openssh-server and pdsh; Slurm its slurm-wlm and munge.

    reason = missing()                       # why there can be no hosts here, or None; missing(slurm=True) for Slurm
    with Hosts(3) as hosts:
        hosts.names                          # node1, node2, node3; each resolves the others
        hosts.hostfile                       # "node1 slots=1", ...
        process = hosts.run("node1", ["launch/hostfile.sh", hosts.hostfile, ...])    # a subprocess.Popen
        process.wait_for("step 4/12")        # until its output says so
        process.send_signal(signal.SIGTERM)  # to the command itself; os.killpg(process.pid, ...) to all it started
        hosts.pids("node2", "-m rg train")   # processes there whose command line contains that
        hosts.cut("node2")                   # the network is silent, as if the cable were out
        hosts.restore("node2")
        hosts.lose("node2")                  # the host is gone for good, as if it lost power
        hosts.clear()                        # kills all that was started: after each test, for the next one
        process.wait(60), process.output     # exit code; standard output and error

    with Slurm(2) as slurm:                  # hosts that also form a Slurm cluster
        slurm.command("sbatch", "--parsable", "-N2", "job.sbatch")    # what it says; run on node1
        slurm.job("1")["JobState"]           # RUNNING, ...

Exit codes are those of subprocess: -9 for a process that was killed with its host. ``Hosts(2, private=folder)`` makes
``folder`` each host's own, for hosts without a shared file system; ``hosts.private(name)`` is where the test finds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NETWORK_TOOLS, SLURM_TOOLS = ("ip", "ssh", "sshd", "ssh-keygen", "pdsh"), ("slurmctld", "slurmd", "sbatch", "munged")
# Dies with its parent, whatever becomes of that, and takes everything that runs in the namespaces along.
UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--net", "--pid", "--mount-proc"]
CLONE_NEWPID = 0x20000000

SWITCH = """
set -e
ip link add name bridge type bridge
ip link set bridge up
sleep infinity &
echo ready
wait
"""
HOST = """
set -e
name=$1 folder=$2 private=$3
hostname "$name"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/ssh_config" /etc/ssh/ssh_config
if [ -n "$private" ]; then
    mount --bind "$folder/$name" "$private"
fi
ip link set lo up
mkdir /run/sshd
$(command -v sshd) -f "$folder/sshd_config"
sleep infinity &
echo ready
wait
"""
SSH = """
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""
SSHD = """
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PidFile none
"""


def missing(slurm: bool = False) -> str | None:
    """Why there can be no hosts (or no Slurm) here; None if there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "hosts in network namespaces need root on Linux"
    tools = [tool for tool in NETWORK_TOOLS + SLURM_TOOLS * slurm if not shutil.which(tool, path=SEARCH)]
    if tools:
        return f"{', '.join(tools)} not installed"
    trial = "ip link add name bridge type bridge && ip link add name left type veth peer name right"
    command = [*UNSHARE, "--mount", "--uts", "--ipc", "bash", "-c", f"mount -t tmpfs tmpfs /run && {trial}"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    return f"no namespaces to be had: {tried.stderr.strip()}" if tried.returncode else None


def _environment() -> dict[str, str]:
    """That of this process, with this interpreter's environment active."""
    path = f"{Path(sys.executable).parent}:{SEARCH}"
    return os.environ | {"PATH": path, "VIRTUAL_ENV": sys.prefix}


class Process(subprocess.Popen):
    """A command on a host; its standard output and error go to the file ``log``."""

    log: Path

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until its output contains ``text``.

        Raises:
            AssertionError: It ended without, or the time is over.
        """
        end = time.monotonic() + seconds
        while text not in self.output:
            ended = self.poll() is not None
            if (ended and text not in self.output) or time.monotonic() > end:
                raise AssertionError(f"no {text!r} ({'ended' if ended else f'after {seconds} s'}) in: {self.output}")
            time.sleep(0.05)


class _Namespaces:
    """Namespaces and the process in them on which they depend: process 1 of their own PID namespace.

    Args:
        more: Further namespaces, as options of unshare.
        script: Bash; says "ready" when it is, and then stays.
        arguments: Of the script.
    """

    def __init__(self, more: Sequence[str], script: str, *arguments: str) -> None:
        command = [*UNSHARE, *more, "bash", "-c", script, "bash", *arguments]
        self.outer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
        )
        assert self.outer.stdout is not None
        assert self.outer.stderr is not None
        if self.outer.stdout.readline() != b"ready\n":
            self.outer.kill()
            raise RuntimeError(f"no namespaces: {self.outer.stderr.read().decode()}")
        self.init = int(Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text())
        self.children: list[Process] = []  # started from here; process 1 cannot go before they are waited for
        self.own = set(self.pids())

    def enter(self, *which: str) -> list[str]:
        """The beginning of a command that is to run in those namespaces."""
        return ["nsenter", f"--target={self.init}", *which, "--"]

    def ip(self, arguments: str) -> None:
        """Configure the network there."""
        subprocess.run([*self.enter("--net"), "ip", *arguments.split()], check=True, env=_environment())

    def pids(self) -> list[int]:
        """Its processes, as seen from here."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == own:
                    found.append(int(entry.name))
        return sorted(found)

    def clear(self) -> None:
        """Kill what was started in it since it was made."""
        while others := set(self.pids()) - self.own:
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for child in self.children:
                child.wait()

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """Processes started meanwhile are born into its PID namespace, though they are children of this process."""
        _set_pid_namespace(self.init)
        try:
            yield
        finally:
            _set_pid_namespace(os.getpid())

    def end(self) -> None:
        """Kill its processes; they are gone when this returns."""
        if self.outer.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
            for child in self.children:
                child.wait()
            self.outer.wait()
        for pipe in (self.outer.stdout, self.outer.stderr):
            pipe.close()  # type: ignore[union-attr]


def _set_pid_namespace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


class Hosts:
    """``count`` hosts; a context manager.

    Args:
        count: Of hosts, named node1, node2, ... with the addresses 10.0.0.1, 10.0.0.2, ...
        private: An existing folder whose content is to be each host's own.

    Attributes:
        names: Of the hosts.
        folder: For files of the cluster; removed in the end.
        hostfile: One slot for each host, as DeepSpeed reads it.
        environment: Variables with which commands run, beside those of this process.
    """

    def __init__(self, count: int, private: Path | None = None) -> None:
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"10.0.0.{number}" for number, name in enumerate(self.names, 1)}
        self.environment = {
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
        }
        self._private = str(private or "")
        self._logs = itertools.count()
        self._spaces: dict[str, _Namespaces] = {}

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
            self.hostfile = self.folder / "hostfile"
            self._write_files()
            self._switch = _Namespaces([], SWITCH)
            stack.callback(self._switch.end)
            for name in self.names:
                self._start(name, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _write_files(self) -> None:
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        (self.folder / "sshd_config").write_text(SSHD.format(folder=self.folder))
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        for name in self.names:
            (self.folder / name).mkdir()

    def _start(self, name: str, stack: contextlib.ExitStack) -> None:
        own = ["--mount", "--uts", "--ipc"]
        host = self._spaces[name] = _Namespaces(own, HOST, name, str(self.folder), self._private)
        stack.callback(host.end)
        self._switch.ip(f"link add name {name} type veth peer name eth0 netns {host.init}")
        self._switch.ip(f"link set {name} master bridge up")
        host.ip(f"address add {self.addresses[name]}/24 dev eth0")
        host.ip("link set eth0 up")

    def run(
        self, host: str, command: Sequence[object], env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Process:
        """Start a command on a host, in a session of its own.

        Args:
            host: Its name.
            command: Words.
            env: Variables beside those of ``environment``.
            cwd: Where it runs.

        Returns:
            The running process: a child of this one.
        """
        space = self._spaces[host]
        words = [*space.enter("--net", "--mount", "--uts", "--ipc"), "env", "-C", *map(str, [cwd, *command])]
        log = self.folder / f"{next(self._logs)}.log"
        with log.open("wb") as output, space.adopting():
            process = Process(
                words,
                env=_environment() | self.environment | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = log
        space.children.append(process)
        return process

    def pids(self, host: str, command: str = "") -> list[int]:
        """Processes of a host whose command line contains ``command``, as numbers to be used here, oldest first."""
        found = []
        for pid in self._spaces[host].pids():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command in line:
                    found.append(pid)
        return found

    def namespaces(self, host: str) -> list[Path]:
        """Files of its network and its name, for ``setns``."""
        return [Path(f"/proc/{self._spaces[host].init}/ns/{kind}") for kind in ("net", "uts")]

    def private(self, host: str) -> Path:
        """Where the private folder of a host is found from outside."""
        return self.folder / host

    def cut(self, host: str) -> None:
        """Packets from and to the host vanish; it keeps its address and takes its link to be up."""
        self._switch.ip(f"link set {host} nomaster")

    def restore(self, host: str) -> None:
        """After ``cut``: the network is back."""
        self._switch.ip(f"link set {host} master bridge")

    def clear(self) -> None:
        """Kill all that still runs on the hosts."""
        for space in self._spaces.values():
            space.clear()

    def lose(self, host: str) -> None:
        """The host is gone for good: cut off first, so that its peers hear nothing of the end of its processes."""
        self.cut(host)
        self._spaces[host].end()


SLURM = """
ClusterName=test
SlurmctldHost=node1
SlurmUser=root
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SlurmdTimeout=15
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(Hosts):
    """``count`` hosts with Slurm: its controller on node1, a slurmd on each; a context manager."""

    def __enter__(self) -> Slurm:
        super().__enter__()
        try:
            self._start_daemons()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start_daemons(self) -> None:
        nodes = "\n".join(f"NodeName={name} NodeAddr={self.addresses[name]} CPUs=2" for name in self.names)
        conf, key = self.folder / "slurm.conf", self.folder / "munge.key"
        conf.write_text(SLURM.format(folder=self.folder, nodes=nodes))
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.environment["SLURM_CONF"] = str(conf)
        munge = ["munged", "--foreground", f"--key-file={key}"]
        munge += [f"--{name}-file=/run/munge/{name}" for name in ("pid", "log", "seed")]
        for name in self.names:
            self.run(name, ["sh", "-c", 'mkdir -p /run/munge && exec "$@"', "sh", *munge])
        self.run("node1", ["slurmctld", "-D"])
        for name in self.names:
            self.run(name, ["slurmd", "-D", "-N", name])
        end = time.monotonic() + 30
        while self.run("node1", ["srun", f"-N{len(self.names)}", "true"]).wait():
            if time.monotonic() > end:
                raise RuntimeError(f"Slurm does not start; see {self.folder}")
            time.sleep(0.2)

    def command(self, *words: object) -> str:
        """What a command of Slurm says on node1.

        Raises:
            AssertionError: It failed.
        """
        process = self.run("node1", words)
        assert process.wait(30) == 0, process.output
        return process.output.strip()

    def job(self, number: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode and other fields of a job, also for minutes after its end."""
        words = self.command("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)
