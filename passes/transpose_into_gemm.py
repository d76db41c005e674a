"""Gemm(Transpose(A), B, C)  ==>  Gemm<transA = 1>(A, B, C), and MatMul(Transpose(A), B)  ==>  Gemm<transA = 1>(A, B)

Forms: ``x @ w.t()`` of PyTorch where the weight is not constant, ``tf.matmul(transpose_a=True)``, either operand or
both, at rank 2.

Refuses: a MatMul whose Transpose something else reads (nothing would be saved). Leaves alone: other ranks,
integers, a Transpose that is none.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Refuse, Rewrite


class TransposeIntoGemm(Rewrite):
    """A transposed operand becomes an attribute."""

    name = "transpose-into-gemm"
    roots = ("Gemm", "MatMul")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Flip ``transA`` or ``transB`` for each operand that a Transpose makes."""
        operands = [_transposed(operand, node) for operand in node.inputs[:2]]
        if operands[0] is None and operands[1] is None:
            return None
        if any(facts.rank(operand) != 2 or not facts.is_float(operand) for operand in node.inputs[:2]):
            return None
        for inner, operand in zip(operands, node.inputs, strict=False):
            if inner is not None and operand is not None and facts.sole_consumer(operand) is None:
                raise Refuse(f"something else reads {operand.name!r}")
        flips = [int(operand is not None) for operand in operands]
        a = operands[0] if operands[0] is not None else node.inputs[0]
        b = operands[1] if operands[1] is not None else node.inputs[1]
        return build.op(
            "Gemm",
            a,
            b,
            *node.inputs[2:],
            like=node.outputs[0],
            transA=facts.attribute(node, "transA", 0) ^ flips[0] or None,
            transB=facts.attribute(node, "transB", 0) ^ flips[1] or None,
            alpha=facts.attribute(node, "alpha"),
            beta=facts.attribute(node, "beta"),
        )


def _transposed(value: ir.Value | None, reader: ir.Node) -> ir.Value | None:
    """What ``value`` is the matrix transpose of."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.domain or node.graph is not reader.graph:
        return None
    return node.inputs[0] if facts.attribute(node, "perm", (1, 0)) == (1, 0) else None
