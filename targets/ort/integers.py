"""ONNX Runtime's integer kernels on a CPU: which there are, and what they want.

Q and DQ around an operator become an integer kernel by ONNX Runtime's QDQ transformers (``onnxruntime/core/optimizer/
qdq_transformer``); the lists here are those of its selectors for the CPU provider.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.machine import cpu_flags
from graphopt.quant.kernels import IntegerKernels

_VNNI = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI"}
"""Flags of instruction sets that multiply unsigned by signed bytes without saturation, the best first."""
_PASSES = frozenset(
    {
        *("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"),
        *("Expand", "Resize", "DepthToSpace", "SpaceToDepth", "Tile", "Split"),
    }
)
_ARITHMETIC = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})


def kernels(flags: frozenset[str] | None = None) -> IntegerKernels:
    """The integer kernels of the CPU provider on this machine.

    Args:
        flags: Instruction sets, as :func:`graphopt.machine.cpu_flags` names them; of this processor by default.
    """
    activation, symmetric, bits, why = _types(cpu_flags() if flags is None else flags)
    return IntegerKernels(
        activation=activation,
        symmetric=symmetric,
        weight_bits=bits,
        compute=frozenset({"Conv", "MatMul", "Gemm"}),
        arithmetic=_ARITHMETIC,
        passes=_PASSES,
        writes_integers=frozenset({"Conv"}),
        fused={"Conv": frozenset({"Relu", "Clip"})},
        refuses=why_not,
        dynamic=frozenset({"MatMul", "Gemm", "LSTM"}),
        tables=True,
        describe=f"ONNX Runtime, {why}",
    )


def _types(flags: frozenset[str]) -> tuple[ir.DataType, bool, int, str]:
    """Type of activations, whether they are symmetric, bits of weights, and why."""
    unsigned = "unsigned activations with a zero point, signed weights for each channel"
    for flag, name in _VNNI.items():
        if flag in flags:
            return ir.DataType.UINT8, False, 8, f"{name}: {unsigned}"
    if "asimddp" in flags:
        return (
            ir.DataType.INT8,
            False,
            8,
            "Arm dot product: signed activations and weights (sdot), not measured here",
        )
    if "avx2" in flags:
        return (
            ir.DataType.UINT8,
            False,
            7,
            f"AVX2 without VNNI: {unsigned}, of 7 bits (vpmaddubsw saturates at 16)",
        )
    return ir.DataType.UINT8, False, 8, f"no integer dot product: {unsigned}; little gain is to be expected"


def why_not(node: ir.Node) -> str:
    """Why the integer kernel does not form for a node of one of these operators."""
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "Resize" and facts.attribute(node, "mode", "nearest") != "nearest":
        return "it interpolates"
    if node.op_type == "Split" or (node.op_type == "MaxPool" and len(node.outputs) > 1):
        return "it has several outputs"
    return ""
