"""x * Expand(y, shape(x))  ==>  x * y

Forms: the ``expand_as`` of squeeze-and-excitation blocks and of ``torch.nn.functional.normalize`` is exported as an Expand to
the shape of the other operand, in front of an operator that broadcasts by itself (Add, Sub, Mul, Div, Max, Min, ...).
The Expand writes, and the operator reads, a whole tensor where a few numbers do.

Refuses: nothing. Not matched: an Expand whose result is not known to have the shape of the other operand.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Rewrite


class ExpandBroadcast(Rewrite):
    """An Expand that broadcasting makes needless."""

    name = "expand-broadcast"
    roots = (
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"),
        *("Mul", "Or", "Pow", "Sub", "Xor"),
    )
    numerics = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        if len(node.inputs) != 2:
            return None
        for index in (0, 1):
            wide, other = node.inputs[index], node.inputs[1 - index]
            narrow = None if wide is None or other is None else _before_expand(wide, other)
            if narrow is not None:
                operands = [narrow, other] if index == 0 else [other, narrow]
                attributes = {attr.name: facts.attribute(node, attr.name) for attr in node.attributes.values()}
                return build.op(node.op_type, *operands, like=node.outputs[0], **attributes)
        return None


def _before_expand(wide: ir.Value, other: ir.Value) -> ir.Value | None:
    """What ``wide`` repeats, where it is an Expand to the shape of ``other``."""
    expand = wide.producer()
    if expand is None or expand.op_type != "Expand" or expand.domain:
        return None
    narrow, target = expand.inputs
    shape = None if target is None else target.producer()
    to_other = (
        shape is not None
        and shape.op_type == "Shape"
        and not shape.domain
        and not shape.attributes.get("end")
        and not facts.attribute(shape, "start", 0)
        and shape.inputs[0] is other
    )
    return narrow if to_other or facts.same_shape(wide, other) else None
