"""Part occurrence in Triton: Gaussian smoothing and maximum in one kernel, the smoothed map never in memory.

Sizes: N images, K parts, H x W positions, R the radius of the window.

    t_k = max_o sum_d G_d q_k(o + d),    G_d = exp(-|d|^2 / (2 std^2)) / (sum_e exp(-e^2 / (2 std^2)))^2

The sums run over windows of 2R + 1 positions a side: those inside the map (``valid``), or those around every position,
with zeros outside (``same``). Of several equal maxima the first one counts. Only it has a gradient: with o* the winning
window, gq_k(p) = gt_k G_(p - o*) inside the window and 0 elsewhere. Kept for backward is the index of o* alone, 4 bytes
an image and part. N K H W elements are read forward and as many written backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import is_eager
from kernels.grouping import refuse_second_derivatives
from kernels.maps import strides_by_name
from kernels.reference import compute_dtype


@triton.jit
def _gaussian(b_distance, COMPUTE: tl.constexpr, STD: tl.constexpr, TOTAL: tl.constexpr):
    b_steps = b_distance.to(COMPUTE) / tl.full([], STD, COMPUTE)
    return tl.exp(-0.5 * b_steps * b_steps) / tl.full([], TOTAL, COMPUTE)


@triton.jit(do_not_specialize=["K", "H", "W", "MARGIN"])
def _forward_kernel(
    p_assign,  # [N, K, H, W]
    p_occurrence,  # [N, K], written
    p_winner,  # index of the winning window's centre in the map, [N, K], written
    K,
    H,
    W,
    MARGIN,  # centres start this far inside the map
    assign_n,
    assign_k,
    assign_h,
    assign_w,
    RADIUS: tl.constexpr,
    STD: tl.constexpr,
    TOTAL: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One map: all its windows, and the largest of them."""
    i_nk = tl.program_id(0).to(tl.int64)
    p_assign += i_nk // K * assign_n + i_nk % K * assign_k
    width = W - 2 * MARGIN
    windows = (H - 2 * MARGIN) * width
    largest = tl.full([], float("-inf"), COMPUTE)
    winner = tl.full([], 0, tl.int32)
    broken = tl.full([], 0, tl.int32)
    for first in range(0, windows, BLOCK):
        o_window = first + tl.arange(0, BLOCK)
        m_window = o_window < windows
        o_h, o_w = o_window // width + MARGIN, o_window % width + MARGIN
        b_smooth = tl.zeros([BLOCK], COMPUTE)
        for step_h in range(-RADIUS, RADIUS + 1):
            for step_w in range(-RADIUS, RADIUS + 1):
                o_row, o_column = o_h + step_h, o_w + step_w
                m_inside = m_window & (o_row >= 0) & (o_row < H) & (o_column >= 0) & (o_column < W)
                o_assign = o_row.to(tl.int64) * assign_h + o_column.to(tl.int64) * assign_w
                b_assign = tl.load(p_assign + o_assign, mask=m_inside, other=0).to(COMPUTE)
                weight_h = _gaussian(tl.full([], step_h, tl.int32), COMPUTE, STD, TOTAL)
                weight_w = _gaussian(tl.full([], step_w, tl.int32), COMPUTE, STD, TOTAL)
                b_smooth += weight_h * weight_w * b_assign
        m_broken = m_window & (b_smooth != b_smooth)
        b_candidates = tl.where(m_window & ~m_broken, b_smooth, float("-inf"))
        best, index = tl.max(b_candidates, 0, return_indices=True, return_indices_tie_break_left=True)
        index += first
        winner = tl.where(best > largest, (index // width + MARGIN) * W + index % width + MARGIN, winner)
        largest = tl.where(best > largest, best, largest)
        broken += tl.sum(m_broken.to(tl.int32), 0)
    tl.store(p_occurrence + i_nk, tl.where(broken > 0, float("nan"), largest))
    tl.store(p_winner + i_nk, winner)


@triton.jit(do_not_specialize=["K", "H", "W"])
def _backward_kernel(
    p_grad,  # [N, K]
    p_winner,  # [N, K]
    p_grad_assign,  # [N, K, H, W], written
    K,
    H,
    W,
    grad_n,
    grad_k,
    assign_n,
    assign_k,
    assign_h,
    assign_w,
    RADIUS: tl.constexpr,
    STD: tl.constexpr,
    TOTAL: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One map: the Gaussian around its winning window, times the gradient."""
    i_nk = tl.program_id(0).to(tl.int64)
    p_grad_assign += i_nk // K * assign_n + i_nk % K * assign_k
    grad = tl.load(p_grad + i_nk // K * grad_n + i_nk % K * grad_k).to(COMPUTE)
    winner = tl.load(p_winner + i_nk)
    for first in range(0, H * W, BLOCK):
        o_p = first + tl.arange(0, BLOCK)
        o_h, o_w = o_p // W, o_p % W
        o_step_h, o_step_w = o_h - winner // W, o_w - winner % W
        b_weight = _gaussian(o_step_h, COMPUTE, STD, TOTAL) * _gaussian(o_step_w, COMPUTE, STD, TOTAL)
        m_inside = (tl.abs(o_step_h) <= RADIUS) & (tl.abs(o_step_w) <= RADIUS)
        o_assign = o_h.to(tl.int64) * assign_h + o_w.to(tl.int64) * assign_w
        tl.store(p_grad_assign + o_assign, tl.where(m_inside, grad * b_weight, 0), mask=o_p < H * W)


def _map_arguments(assign: Tensor, radius: int, std: float) -> dict[str, Any]:
    """What both kernels take: sizes and strides of the maps, the Gaussian, and how many positions go at once."""
    K, H, W = assign.shape[1:]
    return {
        "K": K,
        "H": H,
        "W": W,
        **strides_by_name("assign", assign.stride(), "nkhw"),
        "RADIUS": radius,
        "STD": std,
        "TOTAL": math.fsum(math.exp(-0.5 * min(abs(step) / std, 1e3) ** 2) for step in range(-radius, radius + 1)),
        "COMPUTE": tl.float64 if compute_dtype(assign) == torch.float64 else tl.float32,
        "BLOCK": min(1024, triton.next_power_of_2(H * W)),
        "num_warps": 4,
    }


def _forward(assign: Tensor, radius: int, std: float, padding: str) -> tuple[Tensor, Tensor]:
    """occurrence and winner."""
    N, K = assign.shape[:2]
    occurrence = torch.empty((N, K), dtype=compute_dtype(assign), device=assign.device)
    winner = torch.empty((N, K), dtype=torch.int32, device=assign.device)
    if N == 0:
        return occurrence, winner
    with torch.cuda.device_of(assign):
        _forward_kernel[(N * K,)](
            p_assign=assign,
            p_occurrence=occurrence,
            p_winner=winner,
            MARGIN=radius if padding == "valid" else 0,
            **_map_arguments(assign, radius, std),
        )
    return occurrence, winner


def _backward(
    grad: Tensor, winner: Tensor, height: int, width: int, last: bool, dtype: torch.dtype, radius: int, std: float
) -> Tensor:
    """The gradient of assign [N, K, height, width]; channels_last if ``last``."""
    grad_assign = _empty_map(grad, height, width, last, dtype)
    N, K = grad.shape
    if N == 0:
        return grad_assign
    with torch.cuda.device_of(grad):
        _backward_kernel[(N * K,)](
            p_grad=grad,
            p_winner=winner,
            p_grad_assign=grad_assign,
            **strides_by_name("grad", grad.stride(), "nk"),
            **_map_arguments(grad_assign, radius, std),
        )
    return grad_assign


def _empty_map(grad: Tensor, height: int, width: int, last: bool, dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*grad.shape, height, width), dtype=dtype, device=grad.device, memory_format=layout)


@torch.library.custom_op("region_grouping::part_occurrence", mutates_args=())
def _part_occurrence(assign: Tensor, radius: int, std: float, padding: str) -> tuple[Tensor, Tensor]:
    return _forward(assign, radius, std, padding)


@_part_occurrence.register_fake
def _(assign: Tensor, radius: int, std: float, padding: str) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    occurrence = assign.new_empty(assign.shape[:2], dtype=compute_dtype(assign))
    return occurrence, assign.new_empty(assign.shape[:2], dtype=torch.int32)


@torch.library.custom_op("region_grouping::part_occurrence_backward", mutates_args=())
def _part_occurrence_backward(
    grad: Tensor, winner: Tensor, height: int, width: int, last: bool, dtype: torch.dtype, radius: int, std: float
) -> Tensor:
    return _backward(grad, winner, height, width, last, dtype, radius, std)


@_part_occurrence_backward.register_fake
def _(
    grad: Tensor, winner: Tensor, height: int, width: int, last: bool, dtype: torch.dtype, radius: int, std: float
) -> Tensor:
    del winner, radius, std
    return _empty_map(grad, height, width, last, dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    assign, radius, std, _ = inputs
    height, width = assign.shape[2:]
    ctx.settings = height, width, assign.stride(1) < assign.stride(3), assign.dtype, radius, std
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    return _part_occurrence_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


_part_occurrence.register_autograd(_differentiate, setup_context=_keep)
_part_occurrence_backward.register_autograd(refuse_second_derivatives)


class _Occurrence(torch.autograd.Function):
    """The operator as eager calls take it, without what registration costs the host."""

    @staticmethod
    def forward(ctx: Any, assign: Tensor, radius: int, std: float, padding: str) -> Tensor:
        occurrence, winner = _forward(assign, radius, std, padding)
        ctx.save_for_backward(winner)
        ctx.settings = *assign.shape[2:], assign.stride(1) < assign.stride(3), assign.dtype, radius, std
        return occurrence

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # The registered operator refuses second derivatives.
        registered = torch.is_grad_enabled() or not is_eager(grad)
        backward = _part_occurrence_backward if registered else _backward
        return backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


def part_occurrence(assign: Tensor, radius: int = 2, std: float = 0.4, padding: str = "valid") -> Tensor:
    """kernels.part_occurrence in Triton, arguments already checked."""
    if is_eager(assign):
        return _Occurrence.apply(assign, radius, std, padding)
    return _part_occurrence(assign, radius, std, padding)[0]
