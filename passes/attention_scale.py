"""(x @ w + b) * c, with only layout in between  ==>  x @ (w * c) + (b * c)

Forms: the scale of attention scores, Mul or Div by a constant on the query after Reshape and Transpose (Hugging
Face, timm, PaddleOCR), or on the product of queries and keys; the projection is MatMul with or without an Add,
Gemm or Conv. Where attention becomes one operator the scale is an attribute of it already; this serves what stays
in pieces, and any other constant factor behind a layer.

Refuses: weights that something else reads (a second copy would be needed); inner values that are read elsewhere; a
factor of zero, or one that makes a weight overflow.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_LAYOUT = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
_LAYERS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_LONGEST = 8


class AttentionScale(Rewrite):
    """A constant factor behind a layer, folded into its weights."""

    name = "attention-scale"
    roots = ("Div", "Mul")
    numerics = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The chain from the layer down, with scaled constants."""
        factor, x = _factor(node)
        if factor is None or x is None or not facts.is_float(node.outputs[0]):
            return None
        if (facts.rank(node.outputs[0]) or 0) != facts.rank(x):
            return None
        chain = _chain(x)
        if chain is None:
            return None
        if factor == 0 or not np.isfinite(factor):
            raise Refuse("the factor is zero or not finite")
        _check_private(node, chain)
        value: ir.Value | None = None
        for inner in reversed(chain):
            value = _rebuilt(build, inner, value, factor)
        return value


def _factor(node: ir.Node) -> tuple[float | None, ir.Value | None]:
    left, right = node.inputs
    number = facts.scalar(right)
    if number is not None:
        if node.op_type == "Div":
            return (1 / number if number else 0.0), left
        return number, left
    return (facts.scalar(left), right) if node.op_type == "Mul" else (None, None)


def _chain(value: ir.Value | None) -> list[ir.Node] | None:
    """From the node that makes ``value`` up to the layer; through the left operand of a product of activations."""
    chain: list[ir.Node] = []
    for _ in range(_LONGEST):
        node = None if value is None else value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        chain.append(node)
        if node.op_type in _LAYOUT:
            value = node.inputs[0]
        elif node.op_type == "Add":
            fixed = [facts.is_constant(operand) for operand in node.inputs]
            if fixed.count(True) != 1:
                return None
            value = node.inputs[fixed.index(False)]
            layer = None if value is None else value.producer()
            if layer is None or layer.op_type != "MatMul" or not facts.is_constant(layer.inputs[1]):
                return None
        elif node.op_type in _LAYERS:
            if facts.is_constant(node.inputs[1]):
                fixed_bias = (
                    len(node.inputs) < 3 or node.inputs[2] is None or facts.is_constant(node.inputs[2])
                )
                return chain if fixed_bias else None
            if node.op_type != "MatMul":
                return None
            value = node.inputs[0]
        else:
            return None
    return None


def _check_private(root: ir.Node, chain: list[ir.Node]) -> None:
    inside = {root, *chain}
    if any(node.graph is not root.graph for node in chain):
        raise Refuse("the pattern crosses into a subgraph")
    for node in chain:
        if any(use.node not in inside for output in node.outputs for use in output.uses()):
            raise Refuse(f"the inner value {node.outputs[0].name!r} is used elsewhere")
        if any(output.is_graph_output() for output in node.outputs):
            raise Refuse(f"the inner value {node.outputs[0].name!r} is an output of the graph")
        for operand in node.inputs:
            if _is_scaled(node, operand) and operand is not None and len(operand.uses()) > 1:
                raise Refuse(f"the weights {operand.name!r} are used elsewhere")


def _is_scaled(node: ir.Node, operand: ir.Value | None) -> bool:
    """Whether ``operand`` is a constant of a layer or of its bias (and not a shape)."""
    return node.op_type not in _LAYOUT and facts.is_constant(operand) and facts.is_float(operand)


def _rebuilt(build: Builder, node: ir.Node, below: ir.Value | None, factor: float) -> ir.Value:
    """A copy of ``node`` on ``below`` (None: the layer itself, on its own input)."""
    inputs: list[ir.Value | None] = []
    for index, operand in enumerate(node.inputs):
        if _is_scaled(node, operand) and operand is not None:
            inputs.append(_scaled(build, operand, factor))
        elif below is not None and _carries(node, index):
            inputs.append(below)
        else:
            inputs.append(operand)
    attrs = {name: facts.attribute(node, name) for name in node.attributes}
    return build.op(node.op_type, *inputs, like=node.outputs[0], **attrs)


def _carries(node: ir.Node, index: int) -> bool:
    if node.op_type == "Add":
        return not facts.is_constant(node.inputs[index])
    return index == 0


def _scaled(build: Builder, value: ir.Value, factor: float) -> ir.Value:
    array = facts.constant(value)
    assert array is not None
    wide = array.astype(np.float64) * factor
    with np.errstate(over="ignore"):
        result = wide.astype(array.dtype)
    if not np.array_equal(np.isfinite(result), np.isfinite(array)):
        raise Refuse("a weight would overflow")
    return build.constant(result)
