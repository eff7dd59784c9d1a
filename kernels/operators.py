"""The public operators: arguments are checked here, and here it is decided who computes.

On a GPU, Triton does (``kernels.grouping`` or, if preferred, ``kernels.image_grouping``; ``kernels.occurrence``).
Elsewhere plain PyTorch does (``kernels.reference``), and under ``torch.export`` too, so that what is exported runs
where these operators are not installed.
With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter takes the place of a GPU, to test the kernels with.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.dispatch import preferred, takes_image
from kernels.maps import capability

if importlib.util.find_spec("triton"):
    from kernels import grouping, image_grouping, occurrence

    INTERPRETED = grouping.INTERPRETED
else:
    grouping = image_grouping = occurrence = None  # type: ignore[assignment]
    INTERPRETED = False

MAX_PARTS = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def region_grouping(x: Tensor, centers: Tensor, sigma: Tensor, *, check_values: bool = True) -> tuple[Tensor, Tensor]:
    """Assign every position to the parts and pool one feature per part (Eq. 1 and Eq. 3).

    Args:
        x: Features [N, C, H, W], any float dtype and memory layout.
        centers: Part dictionary [K, C], K from 1 to 64.
        sigma: Bandwidth of every part [K], positive.
        check_values: Look whether sigma is positive. A model in training passes False: what has become NaN or 0 there
            makes the results NaN, and a loss tells that on every device alike.

    Returns:
        assign: [N, K, H, W], sums to 1 over K.
        regions: [N, K, C], unit length.
        Both are float32, or float64 if the arguments are, whatever autocast says. float64 goes with float64 only.

    Raises:
        ValueError: ranks, sizes, dtypes or devices do not fit together, or sigma is not positive. On a GPU the values
            of sigma are not looked at, because that would wait for the device.
    """
    _check_dictionary(x, centers, sigma)
    if check_values:
        _check_positive(sigma)
    provider = _provider(x, grouping)
    if provider is grouping and preferred() == "image" and takes_image(x, centers, capability(x)):
        provider = image_grouping
    return provider.region_grouping(x, centers, sigma)


def part_assignment(x: Tensor, centers: Tensor, sigma: Tensor, *, check_values: bool = True) -> Tensor:
    """Soft assignment of every position to the parts of the dictionary (Eq. 1).

    Args and errors are those of ``region_grouping``.

    Returns:
        assign [N, K, H, W], sums to 1 over K; float32, or float64 if the arguments are.
    """
    _check_dictionary(x, centers, sigma)
    if check_values:
        _check_positive(sigma)
    return _provider(x, grouping).part_assignment(x, centers, sigma)


def vlad_pooling(x: Tensor, assign: Tensor, centers: Tensor, sigma: Tensor, *, check_values: bool = True) -> Tensor:
    """One unit-length feature per part: the normalised mean residual to its centre (Eq. 3).

    The mass of a part is floored at 1e-5, so a part that no position belongs to gets the direction of ``-centers``
    instead of a division by zero.

    Args:
        x: Features [N, C, H, W], any float dtype and memory layout.
        assign: Soft assignment [N, K, H, W].
        centers: Part dictionary [K, C], K from 1 to 64.
        sigma: Bandwidth of every part [K], positive.
        check_values: As for ``region_grouping``.

    Returns:
        regions [N, K, C], unit length; float32, or float64 if the arguments are.

    Raises:
        ValueError: as ``region_grouping``.
    """
    _check_dictionary(x, centers, sigma)
    if check_values:
        _check_positive(sigma)
    _check_map("assign", assign, "[N, K, H, W]")
    expected = (x.shape[0], centers.shape[0], *x.shape[2:])
    if tuple(assign.shape) != expected:
        raise ValueError(f"assign: expected [N, K, H, W] = {list(expected)}, got {list(assign.shape)}")
    _check_like("assign", assign, x)
    return _provider(x, grouping).vlad_pooling(x, assign, centers, sigma)


def part_occurrence(assign: Tensor, radius: int = 2, std: float = 0.4, padding: str = "valid") -> Tensor:
    """How surely every part occurs: the largest value of its Gaussian-smoothed assignment map (Section 3.1).

    Of several equal maxima the first one, in row-major order, receives the gradient.

    Args:
        assign: Soft assignment [N, K, H, W].
        radius: The window is ``2 * radius + 1`` positions wide.
        std: Standard deviation of the Gaussian, in positions.
        padding: ``valid`` (the authors' choice: only windows that lie inside the map count) or ``same`` (zeros around).

    Returns:
        occurrence [N, K], in (0, 1) for assignments in (0, 1); float32, or float64 if assign is.

    Raises:
        ValueError: assign has not four dimensions, the map is smaller than a ``valid`` window, or an option is off.
    """
    _check_map("assign", assign, "[N, K, H, W]")
    if radius < 0:
        raise ValueError(f"radius: expected 0 or more, got {radius}")
    if not std > 0:
        raise ValueError(f"std: expected a positive number, got {std}")
    if padding not in ("valid", "same"):
        raise ValueError(f"padding: expected 'valid' or 'same', got {padding!r}")
    height, width = assign.shape[2:]
    if padding == "valid" and min(height, width) < 2 * radius + 1:
        raise ValueError(
            f"assign: a {height}x{width} map is smaller than the {2 * radius + 1}x{2 * radius + 1} smoothing window; "
            "use larger images, a smaller radius or padding='same'"
        )
    return _provider(assign, occurrence).part_occurrence(assign, radius, std, padding)


def _provider(x: Tensor, fused: ModuleType | None) -> ModuleType:
    if torch.compiler.is_exporting() or not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")):
        return reference
    if fused is None:
        raise RuntimeError("the operators need Triton on a GPU, and it is not installed; try 'pip install triton'")
    return fused


def _check_dictionary(x: Tensor, centers: Tensor, sigma: Tensor) -> None:
    _check_map("x", x, "[N, C, H, W]")
    for name, tensor in (("centers", centers), ("sigma", sigma)):
        _check_floats(name, tensor)
        _check_like(name, tensor, x)
    if centers.ndim != 2 or centers.shape[1] != x.shape[1]:
        raise ValueError(f"centers: expected [K, {x.shape[1]}], got {list(centers.shape)}")
    if not 1 <= centers.shape[0] <= MAX_PARTS:
        raise ValueError(f"centers: expected K >= 1 and <= {MAX_PARTS}, got {centers.shape[0]}")
    if sigma.shape != centers.shape[:1]:
        raise ValueError(f"sigma: expected [{centers.shape[0]}], got {list(sigma.shape)}")


def _check_positive(sigma: Tensor) -> None:
    if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((sigma > 0).all()):
        raise ValueError(f"sigma: expected positive numbers, got {sigma.min().item():g}")


def _check_map(name: str, tensor: Tensor, axes: str) -> None:
    _check_floats(name, tensor)
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise ValueError(f"{name}: expected {axes} with {axes[4:-1]} >= 1, got {list(tensor.shape)}")


def _check_floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{name}: expected {expected}, got {str(tensor.dtype).removeprefix('torch.')}")


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
    if (tensor.dtype == torch.float64) != (x.dtype == torch.float64):
        dtypes = [str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, x.dtype)]
        raise ValueError(f"{name}: {dtypes[0]}, but x is {dtypes[1]}; expected float64 for both or for neither")
