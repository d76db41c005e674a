"""OpenVINO's integer kernels on a CPU: where its low-precision transformations want Q and DQ (docs/openvino.md).

They read a Q and a DQ on the way into a convolution or product, and fuse what lies between it and the next Q (bias,
activation, addition) into the kernel; a Q between a convolution and its activation stands in their way.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.quant.kernels import IntegerKernels
from graphopt.targets.openvino.executable import int8_kernels

_PASSES = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "DepthToSpace"})
_NEEDS_SEVEN_BITS = frozenset({"avx512", "avx2"})


def kernels() -> IntegerKernels | None:
    """The integer kernels of the CPU plugin on this processor; None where it has none that are fast."""
    found = int8_kernels()
    if not found:
        return None
    bits = 7 if found in _NEEDS_SEVEN_BITS else 8
    note = ", weights of 7 bits (sums of two products saturate at 16)" if bits == 7 else ""
    return IntegerKernels(
        activation=ir.DataType.UINT8,
        symmetric=False,
        weight_bits=bits,
        compute=frozenset({"Conv", "MatMul", "Gemm"}),
        arithmetic=frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"}),
        passes=_PASSES,
        writes_integers=frozenset(),
        integer_bias=False,
        refuses=_why_not,
        describe=f"OpenVINO, {found}: unsigned activations with a zero point, signed weights for each channel{note}",
    )


def _why_not(node: ir.Node) -> str:
    if node.op_type == "Gemm" and facts.attribute(node, "transA", 0):
        return "its first operand is transposed"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "it has several outputs"
    return ""
