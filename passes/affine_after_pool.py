"""AveragePool(Mul(x, s))  ==>  Mul(AveragePool(x), s), and the same for Add, BatchNormalization and other pools

Forms: an affine map that could not become part of a linear op, before GlobalAveragePool, GlobalMaxPool, or a pool with
a stride (PP-OCRv4 recognition: ``s * hardswish(x) + b`` before the last pool): below it is done on fewer elements.

Refuses: a map that something else reads. Leaves alone: a negative factor above a maximum, a shift above an average that
counts padding, and pools that do not shrink the data.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _affine
from graphopt.passes._affine_linear import read_affine
from graphopt.rewrite import Builder, Rewrite


class AffineAfterPool(Rewrite):
    """A constant factor or shift moves below a pool that shrinks the data."""

    name = "affine-after-pool"
    roots = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The pool first, then the same map."""
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.graph is not node.graph:
            return None
        affine = read_affine(producer)
        if affine is None or not facts.same_shape(affine.source, value):
            return None
        if not node.op_type.startswith("Global"):
            strides = facts.attribute(node, "strides", ())
            if all(stride == 1 for stride in strides):
                return None
        if not _affine.passes_through(node, affine, up=False):
            return None
        _affine.must_be_alone(value)
        pooled = _affine.copy_of(node, affine.source, build)
        operands = [pooled if operand is affine.source else operand for operand in producer.inputs]
        attributes: dict[str, Any] = dict(producer.attributes)
        return build.op(producer.op_type, *operands, like=node.outputs[0], **attributes)
