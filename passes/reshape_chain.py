"""Reshape(Reshape(x, s), t)  ==>  Reshape(x, t);    Squeeze(Unsqueeze(x, a), a)  ==>  x

Forms: any chain of two of Reshape, Flatten, Squeeze and Unsqueeze, as ``view``, ``flatten``, ``unsqueeze`` of
PyTorch and the flattening before a classifier in Paddle and Keras give. Elements keep their order in all of
them, so that only the last shape counts; it has to be known, up to dimensions of x that stay in place and one
other.

Refuses: a chain whose last shape a constant cannot express.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import known_dims
from graphopt.passes._shapes import VIEWS, reshape_target
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    axes = facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return None
    # Both count in the larger rank: that of the input of Squeeze, that of the output of Unsqueeze.
    rank = facts.rank(node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0])
    if rank is not None:
        axes = tuple(axis % rank for axis in axes)
    return tuple(sorted(axes))


def _undoes(inner: ir.Node, outer: ir.Node) -> bool:
    if {inner.op_type, outer.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    first = _axes(inner)
    return first is not None and first == _axes(outer)


class ReshapeChain(Rewrite):
    """Two operators that only change the shape become one Reshape, or cancel."""

    name: ClassVar[str] = "reshape-chain"
    roots: ClassVar[tuple[str, ...]] = VIEWS
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One Reshape from what the first reads to what the second makes."""
        middle, out = node.inputs[0], node.outputs[0]
        inner = None if middle is None else middle.producer()
        if inner is None or inner.domain != "" or inner.op_type not in VIEWS:
            return None
        x = inner.inputs[0]
        if x is None:
            return None
        if _undoes(inner, node) or facts.same_shape(x, out):
            return x
        target = self._target(node, x)
        if target is None:
            raise Refuse("the last shape is not known well enough for one Reshape")
        return build.op("Reshape", x, np.array(target, dtype=np.int64), like=out)

    def _target(self, node: ir.Node, x: ir.Value) -> list[int] | None:
        wanted = known_dims(node.outputs[0])
        if wanted is not None:
            target = reshape_target(x, wanted)
            if target is not None:
                return target
        if node.op_type == "Reshape":
            # A constant target that copies no dimension means the same for every input.
            given = facts.ints(node.inputs[1])
            if given is not None and 0 not in given:
                return list(given)
        return None
