"""Quantization as training sees it: rounded in the forward pass, passed straight through in the backward pass.

Integers are carried as whole numbers in float32, so that gradients can pass (the straight-through estimator: Bengio et
al. 2013; Jacob et al., CVPR 2018). Beyond the range of the type the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_RANGES: Mapping[torch.dtype, tuple[int, int]] = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-(1 << 15), (1 << 15) - 1),
    torch.int32: (-(1 << 31), (1 << 31) - 1),
}


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale or zero point as it meets a tensor: one number, or one for each index of an axis."""
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim != 1:
        raise NotImplementedError("scales in blocks")
    return parameter.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)])


def rounded(x: Tensor) -> Tensor:
    """To the nearest whole number, halves to even; the gradient passes."""
    return x + (torch.round(x) - x).detach()


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0, precision: int = 0, saturate: int = 1,
) -> Tensor:  # fmt: skip
    """Whole numbers in float32."""
    del precision, saturate
    if block_size:
        raise NotImplementedError("scales in blocks")
    if zero_point is None and output_dtype not in (0, 2):
        raise NotImplementedError("a QuantizeLinear whose type is an attribute")
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    if kind not in _RANGES:
        raise NotImplementedError(f"quantization to {kind}")
    low, high = _RANGES[kind]
    found = rounded(x / along(scale, x, axis))
    if zero_point is not None:
        found = found + along(zero_point, x, axis).to(found.dtype)
    return torch.clamp(found, low, high)


def dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:  # fmt: skip
    """Float numbers of whole ones."""
    if block_size or output_dtype not in (0, 1):
        raise NotImplementedError("scales in blocks, or another type than float32")
    found = x.to(scale.dtype)
    if zero_point is not None:
        found = found - along(zero_point, x, axis).to(scale.dtype)
    return found * along(scale, x, axis)


def requantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, *, axis: int, low: int, high: int
) -> Tensor:
    """A weight as its integers will give it: what a DequantizeLinear of a constant is while it is trained.

    Args:
        x: The weight in float32.
        low, high: Range of the integers.
    """
    step = along(scale, x, axis)
    zero = 0.0 if zero_point is None else along(zero_point, x, axis).to(x.dtype)
    return (torch.clamp(rounded(x / step) + zero, low, high) - zero) * step


OPERATORS: Mapping[str, Callable[..., Any]] = {"DequantizeLinear": dequantize, "QuantizeLinear": quantize}
"""By ONNX name."""
