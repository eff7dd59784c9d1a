"""How the benchmarks take turns, and what becomes of their figures."""

import csv

from benchmarks.tools import comparison, ledger, process


def test_every_case_takes_its_turn_in_every_round(monkeypatch):
    turns = []

    def measure(name, rate):
        turns.append(name)
        return {"throughput": [rate, rate + len(turns)]}

    monkeypatch.setattr(process, "alone", lambda function, *arguments: (function(*arguments), 3e6 * len(turns)))
    pooled = comparison.take_turns(measure, {(1, "a"): ("first", 10.0), (2, "b"): ("second", 20.0)}, rounds=2)
    assert turns == ["first", "second"] * 2
    assert pooled == {
        (1, "a"): {"throughput": [10.0, 11.0, 10.0, 13.0], "peak memory": [3.0, 9.0]},
        (2, "b"): {"throughput": [20.0, 22.0, 20.0, 24.0], "peak memory": [6.0, 12.0]},
    }


def test_the_table_compares_equal_numbers_of_workers():
    def found(rate):
        return {"throughput": [rate], "CPU time": [2.5], "peak memory": [300.0], "first batch": [0.5]}

    pooled = {
        (1, "dali_cpu"): found(250.0),
        (1, "imagefolder"): found(100.0),
        (2, "dali_cpu"): found(600.0),
        (2, "imagefolder"): found(150.0),
        (4, "dali_cpu"): found(700.0),
    }
    _, *lines = comparison.table(pooled, "workers", "imagefolder").splitlines()
    assert lines[0].split() == ["1", "dali_cpu", "250.0", "250.0", "250.0", "2.50x", "2.50", "300", "0.50"]
    assert [line.split()[5] for line in lines] == ["2.50x", "1.00x", "4.00x", "1.00x", "-"]


def test_a_recorded_row(tmp_path):
    pooled = {(2, "shards.write"): {"throughput": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}}
    comparison.record_all(tmp_path / "packing.csv", "24 images", "jobs", pooled)
    with (tmp_path / "packing.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    measured = {name: row[name] for name in ledger.MEASURED}
    assert measured == {
        "case": "24 images",
        "provider": "shards.write",
        "mode": "2 jobs",
        "metric": "throughput",
        "unit": "images/s",
        "p20": "2",
        "p50": "3.5",
        "p80": "5",
        "n": "6",
    }
