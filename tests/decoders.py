"""All decoders as parameters of tests; DALI's ``mixed`` needs a GPU."""

import importlib.util

import pytest
import torch

_NEEDED = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed needs a GPU"),
    pytest.mark.skipif(not importlib.util.find_spec("nvidia"), reason="mixed needs DALI"),
]
DECODERS = (pytest.param("cpu"), pytest.param("pillow"), pytest.param("mixed", marks=_NEEDED))
