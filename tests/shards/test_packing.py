"""Packing that was interrupted anywhere continues where it was, and ends in the same bytes."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from pipelines.shards import writer
from pipelines.shards.manifest import Manifest, Schema
from pipelines.shards.samples import Sample
from rg.runs import progress as progress_module

SCHEMA = Schema(classes=("a", "b"))
RAW = 23


class StoppedError(Exception):
    """Ends a run from within a source."""


def ignore(_: int) -> None:
    pass


@dataclass
class Dots:
    """One grey image per index; every seventh is broken. What is read is told to ``seen``."""

    seen: Callable[[int], None] = ignore
    count: int = RAW

    def __len__(self) -> int:
        return self.count

    def source(self, index: int) -> str:
        return f"dot {index}"

    def __getitem__(self, index: int) -> Sample:
        self.seen(index)
        if index % 7 == 0:
            raise ValueError("broken")
        buffer = io.BytesIO()
        Image.new("L", (8 + index, 8), 10 * index).save(buffer, "JPEG")
        return Sample(f"dot-{index:03d}", buffer.getvalue(), index % 2, 8 + index, 8, self.source(index))


def pack(out: Path, source: Dots | None = None, **arguments: object) -> Manifest:
    defaults = {"schema": SCHEMA, "options": {"size": 8, "files": "x"}, "samples_per_shard": 4}
    return writer.write(out, "dots", {"train": source or Dots()}, **{**defaults, **arguments})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped_after(out: Path, samples: int) -> None:
    """An interrupted run that has read so many samples."""
    left = iter(range(samples))

    def count(_: int) -> None:
        if next(left, None) is None:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack(out, Dots(count))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("packing") / "whole"
    pack(out)
    return content(out)


@pytest.mark.parametrize("samples", [0, 3, 4, 9, 22])
@pytest.mark.parametrize("jobs", [1, 2])
def test_continues_without_reading_finished_shards_again(
    whole: dict[str, bytes], tmp_path: Path, samples: int, jobs: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stopped_after(tmp_path, samples)
    finished = samples // 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert len(before) == finished
    calls: list[tuple[int, int]] = []
    pack(tmp_path, jobs=jobs, progress=lambda done, total: calls.append((done, total)))
    assert content(tmp_path) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert calls[0] == (4 * finished, RAW)
    assert calls[-1] == (RAW, RAW)
    assert len(calls) == 1 + 6 - finished
    assert (f"{finished} of 6 shards are kept" in caplog.text) == (finished > 0)


def test_only_the_rest_is_read(tmp_path: Path) -> None:
    stopped_after(tmp_path, 9)
    first: list[int] = []
    pack(tmp_path / "whole", Dots(first.append))
    second: list[int] = []
    (tmp_path / "whole").rename(tmp_path.with_name("elsewhere"))
    pack(tmp_path, Dots(second.append))
    assert second == first[8:]


def test_every_torn_record_is_continued(whole: dict[str, bytes], tmp_path: Path) -> None:
    """A kill may cut the last line of the record anywhere; all complete lines count."""
    stopped_after(tmp_path, 13)
    left = content(tmp_path)
    record = left["unfinished"]
    starts = [match.end() for match in re.finditer(b"\n", record)]
    assert len(starts) == 1 + 3
    for cut in {0, 1, starts[0] - 1, *starts, starts[1] + 1, starts[2] - 5, len(record) - 1, len(record) - 2}:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, data in left.items():
            (tmp_path / name).write_bytes(data if name != "unfinished" else record[:cut])
        seen: list[int] = []
        pack(tmp_path, Dots(seen.append))
        assert content(tmp_path) == whole
        # json.loads takes a line without its line feed, which is complete
        complete = sum(cut >= start - 1 for start in starts[1:])
        assert len(seen) == RAW - 4 * complete


def test_recorded_shard_that_is_gone_or_cut_is_made_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    stopped_after(tmp_path, 13)
    (tmp_path / "train-00000.idx").unlink()
    os.truncate(tmp_path / "train-00002.tar", 1000)
    seen: list[int] = []
    pack(tmp_path, Dots(seen.append))
    assert len(seen) == RAW - 4
    assert content(tmp_path) == whole


def test_shard_that_is_not_recorded_is_made_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    stopped_after(tmp_path, 5)
    (tmp_path / "train-00003.tar").write_bytes(b"half")
    (tmp_path / "train-00004.tar.tmp").write_bytes(b"half")
    (tmp_path / "train-00005.idx").write_bytes(whole["train-00005.idx"])
    (tmp_path / "unfinished.tmp").write_bytes(b"half")
    pack(tmp_path)
    assert content(tmp_path) == whole


def test_killed_before_the_first_record(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "unfinished.tmp").write_bytes(b'{"plan')
    pack(tmp_path)
    assert content(tmp_path) == whole


def test_killed_after_the_manifest(whole: dict[str, bytes], tmp_path: Path) -> None:
    stopped_after(tmp_path, 5)
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    pack(tmp_path)
    assert content(tmp_path) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "made differently (seed 0 instead of 1)"),
        ({"samples_per_shard": 5}, "made differently (samples_per_shard 4 instead of 5)"),
        ({"options": {"size": 9, "files": "x"}}, "made differently (options.size 8 instead of 9)"),
        ({"schema": Schema(("a", "c"))}, "made differently (classes ['a', 'b'] instead of ['a', 'c'])"),
        ({"options": {"size": 8, "files": "y"}}, "the images have changed"),
        ({"source": Dots(count=24)}, "(train: 23 then, 24 now)"),
    ],
)
def test_another_plan_is_refused_and_nothing_is_lost(tmp_path: Path, arguments: dict, message: str) -> None:
    stopped_after(tmp_path, 9)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        pack(tmp_path, **arguments)
    assert str(caught.value).endswith("delete the folder or choose another --out")
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


@pytest.mark.parametrize("record", ["5", "{}", '{"plan": {"format": 2}, "counts": {}}', '{"plan": [], "counts": 1}'])
def test_record_of_another_version_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / "unfinished").write_text(record + "\n")
    with pytest.raises(ValueError, match=r"unfinished: not a record of this version \(.+\); delete the folder$"):
        pack(tmp_path)
    assert content(tmp_path) == {"unfinished": record.encode() + b"\n"}


def test_shards_without_a_usable_sample_are_tried_again(tmp_path: Path) -> None:
    """The reason may have been an unmounted disk."""

    def fail(_: int) -> None:
        raise OSError("gone")

    with pytest.raises(ValueError, match="none of 23 samples can be used"):
        pack(tmp_path, Dots(fail))
    assert len(pack(tmp_path).split("train").quarantined) == 4


WAITING = """
import itertools, signal, sys
from pathlib import Path
from test_packing import pack

