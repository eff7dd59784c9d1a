"""Where this code is, and the versions of everything that decides what a run computes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the packages
PACKAGES = (
    "region-grouping",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "captum",
    "deepspeed",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
)

CODE = ("kernels", "pipelines", "rg")


def environment() -> dict[str, str]:
    """Versions of everything that decides what a run computes."""
    versions = {"python": platform.python_version(), "platform": platform.platform()} | _commit()
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> dict[str, str]:
    """The commit of this code, if it runs out of a git checkout; ``-dirty`` if files differ from it."""
    if not (ROOT / ".git").exists():
        return {}
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the owner of the folder
        return {}
    return {"commit": commit}


def code_sum() -> str:
    """The first digits of a sha256 over the Python files of this project."""
    digest = hashlib.sha256()
    for package in CODE:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
