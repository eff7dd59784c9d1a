"""Two commits of a small repository whose benchmark says what it took, and when it ran."""

import subprocess

import pytest

from benchmarks import compare, ledger

BENCHMARK = """
import sys
from pathlib import Path
assert sys.argv[-1] == "--record"
if "--break" in sys.argv:
    sys.exit("it broke")
values = [float(word) for word in Path("values.txt").read_text().split()]
log = Path(sys.argv[1])
name = Path("name.txt").read_text()
turn = log.read_text().count(name) if log.exists() else 0
with log.open("a") as file:
    file.write(name + "\\n")
results = Path("benchmarks/results/small.csv")
header = {header!r} + "\\n"
text = results.read_text() if results.exists() else header
results.parent.mkdir(exist_ok=True)
results.write_text(text + f'2026-01-01,c,0,CPU,,3,2,,"one, small",loop,cpu,time,ms,1,{{values[turn]}},3,5\\n')
"""


def git(root, *words):
    names = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *names, *words], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "root"
    (root / "benchmarks").mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    (root / "benchmarks" / "bench_small.py").write_text(BENCHMARK.format(header=",".join(ledger.COLUMNS)))
    (root / "name.txt").write_text("old")
    (root / "values.txt").write_text("10 11 12")
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "Test")
    git(root, "config", "user.email", "test@example.org")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "before")
    (root / "name.txt").write_text("new")
    git(root, "commit", "-q", "-a", "-m", "after")
    (root / "values.txt").write_text("5 6 5.5")  # not committed
    return root


def test_both_sides_take_turns_and_leave_nothing_behind(repository, tmp_path):
    log = tmp_path / "log"
    (change,) = compare.compare(repository, "HEAD~1", ["bench_small", str(log)], rounds=3)
    assert log.read_text().split() == ["old", "new", "new", "old", "old", "new"]
    assert (change.base, change.now) == ([10, 11, 12], [5, 6, 5.5])
    assert change.ratio == pytest.approx(0.5)
    assert change.noise == pytest.approx(1 / 11)
    text = "one, small, loop, cpu, time: 11 -> 5.5 ms, 0.500x (noise 9.1%): changed"
    assert str(change) == text
    assert git(repository, "worktree", "list").count("\n") == 1
    assert git(repository, "status", "--porcelain") == " M values.txt\n"


def test_what_is_within_the_noise_has_not_changed():
    assert "within the noise" in str(compare.Change("a", "ms", [10, 11, 12], [11, 12, 13]))
    assert "within the noise" in str(compare.Change("a", "ms", [0, 0], [0, 0]))
    assert "changed" in str(compare.Change("a", "ms", [10.0, 10.1], [11.0, 11.1]))


@pytest.mark.parametrize(
    "base,words,said",
    [
        ("nowhere", ["bench_small"], "BASE: expected a commit, branch or tag, got 'nowhere'"),
        ("HEAD", ["bench_small", "--break"], "bench_small --break --record: code 1: it broke"),
        ("HEAD", ["bench_none"], "No module named benchmarks.bench_none"),
    ],
)
def test_errors(repository, base, words, said):
    with pytest.raises(ValueError, match=said):
        compare.compare(repository, base, words, rounds=2)
    assert git(repository, "worktree", "list").count("\n") == 1
