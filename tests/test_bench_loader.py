"""What the loader benchmark delivers, counts and refuses; its figures are not tested."""

import csv
import io
import itertools
import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from benchmarks import bench_loader, ledger
from pipelines import reader

FILES = 24


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def images(parent):
    return bench_loader.image_set(parent, FILES)


def skip_without(*providers):
    for provider in providers:
        if reason := bench_loader.missing(provider):
            pytest.skip(f"{provider}: {reason}")


def test_images_are_photos_in_size(images):
    paths = sorted((images / "raw" / "train").glob("*/*.jpg"))
    assert len(paths) == FILES
    assert len({path.parent for path in paths}) == bench_loader.CLASSES
    for path in paths:
        assert 40_000 <= path.stat().st_size <= 110_000
        assert Image.open(path).size in bench_loader.SIZES


def test_shards_hold_the_same_images(images):
    raw = {path.relative_to(images / "raw").as_posix(): path for path in (images / "raw" / "train").glob("*/*.jpg")}
    samples = list(reader.read(images / "shards", "train"))
    assert {sample.source for sample in samples} == set(raw)
    for sample in samples:
        assert sample.jpeg == raw[sample.source].read_bytes()
        assert raw[sample.source].parent.name == f"class_{sample.label}"


def test_images_are_made_once_and_are_the_same_for_all(parent, images, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*")}
    assert bench_loader.image_set(parent, FILES) == images
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*")} == before
    again = bench_loader.image_set(tmp_path, FILES)
    files = [path.relative_to(images) for path in before if path.is_file()]
    assert all((again / path).read_bytes() == (images / path).read_bytes() for path in files)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(bench_loader, "draw", lambda _: b"drawn")
    monkeypatch.setattr(bench_loader, "pack", fail)
    with pytest.raises(OSError, match="disk full"):
        bench_loader.image_set(tmp_path, FILES)
    assert list(tmp_path.iterdir()) == []


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
    assert seen <= set(range(bench_loader.CLASSES))
    assert len(seen) > 1


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
    assert set(found) | {"peak memory"} == set(bench_loader.UNITS)


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
    _, *lines = bench_loader.table(pooled, "workers", "imagefolder").splitlines()
    assert lines[0].split() == ["1", "dali_cpu", "250.0", "250.0", "250.0", "2.50x", "2.50", "300", "0.50"]
    assert [line.split()[5] for line in lines] == ["2.50x", "1.00x", "4.00x", "1.00x", "-"]


@pytest.mark.skipif(not bench_loader.PROC.exists(), reason="no /proc")
def test_living_children_count():
    """A child that holds 200 MB and has computed for half a second, while it waits."""
    code = (
        "import time; held = bytearray(b'x') * 200_000_000\n"
        "while time.process_time() < 0.5: pass\n"
        "print('ready', flush=True); input()"
    )
    before = bench_loader.processor_seconds(os.getpid()), bench_loader.memory(os.getpid())
    own = time.process_time()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    held = bench_loader.memory(os.getpid()) - before[1]
    spent = bench_loader.processor_seconds(os.getpid()) - before[0]
    own = time.process_time() - own
    child.communicate("\n")
    # The interpreter takes some 10 MB on top.
    assert 195e6 < held < 250e6
    # Clock ticks are 10 ms; a process's user and system time are each cut to whole ones.
    assert 0.5 - 0.05 <= spent - own <= 1.0


@pytest.mark.skipif(not bench_loader.PROC.exists(), reason="no /proc")
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
    assert {row["metric"]: row["unit"] for row in rows} == bench_loader.UNITS
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["throughput"]["n"] == str(bench_loader.SLICES)
    assert by_metric["throughput"]["mode"] == "1 workers"
    assert float(by_metric["throughput"]["p50"]) > 0


def test_a_window_differs_from_the_resized_image_by_rounding(images):
    skip_without("dali_cpu")
    found = bench_loader.geometry(images)
    assert all(len(values) == FILES for _, values in found.values())
    # Two roundings to whole grey levels, Pillow's after each axis and DALI's after both, and two decoders' own.
    assert max(found["window, max"][1]) <= 2
    assert max(found["window, mean"][1]) < 0.5
    # Of a window of side 262.5 at a corner of whole pixels: half a stored pixel of rounding in each, 0.85 of output.
    assert max(found["offset of the corners"][1]) < 0.9


def test_offset_is_zero_where_nothing_is_rounded():
    # 640 x 640 -> 320 x 320, of which (48, 48) to (272, 272): (96, 96) to (544, 544) before.
    assert bench_loader._offset((640, 640), (96, 96, 544, 544)) == 0
    assert bench_loader._offset((640, 640), (98, 96, 546, 544)) == 1


def test_plain_packing_holds_the_same_images(images, tmp_path):
    skip_without("webdataset")
    import webdataset as wds

    bench_loader.pack_plainly(images / "raw", tmp_path / "shards")
    tars = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    plain = {sample["jpg"]: int(sample["cls"]) for sample in wds.WebDataset(tars, shardshuffle=False)}
    assert plain == {sample.jpeg: sample.label for sample in reader.read(images / "shards", "train")}
    assert all(Image.open(io.BytesIO(jpeg)).format == "JPEG" for jpeg in plain)


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
        ("--packing --geometry", "expected one of them"),
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
