"""``explain`` by several processes of a launch: the folder of one, also if they are killed in between."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rg.explain.files import explain_files
from rg.explain.folder import gather
from rg.pages import gallery
from tests.support.launch import Launch
from tests.support.miniature_run import build
from tests.support.strikes import strike

COUNT = 17


@pytest.fixture(scope="module")
def run(small_birds, tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs") / "run", small_birds)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of two shapes, and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9 + number % 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90 + 20 * (number % 2), 90)).save(folder / f"{number:02d}.jpg")
    (folder / "broken.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def alone(run, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    explain_files(run, [photos], out, batch_size=1, jobs=1, device="cpu", write_page=gallery.write)
    return out


def launch_explain(run, photos, out, logs, processes=3, more=(), before=None):
    words = ["explain", run, photos, "--out", out, "--batch-size", "1", "--device", "cpu", "--jobs", "1", *more]
    return Launch(words, logs, processes, before)


def killed_at(number):
    """Kills a process that is about to note an image, the one of that number."""
    return partial(strike, "rg.explain.folder:ExplainedFolder.append", number, signal.SIGKILL)


def lines(out, name="explanations.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def files_of(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_leave_the_folder_of_one(run, photos, alone, tmp_path, processes):
    """To the bit, as images are explained one by one; else sums over a batch may round otherwise."""
    launch = launch_explain(run, photos, tmp_path / "out", tmp_path, processes)
    assert launch.wait() == [0] * processes, [program.output for program in launch.programs]
    assert files_of(tmp_path / "out") == files_of(alone)
    for name in files_of(alone):
        if name != "settings.json":
            assert (tmp_path / "out" / name).read_bytes() == (alone / name).read_bytes(), name
    assert f"{COUNT} images explained in {tmp_path / 'out'}, 1 left out" in launch.programs[0].output
    assert "images explained" not in launch.programs[1].output
    assert sum("left out: " in program.output for program in launch.programs) == 1


def test_killed_twice_nothing_is_lost_and_nothing_is_there_twice(run, photos, alone, tmp_path):
    """Each process notes two images, then one, and is killed, or ends as another one was."""
    out = tmp_path / "out"

    def written():
        return [line for path in out.glob("explanations*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]

    for number in (3, 2):
        there = len(written())
        launch = launch_explain(run, photos, out, tmp_path, before=dict.fromkeys(range(3), killed_at(number)))
        codes = launch.wait()
        assert -signal.SIGKILL in codes, launch.said
        assert set(codes) <= {-signal.SIGKILL, 76}, launch.said
        assert there + number - 1 <= len(written()) <= there + 3 * (number - 1)
    before = {json.loads(line)["source"] for line in written()}
    launch = launch_explain(run, photos, out, tmp_path, processes=2)
    assert launch.wait() == [0, 0]
    assert f"{len(before)} of {COUNT + 1} images are explained already" in launch.programs[0].output
    assert files_of(out) == files_of(alone)
    found, expected = (sorted(lines(folder), key=lambda line: line["source"]) for folder in (out, alone))
    assert found == expected


def test_to_begin_anew_drops_what_killed_processes_left(run, photos, alone, tmp_path):
    """Lines of processes count as those of the folder: other settings are refused, --overwrite takes none of them."""
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    stale = [line | {"label": "of other weights"} for line in lines(out)]
    (out / "explanations-0001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stale))
    (out / "explanations.jsonl").write_text("")
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(settings | {"weights": "others"}))
    with pytest.raises(ValueError, match=r"was explained with other settings \(weights\)"):
        explain_files(run, [photos], out, batch_size=1, device="cpu", write_page=gallery.write)
    explain_files(run, [photos], out, batch_size=1, device="cpu", write_page=gallery.write, overwrite=True)
    assert lines(out) == lines(alone)
    assert files_of(out) == files_of(alone)


def test_what_one_process_refuses_is_said_once_and_ends_all(run, photos, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    launch = launch_explain(run, photos, out, tmp_path, more=("--pictures", "png"))
    assert launch.wait() == [2, 2, 2]
    said = [line for program in launch.programs for line in program.output.splitlines() if "rg: error: " in line]
    assert len(said) == 1
    assert "was explained with other settings (pictures)" in said[0]
    assert not any("Traceback" in program.output for program in launch.programs)


def test_photos_that_are_none_are_told_of_once(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_text("no image")
    launch = launch_explain(run, photos, tmp_path / "out", tmp_path, processes=2)
    assert launch.wait() == [2, 2]
    said = [line for program in launch.programs for line in program.output.splitlines() if "rg: error: " in line]
    assert said == ["rg: error: none of 3 images could be decoded"]
    assert [line["source"] for line in lines(tmp_path / "out", "left_out.jsonl")] == [
        str(photos / f"{number}.jpg") for number in range(3)
    ]


def test_a_process_that_is_lost_ends_the_others(run, photos, tmp_path):
    launch = launch_explain(run, photos, tmp_path / "out", tmp_path, before={1: killed_at(2)})
    assert launch.wait() == [76, -signal.SIGKILL, 76]
    for rank in (0, 2):
        said = launch.programs[rank].output
        assert "rg: error: another process is lost" in said
        assert "Traceback" not in said


def test_lines_of_processes_are_merged_in_order_and_once(tmp_path):
    def write(name, numbers):
        text = "".join(json.dumps({"source": f"{number}.jpg", "of": name}) + "\n" for number in numbers)
        (tmp_path / f"{name}.jsonl").write_text(text)

    write("explanations", [9, 4])
    write("explanations-0000", [0, 2, 4])
    write("explanations-0001", [1, 3])
    (tmp_path / "explanations-0002.jsonl").write_text('{"source": "5.j')  # of a process that was killed
    write("left_out-0001", [7])
    gather(tmp_path, [Path(f"{number}.jpg") for number in range(4)])
    assert [line["source"] for line in lines(tmp_path)] == [f"{number}.jpg" for number in (9, 4, 0, 1, 2, 3)]
    assert [line["source"] for line in lines(tmp_path, "left_out.jsonl")] == ["7.jpg"]
    assert files_of(tmp_path) == ["explanations.jsonl", "left_out.jsonl"]
