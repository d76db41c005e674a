"""From a range of numbers to integers: scale and zero point, for activations and weights.

Affine quantization as in Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (CVPR 2018), section 2.1, and as ONNX defines QuantizeLinear: ``q = round(x / scale) +
zero_point``, saturated, halves to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.facts import Array

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Range:
    """Least and largest value of a tensor that quantization keeps; what lies beyond is saturated."""

    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        """Whether it can be quantized at all."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def is_zero(self) -> bool:
        """Whether the tensor was zero throughout, or so close to it that a scale would be no normal float32."""
        return max(-self.low, self.high) < 255 * TINY

    @property
    def why_not(self) -> str:
        """Why it cannot be quantized; empty where it can."""
        if not self.is_finite:
            return "is not finite on the calibration data"
        return "is zero throughout the calibration data" if self.is_zero else ""


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of a whole tensor."""

    scale: float
    zero_point: int


def affine(found: Range, limits: tuple[int, int], *, symmetric: bool) -> Affine:
    """Scale and zero point that represent ``found`` and zero itself exactly.

    Args:
        limits: Least and largest integer.
        symmetric: Zero point in the middle of the integers.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    least, largest = limits
    if symmetric:
        middle = (least + largest + 1) // 2
        scale = max(high / (largest - middle), -low / (middle - least), TINY)
        return Affine(float(np.float32(scale)), middle)
    scale = float(np.float32(max((high - low) / (largest - least), TINY)))
    zero_point = int(np.clip(np.rint(least - low / scale), least, largest))
    return Affine(scale, zero_point)


def weight_scales(weight: Array, axis: int | None, limit: int) -> Array:
    """Symmetric scales of a weight, float32: one for each channel along ``axis``, or a scalar.

    A channel that is zero throughout gets the scale 1.
    """
    magnitude = np.abs(weight)
    if axis is None:
        largest = np.asarray(magnitude.max(initial=0.0))
    else:
        largest = magnitude.max(axis=tuple(a for a in range(weight.ndim) if a != axis), initial=0.0)
    scales = np.maximum(largest.astype(np.float64) / limit, TINY)
    return np.where(largest > 0, scales, 1.0).astype(np.float32)


def quantize_weight(weight: Array, scales: Array, axis: int | None, limit: int) -> Array:
    """The weight as int8, by rounding to nearest.

    Args:
        scales: As from :func:`weight_scales`.
    """
    shaped = along(scales, axis, weight.ndim)
    with np.errstate(over="ignore"):
        rounded = np.rint(weight / shaped)
    return np.clip(rounded, -limit, limit).astype(np.int8)


def along(scales: Array, axis: int | None, rank: int) -> Array:
    """``scales`` shaped to broadcast along ``axis`` of a tensor of this rank."""
    if axis is None:
        return scales
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)
