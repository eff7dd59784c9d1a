"""Shards, their index and manifest: written once, read by tarfile, webdataset, DALI and our own reader."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.folder import Folder
from pipelines.shards import samples, workers, writer
from pipelines.shards.manifest import Manifest, Schema, check_files
from pipelines.shards.reader import read, read_index
from pipelines.shards.samples import Sample
from pipelines.shards.storage import open_storage
from pipelines.shards.verify import verify
from pipelines.shards.writer import write

SCHEMA = Schema(
    classes=("a", "b", "c"),
    super_categories=("x", "x", "y"),
    landmarks=("eye", "tail"),
    parts=("head", "body"),
    absence=(1 / 3, 0),
)


def jpeg(width: int, height: int, value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value % 256, 100, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Made:
    """A source in which ``change`` may alter or refuse a sample."""

    split: str
    count: int
    part_maps: bool = True
    change: dict[int, Callable[[dict], None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def source(self, index: int) -> str:
        return f"{self.split} of a test, {index}"

    def __getitem__(self, index: int) -> Sample:
        width, height, label = 20 + index, 16, index % 3
        content = {
            "key": f"{self.split}-{index:07d}",
            "jpeg": jpeg(width, height, index),
            "label": label,
            "width": width,
            "height": height,
            "source": self.source(index),
            "super_category": SCHEMA.super_categories[label],
            "landmarks": np.array([[index, 2.5], [3, 4]], np.float32),
            "visibility": np.array([True, index % 2 == 0]),
            "boxes": np.array([[0, 0, width, height]], np.float32),
            "part_map": np.full((height, width), index % 3, np.uint8) if self.part_maps else None,
            "absent": ("head",) if index % 3 == 2 else (),
        }
        self.change.get(index, lambda _: None)(content)
        return Sample(**content)


def make(out: Path, count: int = 23, **arguments: object) -> Manifest:
    defaults = {"schema": SCHEMA, "options": {"size": 16}, "samples_per_shard": 5}
    sources = {"train": Made("train", count), "val": Made("val", 4)}
    return write(out, "made", **{"sources": sources, **defaults, **arguments})


def raises(error: BaseException) -> Callable[[dict], None]:
    def change(_: dict) -> None:
        raise error

    return change


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "deep" / "made"
    make(out)
    return out


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Class folders with four files that are no images."""
    for name in ("cat", "dog"):
        for number in range(8):
            path = tmp_path / "raw" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(24, 16, 30 * number))
    (tmp_path / "raw/cat/0.jpg").write_bytes(b"")
    (tmp_path / "raw/cat/1.jpg").write_text("not a picture")
    (tmp_path / "raw/dog/2.jpg").write_bytes(jpeg(24, 16, 0)[:-60])
    (tmp_path / "raw/dog/3.jpg").unlink()
    (tmp_path / "raw/dog/3.jpg").symlink_to("nowhere.jpg")
    return tmp_path / "raw"


def make_from_folder(out: Path, raw: Path, **arguments: object) -> Manifest:
    sources = {split: Folder(raw, split) for split in ("train", "val")}
    schema = Schema(classes=sources["train"].class_names)
    return write(out, "pets", sources, schema=schema, options={}, samples_per_shard=3, **arguments)


# ------------------------------------------------------------------------------------------------------------- writing


def test_files(folder: Path) -> None:
    names = [f"train-{n:05d}.{suffix}" for n in range(5) for suffix in ("idx", "tar")]
    assert sorted(content(folder)) == ["manifest.json", *names, "val-00000.idx", "val-00000.tar"]
    counts = [len(members(folder / f"train-{n:05d}.tar")) / 4 for n in range(5)]
    assert counts == [5, 5, 5, 5, 3]


def test_members_have_fixed_order_and_no_traces_of_the_machine(folder: Path) -> None:
    with tarfile.open(folder / "train-00000.tar") as tar:
        found = tar.getmembers()
    assert [member.name.split(".", 1)[1] for member in found] == ["jpg", "cls", "json", "parts.png"] * 5
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in found} == {(0, 0, 0, "", "", 0o644)}


