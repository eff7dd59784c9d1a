"""Weights from elsewhere: files in the forms that programs publish them in.

Whoever publishes weights wraps them: in a dictionary beside the optimiser, under the names of a larger model, beside
their moving average. ``load_weights`` takes the tensors out of a file, ``fit`` finds those of a network among them.
"""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
import re
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipelines.files import check_content

State = dict[str, Tensor]

logger = logging.getLogger(__name__)

# Where a checkpoint keeps its weights; the moving average first, which is what is published of such a training.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "network",
    "net",
    "teacher",
    "student",
    "encoder",
    "backbone",
)
# Plain values that checkpoints hold beside their tensors; unpickling them runs no code of the file.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PurePosixPath,
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")},
]
INSERTED = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")  # by wrappers of PyTorch


def load_weights(path: Path, argument: str = "model.backbone.weights") -> State:
    """The tensors of a .safetensors file or a PyTorch checkpoint, by their names; no code in the file is run.

    Of a checkpoint that holds more, the weights are taken: the moving average of a training if there is one.

    Args:
        path: The file.
        argument: What to blame.

    Raises:
        ValueError: the file is missing, something else, cut short, or holds no tensors or unknown objects beside them.
    """
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {path}")
    content = _read(path, argument)
    while not _is_state(content):
        keys = _wrappers(content)
        if not keys:
            held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(
                f"{argument}: {path} holds no state dict, a dictionary of tensors, or several (it holds {held[:200]})"
            )
        if len(keys) > 1:
            logger.info("%s: taking its %s, not its %s", path, keys[0], ", ".join(keys[1:]))
        content = content[keys[0]]
    return {INSERTED.sub("", name): value for name, value in content.items() if isinstance(value, Tensor)}


def _read(path: Path, argument: str) -> Any:
    """What the file holds, whatever its suffix."""
    check_content(path, f"{argument}: {path}", "weights (safetensors or a PyTorch checkpoint)")
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        try:
            return load_safetensors(path.read_bytes())
        except Exception as error:  # SafetensorError, or what its reader makes of odd headers
            raise ValueError(f"{argument}: {path} is a damaged safetensors file ({error})") from None
    try:
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the bytes lead to
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{argument}: {path} holds {refused[1]} beside tensors, and unpickling that could run code; if you "
                'trust the file, save its tensors alone: python -c "import torch; '
                f"c = torch.load('{path.name}', 'cpu', weights_only=False); torch.save(c['state_dict'], 'w.pth')\" "
                "with the key that it has"
            ) from None
        raise ValueError(f"{argument}: {path}: {_defect(path, start, error)}") from None


def _defect(path: Path, start: bytes, error: Exception) -> str:
    """Why PyTorch cannot read a file."""
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return "the checkpoint is cut short; copy or download it again"
        names = zipfile.ZipFile(path).namelist()
        if any("/code/" in name for name in names):
            return "is a TorchScript program; save its state_dict()"
        if not any(name.endswith("data.pkl") for name in names):
            return f"is an archive of something else (with {names[0] if names else 'nothing in it'})"
    reason = re.sub(r"\x1b\[[\d;]*m", "", str(error)).partition(". ")[0].splitlines() or [""]
    return f"no checkpoint of PyTorch ({type(error).__name__}: {reason[0]})"


def _is_state(content: Any) -> bool:
    """Whether this is a dictionary of tensors; numbers beside them, such as the epoch, are no weights."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    others = [value for value in content.values() if not isinstance(value, Tensor)]
    return len(others) < len(content) and not any(isinstance(value, Mapping) for value in others)


def _wrappers(content: Any) -> list[str]:
    """The keys under which a checkpoint may have its weights, the likeliest first; none if nothing tells which."""
    if not isinstance(content, Mapping):
        return []
    states = [key for key, value in content.items() if _is_state(value)]
    nested = [key for key in WRAPPERS if key not in states and isinstance(content.get(key), Mapping)]
    known = [key for key in WRAPPERS if key in states] or nested
    return known or (states if len(states) == 1 else [])


def fit(state: State, expected: Mapping[str, Tensor]) -> State:
    """The tensors of a network among those of a file, by the names of the network.

    They may stand under the name of a part of a larger model, such as ``module.backbone.``.

    Args:
        state: Of the file.
        expected: Of the network.

    Returns:
        Those under the prefix that most of the network stands under; all of them, without the words that all names
        begin with, if there is no such prefix.

    Raises:
        ValueError: several prefixes fit equally.
    """
    prefixes = collections.Counter(
        name.removesuffix(wanted)
        for name, value in state.items()
        for wanted in _endings(name)
        if wanted in expected and expected[wanted].shape == value.shape
    )
    best = max(prefixes.values(), default=0)
    if best < len(expected) / 2:
        return _without_common_words(state)
    fitting = [prefix for prefix, count in prefixes.items() if count == best]
    if len(fitting) > 1:
        raise ValueError(
            f"holds the network several times, under {' and '.join(sorted(fitting))}; save one of them alone"
        )
    return {name.removeprefix(fitting[0]): value for name, value in state.items() if name.startswith(fitting[0])}


def _without_common_words(state: State) -> State:
    """``module.encoder.conv1.weight``, ``module.encoder.fc.weight`` -> ``conv1.weight``, ``fc.weight``."""
    while len({name.partition(".")[0] for name in state}) == 1 and all("." in name for name in state):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def _endings(name: str) -> list[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    words = name.split(".")
    return [".".join(words[first:]) for first in range(len(words))]
