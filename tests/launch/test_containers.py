"""launch/Dockerfile and launch/kubernetes.yaml: as their tools and their own scripts read them, without a cluster."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.support.cluster import ROOT

LAUNCH = ROOT / "launch"


def tool(name):
    return shutil.which(name, path=f"{Path(sys.executable).parent}") or shutil.which(name)


@pytest.mark.skipif(not tool("hadolint"), reason="hadolint is not installed")
def test_the_dockerfile_passes_its_linter():
    result = subprocess.run([tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_gets_what_it_copies_and_installs():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert {"kernels", "pipelines", "rg", "launch", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert any(file == name or file.startswith(f"{name}/") for file in tracked), name
        assert f"!{name}" in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    extras = re.search(r"'\.\[(.+)\]'", text)[1].split(",")
    assert set(extras) <= set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))


@pytest.fixture
def job():
    return yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())


def test_the_pods_are_valid_for_kubernetes(job):
    replicas = job["spec"]["pytorchReplicaSpecs"]
    for kind in ("Master", "Worker"):
        template = replicas[kind]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.31", strict=True)
        broken = copy.deepcopy(pod)
        broken["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.31", strict=True)


def test_the_job_is_one_of_the_operator(job):
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job["spec"]) == {"runPolicy", "pytorchReplicaSpecs"}
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for of_kind in replicas.values():
        assert set(of_kind) == {"replicas", "restartPolicy", "template"}
        assert [container["name"] for container in of_kind["template"]["spec"]["containers"]] == ["pytorch"]
    nodes = {variable["name"]: variable["value"] for variable in container(job)["env"]}["NODES"]
    assert replicas["Master"]["replicas"] == 1
    assert int(nodes) == sum(of_kind["replicas"] for of_kind in replicas.values())


def container(job):
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("rank", [0, 3])
def test_each_pod_starts_its_own_share(job, rank):
    """With the variables that the operator adds, the command of the container is one of torchrun on this machine."""
    worker = container(job)
    bash, option, line, name = worker["command"]
    assert (bash, option) == ("bash", "-c")
    line = line.replace("launch/torchrun.sh", f"{LAUNCH}/torchrun.sh --dry-run")
    variables = {variable["name"]: variable["value"] for variable in worker["env"]}
    port = "23456"
    variables |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "region-grouping-master-0", "MASTER_PORT": port}
    command = [bash, option, line, name, *worker["args"]]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "torchrun",
        "--nnodes",
        "4",
        "--nproc-per-node",
        "8",
        "--node-rank",
        str(rank),
        "--master-addr",
        "region-grouping-master-0",
        "--master-port",
        port,
        "--module",
        "rg",
        "train",
        *worker["args"],
    ]


@pytest.mark.skipif(not tool("shellcheck"), reason="shellcheck is not installed")
def test_the_scripts_pass_their_linter():
    """environment.sh is read where the others source it."""
    scripts = {path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")} - {LAUNCH / "environment.sh"}
    assert len(scripts) >= 5
    options = ["--external-sources", "--shell=bash", f"--source-path={LAUNCH}"]
    command = [tool("shellcheck"), *options, *sorted(scripts), ROOT / ".ci" / "run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
