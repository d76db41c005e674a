"""Add(Expand(mask, shape), scores)  ==>  Add(mask, scores), and f(Expand(x))  ==>  Expand(f(x))

Forms: attention masks that Hugging Face and PyTorch expand to [batch, heads, length, length] before Where, And, Add or
Mul broadcast them anyway; in general, any elementwise operator. Where the other operands already give the shape, the
Expand goes; where they do not, it moves behind the operator, which then works on the smaller tensor, until a
reader does not need it. Bits stay.

Refuses: nothing. Not matched: an Expand whose effect on the output cannot be excluded, one of a scalar
constant, and one that moves behind an operator while something else reads it too.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.dims import Dims, broadcast
from graphopt.ir.symbolic import ShapeCache, Shapes
from graphopt.rewrite import Builder, Numerics, Rewrite


class MaskExpand(Rewrite):
    """Expand before an operator that broadcasts."""

    name = "expand-before-broadcast"
    # fmt: off
    roots = (
        "Add", "And", "BitwiseAnd", "BitwiseOr", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Sub", "Where", "Xor",
    )
    # fmt: on
    numerics = Numerics.EXACT

    def __init__(self) -> None:
        self._cache = ShapeCache()

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One Expand at a time; the driver comes back for the next."""
        for index, operand in enumerate(node.inputs):
            expand = None if operand is None else operand.producer()
            if expand is None or operand is None or expand.op_type != "Expand" or expand.domain:
                continue
            shapes = self._cache.of(node)
            source = expand.inputs[0]
            if source is None or not facts.rank(source):
                continue
            small, wide = _with(shapes, node, index, source), _with(shapes, node, index, operand)
            if small is None or wide is None:
                continue
            inputs = [source if other is operand else other for other in node.inputs]
            if inputs.count(source) > 1:
                continue
            if small == wide:
                return build.op(node.op_type, *inputs, like=node.outputs[0], **_attributes(node))
            narrow = small == shapes.of(source) and wide == shapes.of(operand)
            if narrow and facts.sole_consumer(operand) is node:
                shape = source.shape.copy() if source.shape is not None else None
                dtype = node.outputs[0].dtype
                inner = build.op(node.op_type, *inputs, dtype=dtype, shape=shape, **_attributes(node))
                return build.op("Expand", inner, expand.inputs[1], like=node.outputs[0])
        return None


def _with(shapes: Shapes, node: ir.Node, index: int, value: ir.Value) -> Dims | None:
    """Dimensions of the output of ``node`` with ``value`` as the operand at ``index``."""
    return broadcast([shapes.of(value if at == index else other) for at, other in enumerate(node.inputs)])


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: facts.attribute(node, name) for name in node.attributes}
