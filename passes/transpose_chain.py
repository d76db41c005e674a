"""Transpose(Transpose(x, p), q)  ==>  Transpose(x, p[q])  (or x)

Forms: tf2onnx wraps each NHWC operator in a pair of Transposes; PyTorch models chain ``permute`` and
``transpose``.

Refuses: a pair that does not cancel and whose inner value is read elsewhere, since both would stay.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose; without the attribute it reverses, which needs the rank."""
    perm = facts.attribute(node, "perm")
    if perm is not None:
        return tuple(perm)
    rank = facts.rank(node.inputs[0])
    if rank is None:
        rank = facts.rank(node.outputs[0])
    return None if rank is None else tuple(reversed(range(rank)))


class TransposeChain(Rewrite):
    """Two Transposes become one, or cancel."""

    name: ClassVar[str] = "transpose-chain"
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Output axis i is the inner one's axis q[i], which is axis p[q[i]] of x."""
        middle = node.inputs[0]
        inner = None if middle is None else middle.producer()
        if middle is None or inner is None or inner.domain != "" or inner.op_type != "Transpose":
            return None
        first, second, x = permutation(inner), permutation(node), inner.inputs[0]
        if first is None or second is None or x is None or len(first) != len(second):
            return None
        both = [first[axis] for axis in second]
        if both == list(range(len(both))):
            return x
        if facts.sole_consumer(middle) is None:
            raise Refuse(f"the inner value {middle.name!r} is used elsewhere")
        return build.op("Transpose", x, like=node.outputs[0], perm=both)
