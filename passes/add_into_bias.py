"""Add(Conv(x, W, B), b)  ==>  Conv(x, W, B + b)

Forms: Add and Sub (either way round) of a scalar or per-channel constant after Conv, ConvTranspose, Gemm, MatMul and
Add, or an inference BatchNormalization; directly or with ops between that a shift passes through (MaxPool, average
pools that average no padding, Transpose, Resize). Paddle and TensorFlow write the bias of a convolution so.

Refuses: an inner value, or a weight, that something else reads. Leaves alone: a constant that would enlarge the
output or that varies along another axis; MatMul without a bias, whose Add is its bias.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes import _affine
from graphopt.rewrite import Builder, Rewrite


class AddIntoBias(Rewrite):
    """A constant that is added after a linear op becomes part of its bias."""

    name = "add-into-bias"
    roots = ("Add", "Sub")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """See :func:`graphopt.passes._affine.absorb_upwards`."""
        return _affine.absorb_upwards(node, build)
