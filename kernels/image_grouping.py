"""Assignment and pooling in Triton, an image at a time: what is launched, and what PyTorch sees of it.

``kernels.image_kernels`` has the kernels, ``kernels.dispatch`` the rule of what they take.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import grouping, image_kernels, tile_kernels
from kernels.blocks import ImageBlocks, choose_image_blocks, slices_of
from kernels.dispatch import is_eager, takes_image
from kernels.launches import Launch
from kernels.maps import Kind, aligned, capability, dense, empty_map, is_flat, kind, kind_of_map, strides_by_name


def _descriptor(x: Tensor, positions: int, channels: int) -> TensorDescriptor:
    """Of positions and channels [N, P, C], of which a step takes so many."""
    N, C, H, W = x.shape
    return TensorDescriptor(x, [N, H * W, C], [H * W * C, C, 1], [1, positions, channels])


def _dictionary_strides(centers: Kind, sigma: Kind) -> dict[str, int]:
    return strides_by_name("centers", centers[1], "kc") | strides_by_name("sigma", sigma[1], "k")


def _cut(blocks: ImageBlocks) -> dict[str, int]:
    return {"T": blocks.spans, "SPAN": blocks.span, "STEPS": blocks.steps}


def _constants(blocks: ImageBlocks, channels: int) -> dict[str, int]:
    return {
        "S": slices_of(channels),
        "BLOCK_P": blocks.positions,
        "BLOCK_C": channels,
        "BLOCK_K": blocks.parts,
        "STAGES": blocks.stages,
    }


@functools.lru_cache(maxsize=64)
def _plan_forward(
    N: int, C: int, P: int, K: int, centers: Kind, sigma: Kind, device: torch.device
) -> tuple[ImageBlocks, Launch, Launch]:
    """How images are cut, the launch, and that of the second kernel where an image has several spans."""
    del device  # what is compiled belongs to it
    blocks = choose_image_blocks(N, P, C, K, forward=True)
    dictionary = _dictionary_strides(centers, sigma)
    sizes = {
        "N": N,
        "C": C,
        "P": P,
        "K": K,
        **_cut(blocks),
        **dictionary,
        "assign_n": P * K,
        "assign_k": 1,
        "assign_w": K,
        "WHOLE": blocks.spans == 1,
        **_constants(blocks, blocks.channels),
    }
    first = Launch(image_kernels.forward_kernel, (N * blocks.spans, 1, 1), sizes, blocks.warps)
    sizes = {"C": C, "K": K, "T": blocks.spans, **dictionary, "COMPUTE": tl.float32, "BLOCK_C": blocks.channels}
    return blocks, first, Launch(tile_kernels.normalize_kernel, (N * K, 1, 1), sizes, warps=4)


@functools.lru_cache(maxsize=64)
def _plan_backward(
    N: int,
    C: int,
    P: int,
    K: int,
    centers: Kind,
    sigma: Kind,
    grad_assign: Kind | None,
    grad_regions: Kind | None,
    need_x: bool,
    device: torch.device,
) -> tuple[ImageBlocks, Launch, Launch | None, Launch]:
    """How images are cut, the launch, that of a second pass, and that which adds up the gradients of the parameters."""
    del need_x, device  # what is compiled belongs to them
    blocks = choose_image_blocks(N, P, C, K, forward=False)
    dictionary = _dictionary_strides(centers, sigma)
    assign_strides = (0, 0, 0, 0) if grad_assign is None else grad_assign[1]
    region_strides = (0, 0, 0) if grad_regions is None else grad_regions[1]
    shape = {"N": N, "C": C, "P": P, "K": K, **_cut(blocks)}
    lies = {"assign_n": P * K, "assign_k": 1, "assign_w": K}
    sizes = {
        **shape,
        **dictionary,
        **lies,
        **strides_by_name("grad", assign_strides, "nkhw"),
        **strides_by_name("regions", region_strides, "nkc"),
        **_constants(blocks, blocks.channels),
    }
    first = Launch(image_kernels.backward_kernel, (N * blocks.spans, 1, 1), sizes, blocks.warps)
    second = None
    if blocks.passes == 2:
        grid = (N * blocks.spans, triton.cdiv(C, blocks.second), 1)
        sizes = {**shape, **dictionary, **lies, "POOL": grad_regions is not None, **_constants(blocks, blocks.second)}
        second = Launch(image_kernels.channels_kernel, grid, sizes, blocks.warps)
    sizes = {"NT": N * blocks.spans, "C": C, "K": K, **dictionary, "BLOCK_NT": 128, "BLOCK_C": 64}
    return blocks, first, second, Launch(image_kernels.parameters_kernel, (K, triton.cdiv(C, 64), 1), sizes, warps=8)


def _new_outputs(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = x.shape
    K = centers.shape[0]
    regions = torch.empty((N, K, C), dtype=torch.float32, device=x.device)
    assign = torch.empty((N, K, H, W), dtype=torch.float32, device=x.device, memory_format=torch.channels_last)
    return assign, regions, torch.empty((2 * N * (H * W + K),), dtype=torch.float32, device=x.device)


def _masses_and_norms(kept: Tensor, N: int, K: int) -> tuple[Tensor, Tensor]:
    mass, norm = kept[kept.numel() - 2 * N * K :].view(2, N, K)
    return mass, norm


def _forward(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """assign, regions, and what is kept for backward."""
    N, C, H, W = x.shape
    K = centers.shape[0]
    assign, regions, kept = _new_outputs(x, centers)
    if N == 0:
        return assign, regions, kept
    x = aligned(x)
    blocks, launch, finish = _plan_forward(N, C, H * W, K, kind(centers), kind(sigma), x.device)
    T, sums, masses = blocks.spans, None, None
    if T > 1:
        sums, masses = regions.new_empty((N, T, K, C)), regions.new_empty((N, T, K))
    with torch.cuda.device_of(x):
        launch(
            d_x=_descriptor(x, blocks.positions, blocks.channels),
            p_centers=centers,
            p_sigma=sigma,
            p_assign=assign,
            p_kept=kept,
            p_regions=regions,
            p_sums=sums,
            p_masses=masses,
        )
        if T > 1:
            mass, norm = _masses_and_norms(kept, N, K)
            finish(
                p_sums=sums,
                p_masses=masses,
                p_centers=centers,
                p_sigma=sigma,
                p_regions=regions,
                p_mass=mass,
                p_norm=norm,
            )
    return assign, regions, kept


def _backward(
    x: Tensor,
    centers: Tensor,
    sigma: Tensor,
    assign: Tensor,
    regions: Tensor,
    kept: Tensor,
    grad_assign: Tensor | None,
    grad_regions: Tensor | None,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x (None unless it is needed), centers and sigma."""
    N, C, H, W = x.shape
    K, P = centers.shape[0], H * W
    last = assign.is_contiguous(memory_format=torch.channels_last)  # hooks may have stored it otherwise
    if not (last and takes_image(x, centers, capability(x), forward=False)):
        largest, total = kept[: 2 * N * P].view(N, P, 2).unbind(2)
        lse = (largest + total.log2()) * math.log(2)
        mass, norm = _masses_and_norms(kept, N, K)
        pooled = None if grad_regions is None else (regions, mass, norm, grad_regions)
        grad_x, _, grad_centers, grad_sigma = grouping.backward(
            x, centers, sigma, assign, lse, pooled, grad_assign, need_x
        )
        return grad_x, grad_centers, grad_sigma
    grad_x = empty_map(x, C, x.dtype) if need_x else None
    if N == 0:
        return grad_x, centers.new_zeros(centers.shape), sigma.new_zeros(sigma.shape)
    grad_centers, grad_sigma = centers.new_empty(centers.shape), sigma.new_empty(sigma.shape)
    x, assign, regions, kept = aligned(x), aligned(assign), dense(regions), dense(kept)
    if grad_assign is not None and not is_flat(H, W, kind_of_map(grad_assign)):
        grad_assign = grad_assign.contiguous(memory_format=torch.channels_last)
    assign_kind = None if grad_assign is None else kind_of_map(grad_assign)
    regions_kind = None if grad_regions is None else kind(grad_regions)
    blocks, launch, second, finish = _plan_backward(
        N, C, P, K, kind(centers), kind(sigma), assign_kind, regions_kind, need_x, x.device
    )
    new = functools.partial(torch.empty, dtype=torch.float32, device=x.device)
    sums = new((N * blocks.spans * K * (C + 2),))
    between = None if second is None else new((N * K * (C + P),))
    with torch.cuda.device_of(x):
        launch(
            d_x=_descriptor(x, blocks.positions, blocks.channels),
            d_grad_x=None
            if grad_x is None or second is not None
            else _descriptor(grad_x, blocks.positions, blocks.channels),
            p_centers=centers,
            p_sigma=sigma,
            p_assign=assign,
            p_kept=kept,
            p_regions=regions,
            p_grad_assign=grad_assign,
            p_grad_regions=grad_regions,
            p_between=between,
            p_sums=sums,
        )
        if second is not None:
            second(
                d_x=_descriptor(x, blocks.positions, blocks.second),
                d_grad_x=None if grad_x is None else _descriptor(grad_x, blocks.positions, blocks.second),
                p_centers=centers,
                p_assign=assign,
                p_kept=kept,
                p_between=between,
                p_sums=sums,
            )
        finish(p_centers=centers, p_sigma=sigma, p_sums=sums, p_grad_centers=grad_centers, p_grad_sigma=grad_sigma)
    return grad_x, grad_centers, grad_sigma


