"""The integer kernels of ``tvm-llvm``: which there are, and what they want."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.quant.kernels import IntegerKernels, weight_of

_FUSED = frozenset((
    "Abs", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid",
    "Softplus", "Swish", "Tanh",
))  # fmt: skip
_FOUR = 4
_IMAGE = (3, 4)


def kernels(vectors: str) -> IntegerKernels:
    """The integer kernels for a processor.

    Args:
        vectors: As from :func:`graphopt.targets.tvm.executable.dot_products`.
    """
    return IntegerKernels(
        activation=ir.DataType.UINT8,
        symmetric=False,
        weight_bits=8,
        compute=frozenset({"Conv", "MatMul", "Gemm"}),
        arithmetic=frozenset({"Concat"}),
        passes=frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}),
        writes_integers=frozenset(),
        fused={"Conv": _FUSED, "MatMul": _FUSED, "Gemm": _FUSED},
        integer_bias=False,
        refuses=why_not,
        describe=f"TVM with {vectors}: unsigned asymmetric activations, signed weights (vpdpbusd)",
    )


def why_not(node: ir.Node) -> str:
    """Why a node of one of these operators has no integer kernel."""
    if node.op_type == "MatMul" and weight_of(node) is None:
        return "it is a product of two activations"
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "it gives places as well"
    if node.op_type != "Conv":
        return ""
    dims, weight = facts.static_dims(node.inputs[0]), facts.static_dims(node.inputs[1])
    if dims is None or weight is None or len(dims) not in _IMAGE:
        return "its sizes are not known"
    groups = facts.attribute(node, "group", 1)
    if groups > 1 and groups != dims[1] and weight[1] % _FOUR:
        return "the channels of its groups do not come in fours"
    return ""
