"""Assignment and pooling in Triton, a tile of positions at a time: forward for both, and backward for both.

Sizes: N images, C channels, P = H x W positions, K parts. An image is cut into T tiles of positions, one program each.

Forward, per tile, then per (image, part):

    r_pk = |x_p|^2 - 2 x_p . d_k + |d_k|^2        s_pk = -r_pk / (2 sigma_k^2)        q_pk = exp(s_pk - lse_p)
    m_k = sum_p q_pk      u_k = sum_p q_pk x_p    (partial sums of every tile, added up in a fixed order)
    mu_k = u_k / max(m_k, 1e-5)      z'_k = (mu_k - d_k) / sigma_k      z_k = z'_k / |z'_k|

Backward, with g^z and g^q the gradients that arrive at z and q:

    gz'_k = (g^z_k - z_k (z_k . g^z_k)) / |z'_k|
    w_k   = gz'_k / (sigma_k max(m_k, 1e-5))        b_k = w_k . mu_k  if m_k > 1e-5 else 0
    a_pk  = x_p . w_k - b_k + g^q_pk                h_pk = q_pk (a_pk - sum_j q_pj a_pj) / sigma_k^2
    gx_p  = sum_k (q_pk w_k + h_pk d_k) - x_p sum_k h_pk
    gd_k  = sum_np h_pk x_np - d_k sum_np h_pk - sum_n w_nk max(m_nk, 1e-5)
    gsigma_k = -2 sigma_k sum_np h_pk s_pk

sigma divides z' and drops out of z again, so it learns through the softmax alone. Kept for backward are x itself, q and
z, which are outputs anyway, and per image lse [P], m [K] and |z'| [K]: s is log q + lse (where q underflows to 0, h is
0 too), and mu follows from z. At N = 128, C = 1024, 14 x 14, K = 8 in bf16 that is 5.1 MB beside the 51.4 MB of x.

A tile passes over its own positions twice, for the distances and for the sums. The second pass goes through the
channels the other way round, so that it starts with what the L2 cache saw last. As far as the cache holds the tiles
that are at work, memory sees x once: N C P elements read forward, N C P read and N C P written backward. The rest is
small: N T K C partial sums (written, and read again by the second kernel), N K C regions, N P K assignments.

Matrix products take their operands in bfloat16 if x is bfloat16, and then split the other operand, which is float32, in
a rounded and a remaining part, 16 bits of mantissa together. Otherwise they run in 3xTF32, or in float64. Sums are kept
in float32 (float64 if the features are float64).

Kernels that are LEAN compute the same with fewer instructions. Squares of features are summed once after the loop. With
bfloat16 features both parts of an operand lie side by side in one product, sums over positions are x^T q and x^T h, and
gx takes one product [q h] [w; d]. Their launches are planned once for equal calls.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks import Blocks, choose_blocks
from kernels.dispatch import is_eager, preferred
from kernels.launches import Launch
from kernels.maps import Kind, capability, dense, empty_map, is_flat, kind, kind_of_map, strides_by_name
from kernels.products import (
    MASS_FLOOR,
    NORM_FLOOR,
    add_product,
    add_split_product,
    at_least,
    dot_features,
    dot_values,
    features_dot,
    halves,
    paired,
    unpaired,
)
from kernels.reference import compute_dtype

INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _map_offsets(o_p, W, stride_h, stride_w, FLAT: tl.constexpr):
    """Where positions lie in a map. FLAT: rows follow each other, one stride fits all."""
    if FLAT:
        return o_p.to(tl.int64) * stride_w
    else:
        return (o_p // W).to(tl.int64) * stride_h + (o_p % W).to(tl.int64) * stride_w


@triton.jit
def _tile(P, K, T, TILE, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Image and tile of this program; its positions and parts, and which of them exist."""
    i_nt = tl.program_id(0).to(tl.int64)
    o_tile, o_k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K).to(tl.int64)
    o_p = (i_nt % T).to(tl.int32) * TILE + o_tile
    return i_nt, i_nt // T, o_p, o_k, (o_tile < TILE) & (o_p < P), o_k < K


