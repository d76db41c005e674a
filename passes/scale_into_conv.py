"""Mul(Conv(x, W, B), s)  ==>  Conv(x, s * W, s * B)

Forms: Mul, Div and Neg by a scalar or per-channel constant after Conv, ConvTranspose, Gemm, MatMul, MatMul and Add,
or an inference BatchNormalization; directly or with ops between that the factor passes through (a positive one
through Relu, LeakyRelu, PRelu and MaxPool; any through average pools, Reshape, Transpose, Resize and the Add of
another constant). PP-OCRv4's learnable affine block, DenseNet's Scale layer, attention's 1/sqrt(d) where it stays.

Refuses: an inner value, or a weight, that something else reads; folded weights that overflow. Leaves alone: a
constant that would enlarge the output, that varies along another axis, or that is not finite.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes import _affine
from graphopt.rewrite import Builder, Rewrite


class ScaleIntoConv(Rewrite):
    """A constant factor after a linear op becomes part of its weights."""

    name = "scale-into-conv"
    roots = ("Div", "Mul", "Neg")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """See :func:`graphopt.passes._affine.absorb_upwards`."""
        return _affine.absorb_upwards(node, build)
