"""Training checkpoints: published whole or not at all, on one storage or several, and what is taken from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rg.distributed.group import Group, GroupError
from rg.distributed.ranks import Ranks
from rg.training.checkpoints import MANIFEST, MODEL, MOMENTUM, TRAINED, Checkpoints, find, rank_file
from tests.support.forked import CONTEXT
from tests.support.world import World

ALONE = Group(Ranks())
ABOUT = {"loader": {"position": 7}, "skipped": 0}


def model(step: int, size: int = 6) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((size, 2), float(step)), "steps": torch.tensor(step)}


def momentum(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((6, 2), -float(step))}


def own(step: int, rank: int) -> dict[str, torch.Tensor]:
    return {"random": torch.tensor([step, rank], dtype=torch.uint8)}


def opened(folder: Path, group: Group = ALONE, keep: int = 2, run: str | None = None) -> Checkpoints:
    """Checkpoints in a run folder."""
    return Checkpoints(folder / "checkpoints", group, keep, run, folder / "weights")


def save(checkpoints: Checkpoints, step: int, rank: int = 0, score: float | None = None, size: int = 6) -> bool:
    shared = {MODEL: model(step, size), MOMENTUM: momentum(step)}
    checkpoints.start(step, shared, own(step, rank), ABOUT | {"score": score})
    return checkpoints.settle()


def saved(folder: Path, *steps: int) -> Path:
    """The folder of checkpoints of a run of one rank with those steps."""
    checkpoints = opened(folder)
    for step in steps:
        assert save(checkpoints, step)
    checkpoints.close()
    return folder / "checkpoints"


def names(folder: Path) -> list[str]:
    """All that is in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def folder_of(step: int) -> str:
    return f"step-{step:08d}"


