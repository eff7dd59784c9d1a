"""What the benchmark of object stores counts and records; its speeds are not tested."""

import csv

import pytest

from benchmarks import bench_remote
from benchmarks.tools import image_set, ledger

pytest.importorskip("moto.server")
pytest.importorskip("obstore")

FILES = 16  # in as many shards


def test_requests_and_bytes_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_remote, "RESULTS", tmp_path / "remote.csv")
    options = f"--images {tmp_path} --files {FILES} --batch 4 --latency 1 --rounds 1 --record"
    assert bench_remote.main(options.split()) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sum(line[:1] in (["training"], ["testing"]) for line in printed) == 6
    with bench_remote.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ledger.COLUMNS
    values = {(row["mode"], row["provider"], row["metric"]): float(row["p50"]) for row in rows}
    shards = image_set.image_set(tmp_path, FILES) / "shards"
    size = sum(path.stat().st_size for pattern in ("*.tar", "*.idx") for path in shards.glob(pattern)) / FILES / 1000
    for provider, requests, ratio in (("no cache", 2, 0.9), ("empty cache", 2, 1), ("full cache", 0, 0)):
        assert values["testing", provider, "requests"] == requests  # every shard is a sample with its index
        assert values["testing", provider, "bytes"] == pytest.approx(ratio * size, rel=0.01 if ratio == 1 else 0.05)
        # Training has begun the next epoch. Of 4 batches ahead some are still on their way, in any case: with the two
        # that are decoded ahead, 9 batches of 4 are asked for by the fourth, and 16 indexes: (36 + 16) / 16 = 3.25. A
        # cache holds what is read twice.
        most = requests + 1.25 if provider == "no cache" else requests + 1
        assert requests <= values["training", provider, "requests"] <= most
        assert values["training", provider, "throughput"] > 0


@pytest.mark.parametrize(
    "options,message",
    [("--batch 0", "--batch: expected 1 or more, got 0"), ("--latency -1", "--latency: expected 0 or more, got -1")],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_remote.main(options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_a_server(monkeypatch, capsys):
    monkeypatch.setattr(bench_remote.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        bench_remote.main([])
    assert "needs obstore; pip install -e '.[remote,dev]'" in capsys.readouterr().err.splitlines()[-1]
