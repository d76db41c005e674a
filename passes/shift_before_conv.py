"""Conv(Add(x, b), W, B)  ==>  Conv(x, W, B + W b)

Forms: Add and Sub (either way round) of a scalar or per-channel constant before Conv, Gemm, MatMul or an inference
BatchNormalization; directly or with ops between that a shift passes through (pools, Transpose, Reshape, Resize).
PP-OCRv4's learnable affine block; input normalisation ``x - mean`` that is part of the model.

Refuses: a convolution that pads with zeros; another reader that cannot take the constant in; a weight that
something else reads, where it must change; a MatMul without bias and with more outputs than inputs.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes import _affine
from graphopt.rewrite import Builder, Rewrite


class ShiftBeforeConv(Rewrite):
    """A constant that is added before a linear op becomes part of its bias."""

    name = "shift-before-conv"
    roots = ("Add", "BatchNormalization", "Conv", "Gemm", "MatMul")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """See :func:`graphopt.passes._affine.absorb_downwards`."""
        return _affine.absorb_downwards(node, build, frozenset(("Add", "Sub")))