finished = itertools.count()

def progress(done, total):
    if next(finished) == int(sys.argv[1]):
        print("now", flush=True)
        signal.pause()

if __name__ == "__main__":
    pack(Path("out"), jobs=2, progress=progress)
"""


@pytest.mark.parametrize("finished", [0, 2, 4])
def test_kill_9(whole: dict[str, bytes], tmp_path: Path, finished: int) -> None:
    """Killed once so many shards are recorded, while others are being written or finished but not recorded."""
    (tmp_path / "waiting.py").write_text(WAITING)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(writer.__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path}
    arguments = [sys.executable, "waiting.py", str(finished)]
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.kill()
        run.communicate(timeout=60)  # ends once every process that holds the pipe has ended
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    seen: list[int] = []
    pack(tmp_path / "out", Dots(seen.append))
    assert len(seen) in (RAW - 4 * finished, RAW - 4 * finished + 1)  # the last shard has 3 samples
    assert content(tmp_path / "out") == whole


def test_log_shows_images_per_second_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """100 of 1,100 images were there; 100 take 10 seconds."""
    caplog.set_level("INFO")
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress_module.image_progress() as progress:
        for done in range(100, 1101, 100):
            progress(done, 1100)
    shown = [message for message in caplog.messages if "img/s" in message]
    assert shown[0].split(" ") == ["300/1100", "images", "7", "img/s", "eta", "02:00"]


def test_two_at_once_are_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    refused: list[int] = []

    def progress(done: int, _: int) -> None:
        with pytest.raises(
            ValueError, match=f"{re.escape(str(tmp_path))}: another process is writing into this folder"
        ):
            pack(tmp_path)
        refused.append(done)

    pack(tmp_path, progress=progress)
    assert len(refused) > 2
    assert content(tmp_path) == whole
