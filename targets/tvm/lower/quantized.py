"""What ONNX's operators on integers compute, in Relax: quantizing, dequantizing, and products that add up in int32.

These are plain definitions, right for every target; a processor with dot products of bytes has loops of its own for the
products (:mod:`graphopt.targets.tvm.lower.importer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.adapter import Constant, relax

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def quantize(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """QuantizeLinear: rounded to nearest, ties to even, and cut off at the ends of the type."""
    data, scale, zero = _operands(builder, inputs, attrs)
    stated = ir.DataType(attrs.get("output_dtype", 0) or ir.DataType.UINT8)
    dtype = str(stated.numpy()) if zero is None else str(zero.ty.dtype)
    return _rounded(data, scale, None if zero is None or _is_zero(zero) else zero, dtype)


def dequantize(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """DequantizeLinear; differences of integers of 16 bits are exact in float32, and int32 has no zero point."""
    data, scale, zero = _operands(builder, inputs, attrs)
    known = [value.value.numpy() for value in (data, scale, zero) if isinstance(value, Constant)]
    if len(known) == (2 if zero is None else 3):
        integers, step, *offset = known
        return relax.const(
            (integers.astype(np.float32) - (offset[0].astype(np.float32) if offset else 0)) * step
        )
    numbers = relax.op.astype(data, "float32")
    if zero is not None and not _is_zero(zero):
        numbers = relax.op.subtract(numbers, relax.op.astype(zero, "float32"))
    return relax.op.multiply(numbers, scale)


def quantize_dynamically(builder: Any, inputs: list[Any]) -> Any:
    """DynamicQuantizeLinear: uint8 over the range of the data and zero; the data, scale and zero point."""
    (data,) = inputs
    nothing = relax.const(0.0, "float32")
    least = builder.emit(relax.op.minimum(relax.op.min(data), nothing))
    most = builder.emit(relax.op.maximum(relax.op.max(data), nothing))
    step = builder.emit(relax.op.divide(relax.op.subtract(most, least), relax.const(255.0, "float32")))
    # Of zeros alone any step will do but none.
    scale = builder.emit(relax.op.where(relax.op.equal(step, nothing), relax.const(1.0, "float32"), step))
    zero = builder.emit(_rounded(relax.op.negative(least), scale, None, "uint8"))
    integers = builder.emit(_rounded(data, scale, zero, "uint8"))
    return relax.Tuple([integers, scale, zero])


def product(builder: Any, inputs: list[Any]) -> Any:
    """MatMulInteger."""
    left = _widened(builder, inputs[0], inputs[2] if len(inputs) > 2 else None, -2)
    right = _widened(builder, inputs[1], inputs[3] if len(inputs) > 3 else None, -1)
    return relax.op.matmul(left, right)


def convolution(builder: Any, inputs: list[Any], attrs: Mapping[str, Any], pads: tuple[int, ...]) -> Any:
    """ConvInteger of an image or a line."""
    data = _widened(builder, inputs[0], inputs[2] if len(inputs) > 2 else None, None)
    weight = _widened(builder, inputs[1], inputs[3] if len(inputs) > 3 else None, 0)
    spatial = len(builder.normalize(data).ty.shape) - 2
    convolve = relax.op.nn.conv1d if spatial == 1 else relax.op.nn.conv2d
    return convolve(
        data,
        weight,
        strides=attrs.get("strides", (1,) * spatial),
        padding=pads,
        dilation=attrs.get("dilations", (1,) * spatial),
        groups=int(attrs.get("group", 1)),
    )


def _widened(builder: Any, value: Any, zero: Any, axis: int | None) -> Any:
    """As int32 without its zero point, which may be one for each place along an axis."""
    value = builder.normalize(value)
    wide = relax.op.astype(value, "int32")
    if zero is None or _is_zero(zero):
        return wide
    zero = relax.op.astype(builder.normalize(zero), "int32")
    sizes = [int(size) for size in builder.normalize(zero).ty.shape]
    if axis is not None and sizes and sizes[-1] > 1:
        rank = len(value.ty.shape)
        shape = [1] * rank
        shape[axis] = sizes[-1]
        zero = relax.op.reshape(zero, shape)
    elif sizes:
        zero = relax.op.reshape(zero, ())
    return relax.op.subtract(wide, zero)


def as_unsigned(builder: Any, value: Any) -> Any:
    """int8 as uint8 with all numbers 128 higher."""
    higher = relax.op.add(relax.op.astype(value, "int16"), relax.const(128, "int16"))
    return builder.emit(relax.op.astype(higher, "uint8"))


def _rounded(data: Any, scale: Any, zero: Any, dtype: str) -> Any:
    """In steps from the zero point, within the limits of a type; NaN at the lower one, as ONNX Runtime has it."""
    steps = relax.op.round(relax.op.divide(data, scale))
    if zero is not None:
        steps = relax.op.add(steps, relax.op.astype(zero, "float32"))
    least, most = (relax.const(float(limit), "float32") for limit in _LIMITS[dtype])
    return relax.op.astype(relax.op.minimum(relax.op.maximum(steps, least), most), dtype)


def _operands(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Data, and scale and zero point in a shape that goes with them."""
    data, scale, zero = (*inputs, None)[:3]
    data = builder.normalize(data)
    sizes = [int(size) for size in builder.normalize(scale).ty.shape]
    if sizes == [1] or not sizes:
        shape: tuple[int, ...] = ()
    else:
        rank = len(data.ty.shape)
        axis = int(attrs.get("axis", 1)) % rank
        shape = tuple(sizes[0] if place == axis else 1 for place in range(rank))
    return data, _shaped(scale, shape), None if zero is None else builder.normalize(_shaped(zero, shape))


def _shaped(value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, Constant):
        return relax.const(value.value.numpy().reshape(shape))
    return relax.op.reshape(value, shape)


def _is_zero(value: Any) -> bool:
    return isinstance(value, Constant) and not np.any(value.value.numpy())
