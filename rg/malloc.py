"""How the C library's memory allocator behaves under a network on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it has freed, and use it again, from now on to its end.

    Activations are large, and glibc gives large blocks back to the system when they are freed and asks for new ones,
    which the system fills with zeros a page at a time: a third of a training step of the demo on two cores, and more
    of a forward pass. CUDA memory needs nothing of the kind, PyTorch keeps it anyway. The process never gets smaller.

    Returns:
        Whether the C library can (glibc only).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Blocks of their own (mmap) are given back when they are freed, and so is the end of the heap above a threshold.
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
