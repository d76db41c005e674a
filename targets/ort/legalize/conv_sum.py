"""Sum(Conv(x), y)  ==>  Add(Conv(x), y)

Forms: residual blocks as Caffe's converters write them, with Sum of two operands. ONNX Runtime's
ConvAddActivationFusion makes the addition and a Relu after it part of a convolution outside of the blocked layout
(one with a bias), and it looks for Add alone. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with
AVX-512): 1.62 for a convolution of three groups, Sum and Relu on [1, 24, 56, 56]. Bits stay.

Refuses: nothing. Leaves alone: other numbers of operands, sums of which no operand is the output of a convolution
that nothing else reads, sums that a LayerNormalization reads (see plain_residual.py), and operands of different shapes.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Rewrite
from graphopt.targets.ort.legalize.plain_residual import FUSED


class ConvSum(Rewrite):
    """An addition that ONNX Runtime fuses into the convolution before it."""

    name = "conv-sum-to-add"
    roots = ("Sum",)
    numerics = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The same operands."""
        out = node.outputs[0]
        if len(node.inputs) != 2 or not facts.same_shape(*node.inputs):
            return None
        if any(use.node.op_type in FUSED for use in out.uses()):
            return None
        for value in node.inputs:
            if value is not None and facts.sole_consumer(value) is node and _is_convolution(value):
                return build.op("Add", *node.inputs, like=out)
        return None


def _is_convolution(value: ir.Value) -> bool:
    """Whether a Conv makes ``value``, or a BatchNormalization, which ONNX Runtime takes into the Conv before it."""
    maker = value.producer()
    if facts.producer_op(value) != "BatchNormalization" or maker is None or maker.inputs[0] is None:
        return facts.producer_op(value) == "Conv"
    inner = maker.inputs[0]
    return facts.producer_op(inner) == "Conv" and facts.sole_consumer(inner) is maker
