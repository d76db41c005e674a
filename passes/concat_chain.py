"""Concat(a, Concat(b, c), d)  ==>  Concat(a, b, c, d)    on one axis

Forms: DenseNet-like nets and feature pyramids that grow a tensor layer by layer; shape vectors of PyTorch's
exporter.

Refuses: an inner Concat that something else reads, as in DenseNet itself: its result is needed anyway, and
copying it whole is faster than copying its parts.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

# Beyond this a longer list costs more in scheduling than it saves in copying.
_MOST_INPUTS = 256


def _axis(node: ir.Node) -> int | None:
    axis = facts.attribute(node, "axis")
    if not isinstance(axis, int):
        return None
    ranks = [facts.rank(value) for value in (*node.outputs, *node.inputs)]
    rank = next((rank for rank in ranks if rank), None)
    return axis if axis >= 0 else axis + rank if rank is not None else axis


def _joins(inner: ir.Node, outer: ir.Node, axis: int | None) -> bool:
    if inner.domain != "" or inner.op_type != "Concat" or inner.graph is not outer.graph:
        return False
    return axis is not None and _axis(inner) == axis


class ConcatChain(Rewrite):
    """Concats of Concats become one."""

    name: ClassVar[str] = "concat-chain"
    roots: ClassVar[tuple[str, ...]] = ("Concat",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The operands of the inner Concats take their places."""
        axis = _axis(node)
        operands: list[ir.Value | None] = []
        shared: str | None = None
        for value in node.inputs:
            inner = None if value is None else value.producer()
            if value is None or inner is None or not _joins(inner, node, axis):
                operands.append(value)
            elif facts.sole_consumer(value) is None:
                shared = value.name
                operands.append(value)
            else:
                operands.extend(inner.inputs)
        if len(operands) == len(node.inputs) and operands == list(node.inputs):
            if shared is not None:
                raise Refuse(f"the inner value {shared!r} is used elsewhere")
            return None
        if len(operands) > _MOST_INPUTS:
            raise Refuse(f"one Concat would have more than {_MOST_INPUTS} inputs")
        return build.op("Concat", *operands, like=node.outputs[0], axis=axis)