@triton.jit(do_not_specialize=["P", "W", "K", "T", "TILE"])
def _forward_kernel(
    p_x,  # [N, C, H, W]
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_assign,  # [N, K, H, W], written if ASSIGN, else read
    p_lse,  # [N, P], written if ASSIGN
    p_sums,  # [N, T, K, C], written if POOL
    p_masses,  # [N, T, K], written if POOL
    C,
    P,
    W,
    K,
    T,
    TILE,
    x_n,
    x_c,
    x_h,
    x_w,
    centers_k,
    centers_c,
    sigma_k,
    assign_n,
    assign_k,
    assign_h,
    assign_w,
    ASSIGN: tl.constexpr,
    POOL: tl.constexpr,
    LEAN: tl.constexpr,
    FLAT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of positions: assignments, and their partial sums over the features."""
    PAIRED: tl.constexpr = LEAN and p_x.dtype.element_ty == tl.bfloat16
    i_nt, i_n, o_p, o_k, m_p, m_k = _tile(P, K, T, TILE, BLOCK_P, BLOCK_K)
    m_pk = m_p[:, None] & m_k[None, :]
    p_x += i_n * x_n + _map_offsets(o_p, W, x_h, x_w, FLAT)[:, None]
    p_assign += i_n * assign_n + _map_offsets(o_p, W, assign_h, assign_w, FLAT)[:, None] + o_k[None, :] * assign_k

    if ASSIGN:
        if LEAN:
            b_squares = tl.zeros([BLOCK_P, BLOCK_C], COMPUTE)
            b_center_squares = tl.zeros([BLOCK_K, BLOCK_C], COMPUTE)
        else:
            b_squares = tl.zeros([BLOCK_P], COMPUTE)
            b_center_squares = tl.zeros([BLOCK_K], COMPUTE)
        b_products = tl.zeros([BLOCK_P, 2 * BLOCK_K if PAIRED else BLOCK_K], COMPUTE)
        for first in range(0, C, BLOCK_C):
            o_c = (first + tl.arange(0, BLOCK_C)).to(tl.int64)
            m_c = o_c < C
            b_x = tl.load(p_x + o_c[None, :] * x_c, mask=m_p[:, None] & m_c[None, :], other=0)
            o_centers = o_k[:, None] * centers_k + o_c[None, :] * centers_c
            b_centers = tl.load(p_centers + o_centers, mask=m_k[:, None] & m_c[None, :], other=0).to(COMPUTE)
            b_wide = b_x.to(COMPUTE)
            if LEAN:
                b_squares += b_wide * b_wide
                b_center_squares += b_centers * b_centers
            else:
                b_squares += tl.sum(b_wide * b_wide, 1)
                b_center_squares += tl.sum(b_centers * b_centers, 1)
            if PAIRED:
                b_products += add_product(
                    b_x, paired(tl.trans(b_centers)), tl.zeros([BLOCK_P, 2 * BLOCK_K], tl.float32)
                )
            else:
                b_products += dot_features(b_x, tl.trans(b_centers))
        if LEAN:
            b_squares, b_center_squares = tl.sum(b_squares, 1), tl.sum(b_center_squares, 1)
        if PAIRED:
            b_products = unpaired(b_products)
        b_sigma = tl.where(m_k, tl.load(p_sigma + o_k * sigma_k, mask=m_k, other=0).to(COMPUTE), 1)
        b_distances = b_squares[:, None] - 2 * b_products + b_center_squares[None, :]
        b_logits = tl.where(m_k[None, :], -b_distances / (2 * b_sigma * b_sigma)[None, :], float("-inf"))
        b_largest = tl.max(b_logits, 1)
        b_exponentials = tl.exp(b_logits - b_largest[:, None])
        b_total = tl.sum(b_exponentials, 1)
        b_assign = b_exponentials / b_total[:, None]
        tl.store(p_assign, b_assign, mask=m_pk)
        tl.store(p_lse + i_n * P + o_p, b_largest + tl.log(b_total), mask=m_p)
        b_assign = tl.where(m_pk, b_assign, 0)
    else:
        b_assign = tl.load(p_assign, mask=m_pk, other=0).to(COMPUTE)

    if POOL:
        tl.store(p_masses + i_nt * K + o_k, tl.sum(b_assign, 0), mask=m_k)
        b_weights = paired(b_assign) if PAIRED else tl.trans(b_assign)
        for i_c in range(tl.cdiv(C, BLOCK_C)):
            o_c = ((tl.cdiv(C, BLOCK_C) - 1 - i_c) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
            m_c = o_c < C
            b_x = tl.load(p_x + o_c[None, :] * x_c, mask=m_p[:, None] & m_c[None, :], other=0)
            if PAIRED:
                b_sums = add_product(tl.trans(b_x), b_weights, tl.zeros([BLOCK_C, 2 * BLOCK_K], COMPUTE))
                b_sums = unpaired(b_sums)
                o_sums = (i_nt * K + o_k)[None, :] * C + o_c[:, None]
                tl.store(p_sums + o_sums, b_sums, mask=m_k[None, :] & m_c[:, None])
            else:
                b_sums = features_dot(b_weights, b_x)
                o_sums = (i_nt * K + o_k)[:, None] * C + o_c[None, :]
                tl.store(p_sums + o_sums, b_sums, mask=m_k[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["K", "T"])
def normalize_kernel(
    p_sums,  # [N, T, K, C]
    p_masses,  # [N, T, K]
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_regions,  # [N, K, C], written
    p_mass,  # [N, K], written
    p_norm,  # [N, K], written
    C,
    K,
    T,
    centers_k,
    centers_c,
    sigma_k,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One region of one image: the partial sums of its tiles -> its unit residual."""
    i_nk = tl.program_id(0).to(tl.int64)
    i_n, i_k = i_nk // K, i_nk % K
    o_c = tl.arange(0, BLOCK_C).to(tl.int64)
    m_c = o_c < C
    b_sum = tl.zeros([BLOCK_C], COMPUTE)
    mass = tl.zeros([], COMPUTE)
    for i_t in range(T):
        i_ntk = (i_n * T + i_t) * K + i_k
        mass += tl.load(p_masses + i_ntk)
        b_sum += tl.load(p_sums + i_ntk * C + o_c, mask=m_c, other=0)
    sigma = tl.load(p_sigma + i_k * sigma_k).to(COMPUTE)
    b_centers = tl.load(p_centers + i_k * centers_k + o_c * centers_c, mask=m_c, other=0).to(COMPUTE)
    b_residual = (b_sum / at_least(mass, MASS_FLOOR) - b_centers) / sigma
    norm = tl.sqrt(tl.sum(b_residual * b_residual, 0))
    tl.store(p_regions + i_nk * C + o_c, b_residual / at_least(norm, NORM_FLOOR), mask=m_c)
    tl.store(p_mass + i_nk, mass)
    tl.store(p_norm + i_nk, norm)


@triton.jit(do_not_specialize=["K"])
def _direction_kernel(
    p_regions,  # [N, K, C]
    p_grad_regions,  # [N, K, C]
    p_mass,  # [N, K]
    p_norm,  # [N, K]
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_directions,  # w [N, K, C], written
    p_offsets,  # b [N, K], written
    C,
    K,
    grad_n,
    grad_k,
    grad_c,
    centers_k,
    centers_c,
    sigma_k,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One region of one image: how its gradient reads in terms of the sums it was made of."""
    i_nk = tl.program_id(0).to(tl.int64)
    i_n, i_k = i_nk // K, i_nk % K
    o_c = tl.arange(0, BLOCK_C).to(tl.int64)
    m_c = o_c < C
    mass, norm = tl.load(p_mass + i_nk), tl.load(p_norm + i_nk)
    sigma = tl.load(p_sigma + i_k * sigma_k).to(COMPUTE)
    b_centers = tl.load(p_centers + i_k * centers_k + o_c * centers_c, mask=m_c, other=0).to(COMPUTE)
    b_region = tl.load(p_regions + i_nk * C + o_c, mask=m_c, other=0)
    o_grad = i_n * grad_n + i_k * grad_k + o_c * grad_c
    b_grad = tl.load(p_grad_regions + o_grad, mask=m_c, other=0).to(COMPUTE)
    along = tl.where(norm > NORM_FLOOR, tl.sum(b_region * b_grad, 0), 0)
    divisor = at_least(norm, NORM_FLOOR) * sigma * at_least(mass, MASS_FLOOR)
    b_direction = (b_grad - b_region * along) / divisor
    b_mean = b_region * at_least(norm, NORM_FLOOR) * sigma + b_centers
    offset = tl.where(mass > MASS_FLOOR, tl.sum(b_direction * b_mean, 0), 0)
    tl.store(p_directions + i_nk * C + o_c, b_direction, mask=m_c)
    tl.store(p_offsets + i_nk, offset)


@triton.jit(do_not_specialize=["P", "W", "K", "T", "TILE"])
def _backward_kernel(
    p_x,  # [N, C, H, W]
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_assign,  # [N, K, H, W]
    p_lse,  # [N, P], if ASSIGN
    p_directions,  # w [N, K, C], if POOL
    p_offsets,  # b [N, K], if POOL
    p_grad,  # g^q [N, K, H, W] or None, if ASSIGN
    p_grad_x,  # [N, C, H, W], written; None if nobody asks
    p_grad_assign,  # a [N, K, H, W], written if not ASSIGN
    p_center_sums,  # sum_p h x [N, T, K, C], written if ASSIGN
    p_weight_sums,  # sum_p h [N, T, K], written if ASSIGN
    p_logit_sums,  # sum_p h s [N, T, K], written if ASSIGN
    C,
    P,
    W,
    K,
    T,
    TILE,
    x_n,
    x_c,
    x_h,
    x_w,
    centers_k,
    centers_c,
    sigma_k,
    assign_n,
    assign_k,
    assign_h,
    assign_w,
    grad_n,
    grad_k,
    grad_h,
    grad_w,
    grad_x_n,
    grad_x_c,
    grad_x_h,
    grad_x_w,
    grad_assign_n,
    grad_assign_k,
    grad_assign_h,
    grad_assign_w,
    ASSIGN: tl.constexpr,
    POOL: tl.constexpr,
    LEAN: tl.constexpr,
    FLAT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of positions: their gradients, and partial sums for those of the parameters."""
    i_nt, i_n, o_p, o_k, m_p, m_k = _tile(P, K, T, TILE, BLOCK_P, BLOCK_K)
    m_pk = m_p[:, None] & m_k[None, :]
    SPLIT: tl.constexpr = p_x.dtype.element_ty == tl.bfloat16
    PAIRED: tl.constexpr = LEAN and SPLIT
    p_x += i_n * x_n + _map_offsets(o_p, W, x_h, x_w, FLAT)[:, None]
    if p_grad_x is not None:
        p_grad_x += i_n * grad_x_n + _map_offsets(o_p, W, grad_x_h, grad_x_w, FLAT)[:, None]
    o_assign = i_n * assign_n + _map_offsets(o_p, W, assign_h, assign_w, FLAT)[:, None] + o_k[None, :] * assign_k
    b_assign = tl.load(p_assign + o_assign, mask=m_pk, other=0).to(COMPUTE)

    b_slopes = tl.zeros([BLOCK_P, 2 * BLOCK_K if PAIRED else BLOCK_K], COMPUTE)
    if POOL:
        for first in range(0, C, BLOCK_C):
            o_c = (first + tl.arange(0, BLOCK_C)).to(tl.int64)
            m_c = o_c < C
            b_x = tl.load(p_x + o_c[None, :] * x_c, mask=m_p[:, None] & m_c[None, :], other=0)
            o_directions = (i_n * K + o_k)[:, None] * C + o_c[None, :]
            b_directions = tl.load(p_directions + o_directions, mask=m_k[:, None] & m_c[None, :], other=0)
            if PAIRED:
                b_slopes += add_product(
                    b_x, paired(tl.trans(b_directions)), tl.zeros([BLOCK_P, 2 * BLOCK_K], tl.float32)
                )
            else:
                b_slopes += dot_features(b_x, tl.trans(b_directions))
    if PAIRED:
        b_slopes = unpaired(b_slopes)
    if POOL:
        b_slopes -= tl.load(p_offsets + i_n * K + o_k, mask=m_k, other=0)[None, :]

    if ASSIGN:
        if p_grad is not None:
            o_grad = i_n * grad_n + _map_offsets(o_p, W, grad_h, grad_w, FLAT)[:, None] + o_k[None, :] * grad_k
            b_slopes += tl.load(p_grad + o_grad, mask=m_pk, other=0).to(COMPUTE)
        b_sigma = tl.where(m_k, tl.load(p_sigma + o_k * sigma_k, mask=m_k, other=0).to(COMPUTE), 1)
        b_pull = b_assign * (b_slopes - tl.sum(b_assign * b_slopes, 1)[:, None]) / (b_sigma * b_sigma)[None, :]
        b_lse = tl.load(p_lse + i_n * P + o_p, mask=m_p, other=0)
        b_logits = tl.log(tl.where(b_assign > 0, b_assign, 1)) + b_lse[:, None]
        tl.store(p_weight_sums + i_nt * K + o_k, tl.sum(b_pull, 0), mask=m_k)
        tl.store(p_logit_sums + i_nt * K + o_k, tl.sum(b_pull * b_logits, 0), mask=m_k)
        b_pull_total = tl.sum(b_pull, 1)
        b_weights = paired(b_pull) if PAIRED else tl.trans(b_pull)
    else:
        o_grad = i_n * grad_assign_n + _map_offsets(o_p, W, grad_assign_h, grad_assign_w, FLAT)[:, None]
        o_grad += o_k[None, :] * grad_assign_k
        tl.store(p_grad_assign + o_grad, b_slopes, mask=m_pk)

    if PAIRED:
        b_none = tl.zeros([BLOCK_K, BLOCK_C], COMPUTE)
        b_left = tl.join(b_assign, b_pull if ASSIGN else tl.zeros_like(b_assign))
        b_left_high, b_left_low = halves(tl.reshape(b_left, [BLOCK_P, 2 * BLOCK_K]))
    for i_c in range(tl.cdiv(C, BLOCK_C)):
        o_c = ((tl.cdiv(C, BLOCK_C) - 1 - i_c) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
        m_c = o_c < C
        m_kc = m_k[:, None] & m_c[None, :]
        b_grad_x = tl.zeros([BLOCK_P, BLOCK_C], COMPUTE)
        if ASSIGN:
            b_x = tl.load(p_x + o_c[None, :] * x_c, mask=m_p[:, None] & m_c[None, :], other=0)
            if p_grad_x is not None:
                o_centers = o_k[:, None] * centers_k + o_c[None, :] * centers_c
                b_centers = tl.load(p_centers + o_centers, mask=m_kc, other=0).to(COMPUTE)
                if not PAIRED:
                    b_grad_x += dot_values(b_pull, b_centers, SPLIT)
                b_grad_x -= b_pull_total[:, None] * b_x.to(COMPUTE)
            if PAIRED:
                b_sums = add_product(tl.trans(b_x), b_weights, tl.zeros([BLOCK_C, 2 * BLOCK_K], COMPUTE))
                b_sums = unpaired(b_sums)
                o_sums = (i_nt * K + o_k)[None, :] * C + o_c[:, None]
                tl.store(p_center_sums + o_sums, b_sums, mask=m_k[None, :] & m_c[:, None])
            else:
                b_sums = features_dot(b_weights, b_x)
                tl.store(p_center_sums + (i_nt * K + o_k)[:, None] * C + o_c[None, :], b_sums, mask=m_kc)
        if p_grad_x is not None:
            if POOL:
                b_directions = tl.load(p_directions + (i_n * K + o_k)[:, None] * C + o_c[None, :], mask=m_kc, other=0)
                if not PAIRED:
                    b_grad_x += dot_values(b_assign, b_directions, SPLIT)
            if PAIRED:  # [q h] [w; d], the columns and rows of both in turn
                b_right = tl.join(b_directions if POOL else b_none, b_centers if ASSIGN else b_none)
                b_right = tl.reshape(tl.permute(b_right, (0, 2, 1)), [2 * BLOCK_K, BLOCK_C])
                b_grad_x = add_split_product(b_left_high, b_left_low, b_right, b_grad_x)
            tl.store(p_grad_x + o_c[None, :] * grad_x_c, b_grad_x, mask=m_p[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["N", "K", "T"])
def _parameters_kernel(
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_directions,  # w [N, K, C], if POOL
    p_mass,  # [N, K], if POOL
    p_center_sums,  # [N, T, K, C], if ASSIGN
    p_weight_sums,  # [N, T, K], if ASSIGN
    p_logit_sums,  # [N, T, K], if ASSIGN
    p_grad_centers,  # [K, C], written
    p_grad_sigma,  # [K], written
    N,
    C,
    K,
    T,
    centers_k,
    centers_c,
    sigma_k,
    ASSIGN: tl.constexpr,
    POOL: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some channels of one part: the gradients of its centre and bandwidth from the partial sums."""
    i_k, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_c = (i_c * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    m_c = o_c < C
    b_grad = tl.zeros([BLOCK_C], COMPUTE)
    weight, logit = tl.zeros([], COMPUTE), tl.zeros([], COMPUTE)
    if ASSIGN:
        for first in range(0, N * T, BLOCK_N):
            o_nt = first + tl.arange(0, BLOCK_N)
            m_nt = o_nt < N * T
            o_ntk = o_nt.to(tl.int64) * K + i_k
            b_sums = tl.load(
                p_center_sums + o_ntk[:, None] * C + o_c[None, :], mask=m_nt[:, None] & m_c[None, :], other=0
            )
            b_grad += tl.sum(b_sums, 0)
            weight += tl.sum(tl.load(p_weight_sums + o_ntk, mask=m_nt, other=0), 0)
            logit += tl.sum(tl.load(p_logit_sums + o_ntk, mask=m_nt, other=0), 0)
        b_centers = tl.load(p_centers + i_k * centers_k + o_c * centers_c, mask=m_c, other=0).to(COMPUTE)
        b_grad -= weight * b_centers
    if POOL:
        for first in range(0, N, BLOCK_N):
            o_n = first + tl.arange(0, BLOCK_N)
            m_n = o_n < N
            o_nk = o_n.to(tl.int64) * K + i_k
            b_mass = at_least(tl.load(p_mass + o_nk, mask=m_n, other=0), MASS_FLOOR)
            o_directions = o_nk[:, None] * C + o_c[None, :]
            b_directions = tl.load(p_directions + o_directions, mask=m_n[:, None] & m_c[None, :], other=0)
            b_grad -= tl.sum(b_directions * b_mass[:, None], 0)
    tl.store(p_grad_centers + i_k * C + o_c, b_grad, mask=m_c)
    if i_c == 0:
        sigma = tl.load(p_sigma + i_k * sigma_k).to(COMPUTE)
        tl.store(p_grad_sigma + i_k, -2 * sigma * logit)


def _shared(C: int, K: int, dtype: torch.dtype, centers: Kind, sigma: Kind) -> dict[str, Any]:
    """What every kernel takes: sizes and strides of the part dictionary, and the compute dtype."""
    return {
        "C": C,
        "K": K,
        **strides_by_name("centers", centers[1], "kc"),
        **strides_by_name("sigma", sigma[1], "k"),
        "COMPUTE": tl.float64 if dtype == torch.float64 else tl.float32,
    }


def _cut(H: int, W: int, x: Kind, assign: Kind, blocks: Blocks, lean: bool) -> dict[str, Any]:
    """What the kernels take that run a program for every tile: how features and assignments lie and are cut."""
    tiles = triton.cdiv(H * W, blocks.positions)
    return {
        "P": H * W,
        "W": W,
        "T": tiles,
        "TILE": triton.cdiv(H * W, tiles),
        **strides_by_name("x", x[1], "nchw"),
        **strides_by_name("assign", assign[1], "nkhw"),
        "LEAN": lean,
        "BLOCK_P": blocks.positions,
        "BLOCK_C": blocks.channels,
        "BLOCK_K": blocks.parts,
    }


@functools.lru_cache(maxsize=64)
def _plan_forward(
    shape: tuple[int, int, int, int],
    K: int,
    x: Kind,
    centers: Kind,
    sigma: Kind,
    assign: Kind,
    given: bool,
    pool: bool,
    lean: bool,
    device: tuple[torch.device, tuple[int, int]],
) -> tuple[int, Launch, Launch]:
    """How many tiles an image has, the launch, and that of the kernel that makes regions of their sums."""
    N, C, H, W = shape
    flat = is_flat(H, W, x, assign)
    blocks = choose_blocks(N, H * W, C, K, x[0], device[1], is_flat(H, W, x), lean)
    shared, cut = _shared(C, K, x[0], centers, sigma), _cut(H, W, x, assign, blocks, lean)
    sizes = {**shared, **cut, "ASSIGN": not given, "POOL": pool, "FLAT": flat}
    first = Launch(_forward_kernel, (N * cut["T"], 1, 1), sizes, blocks.warps, blocks.stages, direct=lean)
    sizes = {**shared, "T": cut["T"], "BLOCK_C": triton.next_power_of_2(C)}
    return cut["T"], first, Launch(normalize_kernel, (N * K, 1, 1), sizes, warps=4, direct=lean)


@functools.lru_cache(maxsize=64)
def _plan_backward(
    shape: tuple[int, int, int, int],
    K: int,
    x: Kind,
    centers: Kind,
    sigma: Kind,
    assign: Kind,
    grad: Kind | None,
    grad_regions: Kind | None,
    grad_x: Kind | None,
    grad_assign: Kind | None,
    lean: bool,
    device: tuple[torch.device, tuple[int, int]],
) -> tuple[int, Launch, Launch, Launch]:
    """How many tiles an image has, and the launches of directions, of gradients and of those of the parameters."""
    N, C, H, W = shape
    blocks = choose_blocks(N, H * W, C, K, x[0], device[1], is_flat(H, W, x), lean)
    shared, cut = _shared(C, K, x[0], centers, sigma), _cut(H, W, x, assign, blocks, lean)
    region_strides = strides_by_name("grad", (0, 0, 0) if grad_regions is None else grad_regions[1], "nkc")
    sizes = {**shared, **region_strides, "BLOCK_C": triton.next_power_of_2(C)}
    directions = Launch(_direction_kernel, (N * K, 1, 1), sizes, warps=4, direct=lean)
    none = (0, 0, 0, 0)
    asked = {"ASSIGN": grad_assign is None, "POOL": grad_regions is not None}
    sizes = {
        **shared,
        **cut,
        **asked,
        "FLAT": is_flat(H, W, x, assign, grad),
        **strides_by_name("grad", none if grad is None else grad[1], "nkhw"),
        **strides_by_name("grad_x", none if grad_x is None else grad_x[1], "nchw"),
        **strides_by_name("grad_assign", none if grad_assign is None else grad_assign[1], "nkhw"),
    }
    gradients = Launch(_backward_kernel, (N * cut["T"], 1, 1), sizes, blocks.warps, blocks.stages, direct=lean)
    sizes = {**shared, **asked, "N": N, "T": cut["T"], "BLOCK_N": 128 if lean else 32, "BLOCK_C": 64}
    grid = (K, triton.cdiv(C, 64), 1)
    parameters = Launch(_parameters_kernel, grid, sizes, warps=8 if lean else 4, direct=lean)
    return cut["T"], directions, gradients, parameters


def _forward(
    x: Tensor, centers: Tensor, sigma: Tensor, given: Tensor | None, pool: bool, lean: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """assign, lse (unless assign is given); regions, mass, norm (if pool)."""
    N, C, H, W = x.shape
    K = centers.shape[0]
    dtype = compute_dtype(x)
    new = functools.partial(torch.empty, dtype=dtype, device=x.device)
    assign = empty_map(x, K, dtype) if given is None else given
    lse = new((N, H * W)) if given is None else None
    regions, mass, norm = (new((N, K, C)), new((N, K)), new((N, K))) if pool else (None, None, None)
    if N == 0:
        return assign, lse, regions, mass, norm
    kinds = kind_of_map(x), kind(centers), kind(sigma), kind_of_map(assign)
    device = x.device, capability(x)
    T, launch, normalize = _plan_forward((N, C, H, W), K, *kinds, given is not None, pool, lean, device)
    sums, masses = (new((N, T, K, C)), new((N, T, K))) if pool else (None, None)
    with torch.cuda.device_of(x):
        launch(
            p_x=x,
            p_centers=centers,
            p_sigma=sigma,
            p_assign=assign,
            p_lse=lse,
            p_sums=sums,
            p_masses=masses,
        )
        if pool:
            normalize(
                p_sums=sums,
                p_masses=masses,
                p_centers=centers,
                p_sigma=sigma,
                p_regions=regions,
                p_mass=mass,
                p_norm=norm,
            )
    return assign, lse, regions, mass, norm


def backward(
    x: Tensor,
    centers: Tensor,
    sigma: Tensor,
    assign: Tensor,
    lse: Tensor | None,
    pooled: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    grad: Tensor | None,
    need_x: bool = True,
    lean: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients of x, assign (if it was given: lse is None), centers and sigma.

    Args:
        pooled: regions, mass, norm and the gradient of regions, if that is asked for.
        grad: The gradient of assign, if lse is given.
        need_x: Whether anybody asks for that of x; a backbone that does not learn does not.
        lean: Whether leaner tiles are taken.
    """
    N, C, H, W = x.shape
    K = centers.shape[0]
    new = functools.partial(torch.empty, dtype=compute_dtype(x), device=x.device)
    grad_x = empty_map(x, C, x.dtype) if need_x else None
    grad_assign = empty_map(assign, K, assign.dtype) if lse is None else None
    if N == 0:
        return grad_x, grad_assign, centers.new_zeros(centers.shape), sigma.new_zeros(sigma.shape)
    grad_centers = torch.empty((K, C), dtype=centers.dtype, device=x.device)
    grad_sigma = torch.empty((K,), dtype=sigma.dtype, device=x.device)
    regions = mass = norm = grad_regions = directions = offsets = None
    if pooled is not None:
        regions, mass, norm = map(dense, pooled[:3])
        grad_regions, directions, offsets = pooled[3], new((N, K, C)), new((N, K))
    T, direct, differentiate, add_up = _plan_backward(
        (N, C, H, W),
        K,
        kind_of_map(x),
        kind(centers),
        kind(sigma),
        kind_of_map(assign),
        None if grad is None else kind_of_map(grad),
        None if grad_regions is None else kind(grad_regions),
        None if grad_x is None else kind_of_map(grad_x),
        None if grad_assign is None else kind_of_map(grad_assign),
        lean,
        (x.device, capability(x)),
    )
    center_sums = weight_sums = logit_sums = None
    if lse is not None:
        lse = dense(lse)
        center_sums, weight_sums, logit_sums = new((N, T, K, C)), new((N, T, K)), new((N, T, K))
    with torch.cuda.device_of(x):
        if pooled is not None:
            direct(
                p_regions=regions,
                p_grad_regions=grad_regions,
                p_mass=mass,
                p_norm=norm,
                p_centers=centers,
                p_sigma=sigma,
                p_directions=directions,
                p_offsets=offsets,
            )
        differentiate(
            p_x=x,
            p_centers=centers,
            p_sigma=sigma,
            p_assign=assign,
            p_lse=lse,
            p_directions=directions,
            p_offsets=offsets,
            p_grad=grad,
            p_grad_x=grad_x,
            p_grad_assign=grad_assign,
            p_center_sums=center_sums,
            p_weight_sums=weight_sums,
            p_logit_sums=logit_sums,
        )
        add_up(
            p_centers=centers,
            p_sigma=sigma,
            p_directions=directions,
            p_mass=mass,
            p_center_sums=center_sums,
            p_weight_sums=weight_sums,
            p_logit_sums=logit_sums,
            p_grad_centers=grad_centers,
            p_grad_sigma=grad_sigma,
        )
    return grad_x, grad_assign, grad_centers, grad_sigma


# Every operator and every backward pass is one operator to torch.compile. What shapes, dtypes and strides they return
# is said by the fakes below; that they are not differentiated twice by refuse_second_derivatives.


@torch.library.custom_op("region_grouping::region_grouping", mutates_args=())
def _region_grouping(
    x: Tensor, centers: Tensor, sigma: Tensor, lean: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _forward(x, centers, sigma, None, True, lean)  # type: ignore[return-value]


@torch.library.custom_op("region_grouping::part_assignment", mutates_args=())
def _part_assignment(x: Tensor, centers: Tensor, sigma: Tensor, lean: bool = False) -> tuple[Tensor, Tensor]:
    return _forward(x, centers, sigma, None, False, lean)[:2]  # type: ignore[return-value]


@torch.library.custom_op("region_grouping::vlad_pooling", mutates_args=())
def _vlad_pooling(
    x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor, lean: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, centers, sigma, assign, True, lean)[2:]  # type: ignore[return-value]


@torch.library.custom_op("region_grouping::grouping_backward", mutates_args=())
def _grouping_backward(
    x: Tensor,
    centers: Tensor,
    sigma: Tensor,
    assign: Tensor,
    lse: Tensor,
    regions: Tensor | None,
    mass: Tensor | None,
    norm: Tensor | None,
    grad_assign: Tensor | None,
    grad_regions: Tensor | None,
    lean: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    pooled = None if grad_regions is None else (regions, mass, norm, grad_regions)
    found = backward(x, centers, sigma, assign, lse, pooled, grad_assign, True, lean)  # type: ignore[arg-type]
    grad_x, _, grad_centers, grad_sigma = found
    return grad_x, grad_centers, grad_sigma  # type: ignore[return-value]


@torch.library.custom_op("region_grouping::vlad_pooling_backward", mutates_args=())
def _vlad_pooling_backward(
    x: Tensor,
    assign: Tensor,
    centers: Tensor,
    sigma: Tensor,
    regions: Tensor,
    mass: Tensor,
    norm: Tensor,
    grad_regions: Tensor,
    lean: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backward(x, centers, sigma, assign, None, (regions, mass, norm, grad_regions), None, True, lean)  # type: ignore[return-value]


@_region_grouping.register_fake
def _(x: Tensor, centers: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return *_fake_assignment(x, centers), *_fake_regions(x, centers)


@_part_assignment.register_fake
def _(x: Tensor, centers: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_assignment(x, centers)


@_vlad_pooling.register_fake
def _(x: Tensor, _: Tensor, centers: Tensor, *__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_regions(x, centers)


@_grouping_backward.register_fake
def _(x: Tensor, centers: Tensor, sigma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_map(x, x.shape[1], x.dtype), *_fake_parameters(centers, sigma)


@_vlad_pooling_backward.register_fake
def _(x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_assign = empty_map(x, x.shape[1], x.dtype), empty_map(assign, assign.shape[1], assign.dtype)
    return grad_x, grad_assign, *_fake_parameters(centers, sigma)


def _fake_assignment(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x)
    return empty_map(x, centers.shape[0], dtype), x.new_empty((x.shape[0], x.shape[2] * x.shape[3]), dtype=dtype)


def _fake_regions(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    sizes = (x.shape[0], *centers.shape)
    return x.new_empty(sizes, dtype=dtype), x.new_empty(sizes[:2], dtype=dtype), x.new_empty(sizes[:2], dtype=dtype)


def _fake_parameters(centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return centers.new_empty(centers.shape), sigma.new_empty(sigma.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.lean = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _keep_region_grouping(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(output[1], *output[3:])


def _differentiate_region_grouping(
    ctx: Any, grad_assign: Tensor | None, _: None, grad_regions: Tensor | None, *__: None
) -> tuple[Tensor | None, ...]:
    if grad_assign is None and grad_regions is None:
        return None, None, None, None
    return *_grouping_backward(*ctx.saved_tensors, grad_assign, grad_regions, ctx.lean), None


def _keep_part_assignment(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_part_assignment(ctx: Any, grad_assign: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_assign is None:
        return None, None, None, None
    return *_grouping_backward(*ctx.saved_tensors, None, None, None, grad_assign, None, ctx.lean), None


def _keep_vlad_pooling(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_vlad_pooling(ctx: Any, grad_regions: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_regions is None:
        return None, None, None, None, None
    return *_vlad_pooling_backward(*ctx.saved_tensors, grad_regions, ctx.lean), None


def refuse_second_derivatives(_ctx: Any, *_: Any) -> None:
    """What is registered as the backward of a backward."""
    raise RuntimeError("the fused operators are differentiated once; use kernels.reference for second derivatives")


_region_grouping.register_autograd(_differentiate_region_grouping, setup_context=_keep_region_grouping)
_part_assignment.register_autograd(_differentiate_part_assignment, setup_context=_keep_part_assignment)
_vlad_pooling.register_autograd(_differentiate_vlad_pooling, setup_context=_keep_vlad_pooling)
_grouping_backward.register_autograd(refuse_second_derivatives)
_vlad_pooling_backward.register_autograd(refuse_second_derivatives)


class _Grouping(torch.autograd.Function):
    """All three operators as eager calls take them, without what registration costs the host."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centers: Tensor, sigma: Tensor, given: Tensor | None, pool: bool, lean: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        assign, lse, regions, mass, norm = _forward(x, centers, sigma, given, pool, lean)
        ctx.save_for_backward(x, centers, sigma, assign, lse, regions, mass, norm)
        ctx.set_materialize_grads(False)
        ctx.lean = lean
        if regions is None:
            return assign
        return regions if given is not None else (assign, regions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not any(grad is not None for grad in grads):
            return None, None, None, None, None, None
        x, centers, sigma, assign, lse, regions, mass, norm = ctx.saved_tensors
        grad_assign = grads[0] if lse is not None else None
        grad_regions = grads[-1] if regions is not None else None
        tensors = [x, centers, sigma, *(grad for grad in grads if grad is not None)]
        if torch.is_grad_enabled() or not is_eager(*tensors):  # registered operators refuse second derivatives
            if lse is None:
                found = _vlad_pooling_backward(x, assign, centers, sigma, regions, mass, norm, grad_regions, ctx.lean)
                grad_x, grad_given, grad_centers, grad_sigma = found
                return grad_x, grad_centers, grad_sigma, grad_given, None, None
            known = (None, None, None) if grad_regions is None else (regions, mass, norm)
            found = _grouping_backward(x, centers, sigma, assign, lse, *known, grad_assign, grad_regions, ctx.lean)
            return *found, None, None, None
        pooled = None if grad_regions is None else (regions, mass, norm, grad_regions)
        need_x = ctx.needs_input_grad[0]
        found = backward(x, centers, sigma, assign, lse, pooled, grad_assign, need_x, ctx.lean)
        grad_x, grad_given, grad_centers, grad_sigma = found
        return grad_x, grad_centers, grad_sigma, grad_given, None, None


def region_grouping(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """kernels.region_grouping in Triton, arguments already checked."""
    lean = preferred() == "lean"
    if is_eager(x, centers, sigma):
        return _Grouping.apply(x, centers, sigma, None, True, lean)
    assign, _, regions, _, _ = _region_grouping(x, centers, sigma, lean)
    return assign, regions


def part_assignment(x: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """kernels.part_assignment in Triton, arguments already checked."""
    lean = preferred() == "lean"
    if is_eager(x, centers, sigma):
        return _Grouping.apply(x, centers, sigma, None, False, lean)
    return _part_assignment(x, centers, sigma, lean)[0]


def vlad_pooling(x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor) -> Tensor:
    """kernels.vlad_pooling in Triton, arguments already checked."""
    lean = preferred() == "lean"
    if is_eager(x, assign, centers, sigma):
        return _Grouping.apply(x, centers, sigma, assign, True, lean)
    return _vlad_pooling(x, assign, centers, sigma, lean)[0]
