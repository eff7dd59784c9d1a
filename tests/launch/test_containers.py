"""The Dockerfile and the manifests of Kubernetes: as their tools and our scripts read them, without a cluster."""

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
from kubeflow_trainer_api import models

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
def pytorch_job():
    return yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())


@pytest.fixture
def runtime_and_job():
    return list(yaml.safe_load_all((LAUNCH / "trainjob.yaml").read_text()))


def worker(pytorch_job):
    return pytorch_job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]


def node_of(runtime):
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_the_pods_are_valid_for_kubernetes(pytorch_job, runtime_and_job):
    replicas = pytorch_job["spec"]["pytorchReplicaSpecs"]
    specs = [replicas[kind]["template"]["spec"] for kind in ("Master", "Worker")] + [node_of(runtime_and_job[0])]
    for spec in specs:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, "1.31", strict=True)
        broken = copy.deepcopy(pod)
        broken["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.31", strict=True)


def test_the_job_is_one_of_the_first_generation(pytorch_job):
    assert (pytorch_job["apiVersion"], pytorch_job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(pytorch_job["spec"]) == {"runPolicy", "pytorchReplicaSpecs"}
    replicas = pytorch_job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for of_kind in replicas.values():
        assert set(of_kind) == {"replicas", "restartPolicy", "template"}
        assert [container["name"] for container in of_kind["template"]["spec"]["containers"]] == ["pytorch"]
    nodes = {variable["name"]: variable["value"] for variable in worker(pytorch_job)["env"]}["NODES"]
    assert replicas["Master"]["replicas"] == 1
    assert int(nodes) == sum(of_kind["replicas"] for of_kind in replicas.values())


def test_the_job_is_one_of_the_second_generation(runtime_and_job):
    """The models of Kubeflow Trainer hold all that the manifest says: they drop what they do not know."""
    kinds = models.TrainerV1alpha1TrainingRuntime, models.TrainerV1alpha1TrainJob
    for kind, document in zip(kinds, runtime_and_job, strict=True):
        assert kind.from_dict(document).to_dict() == document
    runtime, job = runtime_and_job
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert [container["name"] for container in node_of(runtime)["containers"]] == ["node"]
    gpus = job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert int(gpus) == job["spec"]["trainer"]["numProcPerNode"]


def test_both_generations_see_the_same_machine(pytorch_job, runtime_and_job):
    """What a pod mounts, and what it may do, does not depend on who starts it."""
    first = pytorch_job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    second = node_of(runtime_and_job[0])
    assert first["volumes"] == second["volumes"]
    assert first["terminationGracePeriodSeconds"] == second["terminationGracePeriodSeconds"]
    for key in ("image", "securityContext", "volumeMounts"):
        assert first["containers"][0][key] == second["containers"][0][key]
    trainer = runtime_and_job[1]["spec"]["trainer"]
    assert worker(pytorch_job)["args"] == trainer["args"]
    assert worker(pytorch_job)["resources"] == trainer["resourcesPerNode"]


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("generation", [1, 2])
def test_each_pod_starts_its_own_share(pytorch_job, runtime_and_job, generation, rank):
    """With the variables that the operator adds, the command of the container is one of torchrun on this machine."""
    port = "23456"
    if generation == 1:
        started, address = worker(pytorch_job), "region-grouping-master-0"
        variables = {variable["name"]: variable["value"] for variable in started["env"]}
        variables |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": address, "MASTER_PORT": port}
    else:
        started, address = runtime_and_job[1]["spec"]["trainer"], "region-grouping-node-0-0.region-grouping"
        variables = {
            "PET_NNODES": str(started["numNodes"]),
            "PET_NPROC_PER_NODE": str(started["numProcPerNode"]),
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": address,
            "PET_MASTER_PORT": port,
        }
    bash, option, line, name = started["command"]
    assert (bash, option) == ("bash", "-c")
    line = line.replace("launch/torchrun.sh", f"{LAUNCH}/torchrun.sh --dry-run")
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    result = subprocess.run(
        [bash, option, line, name, *started["args"]], env=environment, capture_output=True, text=True, check=False
    )
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
        address,
        "--master-port",
        port,
        "--module",
        "rg",
        "train",
        *started["args"],
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
