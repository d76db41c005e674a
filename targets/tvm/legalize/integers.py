"""Conv(DQ(x), DQ(w), b)  ==>  Add(Mul(Cast(ConvInteger(x, w, zero point)), scales), b), and so for MatMul and Gemm

What follows the sums element by element, down to the next QuantizeLinear, becomes part of the kernel.
Forms: data of uint8 or int8 with one scale; constant weights of int8 or uint8 whose zero point is the middle of their
type, with one scale or one for each output channel; a bias in float or dequantized (ONNX specification, ConvInteger
and MatMulInteger).
Changes rounding alone: sums of integers are exact, and scales are applied once.

Refuses: zero points of weights elsewhere, groups whose channels do not come in fours (but for depthwise convolutions),
an unknown number of channels, a dequantized bias that is no vector.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.quant.kernels import bias_of, channel_axis
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite
from graphopt.targets.tvm.integers import pads_are_open, why_no_convolution

_MOST_PRODUCTS = 1 << 16
"""Of two bytes, whose sum an int32 holds."""
_MIDDLE = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


class IntegerProduct(Rewrite):
    """A product between Q and DQ, on integers."""

    name = "integer-product"
    roots = ("Conv", "MatMul", "Gemm")
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The sums of the integers, scaled."""
        data = _dequantized(node.inputs[0])
        weight = _dequantized(node.inputs[1])
        if data is None or weight is None or facts.is_constant(data[0]):
            return None
        numbers = facts.constant(weight[0])
        if numbers is None or data[0].dtype not in _BYTES or numbers.dtype not in _MIDDLE:
            return None
        integers, step, zero = data
        scale, offset = facts.scalar(step), 0.0 if zero is None else facts.scalar(zero)
        steps = facts.constant(weight[1])
        if scale is None or offset is None or steps is None:
            raise Refuse("its data have no one scale that is known")
        numbers, steps = _centred(node, numbers, steps, weight)
        _check(node, numbers)
        if node.op_type == "Gemm":
            steps = steps * np.float32(facts.attribute(node, "alpha", 1.0))
            if facts.attribute(node, "transB", 0):
                numbers = np.ascontiguousarray(numbers.T)
        out = node.outputs[0]
        point = np.array(offset, np.uint8 if integers.dtype == ir.DataType.UINT8 else np.int8)
        is_conv = node.op_type == "Conv"
        attributes: dict[str, Any] = dict(node.attributes) if is_conv else {}
        sums = build.op(
            "ConvInteger" if is_conv else "MatMulInteger",
            *(integers, numbers, point), like=out, dtype=ir.DataType.INT32, **attributes,
        )  # fmt: skip
        shape = (-1, *(1,) * (numbers.ndim - 2)) if is_conv else (-1,)
        scales = (np.float32(scale) * steps).astype(np.float32).reshape(shape)
        bias = _bias(node)
        scaled = build.op(
            "Mul", build.op("Cast", sums, like=out, to=ir.DataType.FLOAT.value), scales, like=out
        )
        if bias is None:
            return scaled
        return build.op("Add", scaled, bias.reshape(shape) if bias.ndim == 1 else bias, like=out)


def _dequantized(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value | None] | None:
    """Integers, scale and zero point of a value that is dequantized to float32."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or value is None:
        return None
    integers, scale, zero = (*producer.inputs, None)[:3]
    if integers is None or scale is None or facts.attribute(producer, "block_size", 0):
        return None
    return (integers, scale, zero) if value.dtype == ir.DataType.FLOAT else None


def _centred(
    node: ir.Node,
    numbers: facts.Array,
    steps: facts.Array,
    weight: tuple[ir.Value, ir.Value, ir.Value | None],
) -> tuple[facts.Array, facts.Array]:
    """Weights as int8 around zero, and their scales, one for each output channel or one."""
    zeros = np.zeros(1) if weight[2] is None else facts.constant(weight[2])
    middle = _MIDDLE[numbers.dtype]
    if zeros is None or np.any(zeros != middle):
        raise Refuse("the zero point of its weights is not the middle of their type")
    if steps.size > 1:
        dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
        axis = facts.attribute(dequantize, "axis", 1) % numbers.ndim  # type: ignore[arg-type]
        wanted = channel_axis(node)
        if wanted is None or axis != wanted % numbers.ndim:
            raise Refuse("its weights have scales along another axis than that of the channels")
    return (numbers.astype(np.int16) - middle).astype(np.int8), steps.reshape(-1)


def _check(node: ir.Node, numbers: facts.Array) -> None:
    dims = facts.dims(node.inputs[0])
    if dims is None or len(dims) < 2 or dims[1 if node.op_type == "Conv" else -1] is None:
        raise Refuse("its sizes are not known")
    if pads_are_open(node):
        raise Refuse("its pads depend on sizes that are open")
    if math.prod(numbers.shape[1:] if node.op_type == "Conv" else numbers.shape[:1]) > _MOST_PRODUCTS:
        raise Refuse("its sums may overflow")
    if node.op_type == "Conv":
        reason = why_no_convolution(dims, numbers.shape, facts.attribute(node, "group", 1))
        if reason:
            raise Refuse(reason)
    elif numbers.ndim != 2 or facts.attribute(node, "transA", 0):
        raise Refuse("its weights are no matrix, or its data are transposed")


def _bias(node: ir.Node) -> facts.Array | None:
    """The bias in float.

    Raises:
        Refuse: It is computed.
    """
    value = bias_of(node)
    if value is None:
        return None
    array = facts.constant(value)
    integers = _dequantized(value)
    if array is None and integers is not None:
        numbers, steps = facts.constant(integers[0]), facts.constant(integers[1])
        zeros = np.zeros(1) if integers[2] is None else facts.constant(integers[2])
        if numbers is not None and numbers.ndim > 1:
            raise Refuse("its dequantized bias is no vector")
        if numbers is not None and steps is not None and zeros is not None and not np.any(zeros):
            array = (numbers * steps).astype(np.float32)
    if array is None:
        raise Refuse("its bias is no constant")
    beta = facts.attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    scaled: facts.Array = array * np.float32(beta)
    return scaled


__all__ = ["IntegerProduct"]
