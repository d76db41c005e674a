"""The graph as OpenVINO's frontend for ONNX reads it best.

- An import of another domain, which nothing uses, makes it take the file for no ONNX file.
- Of a convolution with a bias it makes a dozen nodes that compute the bias's shape; an Add is what they come to. In
  text, as OpenVINO writes its files, they are half of a small model's graph.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir import model as ir_model

_WITHOUT = "WithoutBiases"
"""What the frontend appends to the name of a convolution whose bias it takes apart."""


def for_frontend(model: ir.Model) -> ir.Model:
    """A copy to be written for OpenVINO; computes the same."""
    copy = ir_model.clone(model)
    for domain in [domain for domain in copy.opset_imports if domain]:
        del copy.opset_imports[domain]
    for graph in ir_model.all_graphs(copy):
        for node in list(graph):
            if node.op_type in ("Conv", "ConvTranspose"):
                _take_bias_apart(graph, node)
    return copy


def _take_bias_apart(graph: ir.Graph, node: ir.Node) -> None:
    bias = facts.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    result = node.outputs[0]
    if bias is None or result.shape is None or not result.name:
        return
    name, rank = result.name, len(result.shape)
    node.resize_inputs(2)
    shaped = bias.reshape(1, -1, *[1] * (rank - 2))
    constant = ir_model.add_constant(graph, f"{name}/bias", ir.tensor(np.ascontiguousarray(shaped)))
    add = ir.node("Add", [result, constant], name=f"{name}/added")
    total = add.outputs[0]
    total.type, total.shape = result.type, result.shape.copy()
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    add.replace_input_with(0, result)
    result.name, total.name = f"{name}/{_WITHOUT}", name
    graph.insert_after(node, add)


__all__ = ["for_frontend"]
