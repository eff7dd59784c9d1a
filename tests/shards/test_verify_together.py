"""``verify`` by several processes of a launch."""

import shutil

import pytest

from pipelines.shards.verify import verify
from tests.support.launch import Launch


def test_several_processes_find_what_one_finds(small_birds, tmp_path):
    data = shutil.copytree(small_birds, tmp_path / "data")
    for name in ("train-00000.tar", "test-00002.tar"):
        with (data / name).open("r+b") as file:
            file.seek(3000)
            file.write(b"x" * 40)
    (data / "val-00001.idx").unlink()
    expected = verify(data)
    assert len({problem.split(":")[0] for problem in expected}) == 3
    launch = Launch(["verify", data, "--jobs", "1"], tmp_path, 3)
    assert launch.wait() == [1] * 3, launch.said
    said = [line for line in launch.said.splitlines() if " images " not in line]
    assert said == expected


def test_several_processes_say_once_that_all_is_well(small_birds, tmp_path):
    launch = Launch(["verify", small_birds, "--jobs", "1"], tmp_path, 2)
    assert launch.wait() == [0] * 2, launch.said
    assert launch.said.count("every shard is good") == 1


@pytest.mark.parametrize(
    "words,reason", [(["nothing"], "nothing"), (["DATA", "--repair"], "--repair: expected one process, got 2")]
)
def test_what_is_wrong_for_all_is_said_once(small_birds, tmp_path, words, reason):
    launch = Launch(["verify", *(small_birds if word == "DATA" else word for word in words)], tmp_path, 2)
    assert launch.wait() == [2] * 2, launch.said
    (line,) = [line for line in launch.said.splitlines() if "rg: error: " in line]
    assert reason in line