@contextmanager
def warnings() -> Iterator[list[str]]:
    """The log lines of checkpoints of this process."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rg.training.checkpoints")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_what_was_written_is_found(tmp_path):
    saved(tmp_path, 3)
    found = find(tmp_path / "checkpoints", ALONE)
    assert found is not None
    assert found.same_ranks
    torch.testing.assert_close(found.model(), model(3), rtol=0, atol=0)
    torch.testing.assert_close(found.momentum(), momentum(3), rtol=0, atol=0)
    torch.testing.assert_close(found.own(), own(3, 0), rtol=0, atol=0)
    assert ABOUT.items() <= found.manifest.items()
    assert (found.manifest["step"], found.manifest["ranks"], found.manifest["score"]) == (3, 1, None)


def test_a_checkpoint_is_four_files_and_its_manifest_describes_the_others(tmp_path):
    checkpoints = saved(tmp_path, 3)
    assert names(checkpoints) == [folder_of(3)], "nothing is left of the making"
    files = [MANIFEST, MODEL, MOMENTUM, rank_file(0)]
    assert names(checkpoints / folder_of(3)) == sorted(files)
    manifest = json.loads((checkpoints / folder_of(3) / MANIFEST).read_text())
    contents = {name: (checkpoints / folder_of(3) / name).read_bytes() for name in files[1:]}
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    assert (tmp_path / "weights").read_bytes() == contents[MODEL]


def test_a_run_keeps_its_name_and_another_has_another(tmp_path):
    first = opened(tmp_path / "a").run
    assert opened(tmp_path / "a", run=first).run == first
    assert opened(tmp_path / "b").run != first


def test_writing_goes_on_in_the_background_until_it_is_settled(tmp_path):
    checkpoints = opened(tmp_path)
    assert not checkpoints.pending
    assert not checkpoints.busy
    checkpoints.start(1, {MODEL: model(1), MOMENTUM: momentum(1)}, own(1, 0), ABOUT)
    assert checkpoints.pending
    while checkpoints.busy:
        time.sleep(0.01)
    assert find(tmp_path / "checkpoints", ALONE) is None, "not yet published"
    assert checkpoints.settle()
    assert not checkpoints.pending
    assert find(tmp_path / "checkpoints", ALONE) is not None


def test_without_checkpoints_nothing_is_found(tmp_path):
    assert find(tmp_path, ALONE) is None
    assert find(tmp_path / "nowhere", ALONE) is None


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = opened(tmp_path, keep=2)
    scores = {1: 0.3, 2: 0.9, 3: None, 4: 0.9, 5: 0.5, 6: None, 7: 0.0}
    kept = {}
    for step, score in scores.items():
        assert save(checkpoints, step, score=score)
        kept[step] = [int(name.removeprefix("step-")) for name in names(tmp_path / "checkpoints")]
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [3, 4], 5: [4, 5], 6: [4, 5, 6], 7: [4, 6, 7]}


def test_without_scores_the_newest_stay(tmp_path):
    checkpoints = opened(tmp_path, keep=1)
    for step in (5, 10, 15):
        assert save(checkpoints, step)
        assert names(tmp_path / "checkpoints") == [folder_of(step)]


def test_steps_that_a_resumed_run_did_not_go_on_from_are_dropped(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    resumed = opened(tmp_path)
    assert save(resumed, 15)
    assert names(checkpoints) == [folder_of(10), folder_of(15)]


def test_a_step_that_is_reached_again_is_replaced(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    flip(checkpoints / folder_of(20) / MODEL)
    assert save(opened(tmp_path), 20)
    with warnings() as lines:
        found = find(checkpoints, ALONE)
    assert found is not None
    assert (found.folder.name, lines) == (folder_of(20), [])


def test_what_people_put_beside_the_checkpoints_stays(tmp_path):
    """A copy of one, and notes; neither is a checkpoint of this run."""
    checkpoints = saved(tmp_path, 1)
    shutil.copytree(checkpoints / folder_of(1), checkpoints / f"{folder_of(1)}.copy")
    (checkpoints / "step-notes.txt").write_text("the first one was best")
    run = opened(tmp_path, keep=1)
    for step in (2, 3):
        assert save(run, step)
    assert names(checkpoints) == [f"{folder_of(1)}.copy", folder_of(3), "step-notes.txt"]
    found = find(checkpoints, ALONE)
    assert found is not None
    assert found.folder.name == folder_of(3)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    (MANIFEST, Path.unlink, "manifest.json is missing or not whole"),
    (MANIFEST, truncate, "manifest.json is missing or not whole"),
    (MANIFEST, lambda path: path.write_bytes(b"\0" * 900), "manifest.json is missing or not whole"),
    (MANIFEST, lambda path: path.write_text("[]"), "manifest.json is missing or not whole"),
    (MANIFEST, lambda path: path.write_text("{}"), "manifest.json is missing or not whole"),
    *((name, Path.unlink, f"{name} is missing") for name in (MODEL, MOMENTUM, rank_file(0))),
    *((name, truncate, f"{name} has N bytes instead of N") for name in (MODEL, MOMENTUM, rank_file(0))),
    *((name, flip, f"{name} is not the file that was written") for name in (MODEL, MOMENTUM, rank_file(0))),
]


@pytest.mark.parametrize("name,harm,told", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, name, harm, told):
    checkpoints = saved(tmp_path, 1, 2)
    size = (checkpoints / folder_of(2) / name).stat().st_size
    harm(checkpoints / folder_of(2) / name)
    with warnings() as lines:
        found = find(checkpoints, ALONE)
    assert found is not None
    assert found.folder == checkpoints / folder_of(1)
    torch.testing.assert_close(found.model(), model(1), rtol=0, atol=0)
    (line,) = lines
    told = told.replace("N bytes instead of N", f"{size - 10} bytes instead of {size}")
    assert line.startswith(f"checkpoint {folder_of(2)} is damaged ({told}")
    assert line.endswith(f"; continuing from {folder_of(1)} instead")


def test_nothing_whole_is_an_error_that_names_all(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    (checkpoints / folder_of(1) / MODEL).unlink()
    flip(checkpoints / folder_of(2) / rank_file(0))
    with pytest.raises(GroupError) as raised:
        find(checkpoints, ALONE)
    message = str(raised.value)
    assert message.startswith(f"{checkpoints}: no checkpoint to resume from is whole: checkpoint {folder_of(2)} is ")
    assert f"checkpoint {folder_of(1)} is damaged (model.safetensors is missing" in message
    assert "\n" not in message


@contextmanager
def full_disk(largest: int = 100_000) -> Iterator[None]:
    """No file can become larger: the error comes from the operating system, as that of a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so_once(tmp_path):
    run = opened(tmp_path)
    assert save(run, 1)
    weights = (tmp_path / "weights").read_bytes()
    with full_disk(), warnings() as lines:
        assert not save(run, 2, size=100_000)
    (line,) = lines
    assert line.startswith("step 2: the checkpoint cannot be written (rank 0 ")
    assert "File too large" in line
    assert line.endswith(f"; the newest is {folder_of(1)}")
    assert names(tmp_path / "checkpoints") == [folder_of(1)]
    assert (tmp_path / "weights").read_bytes() == weights
    assert save(run, 3, size=100_000), "when there is room again"
    assert names(tmp_path / "checkpoints") == [folder_of(1), folder_of(3)]


