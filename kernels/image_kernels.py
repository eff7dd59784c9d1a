"""Assignment and pooling in Triton, an image at a time: features are read once, and used from shared memory.

Sizes: N images, C channels, P = H x W positions, K parts. Formulas are those of ``kernels.tile_kernels``; what differs
is how the work is cut. One program takes a whole image (or one of T spans of its positions, where images are fewer than
multiprocessors), a few positions with all their channels a step. The step comes through a tensor descriptor into shared
memory while the one before is worked on. All products are taken from there, so memory sees x once: N C P elements read
forward, N C P read and N C P written backward.

Channels are cut into S slices, one for every warp, and products are batched over them:

    forward     x . d (two halves of d), |x|^2 (the diagonal of x x^T), then x^T q (two halves of q)
    backward    x . w (two halves of w), then x^T h (two halves of h), then [q h] [w; d] (three products of halves)

Where registers cannot hold all of that, backward takes two passes: the first makes h with all channels, the second does
the rest with some of the channels a program. Then memory sees x twice, and w and h in between.

Kept for backward are q and z, which are outputs anyway, and one row of numbers: of every position the largest logit and
the sum of exponentials, both to base 2, of every part its mass and the length of its residual.

It takes bfloat16 features in channels_last on GPUs with tensor descriptors and 227 KB of shared memory;
``kernels.dispatch`` has the rule.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.products import MASS_FLOOR, NORM_FLOOR, add_product, at_least, halves

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _sliced(b_flat, S: tl.constexpr, SLICE: tl.constexpr, BLOCK_P: tl.constexpr, WAY: tl.constexpr):
    """Positions [P, C] -> slices [S, P, C / S].

    The same for every WAY. But to the compiler each is a value of its own, which it reads from shared memory for one
    product; a value that feeds several products is copied, or spilled.
    """
    b_split = tl.reshape(b_flat, [BLOCK_P, S, WAY, SLICE // WAY])
    return tl.reshape(tl.permute(b_split, (1, 0, 2, 3)), [S, BLOCK_P, SLICE])


@triton.jit(do_not_specialize=["N", "P", "K", "T", "SPAN", "STEPS"])
def forward_kernel(
    d_x,  # descriptor of x [N, P, C]
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_assign,  # [N, K, H, W], written
    p_kept,  # [N, P, 2], then masses [N, K] and norms [N, K], written; the last two if WHOLE
    p_regions,  # [N, K, C], written if WHOLE
    p_sums,  # [N, T, K, C], written if not WHOLE
    p_masses,  # [N, T, K], written if not WHOLE
    N,
    C,
    P,
    K,
    T,
    SPAN,
    STEPS,
    centers_k,
    centers_c,
    sigma_k,
    assign_n,
    assign_k,
    assign_w,
    WHOLE: tl.constexpr,
    S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One image, or a span of its positions: assignments, and their sums over the features."""
    SLICE: tl.constexpr = BLOCK_C // S
    i_nt = tl.program_id(0).to(tl.int64)
    i_n, i_t = i_nt // T, i_nt % T
    o_p, o_k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, S)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, :, None]  # [S, SLICE, 1]
    m_k = o_k < K
    m_centers = (o_c < C) & m_k[None, None, :]
    o_centers = o_k[None, None, :] * centers_k + o_c * centers_c
    b_centers = tl.load(p_centers + o_centers, mask=m_centers, other=0).to(tl.float32)
    b_center_squares = tl.sum(tl.sum(b_centers * b_centers, 0), 0)
    b_high, b_low = halves(b_centers)
    b_sigma = tl.where(m_k, tl.load(p_sigma + o_k * sigma_k, mask=m_k, other=0).to(tl.float32), 1)
    b_factor = -_LOG2_E / (2 * b_sigma * b_sigma)
    p_assign += i_n * assign_n
    p_lse = p_kept + i_n * P * 2
    b_sums = tl.zeros([S, SLICE, BLOCK_K], tl.float32)
    b_masses = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    start = (i_t * SPAN).to(tl.int32)
    stop = tl.minimum(start + SPAN, P)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        first = start + step * BLOCK_P
        o_here = first + o_p
        m_p = o_here < stop
        b_flat = d_x.load([i_n.to(tl.int32), first, 0]).reshape(BLOCK_P, BLOCK_C)
        b_x = _sliced(b_flat, S, SLICE, BLOCK_P, 1)
        b_products = add_product(b_x, b_low, tl.zeros([S, BLOCK_P, BLOCK_K], tl.float32))
        b_products += add_product(
            _sliced(b_flat, S, SLICE, BLOCK_P, 2), b_high, tl.zeros([S, BLOCK_P, BLOCK_K], tl.float32)
        )
        b_gram = add_product(
            _sliced(b_flat, S, SLICE, BLOCK_P, 4),
            tl.permute(b_x, (0, 2, 1)),
            tl.zeros([S, BLOCK_P, BLOCK_P], tl.float32),
        )
        b_squares = tl.sum(tl.where(o_p[None, :, None] == o_p[None, None, :], b_gram, 0), 2)  # [S, P]
        b_distances = tl.sum(b_squares[:, :, None] - 2 * b_products, 0) + b_center_squares[None, :]
        b_logits = tl.where(m_k[None, :], b_distances * b_factor[None, :], float("-inf"))
        b_largest = tl.max(b_logits, 1)
        b_exponentials = tl.exp2(b_logits - b_largest[:, None])
        b_total = tl.sum(b_exponentials, 1)
        b_root = tl.rsqrt(b_total)  # of 1 to K; two roots are faster than one division
        b_assign = b_exponentials * (b_root * b_root)[:, None]
        o_assign = o_here[:, None] * assign_w + o_k[None, :] * assign_k
        tl.store(p_assign + o_assign, b_assign, mask=m_p[:, None] & m_k[None, :])
        tl.store(p_lse + 2 * o_here, b_largest, mask=m_p)
        tl.store(p_lse + 2 * o_here + 1, b_total, mask=m_p)
        b_assign = tl.where(m_p[:, None], b_assign, 0)
        b_masses += b_assign
        b_assign_high, b_assign_low = halves(b_assign)
        b_x_transposed = tl.permute(b_x, (0, 2, 1))
        b_sums = add_product(b_x_transposed, tl.broadcast_to(b_assign_low[None], [S, BLOCK_P, BLOCK_K]), b_sums)
        b_x_transposed = tl.permute(_sliced(b_flat, S, SLICE, BLOCK_P, 8), (0, 2, 1))
        b_sums = add_product(b_x_transposed, tl.broadcast_to(b_assign_high[None], [S, BLOCK_P, BLOCK_K]), b_sums)
    b_mass = tl.sum(b_masses, 0)
    if WHOLE:
        b_centers = tl.load(p_centers + o_centers, mask=m_centers, other=0).to(tl.float32)
        b_mean = b_sums * (1 / at_least(b_mass, MASS_FLOOR))[None, None, :]
        b_residual = (b_mean - b_centers) * (1 / b_sigma)[None, None, :]
        b_norm = tl.sqrt(tl.sum(tl.sum(b_residual * b_residual, 1), 0))
        b_regions = b_residual * (1 / at_least(b_norm, NORM_FLOOR))[None, None, :]
        tl.store(p_regions + (i_n * K + o_k)[None, None, :] * C + o_c, b_regions, mask=m_centers)
        p_mass = p_kept + N.to(tl.int64) * P * 2
        tl.store(p_mass + i_n * K + o_k, b_mass, mask=m_k)
        tl.store(p_mass + (N + i_n) * K + o_k, b_norm, mask=m_k)
    else:
        tl.store(p_sums + (i_nt * K + o_k)[None, None, :] * C + o_c, b_sums, mask=m_centers)
        tl.store(p_masses + i_nt * K + o_k, b_mass, mask=m_k)


