"""The threads that PyTorch and NumPy compute with on a CPU."""

from __future__ import annotations

import os
import re

import torch
from threadpoolctl import threadpool_limits

from pipelines.cores import usable_cores


def limit_threads(processes: int = 1) -> None:
    """Let PyTorch, NumPy and SciPy use no more threads than this process has cores, and share them with its like here.

    More threads than cores wait for each other in a spin. What the user or a launcher has set by OMP_NUM_THREADS stays;
    no number there, such as that of a variable that is not set, sets nothing.

    Args:
        processes: That compute on this host.
    """
    if not re.match(r"\s*0*[1-9]\d*\s*(,|$)", os.environ.get("OMP_NUM_THREADS", "")):
        threads = max(1, min(torch.get_num_threads(), usable_cores() // processes))
        torch.set_num_threads(threads)
        threadpool_limits(threads, user_api="blas")