def test_what_a_dead_run_left_half_written_is_removed(tmp_path):
    checkpoints = saved(tmp_path, 1)
    for step in (2, 3):
        shutil.copytree(checkpoints / folder_of(1), checkpoints / f".{folder_of(step)}")
    found = find(checkpoints, ALONE)
    assert found is not None
    assert found.folder.name == folder_of(1), "it counts for nothing before, whole or not"
    opened(tmp_path)
    assert names(checkpoints) == [folder_of(1)]


def write_for_ever(folder: Path, first: int) -> None:
    """Checkpoints of about a megabyte, step by step; the last one that was settled is in a file."""
    run = opened(folder, keep=1)
    step = first
    while save(run, step, size=100_000):
        (folder / f"settled-{step}").touch()
        step += 1


def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path):
    """Killed again and again, a run always goes on from the last one that was published, or the one after."""
    delays = random.Random(0)
    settled = last = 0
    for _ in range(10):
        process = CONTEXT.Process(target=write_for_ever, args=(tmp_path, last + 1))
        process.start()
        while not (tmp_path / f"settled-{last + 1}").exists():
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.03))
        process.kill()
        process.join()
        settled = max(int(path.name.removeprefix("settled-")) for path in tmp_path.glob("settled-*"))
        with warnings() as lines:
            found = find(tmp_path / "checkpoints", ALONE)
        assert found is not None
        last = found.manifest["step"]
        assert last in (settled, settled + 1)
        assert lines == []
        torch.testing.assert_close(found.model(), model(last, 100_000), rtol=0, atol=0)
        torch.testing.assert_close(found.momentum(), momentum(last), rtol=0, atol=0)
        assert load_file(tmp_path / "weights")["steps"].item() in (last, last - 1)
    assert save(opened(tmp_path, keep=1), last + 1)
    assert names(tmp_path / "checkpoints") == [folder_of(last + 1)]


# Several ranks. Ranks 0 and 1 are on one host, rank 2 on another.


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with World(3, tmp_path_factory.mktemp("world") / "store") as world:
        yield world


def on_hosts(group: Group) -> Group:
    """As if the last rank were on a host of its own."""
    local_rank, local_size = (0, 1) if group.ranks.rank == 2 else (group.ranks.rank, 2)
    return Group(dataclasses.replace(group.ranks, local_rank=local_rank, local_world_size=local_size))


def run_on(group: Group, folders: list[Path], steps: list[int], full: int | None = None) -> tuple[bool, list[str], str]:
    """Save checkpoints, each rank in its folder; the disk of one may be full. Returns the last success and warnings."""
    rank = group.ranks.rank
    run = opened(folders[rank], on_hosts(group))
    done = False
    for step in steps:
        with warnings() as lines:
            if rank == full:
                with full_disk():
                    done = save(run, step, rank, size=100_000)
            else:
                done = save(run, step, rank, size=100_000)
    run.close()
    return done, lines, run.run


def find_on(group: Group, folders: list[Path]) -> tuple[Any, list[str]]:
    """What each rank finds: folder, tensors; or the error as text."""
    with warnings() as lines:
        try:
            found = find(folders[group.ranks.rank] / "checkpoints", on_hosts(group))
        except GroupError as error:
            return str(error), lines
    if not found:
        return None, lines
    return (found.folder.name, found.same_ranks, found.model(), found.momentum(), found.own()), lines


def check_step(world: World, folders: list[Path], step: int, same_ranks: bool = True) -> list[list[str]]:
    """All ranks find that step, with what is theirs; returns the warnings of each."""
    found = world(find_on, folders)
    for rank, (what, _) in enumerate(found):
        name, same, *tensors = what
        assert (name, same) == (folder_of(step), same_ranks)
        expected = [model(step, 100_000), momentum(step), own(step, rank) if same_ranks else {}]
        torch.testing.assert_close(tensors, expected, rtol=0, atol=0)
    return [lines for _, lines in found]


SHARED = {MANIFEST, MODEL, MOMENTUM}


def test_ranks_that_share_a_storage_write_one_checkpoint(world, tmp_path):
    found = world(run_on, [tmp_path] * 3, [1])
    assert [(done, lines) for done, lines, _ in found] == [(True, [])] * 3
    assert len({run for _, _, run in found}) == 1
    assert names(tmp_path) == ["checkpoints", "weights"]
    assert names(tmp_path / "checkpoints") == [folder_of(1)]
    files = set(names(tmp_path / "checkpoints" / folder_of(1)))
    assert files == SHARED | {rank_file(rank) for rank in range(3)}
    assert check_step(world, [tmp_path] * 3, 1) == [[], [], []]


@pytest.fixture
def hosts(world, tmp_path) -> list[Path]:
    """For each rank the run folder of its host: two hosts that share nothing, with checkpoints of steps 1 and 2."""
    folders = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]
    assert [done for done, _, _ in world(run_on, folders, [1, 2])] == [True] * 3
    return folders


