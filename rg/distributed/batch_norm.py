"""Batch norm over several ranks: own statistics, those of all ranks, or none that change."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of a model see the images of all ranks.

    Args:
        model: Its layers are changed in place.
        device: Where it will run: fused kernels of PyTorch on a GPU, ``SynchronizedBatchNorm`` on a CPU, for which
            PyTorch has none.

    Returns:
        The model; another one if it is a batch norm itself.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # also knows timm's batch norms with an activation

        return convert_sync_batchnorm(model)
    if isinstance(model, _BatchNorm):
        return SynchronizedBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, synchronize(child, device))
    return model


def freeze(model: nn.Module) -> None:
    """Let batch norms of a model in training mode use their running statistics, and not change them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm with the mean and variance of the images of all ranks; ranks may have different numbers of them.

    Args:
        norm: Its parameters, buffers and settings are taken over, and drop-out and activation if timm gave it some.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input: expected [N, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...]."""
        self._check_input_dim(input)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            out = F.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
            return self.act(self.drop(out))
        dims = [dim for dim in range(input.ndim) if dim != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])])
        sums = _Sum.apply(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self._track(mean, variance * count / (count - 1))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return self.act(self.drop(out.to(input.dtype)))

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _Sum(torch.autograd.Function):
    """Sum over the ranks; the gradient is that of the sum of what all ranks make of it."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
