"""Arithmetic, comparisons, activations and reductions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def div(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``; of integers rounded towards zero."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def power(x: Tensor, y: Tensor) -> Tensor:
    """``x ** y`` in the type of ``x``."""
    return torch.pow(x, y).to(x.dtype)


def mod(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of ``y``, or of ``x`` with ``fmod``."""
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Slope broadcast from the last axis."""
    return torch.where(x < 0, x * slope, x)


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``x`` where the condition holds, else ``y``."""
    return torch.where(condition, x, y)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Between two scalars; ``high`` wins where they cross."""
    if low is not None:
        x = torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Slope ``alpha`` below zero."""
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x) - 1)`` below zero."""
    return F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x / alpha) - 1)`` below zero."""
    return F.celu(x, alpha)


def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    """Scaled ELU."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Zero up to ``alpha``."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha x + beta`` between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """``x`` times a hard sigmoid."""
    return F.hardswish(x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(alpha * x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """By erf, or by tanh."""
    return F.gelu(x, approximate=approximate)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Towards zero by ``bias``, to zero between ``-lambd`` and ``lambd``."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Along one axis."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Along one axis."""
    return torch.log_softmax(x, axis)


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where a number is infinite."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if detect_negative else found


def round_(x: Tensor) -> Tensor:
    """To the nearest integer, halves to even; the gradient passes (a rounding would have none)."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def maximum(*operands: Tensor) -> Tensor:
    """Of all operands."""
    return functools.reduce(torch.maximum, operands)


def minimum(*operands: Tensor) -> Tensor:
    """Of all operands."""
    return functools.reduce(torch.minimum, operands)


def total(*operands: Tensor) -> Tensor:
    """Sum of all operands."""
    return functools.reduce(torch.add, operands)


def mean(*operands: Tensor) -> Tensor:
    """Of all operands."""
    return total(*operands) / len(operands)


def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sums."""
    place = int(axis)
    turned = torch.flip(x, [place]) if reverse else x
    found = torch.cumsum(turned, place).to(x.dtype)
    if exclusive:
        found = torch.cat(
            [torch.zeros_like(found.narrow(place, 0, 1)), found.narrow(place, 0, x.shape[place] - 1)], place
        )
    return torch.flip(found, [place]) if reverse else found


def _axes(x: Tensor, axes: Tensor | None, noop: int) -> list[int] | None:
    """Axes to reduce; None for none at all."""
    if axes is not None and axes.numel():
        return [int(axis) for axis in axes]
    return None if noop else list(range(x.ndim))


Reduction = Callable[[Tensor, Sequence[int], bool], Tensor]


def _reduced(x: Tensor, axes: Tensor | None, keepdims: int, noop: int, reduction: Reduction) -> Tensor:
    places = _axes(x, axes, noop)
    if places is None:
        return x
    return reduction(x, places, bool(keepdims)) if places else x


def reduce_mean(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Mean over axes."""
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda x, at, keep: torch.mean(x, at, keep))


def reduce_sum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum over axes."""
    return _reduced(
        x, axes, keepdims, noop_with_empty_axes, lambda x, at, keep: torch.sum(x, at, keep, dtype=x.dtype)
    )


def reduce_max(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Maximum over axes; equal ones share the gradient."""
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda x, at, keep: torch.amax(x, at, keep))


def reduce_min(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Minimum over axes; equal ones share the gradient."""
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda x, at, keep: torch.amin(x, at, keep))


def _prod(x: Tensor, at: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in at), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def reduce_prod(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Product over axes."""
    return _reduced(x, axes, keepdims, noop_with_empty_axes, _prod)


def reduce_l1(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of absolute values."""
    return reduce_sum(torch.abs(x), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_sum_square(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of squares."""
    return reduce_sum(x * x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_l2(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Root of the sum of squares."""
    if not x.is_floating_point():
        found = reduce_sum_square(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)
        return torch.sqrt(found.to(torch.float64)).to(x.dtype)
    # The gradient of a row of zeros is zero.
    return _reduced(
        x,
        axes,
        keepdims,
        noop_with_empty_axes,
        lambda x, at, keep: torch.linalg.vector_norm(x, 2, list(at), keep),
    )


def reduce_log_sum(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum."""
    return torch.log(reduce_sum(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes))


def reduce_log_sum_exp(
    x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum of exponentials."""
    return _reduced(x, axes, keepdims, noop_with_empty_axes, lambda x, at, keep: torch.logsumexp(x, at, keep))


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest is."""
    if select_last_index:
        size = x.shape[axis]
        return size - 1 - torch.argmax(torch.flip(x, [axis]), axis, bool(keepdims))
    return torch.argmax(x, axis, bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest is."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmin(torch.flip(x, [axis]), axis, bool(keepdims))
    return torch.argmin(x, axis, bool(keepdims))


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``."""
    return F.softplus(x, threshold=math.inf)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Add": torch.add, "And": torch.logical_and,
    "ArgMax": arg_max, "ArgMin": arg_min, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Celu": celu, "Clip": clip, "Cos": torch.cos, "Cosh": torch.cosh,
    "CumSum": cum_sum, "Div": div, "Elu": elu, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Gelu": gelu, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSigmoid": hard_sigmoid, "HardSwish": hard_swish, "IsInf": is_inf, "IsNaN": torch.isnan,
    "LeakyRelu": leaky_relu, "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log,
    "LogSoftmax": log_softmax, "Max": maximum, "Mean": mean, "Min": minimum, "Mish": F.mish, "Mod": mod,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "PRelu": prelu,
    "Pow": power, "Reciprocal": torch.reciprocal, "ReduceL1": reduce_l1, "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum, "ReduceLogSumExp": reduce_log_sum_exp, "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean, "ReduceMin": reduce_min, "ReduceProd": reduce_prod, "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square, "Relu": torch.relu, "Round": round_, "Selu": selu, "Shrink": shrink,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softmax": softmax,
    "Softplus": softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub, "Sum": total,
    "Swish": swish, "Tan": torch.tan, "Tanh": torch.tanh, "ThresholdedRelu": thresholded_relu, "Where": where,
    "Xor": torch.logical_xor,
}  # fmt: skip
"""By ONNX name."""
