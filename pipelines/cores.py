"""The processor cores that this process may use: fewer than the machine has, where a job or a container has a share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Cores that the affinity of this process and the quotas of its control groups leave, at least 1.

    Args:
        cgroups: Where the control groups of Linux are mounted, version 1 or 2.
        membership: File that tells in which of them this process is.
    """
    return max(1, min([len(affinity()), *map(int, _quotas(cgroups, membership))]))


def affinity() -> list[int]:
    """Numbers of the cores that this process may run on: those it was bound to, or all of the machine."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Of the groups that this process is in and of those around them, in cores."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = cgroups / controllers
        if not mount.is_dir():  # systemd has links by the name of each controller, whichever order the folder has
            mount = cgroups / "cpu"
        # A container may see the path of its group on the host, which is not there: then its mount is its group.
        for folder in [mount / group.lstrip("/"), *(mount / group.lstrip("/")).parents]:
            if folder.is_relative_to(mount):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """cpu.max of version 2, two files of version 1; neither is there, or is empty, where nothing is limited."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return
    if quota != "max" and int(quota) > 0:
        yield int(quota) / int(period)
