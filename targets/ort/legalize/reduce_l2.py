"""ReduceL2(x, axes)  ==>  Sqrt(ReduceSum(x * x, axes)), over the last axes

ONNX Runtime's ReduceSum is vectorised where its ReduceL2 goes through a generic kernel. Both square without
scaling, so they overflow and underflow at the same magnitudes. Times as fast (``benchmarks/rewrites.py``, 2
threads, AMD EPYC with AVX-512): 2.51 on [512, 1024], 1.09 on [8, 384]. Forms: normalisation of embeddings, weight
norms.

Refuses: an axis before the last kept one. Leaves alone: axes that are not constant, unknown ranks, types other than
float32.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Refuse, Rewrite


class LegalizeReduceL2(Rewrite):
    """The Euclidean norm by ReduceSum."""

    name = "reduce-l2-to-sum"
    roots = ("ReduceL2",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Attributes and axes stay."""
        x, out, rank = node.inputs[0], node.outputs[0], facts.rank(node.inputs[0])
        axes = facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if x is None or x.dtype != ir.DataType.FLOAT or not axes or rank is None:
            return None
        found = sorted({axis % rank for axis in axes})
        if found != list(range(rank - len(found), rank)):
            raise Refuse("the reduced axes are not the last ones")
        square = build.op("Mul", x, x, like=x)
        keepdims = facts.attribute(node, "keepdims", 1)
        return build.op(
            "Sqrt", build.op("ReduceSum", square, node.inputs[1], like=out, keepdims=keepdims), like=out
        )
