"""what nothing reads  ==>  nothing

Forms: the mask of Dropout, the indices of MaxPool, the last state of LSTM, statistics of BatchNormalization,
branches that other rewrites cut off, constants that were folded into others, local functions that nothing
calls any more.

Refuses: nothing. Inputs and outputs of the model stay, and so do outputs that an operator must have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.graphs import subgraphs_of
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import is_dead


class DeadCode(Pass):
    """Removes nodes, constants, optional outputs and functions that nothing reads."""

    name: ClassVar[str] = "dead-code"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Once over each graph, last node first, so that what becomes dead is met afterwards."""
        sweep = _Sweep(self.name, log, gate, model.opset_imports.get("", 1))
        before = len(log.applied)
        sweep.graph(model.graph)
        sweep.functions(model)
        return len(log.applied) > before


class _Sweep:
    def __init__(self, name: str, log: RewriteLog, gate: Gate, opset: int) -> None:
        self._name = name
        self._log = log
        self._gate = gate
        self._opset = opset
        self._optional: dict[str, frozenset[int]] = {}

    def _allowed(self, site: str | None) -> bool:
        return self._log.admit(self._gate, self._name, site)

    def graph(self, graph: ir.Graph) -> None:
        """Nodes, then constants."""
        for node in reversed(graph):
            if is_dead(node):
                if self._allowed(node.outputs[0].name if node.outputs else node.name):
                    _detach(graph, node)
                continue
            for inner in subgraphs_of(node):
                self.graph(inner)
            self._outputs(node)
        for name, value in list(graph.initializers.items()):
            unread = not value.uses() and not value.is_graph_output() and not value.is_graph_input()
            if unread and self._allowed(name):
                graph.initializers.pop(name)

    def _outputs(self, node: ir.Node) -> None:
        """Outputs that the schema calls optional and nothing reads."""
        unread = [
            index
            for index, value in enumerate(node.outputs)
            if value.name and not value.uses() and not value.is_graph_output()
        ]
        if not unread or node.domain != "":
            return
        if node.op_type == "BatchNormalization" and facts.attribute(node, "training_mode", 0):
            return  # It has to have all three.
        for index in unread:
            if index in self._optional_outputs(node.op_type) and self._allowed(node.outputs[index].name):
                node.outputs[index].name = ""
        size = len(node.outputs)
        while size > 1 and not node.outputs[size - 1].name:
            size -= 1
        if size < len(node.outputs):
            node.resize_outputs(size)

    def _optional_outputs(self, op_type: str) -> frozenset[int]:
        if op_type not in self._optional:
            import onnx

            try:
                formals: Iterable[Any] = onnx.defs.get_schema(op_type, self._opset).outputs
            except onnx.defs.SchemaError:
                formals = ()
            optional = onnx.defs.OpSchema.FormalParameterOption.Optional
            self._optional[op_type] = frozenset(
                index for index, formal in enumerate(formals) if formal.option == optional
            )
        return self._optional[op_type]

    def functions(self, model: ir.Model) -> None:
        """Local functions that are not called, directly or through others."""
        called: set[ir.OperatorIdentifier] = set()
        pending = [node.op_identifier() for node in model.graph.all_nodes()]
        while pending:
            identifier = pending.pop()
            if identifier in model.functions and identifier not in called:
                called.add(identifier)
                pending += [node.op_identifier() for node in model.functions[identifier].all_nodes()]
        for identifier in list(model.functions):
            if identifier not in called and self._allowed("::".join(filter(None, identifier))):
                del model.functions[identifier]


def _detach(graph: ir.Graph, node: ir.Node) -> None:
    """Remove one node; its producers are met later in the sweep, constants at its end."""
    for subgraph in subgraphs_of(node):
        for inner in subgraph.all_nodes():
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
        subgraph.outputs.clear()
    graph.remove(node, safe=True)