def test_every_sample_is_stored_once_and_shuffled_over_all_shards(folder: Path) -> None:
    keys = [name for n in range(5) for name, _ in members(folder / f"train-{n:05d}.tar") if name.endswith(".jpg")]
    expected = [f"train-{index:07d}.jpg" for index in range(23)]
    assert sorted(keys) == expected
    shards_of_start = {keys.index(key) // 5 for key in expected[:5]}
    assert len(shards_of_start) > 1


def test_webdataset_reads_the_same_samples(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(folder / f"train-{n:05d}.tar") for n in range(5)]
    found = {record["__key__"]: record for record in webdataset.WebDataset(urls, shardshuffle=False)}
    source = Made("train", 23)
    assert len(found) == 23
    for index in range(23):
        expected = source[index]
        record = found[expected.key]
        assert record["jpg"] == expected.jpeg
        assert int(record["cls"]) == expected.label
        assert json.loads(record["json"])["landmarks"] == expected.landmarks.tolist()
        assert json.loads(record["json"])["absent"] == list(expected.absent)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record["parts.png"]))), expected.part_map)


def test_dali_reads_the_same_samples(folder: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=23, num_threads=1, device_id=None)
    def pipeline():
        columns = dali.fn.readers.webdataset(
            paths=[str(folder / f"train-{n:05d}.tar") for n in range(5)],
            index_paths=[str(folder / f"train-{n:05d}.idx") for n in range(5)],
            ext=["jpg", "cls", "json", "parts.png"],
            missing_component_behavior="error",
        )
        return tuple(columns)

    columns = [[np.asarray(item).tobytes() for item in output] for output in pipeline().run()]
    tars = [dict(members(folder / f"train-{n:05d}.tar")) for n in range(5)]
    everything = [value for tar in tars for value in tar.values()]
    assert [value for record in zip(*columns, strict=True) for value in record] == everything


