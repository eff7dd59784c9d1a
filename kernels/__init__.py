"""Operators of region grouping: part assignment, VLAD pooling, part occurrence.

``kernels.operators`` documents them and decides who computes; ``kernels.reference`` defines them in plain PyTorch.
``kernels.tile_kernels``, ``kernels.image_kernels`` and ``kernels.occurrence`` are the fused Triton kernels, which
``kernels.grouping`` and ``kernels.image_grouping`` launch, and ``kernels.dispatch`` chooses among them. This package
knows tensors only: it imports torch and triton.
"""

from kernels.dispatch import prefer
from kernels.operators import part_assignment, part_occurrence, region_grouping, vlad_pooling

__all__ = ["part_assignment", "part_occurrence", "prefer", "region_grouping", "vlad_pooling"]
