"""OpenVINO's integer kernels on a CPU: which there are, and what they want.

Q and DQ become FakeQuantize in OpenVINO's frontend, and its low-precision transformations
(``openvino/src/common/low_precision_transformations``) move the scales through the graph until convolutions and
products read integers. Where they need Q and DQ, and which operators gain, was measured: see docs/openvino.md.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.quant.kernels import IntegerKernels, weight_of
from graphopt.targets.openvino.executable import int8_kernels

_FUSED = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
        *("Gelu", "Mish", "Softplus", "Abs", "Sqrt", "Round"),
    }
)
_SATURATING = frozenset({"avx2", "avx512"})
"""Instruction sets whose int8 product adds pairs in 16 bits, where full weights overflow."""


def kernels() -> IntegerKernels:
    """The integer kernels of OpenVINO on this machine."""
    isa = int8_kernels()
    bits = 7 if isa in _SATURATING else 8
    why = ", 7 bits for weights since sums of two products saturate at 16 bits" if bits == 7 else ""
    return IntegerKernels(
        activation=ir.DataType.UINT8,
        symmetric=False,
        weight_bits=bits,
        compute=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        arithmetic=frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"}),
        passes=frozenset({"MaxPool"}),
        writes_integers=frozenset(),
        fused={"Conv": _FUSED, "ConvTranspose": _FUSED, "MatMul": _FUSED, "Gemm": _FUSED},
        integer_bias=False,
        refuses=why_not,
        tables=True,
        describe=f"OpenVINO with {isa or 'reference kernels'}: unsigned asymmetric activations, signed weights{why}",
    )


def why_not(node: ir.Node) -> str:
    """Why the integer kernel does not form, or was measured not to gain, for a node of one of these operators."""
    if node.op_type == "MatMul" and weight_of(node) is None:
        return "a product of two activations was measured no faster on integers"
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "it has several outputs"
    return ""
