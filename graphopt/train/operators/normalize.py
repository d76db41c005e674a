"""Normalizations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(1, -1, *[1] * (x.ndim - 2))


def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    """With fixed statistics."""
    del momentum
    if training_mode:
        raise NotImplementedError("a BatchNormalization in training mode")
    factor = scale * torch.rsqrt(variance + epsilon)
    return x * _by_channel(factor, x) + _by_channel(bias - mean * factor, x)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Over the places of each channel."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Over all axes from ``axis`` on."""
    del stash_type
    sizes = list(x.shape[axis % x.ndim :])
    if list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes):
        return F.layer_norm(x, sizes, scale, bias, epsilon)
    found = F.layer_norm(x, sizes, None, None, epsilon) * scale
    return found if bias is None else found + bias


def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """By the root of the mean square over all axes from ``axis`` on (Zhang & Sennrich 2019)."""
    del stash_type
    over = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(over, keepdim=True) + epsilon) * scale


def group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over the places of each group of channels."""
    del stash_type
    if scale.numel() != x.shape[1]:
        raise NotImplementedError("a GroupNormalization with one scale for each group (opset 18)")
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Local response normalization over channels (Krizhevsky et al. 2012)."""
    if size % 2 == 0:
        raise NotImplementedError("an LRN over an even number of channels")
    return F.local_response_norm(x, size, alpha, beta, bias)


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """By the p-norm along an axis; what is all zero stays."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(
        norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm)
    )


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_norm,
    "RMSNormalization": rms_norm,
}
"""By ONNX name."""
