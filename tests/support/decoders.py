"""All decoders as parameters of tests; DALI's ``mixed`` needs a GPU."""

import importlib.util

import pytest
import torch


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


_NEEDED = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed needs a GPU"),
    pytest.mark.skipif(not _is_installed("nvidia.dali"), reason="mixed needs DALI"),
]
DECODERS = (pytest.param("cpu"), pytest.param("pillow"), pytest.param("mixed", marks=_NEEDED))
