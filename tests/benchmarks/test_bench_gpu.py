"""The parts that a GPU is measured in: what runs, what is left out, what stops it, and what is not done twice."""

import importlib
import json
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu
from benchmarks.bench_gpu import Part


@pytest.fixture
def parts(monkeypatch):
    """Three parts: one that works, one that cannot, one that fails."""
    found = {
        "correctness": Part("right", 60, ("json",), ("-c 'exit(9)'",), ("-c 'print(1)'", "-c 'print(2)'")),
        "loader": Part("lacks", 120, ("json", "no_such_package.at_all"), (), ("-c 'exit(9)'",)),
        "training": Part("fails", 180, (), (), ("-c 'print(3); exit(7)'", "-c 'print(4)'")),
    }
    monkeypatch.setattr(bench_gpu, "PARTS", found)
    return found


@pytest.mark.usefixtures("parts")
def test_parts_are_run_left_out_or_fail(tmp_path, capsys):
    assert bench_gpu.main(["--smoke", "--out", str(tmp_path)]) == 1
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("correctness: ok, ")
    assert second.startswith("loader: left out: no_such_package.at_all not installed, ")
    assert third.startswith(f"training: ended with code 7: {tmp_path}/training.log, ")
    assert (tmp_path / "correctness.log").read_text() == "1\n2\n"
    assert (tmp_path / "training.log").read_text() == "3\n"
    assert list(json.loads((tmp_path / "done.json").read_text())) == ["correctness"]


@pytest.mark.usefixtures("parts")
def test_what_was_finished_is_not_done_again(tmp_path, capsys):
    words = ["correctness", "--smoke", "--out", str(tmp_path)]
    for more, said in (([], "ok, "), ([], "finished before"), (["--again"], "ok, ")):
        assert bench_gpu.main([*words, *more]) == 0
        assert capsys.readouterr().out.startswith(f"correctness: {said}")


def test_nothing_is_measured_where_correctness_fails(parts, tmp_path, capsys):
    parts["correctness"] = parts["training"]
    for more in ([], ["training"]):  # nor where only another part is asked for
        assert bench_gpu.main(["--smoke", "--out", str(tmp_path), *more]) == 1
        assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
            "correctness",
            "nothing is measured of kernels that are wrong, or that nobody has tested",
        ]


def test_nothing_is_measured_that_nobody_has_tested(parts, tmp_path, capsys):
    parts["correctness"] = parts["loader"]
    assert bench_gpu.main(["--smoke", "--out", str(tmp_path)]) == 1
    assert "left out: no_such_package.at_all not installed" in capsys.readouterr().out


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
    marks = {before}
    for text in ("2\n", "3\n"):
        (root / "code.py").write_text(text)
        marks.add(bench_gpu._mark(smoke=True))
    assert len(marks) == 3


def test_a_part_ends_at_its_limit(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "LIMIT", 1)
    program = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""
    parts["training"] = Part("slow", 1, (), (), (f"-c {shlex.quote(program)}",))
    assert bench_gpu.run("training", tmp_path, smoke=True) == f"took longer than 1 s: {tmp_path}/training.log"
    pid = int((tmp_path / "training.log").read_text())
    for _ in range(50):  # what it has started is gone, too: a zombie at most until somebody collects it
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} goes on")


def test_the_plan_names_all_commands_and_how_long_they_take(capsys):
    assert bench_gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in bench_gpu.PARTS.values():
        assert part.seconds <= bench_gpu.LIMIT == 480
        for command in part.commands:
            assert f"python {shlex.join(bench_gpu.words(command, Path('OUT'))[1:])}\n" in out
    assert "about 41 minutes, 8 a part at most" in out


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
