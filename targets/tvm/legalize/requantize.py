"""Q(P(x, ...))  ==>  P(Q(x), ...), for a P that only moves or chooses elements; Q(DQ(q))  ==>  q

A quantization next to the product that makes its data becomes part of that kernel, and what moves then moves bytes.
Forms: Concat, Flatten, Identity, MaxPool, Reshape, Slice, Squeeze, Transpose, Unsqueeze whose one reader is a
QuantizeLinear with one scale; a QuantizeLinear behind a DequantizeLinear of the same scale, zero point and type.
Exact: rounding does not know where an element lies, and a positive scale keeps the order of numbers.

Refuses: a MaxPool that gives places as well, that is quantized to 16 bits, or by a scale that is not positive; a Slice
whose data others read too, which would be quantized whole for each of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_MOVES = frozenset(
    {"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


class QuantizeFirst(Rewrite):
    """Quantized before it is moved."""

    name = "quantize-first"
    roots = ("QuantizeLinear",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The operator on integers; or the integers there were."""
        data, scale, zero = (*node.inputs, None)[:3]
        move = None if data is None else data.producer()
        if data is None or move is None or facts.scalar(scale) is None:
            return None
        if move.op_type == "DequantizeLinear":
            return _same(node, move)
        if move.op_type not in (*_MOVES, "Concat") or facts.sole_consumer(data) is None:
            return None
        out = node.outputs[0]
        if move.op_type == "MaxPool":
            if len(move.outputs) > 1:
                raise Refuse("it gives places as well")
            if out.dtype not in _BYTES or not (facts.scalar(scale) or 0) > 0:
                raise Refuse("its numbers are not of 8 bits, or in another order")
        source = move.inputs[0]
        if move.op_type == "Slice" and source is not None and facts.sole_consumer(source) is None:
            raise Refuse("others read its data too")
        attributes: dict[str, Any] = dict(node.attributes)

        def quantized(value: ir.Value) -> ir.Value:
            return build.op("QuantizeLinear", value, scale, zero, like=value, dtype=out.dtype, **attributes)

        count = len(move.inputs) if move.op_type == "Concat" else 1
        moved = [quantized(value) for value in move.inputs[:count] if value is not None]
        kept: dict[str, Any] = dict(move.attributes)
        return build.op(move.op_type, *moved, *move.inputs[count:], like=out, **kept)


def _same(quantize: ir.Node, dequantize: ir.Node) -> ir.Value | None:
    """What was dequantized, where quantizing gives it back."""
    integers = dequantize.inputs[0]
    before, after = ((*node.inputs, None)[1:3] for node in (dequantize, quantize))
    if integers is None or integers.dtype != quantize.outputs[0].dtype:
        return None
    for left, right in zip(before, after, strict=True):
        if left is right:
            continue
        if facts.scalar(left) is None or facts.scalar(left) != facts.scalar(right):
            return None
    return integers


__all__ = ["QuantizeFirst"]