@torch.library.custom_op("region_grouping::image_grouping", mutates_args=())
def _image_grouping(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, centers, sigma)


@_image_grouping.register_fake
def _(x: Tensor, centers: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _new_outputs(x, centers)


@torch.library.custom_op("region_grouping::image_grouping_backward", mutates_args=())
def _image_grouping_backward(
    x: Tensor,
    centers: Tensor,
    sigma: Tensor,
    assign: Tensor,
    regions: Tensor,
    kept: Tensor,
    grad_assign: Tensor | None,
    grad_regions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(x, centers, sigma, assign, regions, kept, grad_assign, grad_regions, need_x=True)  # type: ignore[return-value]


@_image_grouping_backward.register_fake
def _(x: Tensor, centers: Tensor, sigma: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return empty_map(x, x.shape[1], x.dtype), centers.new_empty(centers.shape), sigma.new_empty(sigma.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_assign: Tensor | None, grad_regions: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    if grad_assign is None and grad_regions is None:
        return None, None, None
    return _image_grouping_backward(*ctx.saved_tensors, grad_assign, grad_regions)


_image_grouping.register_autograd(_differentiate, setup_context=_keep)
_image_grouping_backward.register_autograd(grouping.refuse_second_derivatives)


class _ImageGrouping(torch.autograd.Function):
    """The operator as eager calls take it, without what registration costs the host."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        assign, regions, kept = _forward(x, centers, sigma)
        ctx.save_for_backward(x, centers, sigma, assign, regions, kept)
        ctx.set_materialize_grads(False)
        return assign, regions

    @staticmethod
    def backward(ctx: Any, grad_assign: Tensor | None, grad_regions: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_assign is None and grad_regions is None:
            return None, None, None
        x, centers, sigma, assign, regions, kept = ctx.saved_tensors
        tensors = [x, centers, sigma, *(grad for grad in (grad_assign, grad_regions) if grad is not None)]
        if torch.is_grad_enabled() or not is_eager(*tensors):  # the registered operator refuses second derivatives
            return _image_grouping_backward(x, centers, sigma, assign, regions, kept, grad_assign, grad_regions)
        need_x = ctx.needs_input_grad[0]
        return _backward(x, centers, sigma, assign, regions, kept, grad_assign, grad_regions, need_x)


def region_grouping(x: Tensor, centers: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """kernels.region_grouping an image at a time, arguments already checked."""
    if is_eager(x, centers, sigma):
        return _ImageGrouping.apply(x, centers, sigma)
    assign, regions, _ = _image_grouping(x, centers, sigma)
    return assign, regions
