"""Arithmetic of the kernels: floors, and products of features as they are stored and of values in the compute dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import reference

MASS_FLOOR = tl.constexpr(reference.MASS_FLOOR)
NORM_FLOOR = tl.constexpr(1e-12)
_NATIVE_BF16 = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def at_least(value, floor):
    """The larger one; nan stays nan."""
    return tl.where(value < floor, floor, value)


@triton.jit
def halves(b_value):
    """float32 -> the nearest bfloat16 and the bfloat16 of what remains."""
    b_high = b_value.to(tl.bfloat16)
    return b_high, (b_value - b_high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _dot(b_left, b_right):
    """One matrix product of equal dtypes. The interpreter cannot multiply bfloat16: it widens it first."""
    if b_left.dtype == tl.bfloat16 and not _NATIVE_BF16:
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)
    elif b_left.dtype == tl.float64:
        return tl.dot(b_left, b_right, input_precision="ieee", out_dtype=tl.float64)
    else:
        return tl.dot(b_left, b_right, input_precision="tf32x3", out_dtype=tl.float32)


@triton.jit
def dot_features(b_x, b_value):
    """Features as they are stored @ a value in the compute dtype."""
    if b_x.dtype == tl.bfloat16:
        b_high, b_low = halves(b_value)
        return _dot(b_x, b_low) + _dot(b_x, b_high)
    else:
        return _dot(b_x.to(b_value.dtype), b_value)


@triton.jit
def features_dot(b_value, b_x):
    """A value in the compute dtype @ features as they are stored."""
    if b_x.dtype == tl.bfloat16:
        b_high, b_low = halves(b_value)
        return _dot(b_low, b_x) + _dot(b_high, b_x)
    else:
        return _dot(b_value, b_x.to(b_value.dtype))


@triton.jit
def dot_values(b_left, b_right, SPLIT: tl.constexpr):
    """Two values in the compute dtype."""
    if SPLIT:
        b_left_high, b_left_low = halves(b_left)
        b_right_high, b_right_low = halves(b_right)
        b_cross = _dot(b_left_low, b_right_high)
        b_cross += _dot(b_left_high, b_right_low)
        return b_cross + _dot(b_left_high, b_right_high)
    else:
        return _dot(b_left, b_right)


@triton.jit
def add_product(b_left, b_right, b_sum):
    """A float32 sum and a product of bfloat16 values, added up where the product is made."""
    if _NATIVE_BF16:
        return tl.dot(b_left, b_right, b_sum, out_dtype=tl.float32)
    else:
        b_wide_left, b_wide_right = b_left.to(tl.float32), b_right.to(tl.float32)
        return tl.dot(b_wide_left, b_wide_right, b_sum, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def paired(b_value):
    """float32 [M, K] -> the bfloat16 halves of every column side by side [M, 2 K]: one product instead of two."""
    b_high = b_value.to(tl.bfloat16).to(tl.float32)
    b_both = tl.reshape(tl.join(b_high, b_value - b_high), [b_value.shape[0], 2 * b_value.shape[1]])
    return b_both.to(tl.bfloat16)  # last: Triton 3.8 fails where a reshaped operand goes to shared memory as it is


@triton.jit
def unpaired(b_product):
    """A product with ``paired`` columns [M, 2 K] -> that with the columns themselves [M, K]."""
    b_high, b_low = tl.split(tl.reshape(b_product, [b_product.shape[0], b_product.shape[1] // 2, 2]))
    return b_low + b_high


@triton.jit
def add_split_product(b_left_high, b_left_low, b_right, b_sum):
    """A float32 sum and a product of two float32 values, of which the left one comes in halves."""
    b_right_high, b_right_low = halves(b_right)
    b_sum = add_product(b_left_low, b_right_high, b_sum)
    b_sum = add_product(b_left_high, b_right_low, b_sum)
    return add_product(b_left_high, b_right_high, b_sum)