@triton.jit
def _both_halves(b_directions, b_centers, S: tl.constexpr, SLICE: tl.constexpr, BLOCK_K: tl.constexpr):
    """Halves of [w; d], [S, 2 K, C / S]: rows 0 to K - 1 are the directions, K to 2 K - 1 the centres."""
    b_both = tl.join(tl.permute(b_directions, (0, 2, 1)), tl.permute(b_centers, (0, 2, 1)))
    return halves(tl.reshape(tl.permute(b_both, (0, 3, 1, 2)), [S, 2 * BLOCK_K, SLICE]))


@triton.jit
def _add_sums(
    b_flat,
    b_pull,
    b_sums,
    S: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sum_p h x with what some positions add."""
    b_pull_high, b_pull_low = halves(b_pull)
    b_x_transposed = tl.permute(_sliced(b_flat, S, SLICE, BLOCK_P, 4), (0, 2, 1))
    b_sums = add_product(b_x_transposed, tl.broadcast_to(b_pull_low[None], [S, BLOCK_P, BLOCK_K]), b_sums)
    b_x_transposed = tl.permute(_sliced(b_flat, S, SLICE, BLOCK_P, 8), (0, 2, 1))
    return add_product(b_x_transposed, tl.broadcast_to(b_pull_high[None], [S, BLOCK_P, BLOCK_K]), b_sums)


@triton.jit
def _gradient(
    b_flat,
    b_assign,
    b_pull,
    b_both_high,
    b_both_low,
    S: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient of some positions of x, [1, P, C]."""
    b_left = tl.reshape(tl.permute(tl.join(b_assign, b_pull), (0, 2, 1)), [BLOCK_P, 2 * BLOCK_K])
    b_left_high, b_left_low = halves(b_left)
    b_left_high = tl.broadcast_to(b_left_high[None], [S, BLOCK_P, 2 * BLOCK_K])
    b_left_low = tl.broadcast_to(b_left_low[None], [S, BLOCK_P, 2 * BLOCK_K])
    b_grad_x = add_product(b_left_low, b_both_high, tl.zeros([S, BLOCK_P, SLICE], tl.float32))
    b_grad_x = add_product(b_left_high, b_both_low, b_grad_x)
    b_grad_x = add_product(b_left_high, b_both_high, b_grad_x)
    b_grad_x -= tl.sum(b_pull, 1)[None, :, None] * _sliced(b_flat, S, SLICE, BLOCK_P, 16).to(tl.float32)
    return tl.reshape(tl.permute(b_grad_x.to(tl.bfloat16), (1, 0, 2)), [1, BLOCK_P, S * SLICE])


@triton.jit(do_not_specialize=["N", "P", "K", "T", "SPAN", "STEPS"])
def backward_kernel(
    d_x,  # descriptor of x [N, P, C]
    d_grad_x,  # descriptor of the gradient of x [N, P, C], written; None if nobody asks
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_assign,  # [N, K, H, W]
    p_kept,  # as in forward
    p_regions,  # [N, K, C]
    p_grad_assign,  # g^q [N, K, H, W] or None
    p_grad_regions,  # g^z [N, K, C] or None
    p_between,  # w [N, K, C] (if there is g^z), then h [N, P, K], written for a second pass; None if there is none
    p_sums,  # sum_p h x - w max(m, 1e-5) [N T, K, C], then sum_p h and sum_p h s [N T, K], written
    N,
    C,
    P,
    K,
    T,
    SPAN,
    STEPS,
    centers_k,
    centers_c,
    sigma_k,
    assign_n,
    assign_k,
    assign_w,
    grad_n,
    grad_k,
    grad_w,
    regions_n,  # strides of g^z
    regions_k,
    regions_c,
    S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One image, or a span of its positions: their gradients, and sums for those of the parameters.

    If a second pass follows, it writes what that needs instead of the gradients and of the sums over the features.
    """
    SLICE: tl.constexpr = BLOCK_C // S
    i_nt = tl.program_id(0).to(tl.int64)
    i_n, i_t = i_nt // T, i_nt % T
    o_p, o_k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, S)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, :, None]  # [S, SLICE, 1]
    m_k = o_k < K
    m_kc = (o_c < C) & m_k[None, None, :]
    b_sigma = tl.where(m_k, tl.load(p_sigma + o_k * sigma_k, mask=m_k, other=0).to(tl.float32), 1)
    b_factor = 1 / (b_sigma * b_sigma)
    b_directions = tl.zeros([S, SLICE, BLOCK_K], tl.float32)
    b_offsets = tl.zeros([BLOCK_K], tl.float32)
    b_sums = tl.zeros([S, SLICE, BLOCK_K], tl.float32)
    if p_grad_regions is not None:
        p_mass = p_kept + N.to(tl.int64) * P * 2
        b_mass = tl.load(p_mass + i_n * K + o_k, mask=m_k, other=1)
        b_norm = at_least(tl.load(p_mass + (N + i_n) * K + o_k, mask=m_k, other=1), NORM_FLOOR)
        b_regions = tl.load(p_regions + (i_n * K + o_k)[None, None, :] * C + o_c, mask=m_kc, other=0)
        o_regions = i_n * regions_n + o_k[None, None, :] * regions_k + o_c * regions_c
        b_grad = tl.load(p_grad_regions + o_regions, mask=m_kc, other=0).to(tl.float32)
        b_along = tl.sum(tl.sum(b_regions * b_grad, 1), 0)
        b_along = tl.where(b_norm > NORM_FLOOR, b_along, 0)
        b_floored = at_least(b_mass, MASS_FLOOR)
        b_divisor = b_norm * b_sigma * b_floored
        b_directions = (b_grad - b_regions * b_along[None, None, :]) * (1 / b_divisor)[None, None, :]
    b_centers = tl.load(p_centers + o_k[None, None, :] * centers_k + o_c * centers_c, mask=m_kc, other=0)
    b_centers = b_centers.to(tl.float32)
    if p_grad_regions is not None:
        b_mean = b_regions * (b_norm * b_sigma)[None, None, :] + b_centers
        b_offsets = tl.where(b_mass > MASS_FLOOR, tl.sum(tl.sum(b_directions * b_mean, 1), 0), 0)
        if p_between is None:
            b_sums -= tl.where(i_t == 0, b_directions * b_floored[None, None, :], 0)
        else:
            tl.store(p_between + (i_n * K + o_k)[None, None, :] * C + o_c, b_directions, mask=m_kc & (i_t == 0))
    b_high, b_low = halves(b_directions)
    if p_between is None:
        b_both_high, b_both_low = _both_halves(b_directions, b_centers, S, SLICE, BLOCK_K)
    p_assign += i_n * assign_n
    p_lse = p_kept + i_n * P * 2
    b_weight_sums = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    b_logit_sums = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    start = (i_t * SPAN).to(tl.int32)
    stop = tl.minimum(start + SPAN, P)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        first = start + step * BLOCK_P
        o_here = first + o_p
        m_p = o_here < stop
        m_pk = m_p[:, None] & m_k[None, :]
        o_assign = o_here[:, None] * assign_w + o_k[None, :] * assign_k
        b_assign = tl.load(p_assign + o_assign, mask=m_pk, other=0)
        b_largest = tl.load(p_lse + 2 * o_here, mask=m_p, other=0)
        b_total = tl.load(p_lse + 2 * o_here + 1, mask=m_p, other=1)
        b_flat = d_x.load([i_n.to(tl.int32), first, 0]).reshape(BLOCK_P, BLOCK_C)
        b_products = add_product(
            _sliced(b_flat, S, SLICE, BLOCK_P, 1), b_low, tl.zeros([S, BLOCK_P, BLOCK_K], tl.float32)
        )
        b_products += add_product(
            _sliced(b_flat, S, SLICE, BLOCK_P, 2), b_high, tl.zeros([S, BLOCK_P, BLOCK_K], tl.float32)
        )
        b_slopes = tl.sum(b_products, 0) - b_offsets[None, :]
        if p_grad_assign is not None:
            o_grad = i_n * grad_n + o_here[:, None] * grad_w + o_k[None, :] * grad_k
            b_slopes += tl.load(p_grad_assign + o_grad, mask=m_pk, other=0).to(tl.float32)
        b_pull = b_assign * (b_slopes - tl.sum(b_assign * b_slopes, 1)[:, None]) * b_factor[None, :]
        b_pull = tl.where(m_pk, b_pull, 0)
        b_weight_sums += b_pull
        b_power = tl.where(b_assign > 0, b_assign * b_total[:, None], 1)
        b_logit_sums += b_pull * (tl.log2(b_power) + b_largest[:, None]) * _LN_2
        if p_between is None:
            b_sums = _add_sums(b_flat, b_pull, b_sums, S, SLICE, BLOCK_P, BLOCK_K)
            if d_grad_x is not None:
                b_rows = _gradient(b_flat, b_assign, b_pull, b_both_high, b_both_low, S, SLICE, BLOCK_P, BLOCK_K)
                d_grad_x.store([i_n.to(tl.int32), first, 0], b_rows)
        else:
            p_pull = p_between + N.to(tl.int64) * K * C + i_n * P * K
            tl.store(p_pull + o_here[:, None] * K + o_k[None, :], b_pull, mask=m_pk)
    if p_between is None:
        tl.store(p_sums + (i_nt * K + o_k)[None, None, :] * C + o_c, b_sums, mask=m_kc)
    p_weight_sums = p_sums + N.to(tl.int64) * T * K * C
    tl.store(p_weight_sums + i_nt * K + o_k, tl.sum(b_weight_sums, 0), mask=m_k)
    tl.store(p_weight_sums + (N.to(tl.int64) * T + i_nt) * K + o_k, tl.sum(b_logit_sums, 0), mask=m_k)


@triton.jit(do_not_specialize=["N", "P", "K", "T", "SPAN", "STEPS"])
def channels_kernel(
    d_x,  # descriptor of x [N, P, C]
    d_grad_x,  # descriptor of the gradient of x [N, P, C], written; None if nobody asks
    p_centers,  # [K, C]
    p_assign,  # [N, K, H, W]
    p_kept,  # as in forward
    p_between,  # as the first pass wrote it
    p_sums,  # sum_p h x - w max(m, 1e-5) [N T, K, C], written
    N,
    C,
    P,
    K,
    T,
    SPAN,
    STEPS,
    centers_k,
    centers_c,
    assign_n,
    assign_k,
    assign_w,
    POOL: tl.constexpr,
    S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The second pass over some channels of an image, or of a span of its positions: their gradients and their sums."""
    SLICE: tl.constexpr = BLOCK_C // S
    i_nt = tl.program_id(0).to(tl.int64)
    i_n, i_t = i_nt // T, i_nt % T
    o_p, o_k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    first_channel = tl.program_id(1) * BLOCK_C
    o_c = first_channel + tl.arange(0, S)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, :, None]  # [S, SLICE, 1]
    m_k = o_k < K
    m_kc = (o_c < C) & m_k[None, None, :]
    b_directions = tl.zeros([S, SLICE, BLOCK_K], tl.float32)
    b_sums = tl.zeros([S, SLICE, BLOCK_K], tl.float32)
    if POOL:
        b_directions = tl.load(p_between + (i_n * K + o_k)[None, None, :] * C + o_c, mask=m_kc, other=0)
        b_mass = tl.load(p_kept + N.to(tl.int64) * P * 2 + i_n * K + o_k, mask=m_k, other=1)
        b_sums -= tl.where(i_t == 0, b_directions * at_least(b_mass, MASS_FLOOR)[None, None, :], 0)
    if d_grad_x is not None:
        b_centers = tl.load(p_centers + o_k[None, None, :] * centers_k + o_c * centers_c, mask=m_kc, other=0)
        b_both_high, b_both_low = _both_halves(b_directions, b_centers.to(tl.float32), S, SLICE, BLOCK_K)
    p_assign += i_n * assign_n
    p_pull = p_between + N.to(tl.int64) * K * C + i_n * P * K
    start = (i_t * SPAN).to(tl.int32)
    stop = tl.minimum(start + SPAN, P)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        first = start + step * BLOCK_P
        o_here = first + o_p
        m_pk = (o_here < stop)[:, None] & m_k[None, :]
        b_pull = tl.load(p_pull + o_here[:, None] * K + o_k[None, :], mask=m_pk, other=0)
        b_flat = d_x.load([i_n.to(tl.int32), first, first_channel]).reshape(BLOCK_P, BLOCK_C)
        b_sums = _add_sums(b_flat, b_pull, b_sums, S, SLICE, BLOCK_P, BLOCK_K)
        if d_grad_x is not None:
            b_assign = tl.load(p_assign + o_here[:, None] * assign_w + o_k[None, :] * assign_k, mask=m_pk, other=0)
            b_rows = _gradient(b_flat, b_assign, b_pull, b_both_high, b_both_low, S, SLICE, BLOCK_P, BLOCK_K)
            d_grad_x.store([i_n.to(tl.int32), first, first_channel], b_rows)
    tl.store(p_sums + (i_nt * K + o_k)[None, None, :] * C + o_c, b_sums, mask=m_kc)


@triton.jit(do_not_specialize=["NT", "K"])
def parameters_kernel(
    p_centers,  # [K, C]
    p_sigma,  # [K]
    p_sums,  # as backward writes them
    p_grad_centers,  # [K, C], written
    p_grad_sigma,  # [K], written
    NT,
    C,
    K,
    centers_k,
    centers_c,
    sigma_k,
    BLOCK_NT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some channels of one part: the gradients of its centre and bandwidth."""
    i_k, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    p_weights = p_sums + NT.to(tl.int64) * K * C
    b_grad = tl.zeros([BLOCK_C], tl.float32)
    weight, logit = tl.zeros([], tl.float32), tl.zeros([], tl.float32)
    for first in range(0, NT, BLOCK_NT):
        o_nt = first + tl.arange(0, BLOCK_NT)
        m_nt = o_nt < NT
        o_ntk = o_nt.to(tl.int64) * K + i_k
        b_sums = tl.load(p_sums + o_ntk[:, None] * C + o_c[None, :], mask=m_nt[:, None] & m_c[None, :], other=0)
        b_grad += tl.sum(b_sums, 0)
        weight += tl.sum(tl.load(p_weights + o_ntk, mask=m_nt, other=0), 0)
        logit += tl.sum(tl.load(p_weights + NT.to(tl.int64) * K + o_ntk, mask=m_nt, other=0), 0)
    b_centers = tl.load(p_centers + i_k * centers_k + o_c * centers_c, mask=m_c, other=0).to(tl.float32)
    tl.store(p_grad_centers + i_k * C + o_c, b_grad - weight * b_centers, mask=m_c)
    if i_c == 0:
        sigma = tl.load(p_sigma + i_k * sigma_k).to(tl.float32)
        tl.store(p_grad_sigma + i_k, -2 * sigma * logit)
