"""The parts that a GPU is measured in: what runs, what is left out, what stops it, and what is not done twice."""

import contextlib
import importlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu
from benchmarks.tools.gpu_parts import Part


@pytest.fixture
def parts(monkeypatch):
    """Tests, a part that works, one that cannot, one that fails, and one behind each of these."""
    found = {
        "correctness": Part("right", 60, ("json",), ("-c 'exit(9)'",), ("-c 'print(1)'", "-c 'print(2)'")),
        "kernels": Part("works", 60, (), (), ("-c 'print(8)'",), ("correctness",)),
        "loader": Part("lacks", 120, ("json", "no_such_package.at_all"), (), ("-c 'exit(9)'",)),
        "input": Part("behind it", 120, (), (), ("-c 'exit(9)'",), ("correctness", "loader")),
        "training": Part("fails", 180, (), (), ("-c 'print(3); exit(7)'", "-c 'print(4)'"), ("correctness",)),
        "graphs": Part("behind it", 120, (), (), ("-c 'exit(9)'",), ("training",)),
    }
    monkeypatch.setattr(bench_gpu, "PARTS", found)
    return found


@pytest.mark.usefixtures("parts")
def test_parts_are_run_left_out_or_fail(tmp_path, capsys):
    assert bench_gpu.main(["--smoke", "--out", str(tmp_path)]) == 1
    said = [line.rpartition(", ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "correctness: ok",
        "kernels: ok",
        "loader: left out: no_such_package.at_all not installed",
        "input: not measured: loader not passed",
        f"training: ended with code 7: {tmp_path}/training.log",
        "graphs: not measured: training not passed",
    ]
    assert (tmp_path / "correctness.log").read_text() == "1\n2\n"
    assert (tmp_path / "training.log").read_text() == "3\n"
    assert list(json.loads((tmp_path / "done.json").read_text())) == ["-c 'print(1)'", "-c 'print(2)'", "-c 'print(8)'"]


@pytest.mark.usefixtures("parts")
def test_what_lacks_packages_is_no_failure(tmp_path):
    assert bench_gpu.main(["input", "--smoke", "--out", str(tmp_path)]) == 0


@pytest.mark.usefixtures("parts")
def test_what_was_finished_is_not_done_again(tmp_path, capsys):
    words = ["correctness", "--smoke", "--out", str(tmp_path)]
    for more, said in (([], "ok, "), ([], "finished before"), (["--again"], "ok, ")):
        assert bench_gpu.main([*words, *more]) == 0
        assert capsys.readouterr().out.startswith(f"correctness: {said}")


def test_a_part_goes_on_behind_the_commands_that_were_finished(parts, tmp_path, capsys):
    words = ["training", "--smoke", "--out", str(tmp_path)]
    parts["training"] = Part("", 1, (), (), ("-c 'print(3)'", "-c 'print(4); exit(7)'"))
    assert bench_gpu.main(words) == 1
    parts["training"] = Part("", 1, (), (), ("-c 'print(3)'", "-c 'print(5)'"))
    assert bench_gpu.main(words) == 0
    assert "training: ok, " in capsys.readouterr().out
    assert (tmp_path / "training.log").read_text() == "3\n4\n5\n"


@pytest.mark.parametrize("failing", ["training", "loader"])
def test_nothing_is_measured_before_its_tests_have_passed(parts, tmp_path, capsys, failing):
    parts["correctness"] = replace(parts[failing], tests=())
    assert bench_gpu.main(["kernels", "--smoke", "--out", str(tmp_path)]) == (failing == "training")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("correctness: ended" if failing == "training" else "correctness: left out")
    assert second.startswith("kernels: not measured: correctness not passed")


def test_rows_that_a_part_appends_are_no_other_code(monkeypatch, tmp_path):
    """Of a checkout: only what is not a row makes a part be done again."""
    root = tmp_path / "root"
    results = root / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "train.csv").write_text("header\n")
    (root / "code.py").write_text("1\n")
    names = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *names, *words], cwd=root, check=True)
    monkeypatch.setattr(bench_gpu.ledger, "RESULTS", results)
    before = bench_gpu._mark(smoke=True)
    assert "clean" in before
    (results / "train.csv").write_text("header\nrow\n")
    assert bench_gpu._mark(smoke=True) == before
    subprocess.run(["git", *names, "commit", "-q", "-a", "-m", "rows"], cwd=root, check=True)
    assert bench_gpu._mark(smoke=True) == before
    marks = {before}
    for text in ("2\n", "3\n"):
        (root / "code.py").write_text(text)
        marks.add(bench_gpu._mark(smoke=True))
    assert len(marks) == 3


def is_running(pid):
    """A zombie that nobody has collected is not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def test_a_part_ends_at_its_limit(parts, tmp_path, monkeypatch):
    """What it has started is gone, too."""
    monkeypatch.setattr(bench_gpu, "LIMIT", 5)  # two interpreters have started by then
    program = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""
    parts["training"] = Part("slow", 1, (), (), (f"-c {shlex.quote(program)}",))
    done = bench_gpu.Done(tmp_path / "done.json", "this code")
    assert bench_gpu.run("training", tmp_path, True, done) == f"took longer than 5 s: {tmp_path}/training.log"
    pid, end = int((tmp_path / "training.log").read_text()), time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < end, f"{pid} goes on"
        time.sleep(0.05)


def test_the_plan_names_all_commands_and_how_long_they_take(capsys):
    assert bench_gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in bench_gpu.PARTS.values():
        assert part.seconds <= bench_gpu.LIMIT == 480
        for command in part.commands:
            assert f"python {shlex.join(bench_gpu.words(command, Path('OUT'))[1:])}\n" in out
    assert "about 80 minutes, 8 a part at most" in out
    for name, part in bench_gpu.PARTS.items():
        before = list(bench_gpu.PARTS)[: list(bench_gpu.PARTS).index(name)]
        assert set(part.tests) <= set(before)


COMMANDS = [command for part in bench_gpu.PARTS.values() for command in (*part.commands, *part.smoke)]


@pytest.mark.parametrize("command", [command for command in COMMANDS if "pytest" not in command])
def test_all_options_exist(command, tmp_path, capsys, monkeypatch):
    """One more that does not is the only one that the benchmark finds fault with."""
    _, _, name, *options = bench_gpu.words(command, tmp_path)
    monkeypatch.setattr("sys.argv", [name, *options, "--nonsense"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: --nonsense\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it wants where there is no GPU")
def test_errors(tmp_path, capsys):
    for words, said in (([], "expected a GPU, got none"), (["bread"], "PART: expected some of correctness, kernels")):
        with pytest.raises(SystemExit) as stopped:
            bench_gpu.main([*words, "--out", str(tmp_path)])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


BARE = """
import importlib, sys
for name in ("scipy", "timm", "torchvision", "jsonargparse", "webdataset", "PIL"):
    sys.modules[name] = None
for name in ("bench_gpu", "bench_kernels", "kernel_accuracy"):
    importlib.import_module(f"benchmarks.{name}")
"""


def test_kernels_are_measured_where_torch_triton_and_numpy_are_all_there_is():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
