"""QuantizeLinear<output_dtype>(x, scale, zero)  ==>  QuantizeLinear(x, scale, zero)

The zero point gives the type of the result, and the attribute must agree (operator QuantizeLinear, opset 21). ONNX
Runtime 1.31 changes a signed zero point to an unsigned one on x86 and forgets the attribute, so that it rejects its own
graph (https://github.com/microsoft/onnxruntime/issues/25526).

Leaves alone: a QuantizeLinear without a zero point, whose type the attribute gives.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.rewrite import Builder, Numerics, Rewrite


class QuantizeType(Rewrite):
    """The type of the integers stated once, by the zero point."""

    name = "quantize-type"
    roots = ("QuantizeLinear",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The same node without the attribute."""
        if "output_dtype" not in node.attributes or len(node.inputs) < 3 or node.inputs[2] is None:
            return None
        attributes: dict[str, Any] = dict(node.attributes)
        del attributes["output_dtype"]
        return build.op("QuantizeLinear", *node.inputs, like=node.outputs[0], **attributes)