def test_every_storage_gets_what_its_ranks_need(world, hosts):
    for folder, ranks in ((hosts[0], (0, 1)), (hosts[2], (2,))):
        assert names(folder / "checkpoints") == [folder_of(1), folder_of(2)]
        for step in (1, 2):
            files = set(names(folder / "checkpoints" / folder_of(step)))
            assert files == SHARED | {rank_file(rank) for rank in ranks}
    assert (hosts[0] / "weights").exists()
    assert check_step(world, hosts, 2) == [[], [], []]


@pytest.mark.parametrize("rank,name", [(2, MOMENTUM), (2, rank_file(2)), (0, MODEL), (1, rank_file(1)), (2, MANIFEST)])
def test_damage_on_one_storage_makes_all_take_the_one_before(world, hosts, rank, name):
    checkpoint = hosts[rank] / "checkpoints" / folder_of(2)
    (truncate if name == MANIFEST else flip)(checkpoint / name)
    first, *others = check_step(world, hosts, 1)
    assert others == [first, first]
    (line,) = first
    assert line.startswith(f"checkpoint {folder_of(2)} is damaged ({name} is ")
    assert f" on rank {rank} (" in line
    assert line.endswith(f"; continuing from {folder_of(1)} instead")


def test_a_checkpoint_that_a_host_lacks_makes_all_take_the_one_before(world, hosts):
    shutil.rmtree(hosts[2] / "checkpoints" / folder_of(2))
    lines = check_step(world, hosts, 1)
    assert "manifest.json is missing or not whole on rank 2 (" in lines[0][0]


def test_a_host_without_any_checkpoint_stops_all_ranks(world, hosts):
    shutil.rmtree(hosts[2])
    first, *others = [what for what, _ in world(find_on, hosts)]
    path, _, reason = first.partition(": ")
    assert path == str(hosts[0] / "checkpoints")
    assert reason.startswith("no checkpoint to resume from is whole: ")
    assert "on rank 2 (" in reason
    assert [what.partition(": ")[2] for what in others] == [reason] * 2


def test_hosts_that_hold_different_runs_stop_all_ranks(world, hosts, tmp_path):
    """Same steps, same sizes; weights of the one and momentum of the other would go together without a word."""
    other = [tmp_path / "c", tmp_path / "c", tmp_path / "d"]
    world(run_on, other, [1, 2])
    for what, _ in world(find_on, [hosts[0], hosts[1], other[2]]):
        assert what.count("the hosts hold checkpoints of different runs") == 2


def test_a_disk_that_is_full_on_one_host_stops_the_checkpoint_on_all(world, hosts):
    found = world(run_on, hosts, [3], 2)
    for done, lines, _ in found:
        assert not done
        (line,) = lines
        assert line.startswith("step 3: the checkpoint cannot be written (rank 2 (")
        assert line.endswith(f"; the newest is {folder_of(2)}")
    for folder in {hosts[0], hosts[2]}:
        assert names(folder / "checkpoints") == [folder_of(1), folder_of(2)]
    assert check_step(world, hosts, 2) == [[], [], []]


def test_another_number_of_ranks_finds_all_but_what_is_each_ranks_own(world, tmp_path):
    world(run_on, [tmp_path] * 3, [1])
    with warnings() as lines:
        found = find(tmp_path / "checkpoints", ALONE)
    assert found is not None
    assert not found.same_ranks
    assert found.own() == {}
    assert found.manifest["ranks"] == 3
    torch.testing.assert_close(found.model(), model(1, 100_000), rtol=0, atol=0)
    assert lines == []


def test_more_ranks_than_before_find_what_one_wrote(world, tmp_path):
    assert save(opened(tmp_path), 4, size=100_000)
    assert check_step(world, [tmp_path] * 3, 4, same_ranks=False) == [[], [], []]


def test_what_goes_on_beside_its_moving_average_is_whole_too(tmp_path):
    checkpoints = opened(tmp_path)
    assert save(checkpoints, 1)
    checkpoints.start(
        2, {MODEL: model(2), TRAINED: model(3), MOMENTUM: momentum(2)}, own(2, 0), ABOUT | {"score": None}
    )
    assert checkpoints.settle()
    checkpoints.close()
    newest = find(tmp_path / "checkpoints", ALONE)
    torch.testing.assert_close((newest.model(), newest.trained()), (model(2), model(3)), rtol=0, atol=0)
    flip(tmp_path / "checkpoints" / folder_of(2) / TRAINED)
    before = find(tmp_path / "checkpoints", ALONE)
    torch.testing.assert_close(before.trained(), model(1), rtol=0, atol=0)
