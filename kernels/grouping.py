"""Assignment and pooling in Triton, a tile of positions at a time: what is launched, and what PyTorch sees of it.

``kernels.tile_kernels`` has the formulas and the kernels. Launches are planned once for equal calls.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import tile_kernels
from kernels.blocks import Blocks, choose_blocks
from kernels.dispatch import is_eager, preferred
from kernels.launches import Launch
from kernels.maps import Kind, capability, dense, empty_map, is_flat, kind, kind_of_map, strides_by_name
from kernels.reference import compute_dtype

INTERPRETED = triton.knobs.runtime.interpret


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
    first = Launch(tile_kernels.forward_kernel, (N * cut["T"], 1, 1), sizes, blocks.warps, blocks.stages, direct=lean)
    sizes = {**shared, "T": cut["T"], "BLOCK_C": triton.next_power_of_2(C)}
    return cut["T"], first, Launch(tile_kernels.normalize_kernel, (N * K, 1, 1), sizes, warps=4, direct=lean)


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
    directions = Launch(tile_kernels.direction_kernel, (N * K, 1, 1), sizes, warps=4, direct=lean)
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
    grid = (N * cut["T"], 1, 1)
    gradients = Launch(tile_kernels.backward_kernel, grid, sizes, blocks.warps, blocks.stages, direct=lean)
    sizes = {**shared, **asked, "N": N, "T": cut["T"], "BLOCK_N": 128 if lean else 32, "BLOCK_C": 64}
    grid = (K, triton.cdiv(C, 64), 1)
    parameters = Launch(tile_kernels.parameters_kernel, grid, sizes, warps=8 if lean else 4, direct=lean)
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
