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
gx takes one product [q h] [w; d].
"""

from __future__ import annotations

import triton
import triton.language as tl

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
def forward_kernel(
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
def direction_kernel(
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
def backward_kernel(
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
def parameters_kernel(
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
