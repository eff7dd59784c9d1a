"""Which method is better than all others by more than chance: paired permutation tests over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rg.attribution.values import ByName, Values, figures
from rg.runs.resampling import LEVEL, TOSSES, tosses


def winners(runs: Sequence[Values], methods: Sequence[str], low: Mapping[str, bool]) -> dict[str, str]:
    """For every figure the method that is better than each of the others, where there is one.

    The best by its mean over the runs is compared with each other method (``p_values``). It has to be better than all
    of them at a level of 5 % after Holm's correction for their number, and with several runs ahead of each in every
    run.

    Args:
        runs: Of the same images.
        methods: Those that are compared.
        low: For every figure whether less is better; one that was not measured has no winner.

    Returns:
        Figure -> method.
    """
    once = np.ones((1, len(runs[0].keys)))
    found = {key: [figures(run.methods[key], once) for run in runs] for key in methods}
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    best: dict[str, str] = {}
    for name, less in low.items():
        if name not in found[methods[0]][0]:
            continue
        sign = -1 if less else 1
        scores = {key: np.array([sign * run[name][0] for run in by_run]) for key, by_run in found.items()}
        known = {key: score for key, score in scores.items() if not np.isnan(score).any()}
        if len(known) < 2:
            continue
        leader = max(known, key=lambda key: known[key].mean())
        others = [key for key in known if key != leader]
        if not all((known[leader] > known[key]).all() for key in others):
            continue
        for key in others:
            if (leader, key) not in pairs:
                pairs[leader, key] = p_values(*([run.methods[of] for run in runs] for of in (leader, key)))
        if max(holm([pairs[leader, key][name] for key in others])) < 1 - LEVEL:
            best[name] = leader
    return best


def p_values(one: Sequence[ByName], other: Sequence[ByName]) -> dict[str, float]:
    """Whether two methods differ: two-sided p-values of a paired permutation test, for every figure.

    If they did not, nobody could tell whose value of an image is whose. So on every image they change places by the
    toss of a coin, in all runs at once, as runs of the same image are not independent. The figures are made anew of
    what each has then, a threshold chosen anew. The p-value is the share of tosses, the true state among them, whose
    difference is at least as large. For a figure of zeros and ones that is McNemar's exact test, up to the draw of the
    tosses.

    Args:
        one: Measures of a method in every run, each [N, ...].
        other: Those of the other method, on the same images.
    """
    images = len(next(iter(one[0].values())))
    shared = [
        {name: np.concatenate([a[name], b[name]]) for name in a.keys() & b.keys()}
        for a, b in zip(one, other, strict=True)
    ]

    def differences(swapped: np.ndarray) -> dict[str, np.ndarray]:
        stays = np.concatenate([1 - swapped, swapped], axis=1)
        by_run = [(figures(values, stays), figures(values, 1 - stays)) for values in shared]
        return {name: np.mean([a[name] - b[name] for a, b in by_run], axis=0) for name in by_run[0][0]}

    true = differences(np.zeros((1, images)))
    larger = dict.fromkeys(true, 0)
    for swapped in tosses(images, TOSSES):
        for name, by_chance in differences(swapped).items():
            smaller = np.abs(by_chance) < np.abs(true[name]) * (1 - 1e-9)  # sums of the same numbers in another order
            larger[name] += int((~smaller).sum())
    return {name: (count + 1) / (TOSSES + 1) for name, count in larger.items()}


def holm(p: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted by Holm (1979) so that the first error of any is as rare as that of one."""
    values = np.asarray(p, dtype=np.float64)
    order = values.argsort()
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = steps.clip(max=1)
    return adjusted.tolist()
