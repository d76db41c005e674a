"""weights that are one number throughout  ==>  ConstantOfShape

An initializer of more than 64 KB whose elements are all equal is written as what it is. ONNX Runtime expands it when it
loads, so nothing changes but the size of the file.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Gate, Numerics, RewriteLog, allow_all

_LEAST_BYTES = 64 * 1024
_BITS = {
    ir.DataType.FLOAT16: np.uint16,
    ir.DataType.FLOAT: np.uint32,
    ir.DataType.DOUBLE: np.uint64,
    ir.DataType.INT8: np.uint8,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.INT32: np.uint32,
    ir.DataType.INT64: np.uint64,
}


class SplatConstants(Pass):
    """ConstantOfShape for large constants of one repeated number; EXACT."""

    name = "splat-constants"
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Replace them in the main graph."""
        graph = model.graph
        nodes: list[ir.Node] = []
        for name, value in list(graph.initializers.items()):
            if not facts.is_constant(value) or value.is_graph_output():
                continue
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < _LEAST_BYTES or tensor.dtype not in _BITS:
                continue
            array = tensor.numpy()
            # Compared as bits: 0.0 and -0.0 are equal numbers. The ends differ in nearly every real weight, so it is
            # rarely read whole.
            bits = array.reshape(-1).view(_BITS[tensor.dtype])
            if bits[-1] != bits[0] or not bool((bits == bits[0]).all()):
                continue
            first = array.reshape(-1)[:1]
            if not log.admit(gate, self.name, name):
                continue
            nodes.append(self._splat(graph, value, array.shape, first))
        if nodes:
            graph.insert_before(graph[0], nodes) if len(graph) else graph.extend(nodes)
        return bool(nodes)

    def _splat(self, graph: ir.Graph, value: ir.Value, shape: tuple[int, ...], first: facts.Array) -> ir.Node:
        name = value.name
        assert name is not None
        dims = ir.tensor(np.asarray(shape, dtype=np.int64), name=f"{name}/shape")
        size = ir.Value(
            name=f"{name}/shape",
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([len(shape)]),
            const_value=dims,
        )
        assert value.const_value is not None
        content = ir.tensor(first, dtype=value.const_value.dtype)
        node = ir.node("ConstantOfShape", [size], {"value": content}, name=f"{name}/splat")
        output = node.outputs[0]
        output.type, output.shape = value.type, value.shape
        value.replace_all_uses_with(output)
        del graph.initializers[name]
        graph.register_initializer(size)
        output.name = name
        provenance.record(node, self.name, ())
        return node
