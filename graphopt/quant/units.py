"""Which nodes of a graph could compute on integers, and what goes with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.quant.kernels import (
    CONVOLUTIONS,
    PRODUCTS,
    IntegerKernels,
    activation_slots,
    bias_of,
    weight_of,
)

Kind = Literal["compute", "arithmetic", "passes"]
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Unit:
    """A node, with the activations that its integer kernel takes in: the smallest thing that is put on integers.

    Attributes:
        nodes: In order; the first gives the unit its name, the last its output.
        kind: ``compute`` (products of a constant weight), ``arithmetic`` (requantizes), or ``passes`` (moves elements).
    """

    nodes: tuple[ir.Node, ...]
    kind: Kind

    @property
    def node(self) -> ir.Node:
        """The node that does the work."""
        return self.nodes[0]

    @property
    def name(self) -> str:
        """Of the node that does the work."""
        return self.nodes[0].name or ""

    @property
    def output(self) -> ir.Value:
        """What the unit gives to the rest of the graph."""
        return self.nodes[-1].outputs[0]

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activations that it reads."""
        values = (self.node.inputs[slot] for slot in activation_slots(self.node))
        return tuple(dict.fromkeys(value for value in values if value is not None))


def units_of(model: ir.Model, kernels: IntegerKernels) -> tuple[list[Unit], dict[str, str]]:
    """The units of the main graph, in topological order, and why other nodes of these operators are none.

    A node inside a subgraph (the body of an If or a Loop) is never one: its values cannot be observed.

    Returns:
        Units; and for each compute node that is none, by name, the reason.
    """
    found: list[Unit] = []
    refused: dict[str, str] = {}
    taken: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        kind = _kind(node, kernels)
        if kind is None or node in taken:
            continue
        reason = (
            "it is part of a subgraph" if node.graph is not model.graph else _why_not(node, kind, kernels)
        )
        if reason:
            if kind == "compute":
                refused[node.name or ""] = reason
            continue
        nodes = [node]
        while (follower := _fused(nodes[-1], kernels.fused.get(node.op_type, frozenset()))) is not None:
            nodes.append(follower)
        taken.update(nodes)
        found.append(Unit(tuple(nodes), kind))
    return found, refused


def integer_nodes(model: ir.Model) -> int:
    """Number of nodes that quantize, dequantize or compute on quantized integers (QDQ, QOperator and integer forms)."""
    return sum(
        node.op_type in _QUANTIZERS
        or node.op_type in ("ConvInteger", "MatMulInteger")
        or node.op_type.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantize"))
        for node in model.graph.all_nodes()
    )


def constant_bytes(model: ir.Model, on_integers: Collection[str] = ()) -> int:
    """Bytes of a graph's constants where the float32 weights of these nodes, by name, take 8 bits each."""
    return sum(
        value.const_value.nbytes // (4 if _is_weight_of(value, on_integers) else 1)
        for graph in ir_model.all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _is_weight_of(value: ir.Value, names: Collection[str]) -> bool:
    wide = value.dtype == ir.DataType.FLOAT and (facts.rank(value) or 0) > 1
    return wide and any(use.node.name in names for use in value.uses())


def _kind(node: ir.Node, kernels: IntegerKernels) -> Kind | None:
    if node.domain != "":
        return None
    if node.op_type in kernels.compute:
        return "compute"
    if node.op_type in kernels.arithmetic:
        return "arithmetic"
    return "passes" if node.op_type in kernels.passes else None


def _fused(node: ir.Node, activations: frozenset[str]) -> ir.Node | None:
    """The activation that takes the only look at what ``node`` gives, where the kernel can take it in."""
    consumer = facts.sole_consumer(node.outputs[0])
    if consumer is None or consumer.domain != "" or consumer.op_type not in activations:
        return None
    if consumer.op_type == "Clip" and not all(
        facts.is_constant(bound) for bound in consumer.inputs[1:] if bound
    ):
        return None
    return consumer if consumer.inputs[0] is node.outputs[0] else None


def _why_not(node: ir.Node, kind: Kind, kernels: IntegerKernels) -> str:
    if len(node.outputs) != 1 and kind != "passes":
        return "it has several outputs"
    if any(output.dtype != ir.DataType.FLOAT for output in node.outputs if output.name):
        return "it does not compute in float32"
    activations = [node.inputs[slot] for slot in activation_slots(node)]
    if any(value is None or facts.is_constant(value) for value in activations):
        return "one of its operands is a constant"
    if any(_is_quantized(value) for value in node.inputs if value is not None):
        return "it is quantized already"
    reason = _why_no_product(node) if node.op_type in CONVOLUTIONS | PRODUCTS else ""
    return reason or kernels.refuses(node)


def _is_quantized(value: ir.Value) -> bool:
    return facts.producer_op(value) in _QUANTIZERS


def _why_no_product(node: ir.Node) -> str:
    weight = weight_of(node)
    if weight is None:
        return "" if node.op_type == "MatMul" else "its weight is no constant"
    array = facts.constant(weight)
    if array is None or array.dtype != np.float32:
        return "its weight is not float32"
    if array.size == 0 or not np.isfinite(array).all():
        return "its weight holds NaN or infinity"
    bias = bias_of(node)
    if bias is None:
        return ""
    if not facts.is_constant(bias):
        return "its bias is no constant"
    if node.op_type == "Gemm":
        if facts.attribute(node, "alpha", 1.0) != 1.0 or facts.attribute(node, "beta", 1.0) != 1.0:
            return "it scales its operands (alpha or beta is not 1)"
        if facts.rank(bias) != 1 or facts.dims(bias) == (1,):
            return "its bias is not one number for each column"
    return ""
