"""Operators of region grouping: part assignment, VLAD pooling, part occurrence.

Every operator is defined by the plain PyTorch function of the same name in ``kernels.reference``. This package knows
tensors only: it imports torch and nothing else of ours.
"""

from kernels.reference import part_assignment, part_occurrence, region_grouping, vlad_pooling

__all__ = ["part_assignment", "part_occurrence", "region_grouping", "vlad_pooling"]
