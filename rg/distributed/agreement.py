"""What all ranks must have in common before the first step, and how a difference is put in words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rg.distributed.group import Group, GroupError
from rg.runs.environment import ROOT, environment

NAMED = 3  # differences that are described
PACKAGES = ("kernels", "pipelines", "rg")


def agree(group: Group, facts: Mapping[str, Any]) -> None:
    """Compare settings, data, code and library versions of all ranks; not the commit, as some hosts have no git.

    Args:
        group: All ranks.
        facts: Names and plain values of this rank; code and versions are added.

    Raises:
        GroupError: they differ; with the values.
    """
    packages = environment().items()
    versions = {f"version of {name}": value for name, value in packages if name not in ("platform", "commit")}
    own = {**facts, "code": code_sum(), **versions}
    names, facts_by_rank = zip(*group.collect((group.ranks.name, own)), strict=True)
    message = difference(names, facts_by_rank)
    if message:
        raise GroupError(message)


def difference(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> str | None:
    """Where the facts of the ranks differ, None if nowhere.

    Args:
        names: Of the ranks, for the message.
        facts: Of each rank.
    """
    fact_names = dict.fromkeys(name for values in facts for name in values)
    differing = [name for name in fact_names if any(values.get(name) != facts[0].get(name) for values in facts)]
    if not differing:
        return None
    descriptions = []
    for name in differing[:NAMED]:
        by_value: dict[str, list[str]] = {}
        for rank, values in zip(names, facts, strict=True):
            by_value.setdefault(repr(values[name]) if name in values else "nothing", []).append(rank)
        values_and_ranks = ", but ".join(f"{value} on {_few(ranks)}" for value, ranks in by_value.items())
        descriptions.append(f"{name} is {values_and_ranks}")
    if len(differing) > NAMED:
        descriptions.append(f"{len(differing) - NAMED} more differences")
    return f"the ranks are not the same: {'; '.join(descriptions)}"


def _few(ranks: Sequence[str]) -> str:
    return ", ".join(ranks[:2]) + (f" and {len(ranks) - 2} more" if len(ranks) > 2 else "")


def code_sum() -> str:
    """The first digits of a sha256 over the Python files of this project."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
