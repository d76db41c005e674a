"""Linear layers with constant weights: MatMul and an Add of the bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts


@dataclass(frozen=True)
class Linear:
    """``x @ weight + bias`` with weight [inputs, outputs] and bias [outputs]; ``add`` and ``bias`` may be absent."""

    x: ir.Value
    matmul: ir.Node
    weight: ir.Value
    add: ir.Node | None = None
    bias: ir.Value | None = None

    @property
    def output(self) -> ir.Value:
        """The value of the layer."""
        return (self.add or self.matmul).outputs[0]


def of_matmul(node: ir.Node | None) -> Linear | None:
    """The layer without bias that ``node`` is."""
    if node is None or node.op_type != "MatMul" or node.domain:
        return None
    x, weight = node.inputs
    if x is None or weight is None or not facts.is_constant(weight) or facts.rank(weight) != 2:
        return None
    rank = facts.rank(x)
    return Linear(x, node, weight) if rank is not None and rank >= 2 else None


def of_add(node: ir.Node | None) -> Linear | None:
    """The layer with bias whose Add is ``node``: the product has no other reader, the bias is a vector."""
    if node is None or node.op_type != "Add" or node.domain:
        return None
    for product, bias in (node.inputs, reversed(node.inputs)):
        layer = of_matmul(None if product is None else product.producer())
        if layer is None or product is None or facts.sole_consumer(product) is not node:
            continue
        if bias is not None and vector(bias, layer) is not None:
            return Linear(layer.x, layer.matmul, layer.weight, node, bias)
    return None


def above(value: ir.Value | None) -> Linear | None:
    """The layer with or without bias that makes ``value``."""
    node = None if value is None else value.producer()
    return of_add(node) or of_matmul(node)


def vector(bias: ir.Value, layer: Linear) -> facts.Array | None:
    """The bias as [outputs] in float64, where it is constant and varies along the last axis at most."""
    shape, size = facts.static_dims(bias), (facts.static_dims(layer.weight) or (0, 0))[1]
    rank = facts.rank(layer.x)
    if shape is None or rank is None or len(shape) > rank or any(dim != 1 for dim in shape[:-1]):
        return None
    if not shape or shape[-1] not in (1, size):
        return None
    array = facts.constant(bias)
    if array is None or array.dtype.kind != "f":
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (size,))