WDS2IDX = shutil.which("wds2idx", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(WDS2IDX is None, reason="wds2idx comes with DALI")
def test_index_is_that_of_wds2idx(folder: Path, tmp_path: Path) -> None:
    for name in ("train-00004", "val-00000"):
        subprocess.run([WDS2IDX, folder / f"{name}.tar", tmp_path / "expected.idx"], check=True, capture_output=True)
        assert (folder / f"{name}.idx").read_bytes() == (tmp_path / "expected.idx").read_bytes()


def test_manifest_records_what_is_there(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    assert record["format"] == 1
    assert record["dataset"] == "made"
    assert record["options"] == {"size": 16}
    assert record["classes"] == ["a", "b", "c"]
    assert record["super_categories"] == ["x", "x", "y"]
    assert record["absence"] == [1 / 3, 0]
    assert record["fields"] == ["jpg", "cls", "json", "parts.png"]
    train = record["splits"]["train"]
    assert train["samples"] == 23
    assert train["class_counts"] == [8, 8, 7]
    for shard in train["shards"]:
        for suffix, size, digest in (("tar", "bytes", "sha256"), ("idx", "index_bytes", "index_sha256")):
            data = (folder / f"{shard['name']}.{suffix}").read_bytes()
            assert len(data) == shard[size]
            assert hashlib.sha256(data).hexdigest() == shard[digest]
    assert str(folder) not in (folder / "manifest.json").read_text()


def test_absent_parts_need_no_chances_but_names(tmp_path: Path) -> None:
    """What is not known is not written, and shards from before absence was recorded stay good."""
    without = replace(SCHEMA, absence=())
    unknown = Made("train", 3, change=dict.fromkeys(range(3), change(absent=None)))
    make(tmp_path / "unknown", sources={"train": unknown}, schema=without)
    assert all(b"absent" not in data for _, data in members(tmp_path / "unknown" / "train-00000.tar"))
    assert {sample.absent for sample in read(tmp_path / "unknown", "train")} == {None}
    record = json.loads((tmp_path / "unknown" / "manifest.json").read_text())
    del record["absence"]
    (tmp_path / "unknown" / "manifest.json").write_text(json.dumps(record))
    assert verify(tmp_path / "unknown") == []
    make(tmp_path / "known", sources={"train": Made("train", 3)}, schema=without)
    assert {sample.absent for sample in read(tmp_path / "known", "train")} == {(), ("head",)}
    assert verify(tmp_path / "known") == []


@pytest.mark.parametrize(
    ("absence", "message"),
    [((0.5,), "one for each of 2 parts, got 1"), ((0.5, 1.5), r"expected probabilities, got 0\.5, 1\.5")],
)
def test_chances_that_fit_no_parts_are_refused(absence: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^absence: .*{message}$"):
        replace(SCHEMA, absence=absence)


def test_bytes_depend_on_the_seed_only(raw: Path, tmp_path: Path) -> None:
    for name, arguments in {"one": {"jobs": 1}, "two": {"jobs": 2}, "other": {"seed": 1}}.items():
        make_from_folder(tmp_path / name, raw, **arguments)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one")["train-00000.tar"] != content(tmp_path / "other")["train-00000.tar"]


def test_multi_label(tmp_path: Path) -> None:
    def attributes(content: dict) -> None:
        content["label"] = (1, int(content["width"] > 21), 0)

    source = Made("train", 4, change=dict.fromkeys(range(4), attributes))
    schema = Schema(classes=("p", "q", "r"), landmarks=SCHEMA.landmarks, parts=SCHEMA.parts, multi_label=True)
    manifest = make(tmp_path, sources={"train": source}, schema=schema)
    assert manifest.splits["train"].class_counts == (4, 2, 0)
    assert {sample.label for sample in read(tmp_path, "train")} == {(1, 0, 0), (1, 1, 0)}
    assert verify(tmp_path) == []


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 27) for n in (0, 5, 10, 15, 20, 23, 27)]


# ---------------------------------------------------------------------------------------------------------- quarantine


@pytest.mark.parametrize("jobs", [1, 2])
def test_unusable_files_are_left_out_and_listed(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, jobs: int
) -> None:
    out = tmp_path / "out"
    manifest = make_from_folder(out, raw, jobs=jobs)
    found = {entry.source: entry.reason for split in manifest.splits.values() for entry in split.quarantined}
    assert set(found) == {"cat/0.jpg", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg"}
    assert "empty" in found["cat/0.jpg"]
    assert "unknown format" in found["cat/1.jpg"]
    assert "truncated" in found["dog/2.jpg"].lower()
    assert found["dog/3.jpg"] == os.strerror(errno.ENOENT)
    assert all(source in caplog.text for source in found)
    assert sum(split.samples for split in manifest.splits.values()) == 12
    stored = [sample.source for split in manifest.splits for sample in read(out, split)]
    assert sorted(stored) == sorted(
        f"{c}/{n}.jpg" for c in ("cat", "dog") for n in range(8) if f"{c}/{n}.jpg" not in found
    )
    assert verify(out) == []


def change(**values: object) -> Callable[[dict], None]:
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    ("alteration", "reason"),
    [
        (change(label=3), "label 3, expected 0 to 2"),
        (change(label=(0, 1, 0)), "expected a class index"),
        (change(super_category="z"), "super-category 'z', expected 'x'"),
        (change(boxes=np.array([[0, 0, 24, 16]], np.float32)), "not inside the 23x16 image"),
        (change(landmarks=np.zeros((3, 2), np.float32), visibility=np.ones(3, bool)), "3 landmarks, expected 2"),
        (change(landmarks=None, visibility=None), "0 landmarks, expected 2"),
        (change(part_map=np.full((16, 23), 3, np.uint8)), "part index 3, expected 0 to 2"),
        (change(absent=None), "no list of absent parts"),
        (change(absent=("wheel",)), "absent part 'wheel', expected one of head, body"),
        (change(absent=("body",)), "absent part 'body', expected to be in every sample"),
        (change(absent=("head",), part_map=np.eye(16, 23, dtype=np.uint8)), "absent part 'head' is in the part map"),
        (change(absent=("head", "head")), "expected every absent part once, got head, head"),
        (raises(ValueError("two\nlines")), "two lines"),
        (raises(PermissionError(errno.EACCES, "Permission denied", "/secret/place")), "Permission denied"),
    ],
)
def test_samples_that_contradict_the_schema_are_left_out(
    tmp_path: Path, alteration: Callable[[dict], None], reason: str
) -> None:
    manifest = make(tmp_path, sources={"train": Made("train", 7, change={3: alteration})})
    (entry,) = manifest.splits["train"].quarantined
    assert entry.source == "train of a test, 3"
    assert reason in entry.reason
    assert "secret" not in entry.reason
    assert manifest.splits["train"].samples == 6


def test_shard_without_usable_samples_is_not_written(tmp_path: Path) -> None:
    source = Made("train", 4, change={index: raises(ValueError("broken")) for index in (0, 2)})
    manifest = make(tmp_path, sources={"train": source}, samples_per_shard=1)
    assert len(manifest.splits["train"].shards) == 2
    assert len(list(tmp_path.glob("*.tar"))) == len(list(tmp_path.glob("*.idx"))) == 2
    assert {sample.key for sample in read(tmp_path, "train")} == {"train-0000001", "train-0000003"}
    assert verify(tmp_path) == []


def test_split_without_usable_samples_is_an_error(tmp_path: Path) -> None:
    source = Made("val", 3, change=dict.fromkeys(range(3), raises(ValueError("broken"))))
    with pytest.raises(ValueError, match=r"val: none of 3 samples can be used; val of a test, .: broken"):
        make(tmp_path, sources={"train": Made("train", 3), "val": source})
    assert not (tmp_path / "manifest.json").exists()


def test_part_maps_for_some_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part maps for all samples or for none, got 3 for 7"):
        make(tmp_path, sources={"train": Made("train", 3), "val": Made("val", 4, part_maps=False)})
    assert make(tmp_path / "none", sources={"train": Made("train", 3, part_maps=False)}).fields == (
        "jpg",
        "cls",
        "json",
    )


# ---------------------------------------------------------------------------------------------------- the output folder


def test_complete_folder_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert make(tmp_path) == first == Manifest.load(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "already complete" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"options": {"size": 17}}, "options.size 16 instead of 17"),
        ({"options": {"size": 16, "new": 1}}, "options.new None instead of 1"),
        ({"seed": 3}, "seed 0 instead of 3"),
        ({"samples_per_shard": 6}, "samples_per_shard 5 instead of 6"),
        ({"schema": Schema(("a", "b"))}, "classes"),
    ],
)
def test_folder_made_differently_is_refused(folder: Path, arguments: dict, difference: str) -> None:
    with pytest.raises(
        ValueError, match=r"made differently \(.*\); delete the folder or choose another --out$"
    ) as caught:
        make(folder, **arguments)
    assert difference in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ({"count": 22}, "train: 23 then, 22 now; val: 4 then, 4 now"),
        ({"sources": {"train": Made("train", 23)}}, "train: 23 then, 23 now; val: 4 then, 0 now"),
        ({"options": {"size": 16, "files": {"train": "0" * 64}}}, "train: 23 then, 23 now; val: 4 then, 4 now"),
    ],
)
def test_folder_of_other_images_is_refused(folder: Path, arguments: dict, counts: str) -> None:
    expected = f"{folder}: the images have changed since these shards were written ({counts}); "
    with pytest.raises(ValueError, match=re.escape(expected) + "delete the folder or choose another --out$"):
        make(folder, **arguments)


