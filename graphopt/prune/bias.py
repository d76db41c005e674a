"""What is added behind a product: where a mean error is corrected."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir.facts import Array
from graphopt.ir.graphs import add_constant, free_name
from graphopt.prune.structure import Layer
from graphopt.quant.kernels import bias_of


def bias_behind(layer: Layer) -> ir.Value | None:
    """The bias of a layer, or what is added behind a MatMul; None where there is none."""
    if layer.node.op_type != "MatMul":
        return bias_of(layer.node)
    behind = facts.sole_consumer(layer.node.outputs[0])
    return None if behind is None else _addend(behind, layer.node.outputs[0])


def can_shift(layer: Layer) -> bool:
    """Whether something can be added to each output of a layer."""
    bias = bias_behind(layer)
    if bias is None:
        return True
    unused = layer.node.op_type == "Gemm" and not facts.attribute(layer.node, "beta", 1.0)
    # A Gemm's bias may be one number, or have rows.
    wide = layer.node.op_type != "Gemm" or facts.rank(bias) == 1
    return facts.constant(bias) is not None and len(bias.uses()) == 1 and not unused and wide


def can_be_centred(layer: Layer) -> bool:
    """Whether the mean of what is lost goes into a bias. A MatMul is given no Add of its own for that."""
    return can_shift(layer) and (layer.node.op_type != "MatMul" or bias_behind(layer) is not None)


def add_to_bias(graph: ir.Graph, layer: Layer, change: Array, maker: str) -> None:
    """Add to the bias of a layer, or to what is added behind a MatMul; one is made where there is none.

    Args:
        change: One number for each output.
    """
    node = layer.node
    bias = bias_behind(layer)
    content = facts.constant(bias)
    if bias is not None and content is not None:
        beta = facts.attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        made = np.asarray(content.astype(np.float64) + change / beta).astype(content.dtype)
        bias.const_value, bias.shape = ir.tensor(made, name=bias.name), ir.Shape(made.shape)
        return
    name = free_name(f"{node.name or node.op_type}/recovered_bias", graph.initializers)
    array = change.astype(facts.numpy_dtype(layer.weight) or np.float32)
    value = add_constant(graph, name, ir.tensor(array))
    if node.op_type in ("Conv", "Gemm"):
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        # Without a bias it says nothing, whatever it is.
        node.attributes.pop("beta", None)
        return
    out = node.outputs[0]
    add = ir.node("Add", [out, value], name=name.replace("recovered_bias", "recovered"))
    provenance.record(add, maker, ())
    made_value = add.outputs[0]
    made_value.type, made_value.shape = out.type, out.shape
    graph.insert_after(node, add)
    given = out.name
    out.replace_all_uses_with(made_value, replace_graph_outputs=True)
    add.replace_input_with(0, out)
    out.name, made_value.name = f"{name}/product", given


def _addend(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """What an Add adds to a value, where that is a constant along its last axis."""
    if node.op_type != "Add" or node.domain != "":
        return None
    other = next((entry for entry in node.inputs if entry is not value), None)
    dims = facts.dims(other)
    return other if facts.is_constant(other) and dims and len(dims) == 1 and dims[0] != 1 else None


__all__ = ["add_to_bias", "bias_behind", "can_be_centred", "can_shift"]
