"""Where(true, x, y)  ==>  x;    Where(false, x, y)  ==>  y;    Where(c, x, x)  ==>  x

Forms: masks of exported transformers that turn out to be all true once shapes are known, and the choice
between a given and a copied size (``Where(Equal(size, -1), ones, size)``) that PyTorch writes before Expand.
Where the shape has to grow, an Expand takes the place of the Where.

Refuses: a result whose shape is not known to be that of the chosen side, and is not static.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._shapes import broadcasts_into
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite


class WhereConstant(Rewrite):
    """Where with a condition that is the same everywhere, or with equal sides."""

    name: ClassVar[str] = "where-constant"
    roots: ClassVar[tuple[str, ...]] = ("Where",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The chosen side, expanded where need be."""
        condition, x, y = node.inputs
        if condition is None or x is None or y is None:
            return None
        if x is y:
            chosen, other = x, x
        else:
            content = facts.constant(condition)
            if content is None or not content.size or bool(content.all()) != bool(content.any()):
                return None
            chosen, other = (x, y) if content.all() else (y, x)
        out = node.outputs[0]
        if facts.same_shape(chosen, out):
            return chosen
        if all(
            operand is chosen or (facts.is_constant(operand) and broadcasts_into(operand, chosen))
            for operand in (condition, other)
        ):
            return chosen
        shape = facts.static_dims(out)
        if shape is None:
            raise Refuse("the shape of the result is not known")
        return build.op("Expand", chosen, np.array(shape, dtype=np.int64), like=out)
