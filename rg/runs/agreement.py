"""What all processes of a launch must have in common, and how a difference is put in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.peers import Peers
from rg.runs.environment import code_sum, environment

NAMED = 3  # differences that are described
NO_VERSIONS = (" platform", " commit")


def agree(peers: Peers, facts: Mapping[str, Any]) -> None:
    """Compare settings, data, code and library versions of all ranks; not the commit, as some hosts have no git.

    Args:
        peers: All ranks.
        facts: Names and plain values of this rank; code and versions are added.

    Raises:
        ValueError: they differ; with the values.
    """
    names, facts_by_rank = zip(*peers.collect((peers.ranks.name, {**facts, **software()})), strict=True)
    message = difference(names, facts_by_rank)

    def check() -> None:
        if message:
            raise ValueError(message)

    peers.together(check)


def software() -> dict[str, str]:
    """Code and versions of what decides what is computed; neither the system, nor the commit, which git must tell."""
    versions = {f"version of {name}": value for name, value in environment().items()}
    return {"code": code_sum(), **{name: versions[name] for name in versions if not name.endswith(NO_VERSIONS)}}


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
