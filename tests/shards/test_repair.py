"""What ``verify --repair`` mends, keeps and drops: every sample is in a shard or in quarantine afterwards."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.shards import verify as module
from pipelines.shards import writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.reader import read, read_index
from pipelines.shards.samples import Sample
from pipelines.shards.storage import open_storage
from pipelines.shards.verify import repair, verify
from rg.cli.main import main

SCHEMA = Schema(classes=("a", "b"), parts=("head",))
TOTAL = 20


@dataclass
class Photos:
    def __len__(self) -> int:
        return TOTAL

    def source(self, index: int) -> str:
        return f"photos/{index}.jpg"

    def __getitem__(self, index: int) -> Sample:
        if index == 13:
            raise ValueError("broken from the start")
        pixels = np.random.default_rng(index).integers(0, 255, (16, 24, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        part_map = np.zeros((16, 24), np.uint8)
        part_map[4:8] = 1
        jpeg = buffer.getvalue()
        return Sample(f"p-{index:02d}", jpeg, index % 2, 24, 16, self.source(index), part_map=part_map)


def pack(out: Path) -> Manifest:
    return writer.write(out, "photos", {"train": Photos()}, schema=SCHEMA, options={}, samples_per_shard=5)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repair") / "good"
    pack(out)
    return out


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "copy")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def full_shard(folder: Path) -> str:
    """A shard of 5 samples that is not the first."""
    return [shard.name for shard in Manifest.load(folder).split("train").shards if shard.samples == 5][1]


def place(folder: Path, name: str, number: int, field: str) -> tuple[str, int, int]:
    """Key, offset and size of a field of the numbered sample of a shard, as tarfile sees it."""
    with tarfile.open(folder / f"{name}.tar") as tar:
        found = [member for member in tar if member.name.endswith("." + field)][number]
    return found.name.partition(".")[0], found.offset_data, found.size


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def check_repaired(good: Path, folder: Path, name: str, lost: set[str]) -> None:
    """All but the lost samples are there, bit by bit, in their order; what is not damaged is untouched."""
    before, after = Manifest.load(good), Manifest.load(folder)
    assert verify(folder) == []
    train = after.split("train")
    assert train.samples + len(train.quarantined) == TOTAL
    assert pack(folder) == after  # packing finds a complete folder
    assert train.quarantined[: len(before.split("train").quarantined)] == before.split("train").quarantined
    assert len(train.quarantined) == 1 + len(lost)
    wanted = [sample for sample in read(good, "train") if sample.key not in lost]
    found = list(read(folder, "train"))
    assert [sample.key for sample in found] == [sample.key for sample in wanted]
    assert [sample.jpeg for sample in found] == [sample.jpeg for sample in wanted]
    assert list(train.class_counts) == [sum(sample.label == label for sample in wanted) for label in (0, 1)]
    others = {file: data for file, data in content(good).items() if not file.startswith((name, "manifest"))}
    left = content(folder)
    assert others.items() <= left.items()
    assert set(left) - set(others) - {"manifest.json"} == {f"{name}-r1.tar", f"{name}-r1.idx"}
    originals = members(good / f"{name}.tar")
    expected = {file: data for file, data in originals.items() if file.partition(".")[0] not in lost}
    assert members(folder / f"{name}-r1.tar") == expected
    entries = read_index(open_storage(folder), f"{name}-r1.idx")
    fields = [(f"{entry.key}.{field}", *where) for entry in entries for field, where in entry.fields.items()]
    with tarfile.open(folder / f"{name}-r1.tar") as tar:
        assert fields == [(member.name, member.offset_data, member.size) for member in tar]


@pytest.mark.parametrize("jobs", [1, 2])
def test_healthy_shards_are_not_touched(copy: Path, jobs: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    calls: list[tuple[int, int]] = []
    assert repair(copy, jobs=jobs, progress=lambda done, total: calls.append((done, total))) == ([], [])
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert calls[0] == (0, TOTAL - 1)
    assert calls[-1] == (TOTAL - 1, TOTAL - 1)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes((path.parent / "train-00000.idx").read_bytes()),
    ],
)
def test_index_is_rebuilt_as_packing_wrote_it(good: Path, copy: Path, damage: Callable[[Path], object]) -> None:
    name = full_shard(copy)
    damage(copy / f"{name}.idx")
    assert repair(copy) == ([f"{name}.idx: rebuilt"], [])
    assert content(copy) == content(good)


@pytest.mark.parametrize(
    ("field", "data", "reason"),
    [
        ("jpg", bytes(200), "unknown format"),
        ("jpg", b"not an image", "unknown format"),
        ("cls", b"9", "label 9, expected 0 to 1"),
        ("cls", b"x", "expected integers"),
        ("json", b"[", "is no JSON"),
        ("parts.png", b"\x89PNX", "is no image"),
    ],
)
def test_damaged_samples_are_dropped(good: Path, copy: Path, field: str, data: bytes, reason: str) -> None:
    name = full_shard(copy)
    key, offset, _ = place(copy, name, 2, field)
    overwrite(copy / f"{name}.tar", offset, data)
    repairs, problems = repair(copy)
    assert problems == []
    assert repairs[0] == f"{name}.tar: replaced by {name}-r1 with 4 of its samples"
    assert len(repairs) == 2
    assert reason in repairs[1]
    source = key if field == "json" else f"photos/{int(key[2:])}.jpg"
    last = Manifest.load(copy).split("train").quarantined[-1]
    assert last.source == source
    assert reason in last.reason
    check_repaired(good, copy, name, {key})
    assert repair(copy) == ([], [])


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("field", ["jpg", "json", "parts.png"])
@pytest.mark.parametrize("at", ["in the header", "in the data", "after the data"])
def test_truncated_tar_keeps_its_whole_samples(good: Path, copy: Path, index: bool, field: str, at: str) -> None:
    name = full_shard(copy)
    keys = [place(copy, name, number, "jpg")[0] for number in range(5)]
    _, offset, size = place(copy, name, 3, field)
    os.truncate(
        copy / f"{name}.tar", {"in the header": offset - 100, "in the data": offset + size // 2}.get(at, offset + size)
    )
    if not index:
        (copy / f"{name}.idx").unlink()
    whole = 4 if field == "parts.png" and at == "after the data" else 3
    repairs, problems = repair(copy)
    assert problems == []
    assert repairs[0] == f"{name}.tar: replaced by {name}-r1 with {whole} of its samples"
    sources = [entry.source for entry in Manifest.load(copy).split("train").quarantined[1:]]
    if index:
        numbers = {int("".join(filter(str.isdigit, source))) for source in sources}  # of photos/7.jpg, or of p-07
        assert numbers == {int(key[2:]) for key in keys[whole:]}
    check_repaired(good, copy, name, set(keys[whole:]))


def test_index_leads_beyond_a_damaged_header(good: Path, copy: Path) -> None:
    name = full_shard(copy)
    _, offset, _ = place(copy, name, 1, "cls")
    overwrite(copy / f"{name}.tar", offset - 512, b"\xff" * 300)
    _, problems = repair(copy)
    assert problems == []
    check_repaired(good, copy, name, set())


def test_tar_made_anew_is_read_by_its_headers(good: Path, copy: Path) -> None:
    """A shorter JPEG in the middle moves what follows; index and manifest know nothing of it."""
    name = full_shard(copy)
    path = copy / f"{name}.tar"
    fields = members(path)
    key, _, _ = place(copy, name, 1, "jpg")
    fields[f"{key}.jpg"] = fields[f"{key}.jpg"][:300]
    with tarfile.open(path, "w") as tar:
        for file, data in fields.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert repair(copy)[1] == []
    check_repaired(good, copy, name, {key})


def test_missing_tar_is_listed_sample_by_sample(good: Path, copy: Path) -> None:
    name = full_shard(copy)
    keys = {sample.partition(".")[0] for sample in members(copy / f"{name}.tar")}
    (copy / f"{name}.tar").unlink()
    repairs, problems = repair(copy)
    assert problems == []
    assert repairs[0] == f"{name}.tar: removed, nothing of it can be saved"
    train = Manifest.load(copy).split("train")
    assert {entry.source for entry in train.quarantined[1:]} == keys
    assert train.samples + len(train.quarantined) == TOTAL
    assert verify(copy) == []
    assert not list(copy.glob(f"{name}*"))
    assert content(copy).keys() < content(good).keys()


def test_wrong_sha256_keeps_every_sample(good: Path, copy: Path) -> None:
    name = full_shard(copy)
    record = json.loads((copy / "manifest.json").read_text())
    (shard,) = [shard for shard in record["splits"]["train"]["shards"] if shard["name"] == name]
    shard["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(record))
    assert repair(copy) == ([f"{name}.tar: replaced by {name}-r1 with 5 of its samples"], [])
    check_repaired(good, copy, name, set())


def test_wrong_counts_are_corrected(good: Path, copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    record["splits"]["train"]["class_counts"] = [1, 2]
    (copy / "manifest.json").write_text(json.dumps(record))
    assert repair(copy) == (["train: corrected the counts in the manifest"], [])
    assert content(copy) == content(good)


def test_damaged_again(copy: Path) -> None:
    name = full_shard(copy)
    for number, replaced in enumerate((name, f"{name}-r1", f"{name}-r2"), 1):
        _, offset, _ = place(copy, replaced, 0, "jpg")
        overwrite(copy / f"{replaced}.tar", offset, bytes(200))
        repairs, problems = repair(copy)
        assert problems == []
        assert repairs[0] == f"{replaced}.tar: replaced by {name}-r{number} with {5 - number} of its samples"
        assert sorted(path.name for path in copy.glob(f"{name}*")) == [f"{name}-r{number}.idx", f"{name}-r{number}.tar"]
    assert Manifest.load(copy).split("train").samples == TOTAL - 1 - 3


@pytest.mark.parametrize("killed_in", ["save", "_remove"])
def test_interrupted_repair_is_repeated(
    good: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    name = full_shard(copy)
    key, offset, _ = place(copy, name, 2, "jpg")
    overwrite(copy / f"{name}.tar", offset, bytes(200))

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    before = content(copy)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest if killed_in == "save" else module, killed_in, kill)
        with pytest.raises(KeyboardInterrupt):
            repair(copy)
    left = content(copy)
    if killed_in == "save":
        assert before.items() <= left.items()
    assert repair(copy)[1] == []
    check_repaired(good, copy, name, {key})


def test_split_that_is_lost_is_an_error_that_changes_nothing(copy: Path) -> None:
    for path in copy.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    before = content(copy)
    with pytest.raises(ValueError, match="no sample of the split 'train' can be saved; prepare the data set again"):
        repair(copy)
    assert content(copy) == before


def test_what_cannot_be_mended_is_still_reported(copy: Path) -> None:
    shutil.copy(copy / "train-00000.tar", copy / "train-00009.tar")
    assert repair(copy) == ([], ["train-00009.tar: not in the manifest"])


def test_command_line(copy: Path, capsys: pytest.CaptureFixture) -> None:
    name = full_shard(copy)
    key, offset, _ = place(copy, name, 2, "jpg")
    overwrite(copy / f"{name}.tar", offset, bytes(200))
    arguments = ["verify", str(copy), "--jobs", "1"]
    assert main(arguments) == 1
    assert f"{name}.tar: {key}: not an image" in capsys.readouterr().out
    assert main([*arguments, "--repair", "--decode", "false"]) == 2
    assert "--repair: expected --decode true" in capsys.readouterr().err
    assert main([*arguments, "--repair"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{name}.tar: replaced by {name}-r1 with 4 of its samples"
    assert shown[1].startswith(f"{name}.tar: left out photos/{int(key[2:])}.jpg: not an image")
    assert shown[2:] == [f"{copy}: every shard is good"]
    assert main(arguments) == 0
