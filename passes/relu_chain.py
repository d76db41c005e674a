"""two of Relu, Clip, Max(x, c), Min(x, c) in a row  ==>  one of them

Forms: ``Clip(Relu(x), 0, 6)`` of TensorFlow's ReLU6, ``Min(Max(x, a), b)`` of Paddle and tf2onnx,
``Relu(Relu(x))`` where a block ends and the next one begins with an activation, ``Max(x, 0)``. Bounds are
single constants. Not a number stays not a number in all of them (as ONNX Runtime computes them).

Refuses: a Clip whose lower bound is above its upper one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._shapes import broadcasts_into
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_CLAMPS = ("Clip", "Max", "Min", "Relu")
_TYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT32,
        ir.DataType.UINT32,
        ir.DataType.INT64,
        ir.DataType.UINT64,
    }
)
# Relu of these types exists in ONNX Runtime.
_RELU_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
Number = float | int


def _number(value: ir.Value | None) -> Number | None:
    """A single element, integers without a detour through float."""
    array = facts.constant(value)
    if array is None or array.size != 1 or array.dtype.kind in "OSUb":
        return None
    element = array.reshape(())
    return int(element) if array.dtype.kind in "iu" else float(element)


def _range(dtype: ir.DataType) -> tuple[Number, Number]:
    """What an absent bound of Clip stands for: the finite numbers only, so that infinity is clamped too."""
    kind = dtype.numpy()
    if kind.kind in "iu":
        return int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    return float(np.finfo(kind).min), float(np.finfo(kind).max)


def clamp(node: ir.Node | None) -> tuple[ir.Value, Number, Number] | None:
    """What a node clamps, and between which bounds; None where it does not clamp between constants."""
    if node is None or node.domain != "" or node.op_type not in _CLAMPS or node.inputs[0] is None:
        return None
    low: Number | None = -math.inf
    high: Number | None = math.inf
    x = node.inputs[0]
    if x.dtype not in _TYPES:
        return None
    if node.op_type == "Relu":
        low = 0
    elif node.op_type == "Clip":
        bounds = [*node.inputs[1:], None, None]
        least, most = _range(x.dtype)
        low = _number(bounds[0]) if bounds[0] is not None else least
        high = _number(bounds[1]) if bounds[1] is not None else most
    else:
        if len(node.inputs) != 2:
            return None
        operand = node.inputs[1]
        if not facts.is_constant(operand):
            x, operand = operand, x  # type: ignore[assignment]
        if x is None or operand is None or not broadcasts_into(operand, x):
            return None
        if node.op_type == "Max":
            low = _number(operand)
        else:
            high = _number(operand)
    if low is None or high is None or low != low or high != high:
        return None
    return x, low, high


class ReluChain(Rewrite):
    """Two clamps in a row become one."""

    name: ClassVar[str] = "relu-chain"
    roots: ClassVar[tuple[str, ...]] = _CLAMPS
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Clamping is monotone, so the outer one maps the bounds of the inner one to those of both."""
        outer = clamp(node)
        if outer is None or facts.is_constant(outer[0]):
            return None
        inner = clamp(outer[0].producer())
        if inner is None:
            return None
        x, low, high = inner
        if low > high or outer[1] > outer[2]:
            raise Refuse("a lower bound is above the upper one")
        low = min(max(low, outer[1]), outer[2])
        high = min(max(high, outer[1]), outer[2])
        out = node.outputs[0]
        dtype = outer[0].dtype
        assert dtype is not None
        if low == 0 and high == math.inf and dtype in _RELU_TYPES:
            return build.op("Relu", x, like=out)
        kind = dtype.numpy()
        if high == math.inf:
            return build.op("Max", x, np.array(low, dtype=kind), like=out)
        if low == -math.inf:
            return build.op("Min", x, np.array(high, dtype=kind), like=out)
        least, most = _range(dtype)
        bounds = [
            None if low == least else np.array(low, dtype=kind),
            None if high == most else np.array(high, dtype=kind),
        ]
        while bounds and bounds[-1] is None:
            bounds.pop()
        return build.op("Clip", x, *bounds, like=out)
