"""What a target says about its integer kernels, so that Q and DQ are placed where these kernels form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm"})
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}


def _accept(node: ir.Node) -> str:
    del node
    return ""


@dataclass(frozen=True)
class IntegerKernels:
    """The integer kernels of a backend on a machine.

    Attributes:
        activation: Element type of quantized activations, UINT8 or INT8.
        symmetric: Whether an activation's zero point must be the middle of its type.
        weight_bits: Bits of a weight that may be used: 8, or 7 where sums of two products saturate at 16 bits.
        compute: Operators with an integer kernel for a constant weight (``Conv``, ``MatMul``, ...).
        arithmetic: Operators with an integer kernel that requantizes (``Add``, ``Concat``, ``AveragePool``, ...).
        passes: Operators that move elements and so run on integers as they are (``MaxPool``, ``Reshape``, ...).
        writes_integers: Operators whose integer kernel must write integers; others may leave the sum in float.
        fused: Activations that a kernel applies before it requantizes, by operator.
        integer_bias: Whether a bias must be int32, at the product of both scales.
        refuses: Why a node has no integer kernel although its operator has; empty where it has.
        dynamic: Operators with a kernel that quantizes its activations as they come.
        tables: Whether rows of a table of 8-bit blocks are read without restoring all of it.
        describe: For the report: the instruction set, and what follows from it.
    """

    activation: ir.DataType
    symmetric: bool
    weight_bits: int
    compute: frozenset[str]
    arithmetic: frozenset[str]
    passes: frozenset[str]
    writes_integers: frozenset[str]
    fused: Mapping[str, frozenset[str]] = field(default_factory=dict)
    integer_bias: bool = True
    refuses: Callable[[ir.Node], str] = _accept
    dynamic: frozenset[str] = frozenset()
    tables: bool = False
    describe: str = ""

    @property
    def limits(self) -> tuple[int, int]:
        """Least and largest quantized activation."""
        info = np.iinfo(self.activation.numpy())
        return int(info.min), int(info.max)

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of a quantized weight: symmetric, the most negative number unused."""
        return (1 << (self.weight_bits - 1)) - 1


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a Conv, ConvTranspose, MatMul or Gemm; None where it has none."""
    if node.op_type not in CONVOLUTIONS | PRODUCTS or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    return weight if facts.is_constant(weight) else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias of a Conv, ConvTranspose or Gemm; None where it has none."""
    slot = _BIAS.get(node.op_type)
    return node.inputs[slot] if slot is not None and len(node.inputs) > slot else None


def channel_axis(node: ir.Node) -> int | None:
    """The axis of a weight that counts output channels; None where they lie along no one axis."""
    weight = node.inputs[1]
    rank = facts.rank(weight)
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if facts.attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if facts.attribute(node, "transB", 0) else 1
    return rank - 1 if rank is not None and rank >= 2 else None


def activation_slots(node: ir.Node) -> tuple[int, ...]:
    """Inputs of a node that carry activations to be quantized (float, not a weight or a bias)."""
    if node.op_type in CONVOLUTIONS | PRODUCTS:
        return (0,) if weight_of(node) is not None else (0, 1)
    if node.op_type in ("Add", "Mul"):
        return (0, 1)
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    return (0,)
