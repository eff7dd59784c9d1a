"""What the packing benchmark writes and counts; its figures are not tested."""

import csv
import io

import pytest
import webdataset as wds
from PIL import Image

from benchmarks import bench_packing
from benchmarks.tools import image_set, process
from pipelines.shards import reader

FILES = 8


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def images(parent):
    return image_set.image_set(parent, FILES)


def test_plain_packing_holds_the_same_images(images, tmp_path):
    bench_packing.pack_plainly(images / "raw", tmp_path / "shards")
    tars = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    plain = {sample["jpg"]: int(sample["cls"]) for sample in wds.WebDataset(tars, shardshuffle=False)}
    assert plain == {sample.jpeg: sample.label for sample in reader.read(images / "shards", "train")}
    assert all(Image.open(io.BytesIO(jpeg)).format == "JPEG" for jpeg in plain)


@pytest.mark.skipif(not process.PROC.exists(), reason="no /proc")
def test_a_measurement_from_the_command_line(parent, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_packing, "RESULTS", tmp_path / "packing.csv")
    before = sorted(images.iterdir())
    assert bench_packing.main(f"--images {parent} --files {FILES} --rounds 1 --record".split()) == 0
    _, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [line[:2] for line in lines] == [["1", "shards.write"], ["2", "shards.write"], ["1", "ShardWriter"]]
    assert [line[5] for line in lines][1:] == ["-", "1.00x"]
    with bench_packing.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["mode"] for row in rows} == {"1 jobs", "2 jobs"}
    assert len(rows) == 3 * len({row["metric"] for row in rows}) == 9
    assert all(float(row["p50"]) > 0 for row in rows if row["metric"] == "throughput")
    assert sorted(images.iterdir()) == before


@pytest.mark.parametrize(
    "options,message",
    [
        ("--files 7", "--files: expected 8 or more, got 7"),
        ("--rounds 0", "--rounds: expected 1 or more, got 0"),
        (f"--images {__file__}", "--images: expected a folder"),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_packing.main(options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
