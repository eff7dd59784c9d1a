"""What the loader benchmark delivers, counts and refuses; its figures are not tested."""

import csv
import itertools
import mmap

import pytest
import torch

from benchmarks import bench_loader
from benchmarks.tools import comparison, image_set, ledger, process

FILES = 16


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def images(parent):
    return image_set.image_set(parent, FILES)


def skip_without(provider):
    if reason := bench_loader.missing(provider):
        pytest.skip(f"{provider}: {reason}")


@pytest.mark.parametrize("provider", bench_loader.PROVIDERS)
def test_batches(images, provider):
    skip_without(provider)
    # Worker processes are left to the benchmark itself: here they would be forked off DALI's threads.
    workers = 0 if provider in ("imagefolder", "webdataset") else 1
    seen = set()
    for pixels, labels in itertools.islice(bench_loader.PROVIDERS[provider](images, 10, workers), 8):
        assert pixels.shape == (10, 3, 224, 224)
        assert pixels.dtype == torch.uint8
        assert labels.shape == (10,)
        assert labels.dtype == torch.int64
        assert 20 < pixels.float().mean() < 235
        assert pixels.float().std() > 10
        seen.update(labels.tolist())
    assert seen <= set(range(image_set.CLASSES))
    assert len(seen) > 1


def test_our_loader_delivers_the_same_batches_with_and_without_dali(images):
    skip_without("dali_cpu")
    streams = (bench_loader.PROVIDERS[provider](images, 10, 2) for provider in ("dali_cpu", "pillow"))
    for (dali, labels), (pillow, same) in itertools.islice(zip(*streams, strict=True), 3):
        assert torch.equal(labels, same)
        # Both round to whole grey levels, Pillow after each axis.
        assert (dali.float() - pillow.float()).abs().mean() < 0.5


def test_cached_batches_do_not_share_memory(images):
    stream = bench_loader.cached(images, 2, 1)
    first, second = next(stream)[0], next(stream)[0]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