def test_the_name_of_the_data_set_makes_no_difference(folder: Path) -> None:
    sources = {"train": Made("train", 23), "val": Made("val", 4)}
    found = write(folder, "renamed", sources, schema=SCHEMA, options={"size": 16}, samples_per_shard=5)
    assert found.dataset == "made"


def test_damaged_complete_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "train-00002.idx").unlink()
    with pytest.raises(ValueError, match=r"train-00002\.idx is missing"):
        make(tmp_path)


def test_leftovers_are_overwritten(folder: Path, tmp_path: Path) -> None:
    for name in (
        "train-00000.tar",
        "train-00099.tar",
        "train-00003.idx.tmp",
        "test-00000.tar.tmp",
        "manifest.json.tmp",
        "unfinished",
    ):
        (tmp_path / name).write_text("half")
    make(tmp_path)
    assert content(tmp_path) == content(folder)


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "train-00000.tar").write_text("someone else's")
    with pytest.raises(ValueError, match=r"holds train-00000\.tar"):
        make(tmp_path)
    (tmp_path / "unfinished").touch()
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(ValueError, match=r"holds thesis\.doc"):
        make(tmp_path)
    assert content(tmp_path) == {
        "train-00000.tar": b"someone else's",
        "unfinished": b"",
        "thesis.doc": b"precious",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_shard": 0}, "expected at least 1, got 0, 1"),
        ({"jobs": 0}, "expected at least 1, got 5, 0"),
        ({"count": 0}, "the split 'train' is empty"),
        ({"sources": {"my/split": Made("x", 1)}}, "splits named by a-z, 0-9 and _, got 'my/split'"),
        ({"sources": {}}, "at least one split"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
def test_interruption_leaves_neither_manifest_nor_partial_files(
    folder: Path, tmp_path: Path, error: BaseException
) -> None:
    source = Made("train", 23, change={7: raises(error)})
    with pytest.raises(type(error)):
        make(tmp_path, sources={"train": source, "val": Made("val", 4)})
    found = content(tmp_path)
    del found["unfinished"]
    assert "manifest.json" not in found
    assert found.items() <= content(folder).items()
    make(tmp_path)
    assert content(tmp_path) == content(folder)


def test_failing_progress_stops_the_workers(raw: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_from_folder(tmp_path / "out", raw, jobs=2, progress=stop)
    assert all(name.endswith((".tar", ".idx", "unfinished")) for name in content(tmp_path / "out"))


def test_killed_worker_is_an_error_of_one_line() -> None:
    with pytest.raises(OSError, match=r"^a worker process died \(killed, or out of memory\?\); try fewer --jobs$"):
        list(workers.run(os._exit, [1, 1], jobs=2))


def test_other_photos_of_equal_names_and_sizes_are_refused(raw: Path, tmp_path: Path) -> None:
    def prepare(raw: Path) -> None:
        sources = {split: Folder(raw, split) for split in ("train", "val")}
        options = {"files": {split: source.digest() for split, source in sources.items()}}
        write(tmp_path / "out", "pets", sources, schema=Schema(sources["train"].class_names), options=options)

    prepare(raw)
    before = content(tmp_path / "out")
    copied = shutil.copytree(raw, tmp_path / "copied", symlinks=True, copy_function=shutil.copyfile)
    prepare(copied)
    photo = copied / "cat" / "5.jpg"
    pixels = photo.read_bytes()
    photo.write_bytes(pixels[:-10] + bytes([pixels[-10] ^ 1]) + pixels[-9:])
    with pytest.raises(ValueError, match=r"the images have changed since these shards were written \("):
        prepare(copied)
    assert content(tmp_path / "out") == before


KILLED = """
import os, signal
from pipelines.shards.manifest import Schema
from pipelines.shards.writer import write
from pipelines.shards.storage import open_storage

class Source:
    def __len__(self): return 4
    def source(self, index): return str(index)
    def __getitem__(self, index):
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()

if __name__ == "__main__":
    write("out", "killed", {"train": Source()}, schema=Schema(("a", "b")), options={}, samples_per_shard=1, jobs=2)
"""


def test_killed_run_leaves_no_processes(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(writer.__file__).parents[2])}
    with subprocess.Popen([sys.executable, "killed.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as run:
        run.communicate(timeout=60)  # ends once every process that holds the pipe has ended
    assert run.returncode == -signal.SIGKILL
    left = content(tmp_path / "out")
    assert any(name.endswith(".tmp") for name in left)
    assert "manifest.json" not in left


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_full_disk(raw: Path, tmp_path: Path, small_disk: Path, jobs: int) -> None:
    make_from_folder(tmp_path / "complete", raw)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        make_from_folder(small_disk / "out", raw, jobs=jobs)
    assert caught.value.errno == errno.ENOSPC
    complete, found = content(tmp_path / "complete"), content(small_disk / "out")
    del found["unfinished"]
    assert found
    assert "manifest.json" not in found
    assert found.items() <= complete.items()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(OSError, match=r"out|file"):
            make(out)


# ------------------------------------------------------------------------------------------------------------- reading


def test_read_returns_what_was_written(folder: Path) -> None:
    source = Made("train", 23)
    found = {sample.key: sample for sample in read(folder, "train")}
    assert len(found) == 23
    for index in range(23):
        expected = source[index]
        assert samples.encode(found[expected.key]) == samples.encode(expected)


def test_read_in_shard_order_or_in_that_of_the_keys(folder: Path) -> None:
    stored = [
        name[:-4] for n in range(5) for name, _ in members(folder / f"train-{n:05d}.tar") if name.endswith(".jpg")
    ]
    assert [sample.key for sample in read(folder, "train")] == stored
    keys = ["train-0000011", "train-0000002", "train-0000011"]
    assert [sample.key for sample in read(folder, "train", keys)] == keys
    assert [sample.width for sample in read(folder, "train", keys)] == [31, 22, 31]
    with pytest.raises(ValueError, match="no 'val-0000000' in the split 'train'"):
        read(folder, "train", ["val-0000000"])
    with pytest.raises(ValueError, match="made has train, val, got 'test'"):
        read(folder, "test")


def test_broken_index_is_named(tmp_path: Path) -> None:
    for text in ("", "v1.1 1\njpg 512 3 a.jpg\n", "v1.2 2\njpg 512 3 a.jpg\n", "v1.2 1\njpg 512 a.jpg\n", "v1.2 1\n\n"):
        (tmp_path / "x.idx").write_text(text)
        with pytest.raises(ValueError, match=r"x\.idx: expected"):
            read_index(open_storage(tmp_path), "x.idx")


def test_manifest_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Manifest.load(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"not a shard folder .* make one with `python -m rg prepare`"):
        Manifest.load(tmp_path)
    record = json.loads((folder / "manifest.json").read_text())
    without_splits = {name: value for name, value in record.items() if name != "splits"}
    for broken, message in {
        "{": "no manifest",
        "[]": "no manifest",
        json.dumps(record | {"format": 2}): "format 2, this version reads 1",
        json.dumps(without_splits): "splits",
        json.dumps(record | {"surprise": 1}): "surprise",
    }.items():
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(ValueError, match=message) as caught:
            Manifest.load(tmp_path)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- verifying


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def reseal(folder: Path, **changes: object) -> None:
    """Makes sizes and digests of the manifest fit the files, so that only the content is wrong."""
    record = json.loads((folder / "manifest.json").read_text())
    for split in record["splits"].values():
        for shard in split["shards"]:
            tar, index = (folder / f"{shard['name']}.{suffix}" for suffix in ("tar", "idx"))
            shard |= {"bytes": tar.stat().st_size, "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
            shard |= {
                "index_bytes": index.stat().st_size,
                "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
            }
    (folder / "manifest.json").write_text(json.dumps(record | changes))


def test_good_shards_have_no_problems(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert verify(folder, progress=lambda done, total: calls.append((done, total))) == []
    assert calls == [(n, 27) for n in (0, 5, 10, 15, 20, 23, 27)]
    assert verify(folder, jobs=2) == verify(folder, decode_images=False) == []
    for split in ("train", "val"):
        check_files(folder, Manifest.load(folder), split)


def test_any_flipped_byte_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("tar", "idx"):
        path = copy / f"train-00001.{suffix}"
        good = path.read_bytes()
        for position in rng.integers(0, len(good), 10):
            data = bytearray(good)
            data[position] ^= 1
            path.write_bytes(data)
            problems = verify(copy, decode_images=False)
            assert f"{path.name}: the content does not have the recorded sha256" in problems
        path.write_bytes(good)
    assert verify(copy) == []


def test_truncated_shard(copy: Path) -> None:
    path = copy / "train-00001.tar"
    size = path.stat().st_size
    os.truncate(path, 7000)
    message = f"train-00001.tar: expected {size} bytes, found 7000"
    assert message in verify(copy)
    with pytest.raises(ValueError, match=message):
        check_files(copy, Manifest.load(copy), "train")
    check_files(copy, Manifest.load(copy), "val")


@pytest.mark.parametrize("name", ["train-00003.idx", "train-00003.tar"])
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"{name} is missing" in verify(copy)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        check_files(copy, Manifest.load(copy), "train")


def test_swapped_indexes(copy: Path) -> None:
    one, two = copy / "train-00000.idx", copy / "train-00001.idx"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    reseal(copy)
    first_keys = [members(copy / f"train-0000{n}.tar")[0][0].removesuffix(".jpg") for n in (0, 1)]
    assert verify(copy) == [f"train-0000{n}.idx: {first_keys[n]}: the index does not fit the tar" for n in (0, 1)]


def test_foreign_shard(copy: Path) -> None:
    shutil.copy(copy / "val-00000.tar", copy / "val-00001.tar")
    assert verify(copy) == ["val-00001.tar: not in the manifest"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"width":20', b'"width":21', "part map is [16, 20], the image [16, 21]"),
        (b'"boxes":[[0.0,0.0,20.0,16.0]]', b'"boxes":[[0.0,0.0,20.0,17.0]]', "not inside the 20x16 image"),
        (b'"landmarks":[[0.0,2.5],[3.0,4.0]]', b'"landmarks":[0.00,2.50,3.0000000]', "cannot reshape"),
        (b'"super_category":"x"', b'"super_category":"y"', "super-category 'y', expected 'x'"),
        (b'"absent":[]', b'"absent":""', "absent: expected a list of str, got ''"),
        (b'"absent":[],"boxes":', b'"absend":[],"boxes":', "no list of absent parts"),
        (b'"width":20}', b'"width":20]', "field .json is no JSON"),
        (b"\xff\xda", b"\xff\x00", "not an image that can be decoded"),
        (b"\x89PNG", b"\x89PNX", "field .parts.png is no image"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, old: bytes, new: bytes, problem: str) -> None:
    """Even where sizes and digests agree."""
    make(tmp_path, sources={"train": Made("train", 1)})
    patch(tmp_path / "train-00000.tar", old, new)
    reseal(tmp_path)
    found = [line for line in verify(tmp_path) if problem in line]
    assert len(found) == 1
    assert found[0].startswith("train-00000.tar: train-0000000: ")


def test_wrong_size_is_named(tmp_path: Path) -> None:
    make(tmp_path, sources={"train": Made("train", 1, part_maps=False)})
    patch(tmp_path / "train-00000.tar", b'"width":20', b'"width":21')
    reseal(tmp_path)
    assert verify(tmp_path) == ["train-00000.tar: train-0000000: the image is 20x16, its annotation says 21x16"]


def test_labels_and_parts_beyond_the_schema(copy: Path) -> None:
    reseal(copy, classes=["a", "b"], super_categories=["x", "x"], parts=["head"], absence=[1 / 3], landmarks=["eye"])
    problems = verify(copy)
    assert sum("label 2, expected 0 to 1" in problem for problem in problems) == 7 + 1
    assert sum("part index 2, expected 0 to 1" in problem for problem in problems) == 7 + 1
    assert sum("2 landmarks, expected 1" in problem for problem in problems) == 23 + 4


def test_wrong_counts(copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    record["splits"]["train"]["class_counts"] = [7, 8, 8]
    record["splits"]["val"]["samples"] = 5
    (copy / "manifest.json").write_text(json.dumps(record))
    problems = verify(copy)
    assert Counter(problem.split(":")[0] for problem in problems) == {"train": 1, "val": 1}
    record["splits"]["train"]["shards"][0]["samples"] = 6
    (copy / "manifest.json").write_text(json.dumps(record))
    assert "train-00000.tar: expected 6 samples, found 5" in verify(copy)


def test_missing_field(copy: Path) -> None:
    reseal(copy, fields=["jpg", "cls", "json"])
    problems = verify(copy)
    assert len(problems) == 27
    assert problems[0].endswith("has the fields jpg, cls, json, parts.png, expected jpg, cls, json")


def test_repeated_keys(tmp_path: Path) -> None:
    again = Made("train", 6, change={5: lambda content: content.update(key="train-0000000")})
    make(tmp_path, sources={"train": again}, samples_per_shard=1)
    (problem,) = verify(tmp_path)
    assert "train-0000000: the key is also in train-0000" in problem


def test_image_that_is_not_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.new("RGB", (23, 16)).save(buffer, "JPEG", exif=exif)
    source = Made("train", 5, change={3: lambda content: content.update(jpeg=buffer.getvalue())})
    make(tmp_path, sources={"train": source})
    assert verify(tmp_path) == ["train-00000.tar: train-0000003: the image is no upright RGB or grey-scale JPEG"]
    assert verify(tmp_path, decode_images=False) == []
