"""Operators of region grouping: part assignment, VLAD pooling, part occurrence.

``kernels.operators`` documents them and decides who computes; ``kernels.reference`` defines them in plain PyTorch;
``kernels.grouping`` and ``kernels.occurrence`` are the fused Triton kernels. This package knows tensors only: it
imports torch and triton.
"""

from kernels.operators import part_assignment, part_occurrence, region_grouping, vlad_pooling

__all__ = ["part_assignment", "part_occurrence", "region_grouping", "vlad_pooling"]
