"""Two commits of a small repository whose benchmark says what it took, and when it ran."""

import subprocess

import pytest

from benchmarks import compare
from benchmarks.tools import ledger

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


@pytest.mark.parametrize(
    "base,now,verdict",
    [
        ([10, 11, 12], [11, 12, 13], "within the noise"),
        ([10, 11, 12], [12, 13, 14], "within the noise"),
        ([10, 10.1, 10.2], [11, 11.1, 11.2], "changed"),
        ([11, 11.1, 11.2], [10, 10.1, 10.2], "changed"),
        ([0, 0, 0], [0, 0, 0], "within the noise"),
        ([0, 0, 0], [50, 50, 50], "changed"),
    ],
)
def test_only_what_overlaps_nowhere_has_changed(base, now, verdict):
    assert str(compare.Change("a", "ms", base, now)).endswith(f": {verdict}")


def test_what_one_side_does_not_record_is_named(repository, tmp_path):
    words = ["bench_small", str(tmp_path / "log")]
    benchmark = repository / "benchmarks" / "bench_small.py"
    benchmark.write_text(benchmark.read_text().replace('"one, small"', '"two, small"'))
    with pytest.raises(
        ValueError, match=r"got none: one, small, loop, cpu, time: before only; two, small, .*: after only"
    ):
        compare.compare(repository, "HEAD~1", words, rounds=3)


def test_command(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "ROOT", repository)
    (repository / "values.txt").write_text("5 6 5.5 6.5")
    monkeypatch.setattr(compare, "compare", lambda *words: print(*words[1:]) or [])
    assert compare.main(["--rounds", "4", "HEAD", "bench_small", str(tmp_path / "log"), "--rounds", "7"]) == 0
    assert compare.main(["HEAD"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"HEAD ['bench_small', '{tmp_path}/log', '--rounds', '7'] 4",
        "HEAD ['bench_train', '--rounds', '1'] 5",
    ]
    with pytest.raises(SystemExit) as stopped:
        compare.main(["--rounds", "3", "HEAD"])
    assert stopped.value.code == 2


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