class Clock:
    """Seconds that pass only when a batch is drawn."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def stream(self, size, seconds):
        while True:
            self.now += seconds
            yield torch.empty(size), torch.empty(size)


@pytest.mark.parametrize(
    "size,step,seconds,images,elapsed", [(8, 0.5, 2.0, 32, 2.0), (8, 0.75, 2.0, 24, 2.25), (5, 4.0, 1.0, 5, 4.0)]
)
def test_a_slice_ends_with_the_batch_that_fills_it(size, step, seconds, images, elapsed):
    clock = Clock()
    assert bench_loader.rate(clock.stream(size, step), seconds, clock) == (images, elapsed)


def test_figures():
    found = bench_loader.figures([(32, 2.0), (8, 0.25)], 0.2, 1.5)
    assert found == {"throughput": [16.0, 32.0], "CPU time": [5.0], "first batch": [1.5]}
    assert set(found) | {"peak memory"} == set(comparison.UNITS)


@pytest.mark.skipif(not process.PROC.exists(), reason="no /proc")
def test_a_measurement_from_the_command_line(parent, images, tmp_path, monkeypatch, capsys):  # noqa: ARG001
    monkeypatch.setattr(bench_loader, "RESULTS", tmp_path / "loader.csv")
    options = f"--images {parent} --files {FILES} --batch 4 --workers 1 --seconds 0.1 --rounds 1 --record"
    assert bench_loader.main([*options.split(), "--providers", "cached"]) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if " cached " in line]
    assert line[0] == "1"
    assert line[5] == "-"
    with bench_loader.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ledger.COLUMNS
    assert {row["metric"]: row["unit"] for row in rows} == comparison.UNITS
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["throughput"]["n"] == str(bench_loader.SLICES)
    assert by_metric["throughput"]["mode"] == "1 workers"
    assert float(by_metric["throughput"]["p50"]) > 0


def read_leaking(leak):
    """The readings of twenty batches, of which each leaves so many MB behind."""

    def stream(*_):
        left = []
        while True:
            left.append(mmap.mmap(-1, max(1, leak * 1_000_000)))  # fresh pages, whatever the process has freed before
            for page in range(0, len(left[-1]), mmap.PAGESIZE):
                left[-1][page] = 1
            yield torch.empty(5), torch.empty(5)

    bench_loader.PROVIDERS["dali_cpu"] = stream
    return bench_loader.read_memory("images", 5, 1, samples=100, every=10)


@pytest.mark.skipif(not process.PROC.exists(), reason="no /proc")
@pytest.mark.parametrize("leak,grown", [(0, 0), (10, 180)])
def test_memory_is_read_as_often_as_asked_for(capfd, leak, grown):
    """In a process in which no other test has left anything that grows or goes."""
    readings, _ = process.alone(read_leaking, leak)
    assert [count for count, _ in readings] == list(range(10, 101, 10))
    printed = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert printed == [[str(count), "samples", f"{held:.1f}", "MB"] for count, held in readings]
    assert bench_loader.growth(readings) == pytest.approx(grown, abs=20)


def test_the_last_reading_is_at_the_end(monkeypatch):
    monkeypatch.setitem(bench_loader.PROVIDERS, "dali_cpu", lambda *_: itertools.repeat((torch.empty(8), None)))
    monkeypatch.setattr(process, "memory", lambda _: 1e6)
    readings = bench_loader.read_memory("images", 8, 1, samples=90, every=20)
    assert readings == [(24, 1.0), (40, 1.0), (64, 1.0), (80, 1.0), (96, 1.0)]


def test_growth_begins_at_a_tenth():
    assert bench_loader.growth([(5, 100.0), (11, 130.0), (50, 150.0), (104, 142.0)]) == 12.0


@pytest.mark.skipif(not process.PROC.exists(), reason="no /proc")
def test_memory_growth_from_the_command_line(parent, images, tmp_path, monkeypatch, capfd):  # noqa: ARG001
    skip_without("dali_cpu")
    monkeypatch.setattr(bench_loader, "RESULTS", tmp_path / "loader.csv")
    monkeypatch.setattr(bench_loader, "EVERY", 8)
    options = f"--images {parent} --files {FILES} --batch 4 --workers 1 2 --samples 80 --record"
    assert bench_loader.main(options.split()) == 0
    *readings, growth = capfd.readouterr().out.splitlines()[-11:]
    assert [line.split()[:2] for line in readings] == [[str(count), "samples"] for count in range(8, 81, 8)]
    first, *_, last = (float(line.split()[2]) for line in readings)
    assert float(growth.split()[-2]) == pytest.approx(last - first, abs=0.11)  # printed with one digit each
    with bench_loader.RESULTS.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == f"{FILES} JPEGs of 500x375, batch 4"
    assert (row["provider"], row["mode"]) == ("dali_cpu", "2 workers, 80 samples")
    assert (row["metric"], row["unit"], row["n"]) == ("memory growth", "MB", "1")
    assert float(row["p50"]) == pytest.approx(last - first, rel=1e-3, abs=0.11)


@pytest.mark.parametrize(
    "options,message",
    [
        ("--files 7", "--files: expected 8 or more, got 7"),
        ("--batch 0", "--batch: expected 1 or more, got 0"),
        ("--files 20 --batch 21", "--batch: expected at most --files 20, got 21"),
        ("--seconds 0", "--seconds: expected more than 0, got 0.0"),
        ("--seconds nan", "--seconds: expected more than 0, got nan"),
        ("--rounds 0", "--rounds: expected 1 or more, got 0"),
        ("--workers 2 0", "--workers: expected 1 or more, got 0"),
        ("--providers tape", "'tape'"),
        ("--files many", "--files: invalid integer value: 'many'"),
        ("--samples 49999", "--samples: expected 50000 or more, got 49999"),
        ("--samples 50000 --seconds 1", "--seconds: not allowed with argument --samples"),
        ("--samples 50000 --providers cached", "--samples, --providers: expected one of them, got both"),
        (f"--images {__file__}", "--images: expected a folder"),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_loader.main(options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_provider_that_cannot_run_is_refused(monkeypatch, capsys):
    monkeypatch.setitem(bench_loader.MODULES, "webdataset", ("no_such_module",))
    with pytest.raises(SystemExit) as stopped:
        bench_loader.main(["--providers", "webdataset"])
    assert stopped.value.code == 2
    assert "webdataset cannot run here (cannot import no_such_module)" in capsys.readouterr().err.splitlines()[-1]


def test_memory_needs_our_loader(monkeypatch, capsys):
    monkeypatch.setitem(bench_loader.MODULES, "dali_cpu", ("no_such_module",))
    with pytest.raises(SystemExit):
        bench_loader.main(["--samples", "50000"])
    assert "--samples: dali_cpu cannot run here" in capsys.readouterr().err.splitlines()[-1]
