"""Checks that the rewrites to activations and normalisations share."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Match

SINGLE_OR_HALF = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""What ONNX Runtime's CPU kernels take (float16 by casting); most of the fused ops have no kernel for double."""


def keeps_type_and_shape(match: Match, x: ir.Value) -> bool:
    """Whether an op from ``x`` alone gives the root's type and shape.

    Constants of a single element count as scalars in a pattern, but one of shape [1,1,1] would enlarge the rank
    of a smaller ``x``. A Cast inside must stay among floats.
    """
    if x.dtype not in SINGLE_OR_HALF or x.dtype != match.root.outputs[0].dtype:
        return False
    rank = facts.rank(x)
    for node in match.nodes:
        if node.op_type == "Cast" and not facts.is_float(node.outputs[0]):
            return False
        for value in node.inputs:
            if value is not x and facts.is_constant(value):
                constant_rank = facts.rank(value)
                if constant_rank and (rank is None or constant_rank > rank):
                    return False
    return True
