"""Add(MatMul(A, B), C)  ==>  Gemm(A, B, C), for matrices

Forms: a fully connected layer of TensorFlow, Paddle or PyTorch (``addmm`` of the TorchScript exporter with
constants unfolded). Only where A and B have rank 2 and C is a bias, a constant that broadcasts along the rows;
products of higher rank are left as they are, since a Reshape on either side costs more than the Add.

Refuses: a product that something else reads. Leaves alone: integers, unknown ranks, a C that would enlarge
the output or that is not constant.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Match, PatternRewrite, const, op, var


class MatMulAddToGemm(PatternRewrite):
    """Gemm, ONNX operator of opset 13."""

    name = "matmul-add-to-gemm"
    patterns = (op("Add", op("MatMul", var("a"), var("b"), name="product"), const(name="c")),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        """The bias must fit one row of the output: its last dimension is 1 or N, all others are 1."""
        a, b, c = match.value("a"), match.value("b"), match.value("c")
        if facts.rank(a) != 2 or facts.rank(b) != 2 or not facts.is_float(a) or not facts.is_float(c):
            return None
        columns, shape = (facts.dims(b) or ())[1], facts.static_dims(c)
        if shape is None or len(shape) > 2 or any(dim != 1 for dim in shape[:-1]):
            return None
        if shape and shape[-1] not in (1, columns):
            return None
        return build.op("Gemm", a, b, c, like=match.root.outputs[0])
