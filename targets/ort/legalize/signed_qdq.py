"""P(DQ(int8))  ==>  DQ(Q(P(DQ(int8)))) with unsigned Q and DQ, for a P that only moves elements

From opset 21 on, ONNX Runtime 1.31 cannot load the left side on x86. Its QDQ propagation puts Q and DQ behind P, where
the Q states ``output_dtype`` int8; its conversion of signed to unsigned then gives that Q an unsigned zero point and
leaves the attribute: "output_dtype INT8 does not match y_zero_point type UINT8"
(https://github.com/microsoft/onnxruntime/issues/25526). The pair written here is the one it makes at opset 20 and
before: it keeps what follows on integers, and the propagation stops at a Q.
Forms: MaxPool, Reshape, Slice, Squeeze, Transpose, Unsqueeze behind a DequantizeLinear of a whole tensor, float32.
Exact: what was dequantized gives its integers back when it is quantized with the same scale.

Leaves alone: what only Q reads; weights; one scale for each channel; a zero point that is absent or computed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Rewrite


class SignedQdq(Rewrite):
    """Signed integers that ONNX Runtime carries past a layout operator, carried past it as unsigned ones."""

    name = "signed-qdq"
    roots = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The same operator, then an unsigned pair of the same scale."""
        out = node.outputs[0]
        dequantize = None if node.inputs[0] is None else node.inputs[0].producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(node.outputs) > 1:
            return None
        integers, scale, zero = (*dequantize.inputs, None)[:3]
        if integers is None or zero is None or zero.dtype != ir.DataType.INT8 or facts.is_constant(integers):
            return None
        step, offset = facts.scalar(scale), facts.scalar(zero)
        if step is None or offset is None or out.dtype != ir.DataType.FLOAT:
            return None
        readers = [use.node for use in out.uses()]
        if (
            readers
            and not out.is_graph_output()
            and all(user.op_type == "QuantizeLinear" for user in readers)
        ):
            return None
        unsigned = build.constant(np.array(int(offset) + 128, dtype=np.uint8))
        attributes: dict[str, Any] = dict(node.attributes)
        moved = build.op(node.op_type, *node.inputs, like=out, **attributes)
        quantized = build.op("QuantizeLinear", moved, scale, unsigned, like=out, dtype=ir.DataType.UINT8)
        return build.op("DequantizeLinear", quantized, scale, unsigned, like=out)
