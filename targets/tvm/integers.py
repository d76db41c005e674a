"""The integer kernels of ``tvm-llvm``: which there are, and what they want."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.windows import SAME
from graphopt.quant.kernels import IntegerKernels, weight_of

_FUSED = frozenset((
    "Abs", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid",
    "Softplus", "Swish", "Tanh",
))  # fmt: skip
FOUR = 4
"""Products of bytes that one instruction adds up."""
_MOST_EXACT = 512
"""Products of two bytes whose sum is exact in float32, in which depthwise convolutions are computed."""


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
    dims, weight = facts.dims(node.inputs[0]), facts.static_dims(node.inputs[1])
    if dims is None or len(dims) < 2 or dims[1] is None or weight is None:
        return "its sizes are not known"
    if pads_are_open(node):
        return "its pads depend on sizes that are open"
    return why_no_convolution(dims, weight, facts.attribute(node, "group", 1))


def pads_are_open(node: ir.Node) -> bool:
    """Whether a window is to be padded by what depends on sizes that are not known."""
    dims = facts.dims(node.inputs[0])
    mode = facts.attribute(node, "auto_pad", "NOTSET")
    if dims is None:
        return mode in SAME
    return pads_depend_on_sizes(mode, dims[2:], facts.attribute(node, "strides", ()))


def pads_depend_on_sizes(mode: str, sizes: Sequence[int | None], strides: Sequence[int]) -> bool:
    """Whether pads by ``auto_pad`` cannot be told from these sizes; a window that moves by one does not need them."""
    moves = strides or (1,) * len(sizes)
    return mode in SAME and any(size is None and move > 1 for size, move in zip(sizes, moves, strict=True))


def why_no_convolution(data: Sequence[int | None], weight: Sequence[int], groups: int) -> str:
    """Why a convolution of bytes of these sizes, data [batch, channels, ...], has no loops; empty where it has."""
    if len(data) not in (3, 4):
        return "it is neither of an image nor of a line"
    if is_depthwise(data[1], weight, groups):
        return "its sums are too long" if math.prod(weight[1:]) > _MOST_EXACT else ""
    if groups > 1 and weight[1] % FOUR:
        return "the channels of its groups do not come in fours"
    return ""


def is_depthwise(channels: int | None, weight: Sequence[int], groups: int) -> bool:
    """Whether each channel is convolved by itself."""
    return weight[1] == 1 and groups > 1 and groups == channels
