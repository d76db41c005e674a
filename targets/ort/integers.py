"""ONNX Runtime's integer kernels on a CPU: which there are, and what they want.

Q and DQ around an operator become an integer kernel by ONNX Runtime's QDQ transformers (``onnxruntime/core/optimizer/
qdq_transformer``); the lists here are those of its selectors for the CPU provider.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.quant.kernels import IntegerKernels

_PASSES = frozenset(
    {
        *("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"),
        *("Expand", "Resize", "DepthToSpace", "SpaceToDepth", "Tile", "Split"),
    }
)
_ARITHMETIC = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})


def kernels() -> IntegerKernels:
    """The integer kernels of the CPU provider on this machine."""
    return IntegerKernels(
        activation=ir.DataType.UINT8,
        symmetric=False,
        weight_bits=8,
        compute=frozenset({"Conv", "MatMul", "Gemm"}),
        arithmetic=_ARITHMETIC,
        passes=_PASSES,
        writes_integers=frozenset({"Conv"}),
        fused={"Conv": frozenset({"Relu", "Clip"})},
        refuses=why_not,
    )


def why_not(node: ir.Node) -> str:
    """Why the integer kernel does not form for a node of one of these operators."""
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "Resize" and facts.attribute(node, "mode", "nearest") != "nearest":
        return "it interpolates"
    if node.op_type == "Split" or (node.op_type == "MaxPool" and len(node.outputs) > 1):
        return "it has several outputs"
    return ""
