"""The scripts in launch/: the commands they run, what they refuse, and training on two hosts by each of them."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.shards import reader
from rg.evaluation.evaluate import evaluate
from rg.explain.files import explain_files
from rg.pages import gallery
from tests.support.cluster import ROOT, Hosts, Process, missing
from tests.support.miniature_run import build
from tests.support.ports import free_port
from tests.training.test_train import OPTIONS

RECIPE = ["birds_lite0", "--data", "birds", "--out", "my run"]
HOSTS = "# two machines\n\nnode1 slots=4\nnode2 slots=2\n"
VARIABLES = ("NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PROCESSES", "RESTARTS")


def script(name: str, *arguments: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES and not key.startswith("SLURM_")}
    environment = clean | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
    command = [ROOT / "launch" / name, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def printed(name: str, *arguments: object, **variables: str) -> list[str]:
    """Words of the command that --dry-run prints."""
    result = script(name, "--dry-run", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text(HOSTS)
    return path


def test_one_node_takes_deepspeeds_launcher():
    command = ["deepspeed", "--no_local_rank", "--master_port"]
    train = ["--module", "rg", "train", *RECIPE]
    assert printed("one_node.sh", *RECIPE, MASTER_PORT="4000") == [*command, "4000", *train]
    two = [*command, "4000", "--num_gpus", "2", *train]
    assert printed("one_node.sh", *RECIPE, MASTER_PORT="4000", PROCESSES="2") == two


EVALUATE = ["evaluate", "my run", "--data", "birds"]


@pytest.mark.parametrize(
    "name,place,variables",
    [
        ("one_node.sh", [], {}),
        ("each_node.sh", ["HOSTS", "1"], {}),
        ("hostfile.sh", ["HOSTS"], {}),
        ("torchrun.sh", [], {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node1"}),
        ("torchrun.sh", [], {"NODES": "1:3", "MASTER_ADDR": "node1"}),
    ],
)
def test_another_verb_takes_the_place_of_train(hostfile, name, place, variables):
    words = printed(name, *(hostfile if word == "HOSTS" else word for word in place), *EVALUATE, **variables)
    assert words[words.index("--module") + 1] == "rg"
    behind = [word.strip("'") for word in words[words.index("rg") + 1 :]]
    assert behind == EVALUATE


def test_the_batch_script_does_other_verbs(tmp_path):
    (tmp_path / "run").mkdir()
    evaluate = ["evaluate", tmp_path / "run", "--data", "birds"]
    assert printed("slurm.sbatch", *evaluate)[-4:] == [str(word) for word in evaluate]
    explain = ["explain", "run", "photos", "--out", "why"]
    assert printed("slurm.sbatch", *explain)[-5:] == explain


def test_runs_on_one_machine_meet_at_ports_of_their_own():
    alone = {"NODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, option, variables in (("one_node.sh", "--master_port", {}), ("torchrun.sh", "--master-port", alone)):
        words = printed(name, *RECIPE, **variables)
        port = int(words[words.index(option) + 1])
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # the kernel may have given it to somebody else meanwhile
                stack.enter_context(socket.create_server(("", port)))
            assert printed(name, *RECIPE, **variables) != words


@pytest.mark.parametrize(
    "name,place,variables",
    [
        ("one_node.sh", [], {}),
        ("each_node.sh", ["HOSTS", "0"], {}),
        ("torchrun.sh", [], {"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node1"}),
    ],
)
def test_a_port_that_is_taken_is_refused_before_anything_starts(hostfile, name, place, variables):
    words = [hostfile if word == "HOSTS" else word for word in place]
    port = str(free_port())
    with socket.create_server(("", int(port))):
        result = script(name, "--dry-run", *words, *RECIPE, MASTER_PORT=port, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{name}: error: MASTER_PORT: {port} is taken on this machine")
    assert printed(name, *words, *RECIPE, MASTER_PORT=port, **variables)


@pytest.mark.parametrize("name,rank", [("hostfile.sh", []), ("each_node.sh", ["0"])])
@pytest.mark.parametrize(
    "content,reason",
    [
        (b"a slots=4\r\n", "line 1: ends as on Windows"),
        (b"# hosts\na\n", "line 2: expected HOST slots=N, got a"),
        (b"a slots=two\n", "line 1: expected HOST slots=N, got a slots=two"),
        (b"a slots=2, b slots=2\n", "line 1: expected HOST slots=N, got a slots=2, b slots=2"),
        (b"a slots=1\n\nb slots=0\n", "line 3: expected at least 1 slot, got slots=0"),
        (b"a:2222 slots=2\n", "line 1: expected a host alone, got a:2222"),
        (b"me@a slots=2\n", "line 1: expected a host alone, got me@a"),
        (b"a slots=1\nb slots=1\n a slots=2\n", "line 3: a is there twice, first in line 1"),
    ],
)
def test_a_hostfile_is_checked_line_by_line(tmp_path, name, rank, content, reason):
    path = tmp_path / "hostfile"
    path.write_bytes(content)
    result = script(name, "--dry-run", path, *rank, *RECIPE)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{name}: error: {path}: {reason}")
    assert len(result.stderr.splitlines()) == 1


def test_comments_and_addresses_stand_in_a_hostfile(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# two\nfe80::1  slots=4 # the first\n\n  b slots=2")
    words = printed("hostfile.sh", path, *RECIPE)
    assert words[words.index("--master_addr") + 1] == "fe80::1"


def test_the_first_host_of_the_file_is_the_master(hostfile):
    for name, rank in (("hostfile.sh", []), ("each_node.sh", ["1"])):
        words = printed(name, hostfile, *rank, *RECIPE)
        assert words[words.index("--master_addr") + 1] == "node1"
        assert words[words.index("--master_port") + 1] == "29500"
        words = printed(name, hostfile, *rank, *RECIPE, MASTER_ADDR="10.1.2.3", MASTER_PORT="4000")
        assert words[words.index("--master_addr") + 1] == "10.1.2.3"
        assert words[words.index("--master_port") + 1] == "4000"


def test_torchrun_meets_at_fixed_places_unless_it_is_elastic():
    static = printed("torchrun.sh", *RECIPE, NODES="2", NODE_RANK="1", MASTER_ADDR="node1", PROCESSES="4")
    fixed = ["--node-rank", "1", "--master-addr", "node1", "--master-port", "29500"]
    size = ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"]
    assert static == [*size, *fixed, "--module", "rg", "train", *RECIPE]
    for elastic in ({"NODES": "1:3"}, {"NODES": "2", "RESTARTS": "1"}):
        words = printed("torchrun.sh", *RECIPE, MASTER_ADDR="node1", PROCESSES="4", **elastic)
        assert words[words.index("--rdzv-backend") + 1] == "c10d"
        assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
        assert words[words.index("--nnodes") + 1] == elastic["NODES"]
        assert words[words.index("--max-restarts") + 1] == elastic.get("RESTARTS", "0")
        assert words[-1] == "--auto-resume"


def test_the_batch_script_goes_on_with_a_run():
    words = printed("slurm.sbatch", *RECIPE)
    assert words[0] == "srun"
    assert words[-len(RECIPE) - 3 :] == [str(ROOT / "launch" / "torchrun.sh"), "train", *RECIPE, "--auto-resume"]


NODES = {"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node1"}


@pytest.mark.parametrize(
    "name,arguments,variables,message",
    [
        ("one_node.sh", [], {}, "expected a recipe"),
        ("one_node.sh", RECIPE, {"MASTER_PORT": "0"}, "MASTER_PORT: expected a number from 1 to 65535, got '0'"),
        (
            "one_node.sh",
            RECIPE,
            {"MASTER_PORT": "08080"},
            "MASTER_PORT: expected a number from 1 to 65535, got '08080'",
        ),
        ("hostfile.sh", ["HOSTS"], {}, "expected a hostfile and a recipe"),
        ("hostfile.sh", ["nowhere", *RECIPE], {}, "nowhere: no such hostfile"),
        ("hostfile.sh", ["EMPTY", *RECIPE], {}, "expected lines HOST slots=N"),
        ("each_node.sh", ["HOSTS", "0"], {}, "expected a hostfile, a node rank and a recipe"),
        ("each_node.sh", ["EMPTY", "0", *RECIPE], {}, "expected lines HOST slots=N"),
        ("each_node.sh", ["HOSTS", "2", *RECIPE], {}, "NODE_RANK: expected 0 to 1 for the 2 hosts of"),
        ("torchrun.sh", [], NODES, "expected a recipe"),
        ("torchrun.sh", RECIPE, NODES | {"NODES": "two"}, "NODES: expected a number or MIN:MAX, got 'two'"),
        ("torchrun.sh", RECIPE, NODES | {"NODE_RANK": ""}, "NODE_RANK: expected 0 to 1, got ''"),
        ("torchrun.sh", RECIPE, NODES | {"MASTER_ADDR": ""}, "MASTER_ADDR: expected the address of machine 0"),
        ("torchrun.sh", RECIPE, NODES | {"RESTARTS": "-1"}, "RESTARTS: expected a number, got '-1'"),
        ("slurm.sbatch", [], {}, "expected a recipe"),
        ("slurm.sbatch", RECIPE[:3], {}, "expected --out RUN"),
        ("slurm.sbatch", ["explain", "run", "photos"], {}, "expected --out OUT"),
        ("slurm.sbatch", EVALUATE, {}, "expected a run folder behind evaluate, got 'my run'"),
        ("slurm.sbatch", RECIPE, {}, "no Slurm job; start it by sbatch"),
    ],
)
def test_what_is_missing_is_one_line(hostfile, tmp_path, name, arguments, variables, message):
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    files = {"HOSTS": hostfile, "EMPTY": empty}
    result = script(name, *(files.get(word, word) for word in arguments), **variables)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("+ ")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"{name}: error: ")
    assert message in errors[0]


def test_a_folder_that_deepspeed_cannot_name_to_others_is_refused(hostfile, tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    result = script("hostfile.sh", hostfile, *RECIPE, cwd=folder)
    assert result.returncode == 2
    assert "does not reach other hosts" in result.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Hosts(2) as cluster:
        yield cluster


@pytest.fixture
def hosts(cluster: Hosts) -> Iterator[Hosts]:
    yield cluster
    cluster.clear()


def train(data: Path, out: Path, **changed: object) -> list[str]:
    options = OPTIONS | {"train.epochs": 1, "train.log_steps": 1, "train.validate_epochs": 0}
    options |= {name.replace("__", "."): value for name, value in changed.items()}
    settings = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["birds_lite0", "--data", str(data), "--out", str(out), *settings]


def torchrun(hosts: Hosts, *arguments: str) -> list[Process]:
    places = {"NODES": "2", "MASTER_ADDR": hosts.names[0]}
    return [
        hosts.run(name, ["launch/torchrun.sh", *arguments], places | {"NODE_RANK": str(rank)})
        for rank, name in enumerate(hosts.names)
    ]


def finish(*processes: Process) -> None:
    for process in processes:
        assert process.wait(300) == 0, process.output


@pytest.fixture(scope="module")
def by_torchrun(cluster, small_birds, tmp_path_factory) -> Path:
    """A run of two hosts started by torchrun."""
    out = tmp_path_factory.mktemp("launch") / "run"
    finish(*torchrun(cluster, *train(small_birds, out)))
    return out


def check_the_same(run: Path, other: Path) -> None:
    """Both hold a checkpoint of the last step and the same weights."""
    for out in (run, other):
        assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_each_node_trains_as_torchrun_does(hosts, small_birds, by_torchrun, tmp_path):
    out = tmp_path / "run"
    processes = [
        hosts.run(name, ["launch/each_node.sh", hosts.hostfile, rank, *train(small_birds, out)])
        for rank, name in enumerate(hosts.names)
    ]
    finish(*processes)
    assert "over 2 ranks" in processes[0].output
    check_the_same(out, by_torchrun)


def test_other_verbs_leave_on_two_hosts_what_one_process_leaves(hosts, small_birds, tmp_path):
    run = build(tmp_path / "run", small_birds)
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    evaluate(alone, small_birds, batch_size=1, device="cpu")
    options = ["--batch-size", "1", "--device", "cpu"]
    finish(*torchrun(hosts, "evaluate", str(run), "--data", str(small_birds), *options))
    for name in ("metrics.json", "predictions.jsonl", "confidence.json", "part_pictures.webp"):
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name

    photos = tmp_path / "photos"
    photos.mkdir()
    for sample in reader.read(small_birds, "val"):
        (photos / f"{sample.key}.jpg").write_bytes(sample.jpeg)
    expected, found = (tmp_path / name / "out" for name in ("expected", "found"))  # pages name their folder
    explain_files(run, [photos], expected, batch_size=1, device="cpu", write_page=gallery.write)
    words = ["explain", str(run), str(photos), "--out", str(found), *options]
    places = enumerate(hosts.names)
    finish(*(hosts.run(name, ["launch/each_node.sh", hosts.hostfile, rank, *words]) for rank, name in places))
    names = sorted(path.relative_to(expected) for path in expected.rglob("*.*"))
    assert len(names) > 2 * 24
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_words_reach_other_hosts_as_they_are(hosts, small_birds, by_torchrun, tmp_path):
    """Through DeepSpeed, pdsh, ssh and a shell, each with marks of its own; the run is the same as ever."""
    data = tmp_path / "birds;$HOME%n'\"*\\&`id`"
    data.symlink_to(small_birds)
    out = tmp_path / "a \"run\"  of $HOME, 'it' `id` \\ 100 %h;"
    process = hosts.run("node1", ["launch/hostfile.sh", hosts.hostfile, *train(data, out)])
    finish(process)
    assert "over 2 ranks" in process.output
    check_the_same(out, by_torchrun)


def test_variables_reach_other_hosts_as_they_are(hosts, tmp_path):
    """What the ranks would see, by a module `rg` of our own in the working directory."""
    code = "import json, os; json.dump(dict(os.environ), open('rank-' + os.environ['RANK'], 'w'))"
    (tmp_path / "rg.py").write_text(code)
    (tmp_path / ".deepspeed_env").write_text("# ours\n\nFROM_FILE=a file\n")
    odd = "two  words, $HOME \"and\" 'so' \\ `on` 100%h"
    variables = {"NCCL_DEBUG": odd, "TORCH_HOME": "/models", "SECRET": "secret"}
    process = hosts.run("node1", [ROOT / "launch/hostfile.sh", hosts.hostfile, "recipe"], variables, cwd=tmp_path)
    finish(process)
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert {name: seen.get(name) for name in variables} == variables | {"SECRET": None}
        assert seen["FROM_FILE"] == "a file"
        assert seen["GLOO_SOCKET_IFNAME"] == "eth0"
        assert seen["PATH"].split(":")[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize("name", ["one_node.sh", "hostfile.sh"])
def test_a_signal_to_the_script_lets_the_ranks_save(hosts, small_birds, tmp_path, name):
    out = tmp_path / "run"
    file = [hosts.hostfile] if name == "hostfile.sh" else []
    arguments = train(small_birds, out, train__epochs=1000)
    process = hosts.run("node1", [f"launch/{name}", *file, *arguments], {"PROCESSES": "2"})
    process.wait_for("step 3/4000", 300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, process.output
    assert list((out / "checkpoints").glob("step-*"))
    assert not any(hosts.pids(host, "rg train") for host in hosts.names)
