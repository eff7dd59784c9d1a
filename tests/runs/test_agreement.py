"""What ranks that are not the same are told, and what counts as the code."""

from __future__ import annotations

import re
import shutil

import pytest

from rg.distributed.group import Group, GroupError
from rg.runs.agreement import agree, difference
from rg.runs.environment import ROOT, code_sum, environment
from tests.support.world import World

RANKS = ["rank 0 (a)", "rank 1 (a)", "rank 2 (b)", "rank 3 (b)", "rank 4 (b)"]


def test_equal_ranks_differ_in_nothing():
    facts = {"seed": 1, "shards": ["ab", "cd"], "weights": None}
    assert difference(RANKS, [dict(facts) for _ in RANKS]) is None
    assert difference(RANKS[:1], [facts]) is None
    assert difference(RANKS, [{} for _ in RANKS]) is None


def test_a_difference_names_values_and_ranks():
    message = difference(RANKS[:2], [{"seed": 1, "epochs": 3}, {"seed": 2, "epochs": 3}])
    assert message == "the ranks are not the same: seed is 1 on rank 0 (a), but 2 on rank 1 (a)"


def test_many_ranks_with_the_same_value_are_counted():
    facts = [{"torch": "2.1"}, {"torch": "2.1"}, {"torch": "2.0"}, {"torch": "2.0"}, {"torch": "2.0"}]
    message = difference(RANKS, facts)
    assert message is not None
    assert message.endswith("torch is '2.1' on rank 0 (a), rank 1 (a), but '2.0' on rank 2 (b), rank 3 (b) and 1 more")


def test_what_only_some_ranks_have_is_told():
    message = difference(RANKS[:2], [{}, {"nvidia-dali": "1.2"}])
    assert message is not None
    assert message.endswith("nvidia-dali is nothing on rank 0 (a), but '1.2' on rank 1 (a)")


def test_a_third_value_and_a_later_rank_are_seen():
    message = difference(RANKS[:3], [{"seed": 1}, {"seed": 1}, {"seed": 3}])
    assert message is not None
    assert message.endswith("seed is 1 on rank 0 (a), rank 1 (a), but 3 on rank 2 (b)")
    message = difference(RANKS[:3], [{"seed": 1}, {"seed": 2}, {"seed": 3}])
    assert message is not None
    assert message.endswith("seed is 1 on rank 0 (a), but 2 on rank 1 (a), but 3 on rank 2 (b)")


def test_more_than_three_differences_are_counted():
    names = "abcde"
    message = difference(RANKS[:2], [dict.fromkeys(names, 0), dict.fromkeys(names, 1)])
    assert message is not None
    assert [f"; {name} is " in message.replace(": ", "; ") for name in names] == [True, True, True, False, False]
    assert message.endswith("; 2 more differences")


def test_the_sum_is_that_of_every_python_file(tmp_path, monkeypatch):
    for package in ("kernels", "pipelines", "rg"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_sum()
    monkeypatch.setattr("rg.runs.environment.ROOT", tmp_path)
    assert code_sum() == before, "of the same files at another place"
    (tmp_path / "README.md").write_text("prose")
    (tmp_path / "rg" / "__pycache__").mkdir()
    assert code_sum() == before
    sums = {before}
    paths = sorted(path for package in ("kernels", "pipelines", "rg") for path in (tmp_path / package).rglob("*.py"))
    assert {"rg/config.py", "rg/training/engine.py"} < {path.relative_to(tmp_path).as_posix() for path in paths}
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        sums.add(code_sum())
        path.write_bytes(content)
    assert code_sum() == before
    paths[-1].rename(paths[-1].with_name("renamed.py"))
    sums.add(code_sum())
    (tmp_path / "kernels" / "more.py").touch()
    sums.add(code_sum())
    assert len(sums) == 1 + len(paths) + 2


def disagree(group: Group, name: str) -> str:
    """What each of three ranks is told if one finds another value on its host."""
    facts = {"train.seed": 0}
    with pytest.MonkeyPatch.context() as patch:
        if group.ranks.rank == 1:
            if name in facts:
                facts[name] = 1
            elif name == "code":
                patch.setattr("rg.runs.environment.CODE", ("rg",))
            else:
                versions = environment() | {name: "another"}
                patch.setattr("rg.runs.agreement.environment", lambda: versions)
        try:
            agree(group, facts)
        except GroupError as error:
            return str(error)
    return "agreed"


def test_settings_code_and_versions_are_compared_on_all_ranks(tmp_path):
    with World(3, tmp_path / "store") as world:
        assert world(disagree, "platform") == ["agreed"] * 3, "another kernel computes the same"
        assert world(disagree, "commit") == ["agreed"] * 3, "a host may lack git, and the code is compared itself"
        for name, told in (("train.seed", "train.seed is 0"), ("code", "code is"), ("torch", "version of torch is")):
            first, *others = world(disagree, name)
            assert others == [first, first]
            assert first.startswith(f"the ranks are not the same: {told}")
            assert re.search(r" on rank 0 \(.*, but .* on rank 1 \(", first)
