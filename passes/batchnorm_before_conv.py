"""Conv(BatchNormalization(x), W, B)  ==>  Conv(x, W s, B + W b), with s = scale / sqrt(var + epsilon)

Forms: normalisation of the input, and pre-activation blocks without activation, before Conv, Gemm, MatMul (rank 2), or
another inference BatchNormalization; directly or with ops between that the map passes through.

Refuses: a convolution that pads with zeros, which the map would turn into something else; another reader of the
normalised value that cannot take it in; a weight that something else reads.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes import _affine
from graphopt.rewrite import Builder, Rewrite


class BatchNormBeforeConv(Rewrite):
    """Batch normalisation before a linear op becomes part of its weights."""

    name = "batchnorm-before-conv"
    roots = ("Add", "BatchNormalization", "Conv", "Gemm", "MatMul")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """See :func:`graphopt.passes._affine.absorb_downwards`."""
        return _affine.absorb_downwards(node, build, frozenset(("BatchNormalization",)))
