"""How the C library's memory allocator behaves under a network on a CPU."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it has freed, and use it again, from now on to its end.

    Activations are large, and glibc gives large blocks back to the system when they are freed and asks for new ones,
    which the system fills with zeros a page at a time: a fifth of a training step of the demo on two cores, half of a
    forward pass. CUDA memory needs nothing of the kind, PyTorch keeps it anyway. The process never gets smaller. What
    the user has set by ``MALLOC_`` variables is left as it is.

    Returns:
        Whether it was set: on glibc, and not by the user.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    # No blocks of their own (mmap), which are given back when they are freed; the end of the heap stays; and all
    # threads share that heap, as those of threads are too small for activations.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])
